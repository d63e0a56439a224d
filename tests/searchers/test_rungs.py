"""The rule that stops trials: what it may never do, whatever was measured."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.searchers.dominance import non_dominated
from autopeft.searchers.evidence import Reading, RungValues, readings
from autopeft.searchers.rungs import KEEP, MIN_STEPS, rung_steps, stopped_at_rung

Points = np.ndarray
NAN = math.nan


def exact(points: Points, noise: float | None = 0.0) -> list[Reading]:
    return [Reading(points[:, 0], noise)]


def stopped(points: Points, noise: float | None = 0.0, **changes: float) -> set[int]:
    numbers = list(range(len(points)))
    return stopped_at_rung(numbers, numbers, points[:, 1:], exact(points, noise), **changes)


def dominated_by(points: Points, one: int, by: float) -> bool:
    """Whether some trial is at least as cheap in every way, and better by more than `by`."""
    return any(
        all(other[1:] >= points[one][1:]) and other[0] - points[one][0] > by for other in points
    )


def grids(n_objectives: int, most: int = 14) -> st.SearchStrategy[Points]:
    value = st.sampled_from([0.0, 0.2, 0.21, 0.5, 0.8, 1.0])
    row = st.lists(value, min_size=n_objectives, max_size=n_objectives)
    rows = st.lists(row, min_size=1, max_size=most)
    return rows.map(lambda found: np.array(found).reshape(-1, n_objectives))


# -- what is never stopped ------------------------------------------------------------------------


@pytest.mark.parametrize("n_objectives", [2, 3])
@settings(max_examples=150, deadline=None)
@given(data=st.data(), noise=st.sampled_from([0.0, 0.01, 0.3]))
def test_only_what_is_beaten_beyond_the_noise_stops(
    n_objectives: int, data: st.DataObject, noise: float
) -> None:
    points = data.draw(grids(n_objectives))
    found = stopped(points, noise, keep=0.1)
    assert not found & set(np.flatnonzero(non_dominated(points)).tolist())
    for number in found:
        assert dominated_by(points, number, math.sqrt(2.0) * noise)


@settings(max_examples=100, deadline=None)
@given(points=grids(2), keep=st.sampled_from([0.2, 1 / 3, 0.5, 1.0]))
def test_the_share_goes_on_and_without_noise_nothing_more_than_it_and_the_front(
    points: Points, keep: float
) -> None:
    left = set(range(len(points))) - stopped(points, keep=keep)
    least = math.ceil(keep * len(points) - 1e-9)
    assert len(left) >= least
    beaten = {n for n in range(len(points)) if dominated_by(points, n, 0.0)}
    assert len(left & beaten) <= least


@settings(deadline=None)
@given(points=grids(2))
def test_only_candidates_stop_and_the_others_count_all_the_same(points: Points) -> None:
    numbers = list(range(len(points)))
    everyone = stopped(points)
    some = stopped_at_rung(numbers[::2], numbers, points[:, 1:], exact(points))
    assert some == everyone & set(numbers[::2])
    assert stopped_at_rung([], numbers, points[:, 1:], exact(points)) == set()


@settings(max_examples=150, deadline=None)
@given(points=grids(3), data=st.data())
def test_numbers_decide_nothing_but_between_equal_trials(
    points: Points, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(points))))
    shuffled = points[list(order)]
    before = sorted(tuple(points[n]) for n in stopped(points, 0.001))
    after = sorted(tuple(shuffled[n]) for n in stopped(shuffled, 0.001))
    assert before == after


def test_the_ends_of_a_layer_go_on_before_its_middle() -> None:
    front = np.array([[0.2, 0.9], [0.5, 0.8], [0.9, 0.3]])
    behind = np.array([[0.10, 0.85], [0.3, 0.7], [0.32, 0.68], [0.34, 0.66], [0.8, 0.2]])
    points = np.concatenate([front, behind])
    found = stopped(points, keep=5 / 8)
    assert found == {4, 5, 6}, "the cheapest or the best of the second layer was stopped"


# -- degenerate measurements ----------------------------------------------------------------------


@pytest.mark.parametrize("n_objectives", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_equal_trials_all_go_on(n: int, n_objectives: int) -> None:
    assert stopped(np.full((n, n_objectives), 0.4)) == set()


def test_no_trial_and_no_noise_stop_nothing() -> None:
    assert stopped_at_rung([], [], np.zeros((0, 1)), [Reading(np.zeros(0), 0.0)]) == set()
    assert stopped_at_rung([3], [], np.zeros((0, 1)), [Reading(np.zeros(0), 0.0)]) == set()
    points = np.random.default_rng(0).random((30, 2))
    assert stopped(points, None) == set()
    assert len(stopped(points, 0.0)) > 10


def test_a_constant_cost_leaves_the_best_qualities() -> None:
    points = np.column_stack([np.linspace(0.0, 1.0, 10), np.full(10, 0.5)])
    assert stopped(points) == set(range(10 - math.ceil(10 * KEEP)))


def test_a_second_view_stops_only_what_the_first_puts_behind() -> None:
    quality, cost = np.array([0.9, 0.5, 0.5, 0.6]), np.array([0.1, 0.9, 0.8, 0.7])
    blind = Reading(quality, 10.0)
    against_the_front = Reading(np.array([0.0, 1.0, 0.5, 0.0]), 0.0)
    views = [blind, against_the_front]
    found = stopped_at_rung(range(4), range(4), cost[:, None], views, keep=0.1)
    assert found == set(), "trial 0 and 3 lead their costs, 2 equals a cheaper one"
    worse = [blind, Reading(np.array([0.0, 1.0, 0.5, NAN]), 0.0)]
    quality[2] = 0.4
    assert stopped_at_rung(range(4), range(4), cost[:, None], worse, keep=0.1) == {2}


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    missing=st.sampled_from([0.0, 0.3, 1.0]),
    n_examples=st.sampled_from([None, 1, 50, 1000]),
    costs=st.integers(1, 2),
)
def test_whatever_is_measured_a_decision_is_taken_twice_alike(
    n: int, seed: int, missing: float, n_examples: int | None, costs: int
) -> None:
    rng = np.random.default_rng(seed)

    def losses() -> Points:
        values = rng.choice([0.0, 0.5, 1.7, 1e6], n) * rng.choice([1.0, rng.random()], n)
        return np.where(rng.random(n) < missing, NAN, values)

    shares = rng.choice([0.0, 0.5, 1.0, rng.random()], n)
    beside = np.where(rng.random(n) < missing, NAN, shares + rng.normal(0, 0.1, n))
    values = RungValues(shares, losses(), beside, losses(), n_examples)
    points = np.column_stack([shares, rng.choice([0.0, 0.5, 1.0], (n, costs))])
    numbers = list(range(n))
    found = stopped_at_rung(numbers, numbers, points[:, 1:], readings(values))
    assert found == stopped_at_rung(numbers, numbers, points[:, 1:], readings(values))
    assert len(found) <= n - math.ceil(KEEP * n - 1e-9)
    top = max(range(n), key=lambda i: (readings(values)[0].values[i], *points[i, 1:]))
    assert top not in found


def test_five_hundred_trials_of_three_objectives() -> None:
    rng = np.random.default_rng(1)
    points = rng.random((500, 3))
    found = stopped(points, 0.02)
    assert 150 < len(found) <= 300
    assert not found & set(np.flatnonzero(non_dominated(points)).tolist())


# -- where rungs lie ------------------------------------------------------------------------------


def test_rungs_end_where_they_were_asked_to() -> None:
    steps = rung_steps([0.05, 0.1, 0.3, 1.0], total_steps=1001, warmup_steps=0)
    assert steps == {0.05: 51, 0.1: 101, 0.3: 301, 1.0: 1001}


@pytest.mark.parametrize(
    ("total", "warmup", "expected"),
    [
        (1000, 60, {0.061: 61, 0.1: 100, 0.3: 300, 1.0: 1000}),  # within the warm-up: after it
        (225, 13, {0.1: 23, 0.3: 68, 1.0: 225}),  # 20 and 23 steps would tell the same
        (100, 6, {0.2: 20, 0.3: 30, 1.0: 100}),
        (60, 4, {0.3333: 20, 1.0: 60}),  # none is long enough: there is one all the same
        (40, 0, {0.5: 20, 1.0: 40}),
        (39, 0, {1.0: 39}),  # nothing worth an evaluation would be saved
        (5, 0, {1.0: 5}),
    ],
)
def test_rungs_that_are_too_short_make_room_for_one(
    total: int, warmup: int, expected: dict[float, int]
) -> None:
    assert rung_steps([0.05, 0.1, 0.3, 1.0], total_steps=total, warmup_steps=warmup) == expected


@settings(deadline=None)
@given(
    shares=st.lists(st.floats(0.001, 0.999), max_size=6, unique=True).map(sorted),
    total=st.integers(1, 3000),
    warmup=st.floats(0.0, 0.5),
)
def test_rungs_rise_and_the_last_is_the_budget(
    shares: Sequence[float], total: int, warmup: float
) -> None:
    steps = rung_steps([*shares, 1.0], total_steps=total, warmup_steps=int(warmup * total))
    assert list(steps) == sorted(set(steps))
    assert list(steps.values()) == sorted(steps.values())
    assert steps[1.0] == total
    assert all(step >= MIN_STEPS for share, step in steps.items() if share < 1.0)
    if shares and shares[0] * total < MIN_STEPS and total >= 2 * MIN_STEPS and warmup == 0.0:
        assert len(steps) > 1, "a short training lost all its early rungs"
