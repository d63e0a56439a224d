"""Which units a group trains: by score, by magnitude, by chance, near the diagonal."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from importance_maps import site_scores
from torch import Tensor

from autopeft.backbone.importance import ImportanceMap
from autopeft.configuration import Group
from autopeft.errors import BackboneError
from autopeft.methods.base import Start
from autopeft.methods.lane_operator import Place
from autopeft.methods.sparse import Sparse, dense_change, density_class
from autopeft.methods.units import chosen, units
from autopeft.training.lanes.seeds import Seeds

D_IN, D_OUT = 24, 16
PLACE = Place(1, "value", D_IN, D_OUT, head_dim=4)
SCORES = np.random.default_rng(0).exponential(size=(D_IN, D_OUT))
WEIGHT = torch.randn(D_IN, D_OUT, generator=torch.Generator().manual_seed(1))


def _group(density: float, **given: Any) -> Group:
    settings = {"granularity": "weight", "score": "fisher", "smallest": False} | given
    return Group.of("sparse", [1], ["value"], density=density, **settings)


def _start(
    seeds: Seeds | None = None,
    kept: int | None = None,
    saved: Mapping[str, Tensor] | None = None,
) -> Start:
    seeds = seeds or Seeds(3)
    scores = {(1, "value"): site_scores(SCORES, kept=kept)}
    importance = ImportanceMap({"fisher": scores, "gradient_sum": scores}, 4, 1, "units")
    return Start(
        lambda name: seeds.generator("init", f"sparse.1.value.{name}"),
        lambda layer, role: WEIGHT,
        importance,
        saved or {},
    )


def test_measured_units_are_the_highest_or_the_lowest() -> None:
    sums = {
        "input": SCORES.sum(1),
        "output": SCORES.sum(0),
        "head": SCORES.sum(0).reshape(4, 4).sum(1),
        "block": SCORES.reshape(6, 4, 4, 4).sum((1, 3)).ravel(),
    }
    for granularity, values in sums.items():
        for smallest in (False, True):
            group = _group(0.4, granularity=granularity, block=4, smallest=smallest)
            number = round(0.4 * len(values))
            order = np.argsort(values if smallest else -values)
            assert chosen(group, PLACE, _start()).tolist() == sorted(order[:number]), granularity
    eight = _group(0.5, granularity="block", block=8)
    larger = SCORES.reshape(3, 8, 2, 8).sum((1, 3)).ravel()
    assert chosen(eight, PLACE, _start()).tolist() == sorted(np.argsort(-larger)[:3])
    for density in (0.1, 0.4, 0.9, 1.0):  # of a map that keeps all, single weights likewise
        for smallest in (False, True):
            order = np.argsort(SCORES.ravel() if smallest else -SCORES.ravel())
            found = chosen(_group(density, smallest=smallest), PLACE, _start())
            assert found.tolist() == sorted(order[: round(density * 384)])


def test_magnitude_needs_no_map_and_knows_the_lowest_weights() -> None:
    start = Start(_start().draw, lambda layer, role: WEIGHT)
    size = WEIGHT.abs().numpy().ravel()
    for smallest in (False, True):
        group = _group(0.1, score="magnitude", smallest=smallest)
        order = np.argsort(size if smallest else -size, kind="stable")
        assert chosen(group, PLACE, start).tolist() == sorted(order[:38])


def test_chance_depends_on_study_and_replicate_alone_and_grows_with_density() -> None:
    few, many = _group(0.1, score="random"), _group(0.3, score="random")
    first = chosen(few, PLACE, _start()).tolist()
    assert chosen(few, PLACE, _start(Seeds(3, 0))).tolist() == first
    assert chosen(_group(0.1, score="random", smallest=True), PLACE, _start()).tolist() == first
    assert set(first) < set(chosen(many, PLACE, _start()).tolist())
    assert chosen(few, PLACE, _start(Seeds(3, 1))).tolist() != first
    assert chosen(few, PLACE, _start(Seeds(4))).tolist() != first
    assert len(first) == 38
    assert all(0 <= index < D_IN * D_OUT for index in first)
    assert len(set(first)) == 38


def test_the_diagonal_is_that_of_diablo() -> None:
    """N blocks of d_in/N x d_out/N on the diagonal, of squares as wide as the smaller side's."""
    group = _group(1 / 8, granularity="block", block=2, score="diagonal")
    index = torch.from_numpy(chosen(group, PLACE, _start()))
    ones = {"values": torch.ones(len(index), 2, 2), "index": index}
    found = dense_change(group, PLACE, ones)
    # 24 x 16 in 12 x 8 squares; 1/8 of 96 are 12, one to every row of squares.
    assert torch.all(found.view(12, 2, 16).sum((1, 2)) == 4)
    columns = found.view(12, 2, 8, 2).sum((1, 3)).argmax(1)
    nearest = [
        min(range(8), key=lambda j: abs((2 * i + 1) * 8 - (2 * j + 1) * 12)) for i in range(12)
    ]
    assert columns.tolist() == nearest
    square = Place(0, "query", 16, 16, 4)
    own = chosen(_group(1 / 8, granularity="block", block=2, score="diagonal"), square, _start())
    ones = {"values": torch.ones(8, 2, 2), "index": torch.from_numpy(own)}
    expected = torch.block_diag(*[torch.ones(2, 2)] * 8)
    assert torch.equal(dense_change(group, square, ones), expected)
    wide = Place(0, "up", 16, 48, 4)
    own = chosen(_group(1 / 8, granularity="block", block=2, score="diagonal"), wide, _start())
    ones = {"values": torch.ones(len(own), 2, 2), "index": torch.from_numpy(own)}
    expected = torch.block_diag(*[torch.ones(2, 6)] * 8)
    assert torch.equal(dense_change(group, wide, ones), expected)


