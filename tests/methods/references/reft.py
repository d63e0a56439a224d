"""ReFT row by row, with torch's own product of Householder reflections, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def at_output(
    settings: Mapping[str, Any], own: Mapping[str, Tensor], h: Tensor, mask: Tensor
) -> Tensor:
    """h, edited at the tokens that the settings name."""
    rotation = own["rotation"]
    if settings["orthonormal"]:
        below = rotation.tril(-1)
        rotation = torch.linalg.householder_product(below, 2.0 / (1.0 + below.square().sum(0)))
    source = h @ own["weight"] + own["bias"]
    if settings["kind"] == "loreft":
        source = source - h @ rotation
    edited = h + source @ rotation.T
    if settings["positions"] == "all":
        return edited
    rows = []
    for row, length in enumerate(mask.sum(1).long().tolist()):
        at = {*range(settings["first"]), *range(length - settings["last"], length)}
        chosen = [token in at and token < length for token in range(h.shape[1])]
        rows.append(torch.where(torch.tensor(chosen)[:, None], edited[row], h[row]))
    return torch.stack(rows)
