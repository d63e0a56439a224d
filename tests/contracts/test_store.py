"""What every Store must do, on every database of `conftest.py`."""

import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from autopeft.configuration import Configuration, Group
from autopeft.errors import NotFoundError, StorageError, StudyHeldError, StudyMismatchError
from autopeft.study.records import (
    Holder,
    ImportanceRecord,
    Measurement,
    NewStudy,
    NewTrial,
    ObjectiveFrame,
    Origin,
    StudyState,
    TrialState,
    TrialUpdate,
)
from storage import SqlStore, importances
from storage.lease import this_process

ELSEWHERE = Holder(host="another-host", pid=4711, boot="space:1")
TTL_S = 60.0

STUDY = NewStudy(
    name="rte",
    definition={"study": {"name": "rte", "seed": 7}, "budget": {"trials": 10}},
    space_hash="abc",
    frame=(
        ObjectiveFrame("accuracy", "max", "linear", 0.5, 1.0),
        ObjectiveFrame("trainable_params", "min", "log10", 2e6, 1e3),
    ),
    fingerprints={"data": "d", "backbone": "b"},
    versions={"autopeft": "0.1.0"},
    facts={"labels": ["no", "yes"], "steps": 120},
)


def trial(rank: int = 8, **changes: Any) -> NewTrial:
    configuration = Configuration.of(
        [
            Group.of("lora", [0, 1], ["query", "value"], rank=rank, dropout=0.05),
            Group.of("prefix", [3], length=4, reparametrise=True),
        ],
        training={"learning_rate": 2e-4, "weight_decay": 0.0, "warmup_ratio": 0.06},
    )
    new = NewTrial(configuration, Origin.SEARCHER, trainable_params=4096, head_params=770, pack=0)
    return replace(new, **changes)


@pytest.fixture
def token(store: SqlStore) -> int:
    """The token of the study `rte`, held by this process."""
    store.create_study(STUDY)
    return store.claim("rte", this_process(), TTL_S)


def measure(store: SqlStore, token: int, number: int, value: float | None, **given: Any) -> None:
    kept: dict[str, Any] = {
        "measurements": [Measurement(10, "accuracy", "validation", value, 1.0)],
        "objectives": {"accuracy": value},
        "rung": 1.0,
        "optimizer_steps": 10,
    }
    store.record("rte", token, number, **(kept | given))


# -- studies --------------------------------------------------------------------------------------


def test_a_study_comes_back_as_it_was_created(store: SqlStore) -> None:
    before = datetime.now(UTC)
    created = store.create_study(STUDY)
    assert store.study("rte") == created
    assert store.studies() == [created]
    assert created.state is StudyState.CREATED
    assert created.definition == STUDY.definition
    assert created.frame == STUDY.frame
    assert created.facts == STUDY.facts
    assert created.fingerprints == STUDY.fingerprints
    assert created.versions == STUDY.versions
    assert created.spent == {"train_seconds": 0.0, "suggest_seconds": 0.0, "wall_seconds": 0.0}
    assert created.stop_requested is False
    assert before <= created.created_at <= datetime.now(UTC)
    assert created.created_at.utcoffset() == timedelta(0)


def test_studies_come_oldest_first(store: SqlStore) -> None:
    for name in ("b", "c", "a"):
        store.create_study(replace(STUDY, name=name))
    assert [study.name for study in store.studies()] == ["b", "c", "a"]


def test_names_come_with_the_one_that_changed_last_first(store: SqlStore) -> None:
    assert store.names() == []
    for name in ("b", "c", "a"):
        store.create_study(replace(STUDY, name=name))
    assert store.names() == ["a", "c", "b"]
    token = store.claim("c", this_process(), TTL_S)
    store.add_trials("c", token, [trial()])
    assert store.names() == ["c", "a", "b"]


def test_a_name_is_given_once(store: SqlStore) -> None:
    store.create_study(STUDY)
    with pytest.raises(StudyMismatchError, match="rte"):
        store.create_study(replace(STUDY, space_hash="other"))
    assert store.study("rte").space_hash == "abc"


def test_an_unknown_study_lists_those_there_are_nearest_first(store: SqlStore) -> None:
    for name in ("alpha", "rte-minilm", "zeta"):
        store.create_study(replace(STUDY, name=name))
    with pytest.raises(NotFoundError) as raised:
        store.study("rte-minlm")
    assert raised.value.faults[0].allowed.split(", ")[0] == "rte-minilm"
    assert set(raised.value.faults[0].allowed.split(", ")) == {"alpha", "rte-minilm", "zeta"}


