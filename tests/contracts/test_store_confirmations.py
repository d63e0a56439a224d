"""What every Store must do with confirmations and the test split."""

from collections.abc import Callable
from typing import Any

import pytest

from autopeft.configuration import Configuration, Group
from autopeft.errors import NotFoundError, StudyHeldError
from autopeft.study.confirmation import ConfirmationRun
from autopeft.study.orphans import orphan_text
from autopeft.study.records import (
    Holder,
    Measurement,
    NewStudy,
    NewTrial,
    ObjectiveFrame,
    Origin,
    TrialState,
    TrialUpdate,
)
from storage import SqlStore
from storage.lease import this_process

NAME = "rte"


@pytest.fixture
def token(store: SqlStore) -> int:
    """Of a study with three trials, held by this process."""
    frame = (ObjectiveFrame("accuracy", "max", "linear", 0.5, 1.0),)
    definition = {"study": {"name": NAME, "seed": 7}}
    store.create_study(NewStudy(NAME, definition, "abc", frame, {}, {}, {}))
    token = store.claim(NAME, this_process(), 60.0)
    trials = [
        NewTrial(
            Configuration.of(
                [Group.of("lora", [0], ["query"], rank=rank)],
                training={"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0},
            ),
            Origin.SEARCHER,
            trainable_params=rank,
            head_params=1,
            pack=0,
        )
        for rank in (1, 2, 4)
    ]
    store.add_trials(NAME, token, trials)
    return token


def done(number: int, value: float | None = 0.9, **changes: Any) -> TrialUpdate:
    points = (
        Measurement(60, "loss", "train", 0.1),
        Measurement(60, "accuracy", "validation", value, rung=1.0),
    )
    given: dict[str, Any] = {"state": TrialState.COMPLETED, "optimizer_steps": 60}
    return TrialUpdate(number, points, **(given | changes))


def by_key(store: SqlStore) -> dict[tuple[int, int], ConfirmationRun]:
    return {(run.trial, run.replicate): run for run in store.confirmations(NAME)}


def test_runs_are_added_once_and_come_by_trial_and_replicate(store: SqlStore, token: int) -> None:
    store.add_confirmations(NAME, token, [2, 0], [1, 2])
    store.add_confirmations(NAME, token, [0], [1, 2, 3])
    assert list(by_key(store)) == [(0, 1), (0, 2), (0, 3), (2, 1), (2, 2)]
    assert {run.state for run in store.confirmations(NAME)} == {TrialState.WAITING}
    with pytest.raises(NotFoundError, match="trial"):
        store.add_confirmations(NAME, token, [0, 9], [1])
    with pytest.raises(ValueError, match="replicate 0"):
        store.add_confirmations(NAME, token, [1], [0])
    assert len(by_key(store)) == 5


def test_a_result_is_kept_and_stays(store: SqlStore, token: int) -> None:
    store.add_confirmations(NAME, token, [0, 1], [1, 2])
    store.start_confirmations(NAME, token, 1, [0, 1])
    store.update_confirmations(NAME, token, 1, [done(0, profile={"packs": 1}), done(1, 0.8)])
    store.update_confirmations(NAME, token, 1, [done(0, 0.1)])
    store.add_confirmations(NAME, token, [0], [1])
    runs = by_key(store)
    first = runs[0, 1]
    assert (first.state, dict(first.values)) == (TrialState.COMPLETED, {"accuracy": 0.9})
    assert (first.optimizer_steps, first.attempts, first.profile) == (60, 1, {"packs": 1})
    assert first.finished_at is not None
    assert first.ended
    assert runs[0, 2].state is TrialState.WAITING
    with pytest.raises(ValueError, match="completed"):
        store.start_confirmations(NAME, token, 1, [0])
    assert [trial.optimizer_steps for trial in store.trials(NAME)] == [0, 0, 0]


def test_what_the_machine_failed_waits_again_and_what_diverged_does_not(
    store: SqlStore, token: int
) -> None:
    store.add_confirmations(NAME, token, [0, 1], [1])
    store.start_confirmations(NAME, token, 1, [0, 1])
    failed = {"state": TrialState.FAILED, "message": "why"}
    store.update_confirmations(
        NAME,
        token,
        1,
        [
            done(0, None, cause="out-of-memory", **failed),
            done(1, None, cause="diverged", **failed),
        ],
    )
    assert [run.ended for run in store.confirmations(NAME)] == [False, True]
    store.add_confirmations(NAME, token, [0, 1], [1])
    runs = by_key(store)
    assert (runs[0, 1].state, runs[0, 1].cause) == (TrialState.WAITING, None)
    assert (runs[1, 1].state, runs[1, 1].cause) == (TrialState.FAILED, "diverged")
    assert runs[1, 1].values == {"accuracy": None}


def test_running_runs_are_set_back(store: SqlStore, token: int) -> None:
    store.add_confirmations(NAME, token, [0, 2], [1])
    store.start_confirmations(NAME, token, 1, [0, 2])
    store.update_confirmations(NAME, token, 1, [done(2)])
    assert store.requeue_confirmations(NAME, token) == [0]
    assert by_key(store)[0, 1].state is TrialState.WAITING
    store.start_confirmations(NAME, token, 1, [0])
    assert by_key(store)[0, 1].attempts == 2


def test_an_attempt_of_a_run_says_where_it_ran_and_how_it_ended(
    store: SqlStore, token: int
) -> None:
    runner = {"pid": 7, "host": "n1", "device": "cpu"}
    store.add_confirmations(NAME, token, [0, 2], [1, 2])
    store.start_confirmations(NAME, token, 1, [0, 2], runner=runner)
    store.requeue_confirmations(NAME, token, [0], cause="timeout", message="hung", log="at 3")
    store.start_confirmations(NAME, token, 1, [0])
    store.start_confirmations(NAME, token, 1, [0])
    failed = done(0, None, state=TrialState.FAILED, cause="error", message="why", log="last")
    store.update_confirmations(NAME, token, 1, [failed, done(2)])
    first, cut, last = store.confirmation_attempts(NAME, 0)
    assert [each["attempt"] for each in (first, cut, last)] == [1, 2, 3]
    assert {each["seed"] for each in (first, cut, last)} == {1}
    told = ("runner", "cause", "message", "log")
    assert [first[key] for key in told] == [runner, "timeout", "hung", "at 3"]
    assert [cut[key] for key in told] == [None, None, None, None]
    assert [last[key] for key in told] == [None, "error", "why", "last"]
    assert all(each["finished_at"] >= each["started_at"] for each in (first, cut, last))
    (other,) = store.confirmation_attempts(NAME, 2)
    assert (other["cause"], other["finished_at"] is not None) == (None, True)
    assert store.confirmation_attempts(NAME, 1) == []
    assert store.summary(NAME).confirmation_attempts == {"error": 1, "timeout": 1}


def test_what_comes_too_late_says_of_which_seed(store: SqlStore, token: int) -> None:
    store.add_orphans(NAME, token, [done(2)], replicate=3)
    store.add_orphans(NAME, token, [done(2)])
    seeds = [each["content"]["replicate"] for each in store.orphans(NAME)]
    assert seeds == [3, 0]
    assert orphan_text(store.orphans(NAME)[0]["content"]).startswith("seed 3, step 60")


def test_an_opening_is_recorded_and_the_second_one_is_again(store: SqlStore, token: int) -> None:
    assert store.openings(NAME) == []
    first = store.add_opening(NAME, token, by="ann@host", trials=[2, 0], replicates=[2, 1])
    second = store.add_opening(NAME, token, by="bob@host", trials=[1], replicates=[1])
    assert store.openings(NAME) == [first, second]
    assert (first.index, first.by, first.trials, first.replicates) == (
        0,
        "ann@host",
        (0, 2),
        (1, 2),
    )
    assert (first.again, second.again) == (False, True)
    assert first.covers(0, 2)
    assert not first.covers(1, 1)
    assert first.at.utcoffset() is not None


def test_test_values_need_an_opening_and_are_never_replaced(store: SqlStore, token: int) -> None:
    store.add_confirmations(NAME, token, [0, 1], [1])
    with pytest.raises(ValueError, match="no opening covers"):
        store.keep_test(NAME, token, 1, {0: {"accuracy": 0.7}})
    store.add_opening(NAME, token, by="ann@host", trials=[0], replicates=[1])
    store.keep_test(NAME, token, 1, {0: {"accuracy": 0.7, "loss": float("nan")}})
    store.keep_test(NAME, token, 1, {0: {"accuracy": 0.9}})
    with pytest.raises(ValueError, match="no opening covers"):
        store.keep_test(NAME, token, 1, {1: {"accuracy": 0.7}})
    runs = by_key(store)
    assert runs[0, 1].test == {"accuracy": 0.7, "loss": None}
    assert runs[1, 1].test is None


def test_writes_need_the_lease(store: SqlStore, token: int) -> None:
    store.add_confirmations(NAME, token, [0], [1])
    store.release(NAME, token)
    later = store.claim(NAME, Holder("another-host", 1, "space:1"), 60.0)
    assert later != token
    writes: list[Callable[[], Any]] = [
        lambda: store.add_confirmations(NAME, token, [1], [1]),
        lambda: store.start_confirmations(NAME, token, 1, [0]),
        lambda: store.update_confirmations(NAME, token, 1, [done(0)]),
        lambda: store.requeue_confirmations(NAME, token),
        lambda: store.add_opening(NAME, token, by="a@b", trials=[0], replicates=[1]),
        lambda: store.keep_test(NAME, token, 1, {0: {}}),
    ]
    for write in writes:
        with pytest.raises(StudyHeldError):
            write()
    assert store.openings(NAME) == []
    assert [run.state for run in store.confirmations(NAME)] == [TrialState.WAITING]


def test_they_go_with_their_study(store: SqlStore, token: int) -> None:
    store.add_confirmations(NAME, token, [0], [1])
    store.start_confirmations(NAME, token, 1, [0])
    store.add_opening(NAME, token, by="a@b", trials=[0], replicates=[1])
    store.release(NAME, token)
    before = store.study(NAME)
    store.delete_study(NAME)
    store.create_study(NewStudy(NAME, before.definition, "abc", before.frame, {}, {}, {}))
    assert store.confirmations(NAME) == []
    assert store.openings(NAME) == []
    assert store.confirmation_attempts(NAME, 0) == []
    with pytest.raises(NotFoundError, match="study"):
        store.confirmations("x")
    with pytest.raises(NotFoundError, match="study"):
        store.openings("x")
