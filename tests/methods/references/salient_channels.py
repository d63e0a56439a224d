"""Salient channel tuning as another last map of its sub-layer, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W M and b M + c, with M = I + P A P^T and P the chosen channels' unit vectors.

    Of x[S] += A x[S] + c, x the sub-layer's output (released code, zhaohengyuan1/SCT).
    """
    channels = tensors["index"].tolist()
    assert channels == sorted(set(channels))
    assert len(channels) == settings["channels"]
    one = torch.eye(weight.shape[1], dtype=torch.float64)
    chosen = one[:, channels]
    mixing = one + chosen @ tensors["linear"] @ chosen.T
    shift = chosen @ tensors["bias"]
    return weight @ mixing, shift if bias is None else bias @ mixing + shift