def test_every_call_names_an_unknown_study(store: SqlStore) -> None:
    calls = [
        lambda: store.study("x"),
        lambda: store.trials("x"),
        lambda: store.trial("x", 0),
        lambda: store.curve("x", 0),
        lambda: store.attempts("x", 0),
        lambda: store.snapshots("x"),
        lambda: store.last_snapshot("x"),
        lambda: store.counts("x"),
        lambda: store.summary("x"),
        lambda: store.orphans("x"),
        lambda: store.add_orphans("x", 1, []),
        lambda: store.holder("x"),
        lambda: store.update_study("x", 1),
        lambda: store.request_stop("x"),
        lambda: store.delete_study("x"),
        lambda: store.claim("x", ELSEWHERE, TTL_S),
        lambda: store.renew("x", 1, TTL_S),
        lambda: store.release("x", 1),
        lambda: store.add_trials("x", 1, [trial()]),
        lambda: store.start_trials("x", 1, [0]),
        lambda: store.update_trials("x", 1, []),
        lambda: store.requeue_trials("x", 1),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match="study"):
            call()


def test_an_update_changes_what_is_given_and_adds_up_what_was_spent(
    store: SqlStore, token: int
) -> None:
    created = store.study("rte")
    store.update_study("rte", token, state=StudyState.RUNNING)
    store.update_study("rte", token, spent={"train_seconds": 1.5, "wall_seconds": 2.0})
    store.update_study("rte", token, spent={"train_seconds": 1.0})
    store.update_study("rte", token, definition={"budget": {"trials": 20}})
    after = store.study("rte")
    assert after.state is StudyState.RUNNING
    assert after.spent == {"train_seconds": 2.5, "suggest_seconds": 0.0, "wall_seconds": 2.0}
    assert after.definition == {"budget": {"trials": 20}}
    assert after.facts == created.facts
    store.update_study("rte", token, facts={"steps": 60, "memory_limit": {"lanes": 2}})
    facts = store.study("rte").facts
    assert facts == {"labels": ["no", "yes"], "steps": 60, "memory_limit": {"lanes": 2}}
    assert after.updated_at > created.updated_at
    assert created.state is StudyState.CREATED


def test_a_stop_is_asked_for_without_a_lease_and_taken_back(store: SqlStore, token: int) -> None:
    store.request_stop("rte")
    assert store.study("rte").stop_requested is True
    store.request_stop("rte", False)
    assert store.study("rte").stop_requested is False


def test_a_deleted_study_takes_with_it_what_is_its_own_and_no_more(
    store: SqlStore, token: int
) -> None:
    store.create_study(replace(STUDY, name="other"))
    theirs = store.claim("other", this_process(), TTL_S)
    for name, mine in (("rte", token), ("other", theirs)):
        store.add_trials(name, mine, [trial()])
        store.start_trials(name, mine, [0])
        store.record(
            name,
            mine,
            0,
            measurements=[Measurement(1, "loss", "train", 0.5)],
            objectives={},
            rung=None,
            optimizer_steps=1,
        )
        store.add_snapshot(name, mine, trials=1, front=[0], hypervolume=0.1)
    store.release("rte", token)
    store.delete_study("rte")
    assert [study.name for study in store.studies()] == ["other"]
    assert len(store.curve("other", 0)) == len(store.snapshots("other")) == 1

    store.create_study(STUDY)
    again = store.claim("rte", this_process(), TTL_S)
    store.add_trials("rte", again, [trial()])
    assert store.curve("rte", 0) == []
    assert store.attempts("rte", 0) == []
    assert store.snapshots("rte") == []


def test_a_held_study_is_not_deleted(store: SqlStore, token: int) -> None:
    with pytest.raises(StudyHeldError, match=str(os.getpid())):
        store.delete_study("rte")
    assert store.study("rte").name == "rte"


# -- the lease ------------------------------------------------------------------------------------


