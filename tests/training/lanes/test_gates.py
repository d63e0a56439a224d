"""Gates: the trunk runs once, and a backbone that works between its layers is refused."""

import pytest
import torch
from torch import Tensor, nn

from autopeft.errors import BackboneError
from autopeft.methods.lane_operator import Call
from autopeft.training.lanes.gates import Gates, Route
from autopeft.training.lanes.stream import Stream


def no_draws(name: str, shape: object) -> Tensor:
    raise AssertionError(name)


class Doubling(nn.Module):
    """A layer that counts its rows; lanes are told apart by what they add outside."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.with_grad: list[bool] = []

    def forward(self, hidden_states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        self.rows.append(len(hidden_states))
        self.with_grad.append(torch.is_grad_enabled())
        assert len(mask) == len(hidden_states)
        return hidden_states * 2 * mask[:, :, None], mask


def _run(layers: list[Doubling], branches: list[int], *, between: bool = False) -> Tensor:
    stream = Stream(rows=2, call=Call(training=True, uniform=no_draws))
    gates = Gates(layers, stream)
    gates.install()
    gates.prepare(Route.of(len(layers), branches), {})
    try:
        hidden, mask = torch.ones(2, 3, 4), torch.ones(2, 3)
        for index, layer in enumerate(layers):
            hidden, mask = layer(hidden, mask)
            assert len(mask) == 2
            if between and index == 1:
                hidden = hidden + 1
        return hidden
    finally:
        gates.remove()


def test_lanes_join_at_their_own_layer() -> None:
    layers = [Doubling() for _ in range(4)]
    out = _run(layers, [1, 3, 3])
    assert out.shape == (6, 3, 4)
    assert torch.equal(out, torch.full_like(out, 16.0))
    assert [layer.rows for layer in layers] == [[2], [2, 2], [2, 2], [6]]
    assert layers[1].with_grad == [False, True]
    assert all("forward" not in vars(layer) for layer in layers)


def test_a_lane_without_a_layer_of_its_own_joins_at_the_end() -> None:
    layers = [Doubling() for _ in range(2)]
    out = _run(layers, [0, 2])
    assert out.shape == (4, 3, 4)
    assert torch.equal(out, torch.full_like(out, 4.0))


def test_work_between_layers_is_refused() -> None:
    with pytest.raises(BackboneError, match="between its layers 1 and 2"):
        _run([Doubling() for _ in range(3)], [1], between=True)
