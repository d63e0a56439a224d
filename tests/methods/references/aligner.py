"""Aligner's second attention, head by head, in float64."""

from collections.abc import Mapping

import torch
from dense_models import frozen_maps
from torch import Tensor

from autopeft.backbone.loading import Backbone


def heads(backbone: Backbone, layer: int, own: Mapping[str, Tensor], query: Tensor) -> Tensor:
    """What each head gets of the tokens, times its gate; queries come scaled, [B, H, T, w]."""
    maps, width = frozen_maps(backbone), query.shape[-1]
    mapped = {}
    for role in ("key", "value"):
        weight, bias = maps[layer, role]
        made = own["tokens"] @ weight
        mapped[role] = made if bias is None else made + bias
    groups = query.shape[1] // (mapped["key"].shape[1] // width)
    added = []
    for head in range(query.shape[1]):
        part = slice(head // groups * width, (head // groups + 1) * width)
        weights = (query[:, head] @ mapped["key"][:, part].T).softmax(-1)
        added.append(own["gate"][head] * weights @ mapped["value"][:, part])
    return torch.stack(added, dim=1)