def test_a_held_lease_is_refused_with_its_holder_and_its_end(store: SqlStore) -> None:
    store.create_study(STUDY)
    store.claim("rte", ELSEWHERE, TTL_S)
    assert store.holder("rte") == ELSEWHERE
    with pytest.raises(StudyHeldError, match=r"process 4711 on another-host.* runs out at .* UTC"):
        store.claim("rte", this_process(), TTL_S)


def test_tokens_only_grow(store: SqlStore) -> None:
    store.create_study(STUDY)
    first = store.claim("rte", ELSEWHERE, TTL_S)
    store.release("rte", first)
    assert store.holder("rte") is None
    assert store.claim("rte", ELSEWHERE, TTL_S) > first


def test_a_lease_that_ran_out_is_taken_from_a_living_holder(store: SqlStore) -> None:
    store.create_study(STUDY)
    first = store.claim("rte", this_process(), 0.05)
    time.sleep(0.1)
    assert store.holder("rte") is None
    second = store.claim("rte", ELSEWHERE, TTL_S)
    assert second > first
    assert store.holder("rte") == ELSEWHERE


def test_renewing_extends_the_lease_even_after_its_end_while_nobody_took_it(
    store: SqlStore,
) -> None:
    store.create_study(STUDY)
    token = store.claim("rte", ELSEWHERE, 0.05)
    time.sleep(0.1)
    store.renew("rte", token, TTL_S)
    with pytest.raises(StudyHeldError):
        store.claim("rte", this_process(), TTL_S)


def test_a_release_with_an_old_token_is_ignored(store: SqlStore) -> None:
    store.create_study(STUDY)
    old = store.claim("rte", ELSEWHERE, TTL_S)
    store.release("rte", old)
    new = store.claim("rte", ELSEWHERE, TTL_S)
    store.release("rte", old)
    store.renew("rte", new, TTL_S)
    assert store.holder("rte") == ELSEWHERE


@pytest.mark.parametrize("way", ["passed on", "given back"])
def test_a_lost_lease_refuses_every_write_and_changes_nothing(
    store: SqlStore, token: int, way: str
) -> None:
    store.add_trials("rte", token, [trial(), trial(rank=4)])
    store.start_trials("rte", token, [0])
    store.release("rte", token)
    if way == "passed on":
        store.claim("rte", ELSEWHERE, TTL_S)
    before = (store.study("rte"), store.trials("rte"), store.attempts("rte", 0))
    writes = [
        lambda: store.update_study("rte", token, spent={"train_seconds": 1.0}),
        lambda: store.renew("rte", token, TTL_S),
        lambda: store.add_trials("rte", token, [trial(rank=2)]),
        lambda: store.start_trials("rte", token, [1]),
        lambda: measure(store, token, 0, 0.9),
        lambda: store.finish_trial("rte", token, 0, TrialState.COMPLETED),
        lambda: store.update_trials("rte", token, [TrialUpdate(0, optimizer_steps=3)]),
        lambda: store.requeue_trials("rte", token),
        lambda: store.add_snapshot("rte", token, trials=1, front=[0], hypervolume=0.5),
    ]
    for write in writes:
        with pytest.raises(StudyHeldError, match=way.replace("passed on", "passed")):
            write()
    assert (store.study("rte"), store.trials("rte"), store.attempts("rte", 0)) == before
    assert store.curve("rte", 0) == []
    assert store.snapshots("rte") == []


# -- trials ---------------------------------------------------------------------------------------


def test_a_trial_comes_back_as_it_was_added(store: SqlStore, token: int) -> None:
    new = trial(
        origin=Origin.BASELINE,
        baseline="lora-r8",
        known={"trainable_params": 4096.0},
        pack=3,
        details={"gain": 0.25, "parents": [1, 2]},
    )
    (added,) = store.add_trials("rte", token, [new])
    assert added == store.trial("rte", 0)
    assert [added] == store.trials("rte")
    assert added.configuration == new.configuration
    assert added.hash == new.configuration.hash == added.configuration.hash
    assert (added.state, added.origin, added.baseline) == ("waiting", "baseline", "lora-r8")
    assert (added.trainable_params, added.head_params, added.pack) == (4096, 770, 3)
    assert (added.seed, added.replicate, added.attempts, added.rung) == (7, 0, 0, None)
    assert added.objectives == {}
    assert added.details == new.details
    assert added.started_at is added.finished_at is None
    json.dumps(added.to_dict(), allow_nan=False)


