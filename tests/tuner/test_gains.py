"""Ending by `budget.min_gain`: two asks in a row, what is said, and what a resume does."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from autopeft.configuration import Configuration
from autopeft.searchers.base import Observation, Problem, Proposal
from autopeft.searchers.registry import make_searcher
from autopeft.study.records import StudyState
from autopeft.tuner.gains import best_gain

Make = Callable[..., Any]
NAME, STEPS = "toy", 30


class Promising:
    """A random searcher whose asks promise what it is given, by the number of those before."""

    def __init__(self, problem: Problem, gains: Sequence[float | None]) -> None:
        self._inner, self._gains = make_searcher("random", problem), gains
        self._told = 0

    def tell(self, observations: Sequence[Observation]) -> None:
        self._told += sum(not each.baseline for each in observations)
        self._inner.tell(observations)

    def ask(self, q: int, *, pending: Sequence[Configuration] = ()) -> list[Proposal]:
        gain = self._gains[self._told // 4]
        found = self._inner.ask(q, pending=pending)
        # The best of a batch counts: here the last one's.
        details = [{"gain_per_cost": gain * (i + 1) / q} if gain else {} for i in range(q)]
        return [
            Proposal(each.configuration, each.origin, why)
            for each, why in zip(found, details, strict=True)
        ]


@pytest.fixture
def make_promising(make_desk: Make) -> Make:
    def make(*gains: float | None, name: str = "one", **changes: Any) -> Any:
        fields = {"min_gain": 0.01, "trials": 20} | changes
        desk = make_desk(name, searcher=lambda problem: Promising(problem, gains), **fields)
        desk.create()
        return desk

    return make


@pytest.mark.parametrize(
    ("gains", "asks"),
    [
        ((None, 0.5, 0.009, 0.008, 0.5), 3),  # the second that falls short is not trained
        ((None, 0.009, 0.5, 0.009, 0.011), 5),  # never two in a row
        ((0.009, None, 0.009, 0.009, 0.5), 3),  # a start tells nothing
        ((0.009, float("nan"), 0.009, 0.5, 0.5), 5),
        ((0.01, 0.01, 0.01, 0.01, 0.01), 5),  # just enough
    ],
)
def test_two_asks_in_a_row_have_to_fall_short(
    make_promising: Make, gains: tuple[float | None, ...], asks: int
) -> None:
    desk = make_promising(*gains)
    desk.tuner().run()
    own = [trial for trial in desk.store.trials(NAME) if trial.baseline is None]
    assert len(own) == 4 * asks
    ended = desk.store.study(NAME).facts["ended"]
    assert ended["reason"] == ("trials" if asks == 5 else "min_gain")
    assert ended["left"]["trials"] == 20 - 4 * asks


def test_it_says_so_and_what_was_left(make_promising: Make) -> None:
    desk = make_promising(0.5, 0.009, 0.008, 0.5, 0.5, wall_clock_s=7200.0)
    desk.tuner().run()
    record = desk.store.study(NAME)
    assert record.state is StudyState.FINISHED
    ended = record.facts["ended"]
    assert ended["gains"] == [pytest.approx(0.009), pytest.approx(0.008)]
    assert ended["min_gain"] == 0.01
    assert 6600 < ended["left"]["wall_clock"] < 7200
    assert ended["left"]["gpu_hours"] is None
    for part in ("ended by itself", "0.009, then 0.008", "0.01", "12 trials", "2 hours of wall"):
        assert part in ended["text"]


def test_a_resumed_search_ends_where_it_ended(make_promising: Make) -> None:
    gains = (0.5, 0.009, 0.008, 0.5, 0.5)
    desk = make_promising(*gains)
    desk.tuner().run()
    first = [trial.hash for trial in desk.store.trials(NAME)]
    desk.tuner().run()  # as after a larger budget: the promise is what it was
    assert [trial.hash for trial in desk.store.trials(NAME)] == first
    assert desk.store.study(NAME).facts["ended"]["reason"] == "min_gain"
    desk.changes["min_gain"] = None
    desk.tuner().run()
    assert len(desk.store.trials(NAME)) == 23
    assert desk.store.study(NAME).facts["ended"]["reason"] == "trials"


def test_without_it_nothing_ends_early(make_promising: Make) -> None:
    desk = make_promising(1e-9, 1e-9, 1e-9, 1e-9, 1e-9, min_gain=None)
    desk.tuner().run()
    assert desk.store.study(NAME).facts["ended"] == {
        "reason": "trials",
        "left": {
            "trials": 0,
            "wall_clock": None,
            "gpu_hours": None,
            "optimizer_steps": None,
        },
        "text": "the search ended: its trials are spent",
    }


def test_the_gp_searcher_ends_by_what_it_expects(make_desk: Make) -> None:
    """Four of the start, then a cohort that promises less than nearly everything, then the end."""
    desk = make_desk(search={"searcher": "gp"}, min_gain=0.9, trials=24)
    desk.create()
    desk.tuner().run()
    own = [trial for trial in desk.store.trials(NAME) if trial.baseline is None]
    assert len(own) == 8
    ended = desk.store.study(NAME).facts["ended"]
    assert (ended["reason"], ended["left"]["trials"]) == ("min_gain", 16)
    assert 0 < min(ended["gains"]) <= max(ended["gains"]) < 0.9
    assert ended["gains"][0] == best_gain(trial.details for trial in own[4:])


def test_time_that_runs_out_is_named(make_promising: Make) -> None:
    desk = make_promising(*[0.5] * 5, wall_clock_s=1e-6)
    desk.tuner().run()
    ended = desk.store.study(NAME).facts["ended"]
    assert ended["reason"] == "wall_clock"
    assert ended["text"] == "the search ended: its wall clock is spent; 20 trials were left"


def test_the_best_promise_is_finite_or_none() -> None:
    details: list[dict[str, Any]] = [
        {},
        {"gain_per_cost": None},
        {"gain_per_cost": float("inf")},
        {"gain_per_cost": 0.25},
        {"gain_per_cost": 1},
    ]
    assert best_gain(details) == 1.0
    assert best_gain(details[:3]) is None
