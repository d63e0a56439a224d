"""Training whose matrix products are not computed: its allocations, in a fraction of its time."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_FORWARD = _ATEN._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default
_PRODUCTS = {
    _ATEN.mm.default: lambda a, b: (a.shape[0], b.shape[1]),
    _ATEN.bmm.default: lambda a, b: (*a.shape[:2], b.shape[2]),
    _ATEN.addmm.default: lambda _, a, b: (a.shape[0], b.shape[1]),
    _ATEN.baddbmm.default: lambda _, a, b: (*a.shape[:2], b.shape[2]),
}


class Unmultiplied(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, products and attention on a CPU give zeros in tensors of their own.

    All else is computed. What the products' kernels take and give back within themselves is
    missed.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _PRODUCTS:
            return torch.zeros(_PRODUCTS[func](*args[:3]), dtype=args[-1].dtype)
        if func is _FORWARD:
            query, value = args[0], args[2]
            rows, heads, tokens, _ = query.shape
            out = query.new_zeros(rows, tokens, heads, value.shape[3]).transpose(1, 2)
            return out, torch.zeros(rows, tokens, heads).transpose(1, 2)
        if func is _BACKWARD:
            return tuple(torch.zeros_like(each) for each in args[1:4])
        return func(*args, **(kwargs or {}))