def test_numbers_are_contiguous_from_0_within_each_study(store: SqlStore, token: int) -> None:
    store.create_study(replace(STUDY, name="other"))
    other = store.claim("other", this_process(), TTL_S)
    assert [t.number for t in store.add_trials("rte", token, [trial(), trial()])] == [0, 1]
    assert [t.number for t in store.add_trials("other", other, [trial()])] == [0]
    assert [t.number for t in store.add_trials("rte", token, [trial()])] == [2]
    assert store.add_trials("rte", token, []) == []
    assert [t.number for t in store.trials("rte")] == [0, 1, 2]


def test_trials_are_added_all_or_none(store: SqlStore, token: int) -> None:
    broken: Any = None
    with pytest.raises(StorageError):
        store.add_trials("rte", token, [trial(), trial(trainable_params=broken)])
    assert store.trials("rte") == []
    assert [t.number for t in store.add_trials("rte", token, [trial()])] == [0]


def test_an_unknown_trial_says_which_there_are(store: SqlStore, token: int) -> None:
    with pytest.raises(NotFoundError, match="no trials yet"):
        store.trial("rte", 0)
    store.add_trials("rte", token, [trial(), trial()])
    for call in (
        lambda: store.trial("rte", 2),
        lambda: store.curve("rte", 2),
        lambda: store.attempts("rte", 2),
        lambda: store.start_trials("rte", token, [0, 2]),
        lambda: store.finish_trial("rte", token, 2, TrialState.FAILED),
        lambda: measure(store, token, 2, 0.5),
    ):
        with pytest.raises(NotFoundError, match="0 to 1"):
            call()
    assert store.trial("rte", 0).state is TrialState.WAITING


def test_a_trial_runs_and_completes(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial()])
    store.start_trials("rte", token, [0])
    running = store.trial("rte", 0)
    assert (running.state, running.attempts) == (TrialState.RUNNING, 1)
    assert running.started_at is not None
    measure(store, token, 0, 0.75, objectives={"accuracy": 0.75, "trainable_params": 4096})
    store.finish_trial("rte", token, 0, TrialState.COMPLETED, profile={"seconds": 1.5})
    done = store.trial("rte", 0)
    assert (done.state, done.rung, done.optimizer_steps) == (TrialState.COMPLETED, 1.0, 10)
    assert done.objectives == {"accuracy": 0.75, "trainable_params": 4096}
    assert done.profile == {"seconds": 1.5}
    assert done.finished_at is not None
    assert done.finished_at >= running.started_at
    (attempt,) = store.attempts("rte", 0)
    assert attempt == {
        "attempt": 1,
        "started_at": running.started_at,
        "finished_at": attempt["finished_at"],
        "cause": None,
        "message": None,
        "runner": None,
        "log": None,
    }
    assert attempt["finished_at"] is not None


def test_an_attempt_says_where_it_ran_and_how_it_ended(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial(), trial(rank=2)])
    runner = {"pid": 4711, "host": "h", "device": "cuda:1"}
    store.start_trials("rte", token, [0, 1], runner=runner)
    ended = {"cause": "timeout", "message": "too slow", "log": "step 1\nstep 2"}
    assert store.requeue_trials("rte", token, numbers=[1], **ended) == [1]
    assert [t.state for t in store.trials("rte")] == [TrialState.RUNNING, TrialState.WAITING]
    store.start_trials("rte", token, [1])
    failed = TrialUpdate(1, state=TrialState.FAILED, cause="error", message="no", log="a line")
    store.update_trials("rte", token, [failed])
    first, second = store.attempts("rte", 1)
    assert {name: first[name] for name in ended} == ended
    assert (first["runner"], second["runner"]) == (runner, None)
    assert (second["cause"], second["message"], second["log"]) == ("error", "no", "a line")
    assert store.attempts("rte", 0)[0]["finished_at"] is None
    assert store.summary("rte").attempts == {"error": 1, "timeout": 1}


def test_what_comes_too_late_is_kept_apart(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial()])
    store.start_trials("rte", token, [0])
    store.release("rte", token)
    store.claim("rte", ELSEWHERE, TTL_S)
    late = TrialUpdate(0, (Measurement(3, "loss", "train", 0.5),), optimizer_steps=3)
    before, seen = store.trials("rte"), store.study("rte").updated_at
    store.add_orphans("rte", token, [late, replace(late, state=TrialState.COMPLETED)])
    assert store.trials("rte") == before
    assert store.curve("rte", 0) == []
    assert store.study("rte").updated_at > seen, "who looks at the study would not see them"
    first, second = store.orphans("rte")
    assert (first["trial"], first["token"]) == (0, token)
    assert first["content"]["measurements"][0]["value"] == 0.5
    assert (first["content"]["state"], second["content"]["state"]) == (None, "completed")


