"""Parts of tensors that several readers have: autograd's own gradients, in one place."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from autopeft.training.lanes.members import Members, shared

LANES, ROWS, TOKENS, WIDTH = 5, 2, 3, 4
WHOLE = (LANES, ROWS, TOKENS, WIDTH)
CPU = torch.device("cpu")

some_lanes = st.lists(st.integers(0, LANES - 1), min_size=1, unique=True).map(sorted)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss_of(whole: Tensor, parts: Sequence[Tensor], weight: Tensor, residual: Tensor) -> Tensor:
    """A map reads the whole, operators their parts; a residual takes the same gradient on."""
    total = whole @ weight + residual
    return total.square().sum() + sum(
        ((n + 2.0) * part).sin().sum() for n, part in enumerate(parts)
    )


@settings(max_examples=60, deadline=None)
@given(
    readers=st.lists(some_lanes, max_size=4),
    flat=st.booleans(),
    by_a_map=st.booleans(),
    unread=st.integers(0, 4),
)
def test_gradients_are_autograds_own(
    readers: list[list[int]], flat: bool, by_a_map: bool, unread: int
) -> None:
    given_shape = (LANES * ROWS * TOKENS, WIDTH) if flat else (LANES * ROWS, TOKENS, WIDTH)
    weight, start = drawn(WIDTH, WIDTH, seed=1), drawn(*given_shape, seed=0)
    members = [Members.of(each, CPU) for each in readers]
    found = []
    for own in (True, False):
        x = start.clone().requires_grad_()
        residual = drawn(*given_shape, seed=2).requires_grad_()
        source = x * 1.5  # no leaf, as hidden states are none
        if own:
            whole, parts = shared(source, WHOLE, members, by_a_map=by_a_map)
        else:
            whole, parts = source, [source.view(WHOLE)[list(each)] for each in readers]
        parts = [part for n, part in enumerate(parts) if n != unread]
        loss_of(whole, parts, weight, residual).backward()
        found.append((x.grad, residual.grad, [part.detach() for part in parts]))
    (grad, of_residual, parts), (expected, of_its_residual, expected_parts) = found
    torch.testing.assert_close(grad, expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(of_residual, of_its_residual)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(parts, expected_parts, strict=True))


def test_a_gradient_that_others_hold_is_left_alone() -> None:
    """Behind a residual sum, both ways are handed one tensor."""
    x, residual = (drawn(LANES * ROWS, TOKENS, WIDTH, seed=s).requires_grad_() for s in (0, 1))
    whole, (part,) = shared(x * 1.0, WHOLE, [Members.of([1, 3], CPU)], by_a_map=False)
    ((whole + residual).sum() + part.sum()).backward()
    assert torch.equal(residual.grad, torch.ones_like(residual))  # type: ignore[arg-type]
    expected = torch.ones(WHOLE, dtype=torch.float64)
    expected[[1, 3]] += 1.0
    assert torch.equal(x.grad.view(WHOLE), expected)  # type: ignore[union-attr]


class _Seen(TorchDispatchMode):
    """Elements that every operation which fills or adds has written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket).removeprefix("aten.")
        if name.startswith(("add", "zero", "new_zeros", "fill", "index_add", "clone", "copy")):
            self.written.append((name, out.numel()))
        return out


@pytest.mark.parametrize("by_a_map", [True, False])
def test_no_pass_over_all_lanes_is_made_for_a_part(by_a_map: bool) -> None:
    members = [Members.of([n], CPU) for n in range(LANES)]
    source = drawn(LANES * ROWS, TOKENS, WIDTH, seed=0).requires_grad_()
    whole, parts = shared(source, WHOLE, members, by_a_map=by_a_map)
    read = [whole @ drawn(WIDTH, WIDTH, seed=1), *parts]
    seen = _Seen()
    with seen:
        torch.autograd.backward(read, [torch.ones_like(each) for each in read])
    large = [name for name, size in seen.written if size >= source.numel()]
    assert large == ([] if by_a_map else ["clone"])


def test_without_gradients_parts_are_views_and_copies() -> None:
    x = drawn(LANES * ROWS, TOKENS, WIDTH, seed=0)
    readers = [Members.of(each, CPU) for each in ([1, 2], [0, 4])]
    whole, (together, apart) = shared(x, WHOLE, readers, by_a_map=True)
    assert whole is x
    assert together.data_ptr() == x.view(WHOLE)[1:3].data_ptr()
    assert torch.equal(apart, x.view(WHOLE)[[0, 4]])
