"""Taps: inputs and output gradients of frozen linear maps, as a backward pass meets them.

No weight requires gradients, so autograd would stop at once. A tap is an identity behind each map
that hangs on a scalar which does: the graph begins at the lowest tapped map, and each map's input
is freed as soon as its gradient has been taken.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from autopeft.backbone.anatomy import Site

Collect: TypeAlias = Callable[[Site, Tensor, Tensor], None]
"""Takes a site, what entered it [..., d_in] and the gradient of what left it [..., d_out]."""

Notice: TypeAlias = Callable[[Site, Tensor], None]
"""Takes a site and what enters it [..., d_in], in the forward pass."""


@contextmanager
def tapped(
    model: nn.Module, sites: Sequence[Site], *, collect: Collect, notice: Notice
) -> Iterator[None]:
    """Taps behind the maps of these sites while inside.

    Args:
        model: The base model that holds them.
        sites: On one map, there may be several (fused maps).
        collect: Called in the backward pass, once for every call of a map and each of its sites.
        notice: Called in the forward pass, likewise.
    """
    device = next(model.parameters()).device
    anchor = torch.zeros((), device=device, requires_grad=True)
    by_module: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        by_module[site.module].append(site)
    handles = [
        model.get_submodule(name).register_forward_hook(_Hook(own, anchor, collect, notice))
        for name, own in by_module.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Hook:
    def __init__(
        self, sites: Sequence[Site], anchor: Tensor, collect: Collect, notice: Notice
    ) -> None:
        self._sites, self._anchor = sites, anchor
        self._collect, self._notice = collect, notice

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The output behind a tap."""
        for site in self._sites:
            self._notice(site, args[0].detach())
        tapped_output: Tensor = _Tap.apply(output, self._anchor, args[0], self._taken)  # type: ignore[no-untyped-call]
        return tapped_output

    def _taken(self, x: Tensor, grad: Tensor) -> None:
        for site in self._sites:
            own = grad[..., site.start : site.start + site.out_features] if site.fused else grad
            self._collect(site, x, own)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, x: Tensor, taken: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.taken = taken
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ctx.taken(x, grads[0])
        return grads[0], None, None, None