def test_a_failure_keeps_its_cause(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial()])
    store.start_trials("rte", token, [0])
    store.finish_trial("rte", token, 0, TrialState.FAILED, cause="diverged", message="loss is nan")
    failed = store.trial("rte", 0)
    assert (failed.cause, failed.message) == ("diverged", "loss is nan")
    (attempt,) = store.attempts("rte", 0)
    assert (attempt["cause"], attempt["message"]) == ("diverged", "loss is nan")


@pytest.mark.parametrize("state", [s for s in TrialState if s.final])
def test_a_final_trial_stays_as_it_is(store: SqlStore, token: int, state: TrialState) -> None:
    store.add_trials("rte", token, [trial()])
    store.start_trials("rte", token, [0])
    measure(store, token, 0, 0.75)
    store.finish_trial("rte", token, 0, state)
    before = (store.trial("rte", 0), store.curve("rte", 0), store.attempts("rte", 0))
    store.finish_trial("rte", token, 0, TrialState.FAILED, cause="error", profile={"a": 1})
    assert store.requeue_trials("rte", token) == []
    with pytest.raises(ValueError, match=state.value):
        store.start_trials("rte", token, [0])
    with pytest.raises(ValueError, match=state.value):
        measure(store, token, 0, 0.1)
    assert (store.trial("rte", 0), store.curve("rte", 0), store.attempts("rte", 0)) == before


def rung_updates() -> list[TrialUpdate]:
    point = Measurement(10, "accuracy", "validation", 0.75, 0.4)
    reached: dict[str, Any] = {"rung": 0.4, "optimizer_steps": 10, "profile": {"packs": 1}}
    return [
        TrialUpdate(0, (point,), {"accuracy": 0.75}, **reached),
        TrialUpdate(
            1,
            (point,),
            {"accuracy": None},
            **reached,
            state=TrialState.FAILED,
            cause="diverged",
            message="not finite",
        ),
        TrialUpdate(2, state=TrialState.STOPPED),
    ]


def test_a_rung_is_recorded_and_ended_in_one_call(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial(), trial(4), trial(2)])
    store.start_trials("rte", token, [0, 1, 2])
    store.update_trials("rte", token, rung_updates())
    going_on, failed, stopped = store.trials("rte")
    assert (going_on.state, going_on.rung, going_on.optimizer_steps) == ("running", 0.4, 10)
    assert (going_on.objectives, going_on.profile) == ({"accuracy": 0.75}, {"packs": 1})
    assert (failed.state, failed.cause, failed.message) == ("failed", "diverged", "not finite")
    assert failed.profile == {"packs": 1}
    assert (stopped.state, stopped.rung, stopped.profile) == ("stopped", None, {})
    assert [len(store.curve("rte", number)) for number in range(3)] == [1, 1, 0]
    assert store.attempts("rte", 0)[0]["finished_at"] is None
    assert store.attempts("rte", 1)[0]["cause"] == "diverged"


def test_an_update_ends_all_or_none(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial(), trial(4), trial(2)])
    store.start_trials("rte", token, [0, 1, 2])
    before = store.trials("rte")
    with pytest.raises(NotFoundError, match="0 to 2"):
        store.update_trials("rte", token, [*rung_updates(), TrialUpdate(3, optimizer_steps=1)])
    running = TrialUpdate(2, state=TrialState.RUNNING)
    with pytest.raises(ValueError, match="not a final state"):
        store.update_trials("rte", token, [*rung_updates()[:2], running])
    assert store.trials("rte") == before
    assert [store.curve("rte", number) for number in range(3)] == [[], [], []]


