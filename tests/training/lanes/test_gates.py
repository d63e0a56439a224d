"""Gates: the trunk runs once, and a backbone that works between its layers is refused."""

import pytest
import torch
from torch import Tensor, nn

from autopeft.backbone.handed_on import HandedOn
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
    gates.install(HandedOn())
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


class Handing(nn.Module):
    """A layer that adds what the first one has made, and hands it on; alone it would take 0."""

    def __init__(self, made: Tensor | None = None) -> None:
        super().__init__()
        self.made, self.calls = made, 0

    def forward(self, hidden_states: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor, None]:
        self.calls += 1
        read = self.made if read is None else read
        read = torch.zeros(()) if read is None else read
        return hidden_states + read, read, None


def _handed(made: Tensor, known: dict[int, Tensor], *, rows: int = 2) -> tuple[Tensor, list[int]]:
    """What two lanes that branch off at layer 2 end with, and how often each layer has run."""
    layers = [Handing(made), Handing(), Handing()]
    gates = Gates(layers, Stream(rows=rows, call=Call(training=True, uniform=no_draws)))
    gates.install(HandedOn((True, False)))
    gates.prepare(Route.of(3, [2, 2], known=known), known)
    try:
        hidden, read = torch.ones(rows, 3, 4), None
        for layer in layers:
            hidden, read, nothing = layer(hidden, read)
            assert nothing is None
        return hidden, [layer.calls for layer in layers]
    finally:
        gates.remove()


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 3, 4)])
def test_layers_that_are_left_out_hand_on_what_the_first_one_made(shape: tuple[int, ...]) -> None:
    """One for all rows, or one a row."""
    made = torch.arange(float(torch.tensor(shape).prod())).view(shape)
    every, calls = _handed(made, {})
    assert calls == [1, 1, 1]
    assert torch.equal(every, (1 + 3 * made).expand(2, 3, 4).repeat(2, 1, 1))
    found, calls = _handed(made, {2: 1 + 2 * made.expand(2, 3, 4), -1: made})
    assert calls == [0, 0, 1]
    assert torch.equal(found, every)
    one, _ = _handed(made[:1], {2: 1 + 2 * made[:1], -1: made[:1]}, rows=1)
    assert torch.equal(one, (1 + 3 * made[:1]).repeat(2, 1, 1))


def test_layers_are_not_left_out_without_what_they_hand_on() -> None:
    with pytest.raises(BackboneError, match="hand on more than hidden states"):
        _handed(torch.ones(1, 3, 4), {2: torch.ones(2, 3, 4)})
