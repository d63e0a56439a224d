"""The norms of a layer: which there are, and what they do before their own scale and shift.

Of two norms of the residual width in a layer, the first is the attention's and the second the
FFN's, whether they stand before their sub-layer or behind it; of four (Gemma 3), each sub-layer
has one before and one behind it. Norms of another kind or number are no sites: nothing is guessed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.backbone.anatomy import NORMS, Norm

_NAMES = {2: ("attention_norm", "ffn_norm"), 4: NORMS}
_HEADS = ("q_norm", "k_norm", "query_norm", "key_norm", "q_layernorm", "k_layernorm")
_ROOT_MEAN_SQUARE = ("rmsnorm", "t5layernorm")


def find_norms(layer: int, module: nn.Module, name: str, hidden_size: int) -> dict[str, Norm]:
    """The norms of one layer by role; reads names and shapes only.

    Args:
        layer: Its index.
        module: The layer.
        name: Its name within the base model.
        hidden_size: Width of the residual stream.
    """
    found = [
        (inner, child)
        for inner, child in module.named_modules()
        if "norm" in f"{inner.rpartition('.')[2]} {type(child).__name__}".lower()
        and inner.rpartition(".")[2] not in _HEADS
        and (isinstance(child, nn.Identity) or _width(child) == hidden_size)
    ]
    norms = {}
    for role, (inner, child) in zip(_NAMES.get(len(found), ()), found, strict=False):
        if (centred := _is_centred(child)) is not None:
            bias = getattr(child, "bias", None) is not None
            norms[role] = Norm(layer, role, f"{name}.{inner}", hidden_size, centred, bias)
    return norms


def _width(module: nn.Module) -> int:
    weight: Any = getattr(module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 1 else 0


def _is_centred(module: nn.Module) -> bool | None:
    """Whether the mean is taken off; None for what is no norm that is known."""
    if isinstance(module, nn.LayerNorm):
        return True
    kind = type(module).__name__.lower()
    return False if kind.endswith(_ROOT_MEAN_SQUARE) else None


class FrozenNorm:
    """One norm without its scale and shift.

    Args:
        module: The norm's module.
        centred: Whether it takes the mean off.
    """

    def __init__(self, module: nn.Module, *, centred: bool) -> None:
        kept: Any = module
        epsilon = getattr(kept, "eps", None)
        self._epsilon = float(kept.variance_epsilon if epsilon is None else epsilon)
        self._centred = centred

    def normalised(self, x: Tensor) -> Tensor:
        """x over its standard deviation, or its root mean square, along the last axis."""
        if self._centred:
            return functional.layer_norm(x, x.shape[-1:], eps=self._epsilon)
        wide = x.float()  # as transformers' RMSNorms do, whatever comes in
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._epsilon)).to(
            x.dtype
        )