def test_an_update_leaves_final_trials_as_they_are(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial()])
    store.start_trials("rte", token, [0])
    store.finish_trial("rte", token, 0, TrialState.COMPLETED, profile={"packs": 1})
    before = store.trial("rte", 0)
    ended = TrialUpdate(0, profile={"packs": 2}, state=TrialState.FAILED, cause="error")
    store.update_trials("rte", token, [ended, TrialUpdate(0, profile={"packs": 3})])
    with pytest.raises(ValueError, match="completed"):
        store.update_trials("rte", token, [TrialUpdate(0, optimizer_steps=20)])
    assert store.trial("rte", 0) == before


def test_only_a_final_state_finishes(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial()])
    with pytest.raises(ValueError, match="not a final state"):
        store.finish_trial("rte", token, 0, TrialState.RUNNING)
    with pytest.raises(ValueError, match="waiting"):
        measure(store, token, 0, 0.5)


def test_a_lost_trial_waits_again_and_leaves_one_curve(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial(), trial(), trial()])
    store.start_trials("rte", token, [0, 1])
    store.finish_trial("rte", token, 0, TrialState.STOPPED)
    measure(store, token, 1, 0.5)
    assert store.requeue_trials("rte", token) == [1]
    assert [t.state for t in store.trials("rte")] == ["stopped", "waiting", "waiting"]
    (lost,) = store.attempts("rte", 1)
    assert lost["cause"] == "lost"
    assert lost["finished_at"] is not None

    store.start_trials("rte", token, [1])
    measure(store, token, 1, 0.75)
    store.finish_trial("rte", token, 1, TrialState.COMPLETED)
    assert [a["cause"] for a in store.attempts("rte", 1)] == ["lost", None]
    assert store.trial("rte", 1).attempts == 2
    assert store.curve("rte", 1) == [Measurement(10, "accuracy", "validation", 0.75, 1.0)]


def test_starting_a_running_trial_again_closes_its_attempt(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial()])
    store.start_trials("rte", token, [0])
    store.start_trials("rte", token, [0])
    assert [a["finished_at"] is None for a in store.attempts("rte", 0)] == [False, True]


def test_a_curve_is_ordered_and_the_same_key_is_replaced(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial(), trial()])
    store.start_trials("rte", token, [0, 1])
    first = [
        Measurement(20, "loss", "train", 0.5),
        Measurement(10, "loss", "validation", 0.9, 0.33),
        Measurement(10, "loss", "train", 0.7),
        Measurement(10, "accuracy", "validation", 0.6, 0.33),
    ]
    measure(store, token, 0, 0.6, measurements=first, rung=0.33, optimizer_steps=20)
    measure(store, token, 1, 0.6, measurements=first, rung=0.33, optimizer_steps=20)
    again = [Measurement(10, "loss", "train", 0.8), Measurement(10, "loss", "train", 0.75)]
    measure(store, token, 0, 0.6, measurements=again, rung=0.33, optimizer_steps=20)
    expected = [first[3], again[1], first[1], first[0]]
    assert store.curve("rte", 0) == expected
    assert store.curve("rte", 1) == [first[3], first[2], first[1], first[0]]


def test_objectives_are_those_of_the_highest_rung(store: SqlStore, token: int) -> None:
    store.add_trials("rte", token, [trial()])
    store.start_trials("rte", token, [0])
    point = [Measurement(5, "loss", "train", 0.9)]
    measure(store, token, 0, None, measurements=point, objectives={}, rung=None, optimizer_steps=5)
    before = store.trial("rte", 0)
    assert (before.objectives, before.rung, before.optimizer_steps) == ({}, None, 5)
    measure(store, token, 0, 0.8, rung=0.33, optimizer_steps=10)
    measure(store, token, 0, 0.6, rung=0.1, optimizer_steps=3)
    measure(store, token, 0, None, measurements=point, objectives={}, rung=None, optimizer_steps=5)
    after = store.trial("rte", 0)
    assert (after.objectives, after.rung, after.optimizer_steps) == ({"accuracy": 0.8}, 0.33, 5)
    measure(store, token, 0, 0.7, rung=1.0, optimizer_steps=30)
    assert store.trial("rte", 0).objectives == {"accuracy": 0.7}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_stored_as_none(store: SqlStore, token: int, value: float) -> None:
    store.add_trials("rte", token, [trial(details={"gain": value, "parts": [1.0, {"x": value}]})])
    store.start_trials("rte", token, [0])
    measure(store, token, 0, value)
    store.finish_trial("rte", token, 0, TrialState.FAILED, profile={"peak": (value, 2)})
    store.update_study("rte", token, spent={"wall_seconds": value})
    found = store.trial("rte", 0)
    assert found.details == {"gain": None, "parts": [1.0, {"x": None}]}
    assert found.objectives == {"accuracy": None}
    assert found.profile == {"peak": [None, 2]}
    assert [m.value for m in store.curve("rte", 0)] == [None]
    assert store.study("rte").spent["wall_seconds"] == 0.0


