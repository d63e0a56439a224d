"""LoRETTA's adapters with their trains contracted, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from reference_files import reference
from torch import Tensor
from torch.nn import functional

ACT = {"relu": torch.relu, "gelu": functional.gelu, "tanh": torch.tanh, "silu": functional.silu}


def output(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """y + act(y D + b_D) U + b_U."""
    down, up = (_matrix(settings, tensors, name) for name in ("down", "up"))
    inner = ACT[settings["activation"]](y @ down + tensors["down_bias"])
    return y + inner @ up + tensors["up_bias"]


def _matrix(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """D [d, m] or U [m, d]."""
    cores = [tensors[key] for key in sorted(tensors) if key.startswith(f"{name}_")]
    cores = [core for core in cores if core.dim() == 3]
    return reference("loretta_rep").matrix(cores, settings["bottleneck"], last=name == "down")