def test_saved_indices_are_used_and_nothing_is_chosen_anew() -> None:
    group = _group(0.1, granularity="input", noise=3)
    saved = {"index": torch.tensor([2, 5], dtype=torch.int32), "step": torch.ones(D_OUT)}

    def refuse(*args: Any) -> Any:
        raise AssertionError("something was chosen anew")

    tensors = Sparse().initial(group, PLACE, Start(refuse, refuse, None, saved))
    assert tensors["index"].tolist() == [2, 5]
    assert tensors["index"].dtype == torch.int64
    assert tensors["step"] is saved["step"]


def test_what_cannot_be_chosen_is_refused() -> None:
    unmeasured = Start(_start().draw, lambda layer, role: WEIGHT)
    for group, start, text in (
        (_group(0.1), unmeasured, "no importance map"),
        (_group(0.1, smallest=True), _start(kept=383), "lowest `fisher`.*importance_keep: 1`"),
        (_group(0.1), _start(kept=37), "at most 37.*importance_keep"),
        (_group(0.1, score="snip"), _start(), "snip"),
        (_group(0.1, granularity="block", block=6), _start(), "a multiple of 4"),
        (
            _group(0.1, granularity="block", block=8, score="gradient_sum"),
            _start(),
            "8, scored by gradient_sum",
        ),
        (_group(0.1, granularity="head", score="gradient_sum"), _start(), "of heads"),
        (_group(0.1, granularity="output", score="diagonal"), _start(), "granularity block"),
    ):
        with pytest.raises(BackboneError, match=text):
            chosen(group, PLACE, start)


def test_numbers_are_the_nearest_and_at_least_one() -> None:
    for density, number in ((1e-6, 1), (1.5 / 384, 2), (0.5, 192), (1.0, 384)):
        assert units(_group(density), PLACE).number(density) == number
    for number in range(1, 385):
        assert units(_group(0.1), PLACE).number(number / 384) == number
    assert [density_class(d) for d in (1.0, 0.51, 0.5, 0.25, 0.126)] == [0, 0, -1, -2, -2]