def test_counts_and_failures(store: SqlStore, token: int) -> None:
    assert store.counts("rte") == dict.fromkeys(TrialState, 0)
    store.add_trials("rte", token, [trial() for _ in range(7)])
    store.start_trials("rte", token, range(6))
    store.finish_trial("rte", token, 0, TrialState.COMPLETED)
    store.finish_trial("rte", token, 1, TrialState.STOPPED, cause="stopped")
    for number, cause in ((2, "timeout"), (3, "diverged"), (4, "diverged")):
        store.finish_trial("rte", token, number, TrialState.FAILED, cause=cause)
    assert store.counts("rte") == {
        TrialState.WAITING: 1,
        TrialState.RUNNING: 1,
        TrialState.COMPLETED: 1,
        TrialState.STOPPED: 1,
        TrialState.FAILED: 3,
    }
    assert list(store.summary("rte").failures.items()) == [("diverged", 2), ("timeout", 1)]


def test_values_given_out_are_never_changed_later(store: SqlStore, token: int) -> None:
    (waiting,) = store.add_trials("rte", token, [trial()])
    store.start_trials("rte", token, [0])
    measure(store, token, 0, 0.5)
    assert (waiting.state, waiting.objectives) == (TrialState.WAITING, {})


# -- the front ------------------------------------------------------------------------------------


def test_snapshots_are_numbered_in_order(store: SqlStore, token: int) -> None:
    assert store.snapshots("rte") == []
    assert store.last_snapshot("rte") is None
    added = [
        store.add_snapshot("rte", token, trials=n, front=range(n), hypervolume=n / 10)
        for n in (1, 2, 3)
    ]
    assert [snapshot.index for snapshot in added] == [0, 1, 2]
    assert added[2].front == (0, 1, 2)
    assert added[2].hypervolume == 0.3
    assert store.snapshots("rte") == added
    assert store.last_snapshot("rte") == added[2]


# -- importance -----------------------------------------------------------------------------------

MAP = ImportanceRecord(
    key="k1",
    backbone="b",
    data="d",
    settings={"examples": 512, "keep": 0.1},
    facts={"seconds": "1.5"},
    units=bytes(range(256)),
    fine=b"\0fine",
)


def test_an_importance_map_comes_back_as_it_was_kept(store: SqlStore) -> None:
    before = datetime.now(UTC)
    store.keep_importance(MAP)
    found = store.importance("k1")
    assert found is not None
    assert found.created_at is not None
    assert before <= found.created_at <= datetime.now(UTC)
    assert replace(found, created_at=None) == MAP


def test_an_unknown_map_is_none_and_no_error(store: SqlStore) -> None:
    assert store.importance("k1") is None
    assert store.importances(backbone="b", data="d") == []


def test_maps_are_found_by_backbone_and_data_newest_first_without_what_is_fine(
    store: SqlStore,
) -> None:
    for key, backbone, data in (
        ("k1", "b", "d"), ("k2", "b", "other"), ("k3", "other", "d"), ("k4", "b", "d"),
    ):  # fmt: skip
        store.keep_importance(replace(MAP, key=key, backbone=backbone, data=data))
    found = store.importances(backbone="b", data="d")
    assert [each.key for each in found] == ["k4", "k1"]
    assert [(each.units, each.fine) for each in found] == [(MAP.units, None)] * 2


