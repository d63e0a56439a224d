"""What is tried after a failure: one table, without any training."""

from types import SimpleNamespace
from typing import Any

import pytest

from autopeft.errors import AutopeftError, TrialError
from autopeft.searchers.base import Observation, Problem
from autopeft.searchers.registry import make_searcher
from autopeft.study.records import TrialState
from autopeft.tuner.failures import Failure, FailuresInARow, Job, described, next_jobs


def job(*numbers: int, rows: int | None = None) -> Job:
    trials: Any = [SimpleNamespace(number=number) for number in numbers]
    return Job(trials, rows)


def tried(first: Job, cause: str, guilty: int, *, rows: int = 4) -> list[tuple[list[int], Any]]:
    """What is tried, one after the other, when every pack with a guilty lane fails."""
    seen, jobs = [], [first]
    while jobs:
        one = jobs.pop(0)
        seen.append((one.numbers, one.micro_batch_size))
        if guilty in one.numbers:
            jobs = [*next_jobs(one, Failure(cause, "so it is"), micro_batch_size=rows), *jobs]
    return seen


def test_full_memory_halves_the_pack_and_then_the_rows() -> None:
    assert tried(job(1, 2, 3, 4), "out-of-memory", guilty=3) == [
        ([1, 2, 3, 4], None), ([1, 2], None), ([3, 4], None),
        ([3], None), ([3], 2), ([3], 1), ([4], None),
    ]  # fmt: skip


def test_rows_that_do_not_halve_evenly_end_at_one() -> None:
    seen = tried(job(3), "out-of-memory", guilty=3, rows=5)
    assert [rows for _, rows in seen] == [None, 3, 2, 1]


def test_a_pack_that_killed_its_runner_twice_is_split_until_the_guilty_lane_is_alone() -> None:
    assert [numbers for numbers, _ in tried(job(1, 2, 3), "lost", guilty=2)] == [
        [1, 2, 3], [1, 2, 3], [1], [2, 3], [2, 3], [2], [2], [2], [3],
    ]  # fmt: skip


@pytest.mark.parametrize(("cause", "times"), [("timeout", 2), ("error", 1), ("lost", 3)])
def test_a_lone_trial_is_tried_as_often_as_its_cause_allows(cause: str, times: int) -> None:
    assert len(tried(job(7), cause, guilty=7)) == times


def test_a_failure_says_what_comes_next() -> None:
    pack, failure = job(1, 2), Failure("lost", "it died")
    again = next_jobs(pack, failure, micro_batch_size=4)
    assert described(pack, failure, again) == "trials 1, 2: it died; trying again"
    halves = next_jobs(pack, failure, micro_batch_size=4)
    assert described(pack, failure, halves) == "trials 1, 2: it died; halving the pack"
    lone = job(1)
    fewer = next_jobs(lone, Failure("out-of-memory", "full"), micro_batch_size=8)
    told = "trials 1: full; trying 4 rows at once"
    assert described(lone, Failure("out-of-memory", "full"), fewer) == told


def test_the_cause_and_the_first_line_of_an_error() -> None:
    assert Failure.of(TrialError("a\nb", cause="lost"), "log") == Failure("lost", "a", "log")
    assert Failure.of(RuntimeError(), "") == Failure("error", "RuntimeError", None)


@pytest.mark.parametrize("cause", ["error", "lost", "timeout"])
def test_three_in_a_row_blame_the_machine(cause: str) -> None:
    row = FailuresInARow()
    for _ in range(2):
        row.failed(Failure(cause, "no"))
    row.went_well()
    row.failed(Failure(cause, "no"))
    row.failed(Failure("out-of-memory", "no"))
    row.failed(Failure("infeasible", "no"))
    row.failed(Failure(cause, "no"))
    with pytest.raises(AutopeftError, match="3 trials in a row"):
        row.failed(Failure(cause, "no"))


CAUSES = ("lost", "out-of-memory", "timeout", "diverged", "error", "infeasible")


@pytest.mark.parametrize("cause", CAUSES)
def test_only_divergence_and_errors_count_against_a_configuration(
    make_desk: Any, cause: str
) -> None:
    told: list[Observation] = []

    class Attentive:
        """Notes what it is told."""

        def __init__(self, problem: Problem) -> None:
            self._real = make_searcher("random", problem)

        def ask(self, q: int, pending: Any = ()) -> Any:
            return self._real.ask(q, pending=pending)

        def tell(self, observations: Any) -> None:
            told.extend(observations)
            self._real.tell(observations)

    desk = make_desk(trials=4, searcher=Attentive)
    desk.create()

    def fail(lanes: Any, step: int) -> None:
        if 3 in [number for number, _ in lanes]:
            raise TrialError("so it is", cause=cause)

    if cause == "diverged":
        desk.runner.diverges = lambda c: c.hash in [t.hash for t in desk.store.trials("toy")[3:4]]
    else:
        desk.runner.before_step = fail
    desk.tuner().run()
    trial = desk.store.trial("toy", 3)
    assert (trial.state, trial.cause) == (TrialState.FAILED, cause)
    (observation,) = [each for each in told if each.number == 3]
    assert observation.failed
    assert observation.infeasible == (cause not in ("diverged", "error"))
    assert not any(each.failed or each.infeasible for each in told if each.number != 3)