def test_a_map_of_the_same_key_is_replaced(store: SqlStore) -> None:
    store.keep_importance(MAP)
    store.keep_importance(replace(MAP, key="k2"))
    store.keep_importance(replace(MAP, units=b"new", fine=None))
    found = store.importance("k1")
    assert found is not None
    assert (found.units, found.fine) == (b"new", None)
    assert len(store.importances(backbone="b", data="d")) == 2


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 3500])
def test_a_map_larger_than_a_value_is_kept_in_parts(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(importances, "PART_BYTES", 1000)
    fine = os.urandom(size)
    store.keep_importance(replace(MAP, key="k2", fine=os.urandom(2500)))
    for before in (None, os.urandom(5000)):
        store.keep_importance(replace(MAP, fine=before))
        store.keep_importance(replace(MAP, fine=fine))
        found = store.importance("k1")
        assert found is not None
        assert found.fine == fine
    own = [min(1000, size - start) for start in range(0, size, 1000)]
    assert part_sizes(store) == sorted([*own, 500, 1000, 1000])


def part_sizes(store: SqlStore) -> list[int]:
    with store._reading() as session:
        return sorted(session.scalars(text("SELECT length(content) FROM importance_parts")))


def test_the_list_of_maps_reads_no_parts(store: SqlStore) -> None:
    store.keep_importance(MAP)
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(store._reader, "before_cursor_execute", note)
    assert len(store.importances(backbone="b", data="d")) == 1
    assert asked
    assert not any("importance_parts" in statement for statement in asked)
    store.importance("k1")
    assert any("importance_parts" in statement for statement in asked)


def test_a_map_that_fails_half_way_leaves_the_one_before(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.keep_importance(MAP)
    monkeypatch.setattr(importances, "PART_BYTES", 2)
    inserts = 0

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal inserts
        inserts += statement.startswith("INSERT INTO importance_parts")
        if inserts == 2:
            raise InterruptedError

    event.listen(store._writer, "before_cursor_execute", fail)
    with pytest.raises(InterruptedError):
        store.keep_importance(replace(MAP, units=b"new", fine=b"anew"))
    found = store.importance("k1")
    assert found is not None
    assert (found.units, found.fine) == (MAP.units, MAP.fine)


def test_parts_go_with_their_map(store: SqlStore) -> None:
    store.keep_importance(MAP)
    store.keep_importance(replace(MAP, key="k2", fine=b"12"))
    with store._writing() as session:
        session.execute(text("DELETE FROM importances WHERE key = 'k1'"))
    assert part_sizes(store) == [2]


def test_a_map_outlives_the_studies_that_use_it(store: SqlStore) -> None:
    store.create_study(STUDY)
    store.keep_importance(MAP)
    store.delete_study("rte")
    assert store.importance("k1") is not None


# -- at a glance ----------------------------------------------------------------------------------


def test_a_summary_says_what_the_other_calls_say(store: SqlStore, token: int) -> None:
    store.create_study(replace(STUDY, name="empty"))
    store.add_trials("rte", token, [trial(), trial(4), trial(2)])
    store.start_trials("rte", token, [0, 1])
    measure(store, token, 0, 0.75)
    store.finish_trial("rte", token, 0, TrialState.COMPLETED)
    store.finish_trial("rte", token, 1, TrialState.FAILED, cause="diverged")
    store.add_snapshot("rte", token, trials=1, front=[], hypervolume=0.0)
    store.add_snapshot("rte", token, trials=2, front=[2, 0], hypervolume=0.5)
    first, second = store.summaries()
    assert first == store.summary("rte")
    assert first.record == store.study("rte")
    assert first.counts == store.counts("rte")
    assert first.failures == {"diverged": 1}
    assert first.last == store.last_snapshot("rte")
    assert first.best == {"accuracy": 0.75}
    assert first.holder == store.holder("rte") == this_process()
    assert (second.record.name, second.last, second.best, second.holder) == (
        "empty",
        None,
        None,
        None,
    )
    assert second.counts == dict.fromkeys(TrialState, 0)
    with pytest.raises(NotFoundError, match="empty"):
        store.summary("emty")


def test_a_reader_sees_one_moment(store: SqlStore, token: int) -> None:
    """Whatever a call reads, in however many statements, was there at one time."""
    store.add_trials("rte", token, [trial()])
    with store._reading() as session:
        query = text("SELECT count(*) FROM trials")
        assert session.scalar(query) == 1
        store.add_trials("rte", token, [trial(4)])
        assert session.scalar(query) == 1
    assert len(store.trials("rte")) == 2


def test_two_processes_may_keep_one_map_at_once(store: SqlStore) -> None:
    record = ImportanceRecord("k", "b", "d", {}, {}, b"units", b"fine")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store.keep_importance, [record] * 12))
    assert len(store.importances(backbone="b", data="d")) == 1
    found = store.importance("k")
    assert found is not None
    assert found.fine == b"fine"
