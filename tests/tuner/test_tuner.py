"""The loop: budgets, baselines, failures, stopping, and what a kill leaves behind."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from autopeft.configuration import Configuration
from autopeft.errors import AutopeftError, InterruptedStudyError, TrialError
from autopeft.searchers.base import Proposal
from autopeft.study.records import Origin, StudyState, TrialState

Lanes = Sequence[tuple[int, Configuration]]
Make = Callable[..., Any]
NAME, STEPS = "toy", 30


class Killed(BaseException):
    """What SIGKILL looks like from inside: nothing after it runs on purpose."""


def kill_at(step: int, pack: int) -> Callable[[Lanes, int], None]:
    seen: list[int] = []

    def before_step(lanes: Lanes, at: int) -> None:
        if at == 0:
            seen.append(at)
        if len(seen) == pack and at == step:
            raise Killed

    return before_step


def finish(desk: Any) -> list[Any]:
    desk.tuner().run()
    return desk.store.trials(NAME)


def test_baselines_first_then_the_budget_in_packs(make_desk: Make) -> None:
    desk = make_desk()
    desk.create()
    trials = finish(desk)
    assert [t.number for t in trials] == list(range(15))
    assert [t.origin for t in trials[:3]] == [Origin.BASELINE] * 3
    assert all(t.state is TrialState.COMPLETED and t.rung == 1.0 for t in trials)
    assert desk.runner.packs == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13, 14]]
    assert len({t.hash for t in trials}) == 15
    assert desk.store.study(NAME).state is StudyState.FINISHED
    snapshots = desk.store.snapshots(NAME)
    assert len(snapshots) == 4
    assert [s.hypervolume for s in snapshots] == sorted(s.hypervolume for s in snapshots)
    assert 0 < snapshots[-1].hypervolume < 1


@pytest.mark.parametrize("searcher", ["random", "evolution", "gp", "tpe"])
def test_a_kill_changes_nothing_but_the_time(make_desk: Make, searcher: str) -> None:
    calm = make_desk("calm", search={"searcher": searcher})
    calm.create()
    expected = [(t.number, t.hash, dict(t.objectives)) for t in finish(calm)]
    desk = make_desk("killed", search={"searcher": searcher})
    desk.create()
    for pack in (1, 2, 2):
        desk.runner.before_step = kill_at(STEPS // 2, pack)
        with pytest.raises(Killed):
            desk.tuner().run()
        running = [t for t in desk.store.trials(NAME) if t.state is TrialState.RUNNING]
        assert running, "the kill left nothing in flight"
    desk.runner.before_step = lambda lanes, step: None
    found = [(t.number, t.hash, dict(t.objectives)) for t in finish(desk)]
    assert found == expected
    attempts = [a for t in desk.store.trials(NAME) for a in desk.store.attempts(NAME, t.number)]
    assert any(a["cause"] == "lost" for a in attempts)


def test_a_stop_saves_lane_states_and_the_next_sitting_goes_on_from_them(make_desk: Make) -> None:
    desk = make_desk()
    desk.create()

    def stop_in_the_second_pack(lanes: Lanes, step: int) -> None:
        if lanes[0][0] == 3 and step == 10:
            desk.stopper.request("test")

    desk.runner.before_step = stop_in_the_second_pack
    with pytest.raises(InterruptedStudyError, match="the same command goes on"):
        desk.tuner().run()
    assert desk.store.study(NAME).state is StudyState.INTERRUPTED
    desk.stopper.reason = ""
    desk.runner.before_step = lambda lanes, step: None
    trials = finish(desk)
    assert desk.runner.resumed == [11]
    assert [t.state for t in trials] == [TrialState.COMPLETED] * 15
    steps = [p.step for p in desk.store.curve(NAME, 3) if p.split == "train"]
    assert steps == list(range(1, STEPS + 1)), "the curve has a gap"
    causes = [attempt["cause"] for attempt in desk.store.attempts(NAME, 3)]
    assert causes == ["interrupted", None]


def test_a_stop_request_in_the_database_is_heard(
    make_desk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopeft.tuner.watch.POLL_S", 0.0)
    desk = make_desk()
    desk.create()
    desk.runner.before_step = lambda lanes, step: desk.store.request_stop(NAME)
    with pytest.raises(InterruptedStudyError, match="asked to stop"):
        desk.tuner().run()


def test_a_failing_lane_is_found_by_halving_and_fails_alone(make_desk: Make) -> None:
    desk = make_desk()
    desk.create()

    def fail(lanes: Lanes, step: int) -> None:
        if 5 in [number for number, _ in lanes]:
            raise TrialError("no memory left", cause="out-of-memory")

    desk.runner.before_step = fail
    trials = finish(desk)
    assert desk.runner.packs[1:4] == [[3, 4, 5, 6], [3, 4], [5, 6]]
    failed = [t for t in trials if t.state is TrialState.FAILED]
    assert [(t.number, t.cause, t.message) for t in failed] == [
        (5, "out-of-memory", "no memory left")
    ]
    assert sum(t.state is TrialState.COMPLETED for t in trials) == 14


def test_a_diverged_trial_fails_with_its_cause_and_the_search_goes_on(make_desk: Make) -> None:
    desk = make_desk(search={"searcher": "gp"})
    desk.create()
    desk.runner.diverges = lambda c: c.training_value("learning_rate") > 2e-3
    trials = finish(desk)
    failed = [t for t in trials if t.state is TrialState.FAILED]
    assert failed
    assert {t.cause for t in failed} == {"diverged"}
    assert len(trials) == 15


def test_rungs_stop_dominated_trials_and_never_baselines(make_desk: Make) -> None:
    desk = make_desk(rung_steps={0.4: 12, 1.0: STEPS}, trials=40)
    desk.create()
    trials = finish(desk)
    stopped = [t for t in trials if t.state is TrialState.STOPPED]
    assert stopped
    assert all(t.rung == 0.4 and t.baseline is None for t in stopped)
    assert all(t.optimizer_steps == 12 for t in stopped)
    on_front = set(desk.store.last_snapshot(NAME).front)
    assert on_front
    assert not on_front & {t.number for t in stopped}
    assert all(t.rung == 1.0 for t in trials if t.number in on_front)


def test_enqueued_configurations_come_after_the_baselines(make_desk: Make) -> None:
    desk = make_desk()
    wanted = desk.problem.build(desk.space.largest())
    desk.changes["enqueued"] = [wanted]
    desk.create()
    trials = finish(desk)
    assert trials[3].configuration == wanted
    assert trials[3].origin is Origin.ENQUEUED
    assert len(trials) == 15


def test_what_earlier_studies_found_comes_after_what_was_enqueued(make_desk: Make) -> None:
    desk = make_desk()
    rng = np.random.default_rng(5)
    wanted, *known = (desk.problem.build(desk.space.sample(rng)) for _ in range(6))
    why = {"reason": "known", "source": "study old"}
    desk.changes["enqueued"] = [wanted]
    desk.changes["warm_start"] = [Proposal(each, Origin.WARM_START, why) for each in known]
    desk.create()
    trials = finish(desk)
    assert [trial.configuration for trial in trials[3:9]] == [wanted, *known]
    assert [trial.origin for trial in trials[3:10]] == [
        Origin.ENQUEUED,
        *[Origin.WARM_START] * 5,
        Origin.SEARCHER,
    ]
    assert all(trial.details == why for trial in trials[4:9])
    assert len(trials) == 15
    assert len({trial.hash for trial in trials}) == 15


def test_a_small_space_ends_the_search_early(make_desk: Make) -> None:
    space = {
        "methods": {"lora": {"rank": {"choice": [1, 2]}, "sites": ["query"], "layers": [3]}},
        "training": {"learning_rate": 1.0e-3},
    }
    desk = make_desk(space=space)
    desk.create()
    trials = finish(desk)
    assert len(trials) == 5
    assert desk.store.study(NAME).state is StudyState.FINISHED


def test_a_clock_that_has_run_out_starts_nothing(make_desk: Make) -> None:
    desk = make_desk(wall_clock_s=0.0)
    desk.create()
    assert finish(desk) == []
    assert desk.store.study(NAME).state is StudyState.FINISHED
    assert desk.store.study(NAME).facts["ended"]["reason"] == "wall_clock"


def test_baselines_come_in_packs_no_larger_than_the_packs_are(make_desk: Make) -> None:
    desk = make_desk(pack_size=1)
    desk.create()
    trials = finish(desk)
    assert all(len(pack) == 1 for pack in desk.runner.packs)
    assert [t.baseline is not None for t in trials] == [True] * 3 + [False] * 12
    assert len(trials) == 15


def test_errors_in_a_row_end_the_sitting_instead_of_the_budget(make_desk: Make) -> None:
    desk = make_desk()
    desk.create()

    def broken(lanes: Lanes, step: int) -> None:
        raise RuntimeError("the device is gone")

    desk.runner.before_step = broken
    with pytest.raises(AutopeftError, match=r"3 trials in a row .* the device is gone"):
        desk.tuner().run()
    assert len(desk.store.trials(NAME)) == 3
    study = desk.store.study(NAME)
    assert study.state is StudyState.INTERRUPTED
    assert "the device is gone" in study.facts["interrupted"]["reason"]
    desk.runner.before_step = lambda lanes, step: None
    assert sum(t.state is TrialState.COMPLETED for t in finish(desk)) == 12


def test_a_kill_before_the_front_is_drawn_leaves_no_old_front(
    make_desk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk()
    desk.create()
    with monkeypatch.context() as patch:

        def killed(*args: Any, **kwargs: Any) -> None:
            raise Killed

        patch.setattr("autopeft.tuner.ledger.Ledger.add_snapshot", killed)
        with pytest.raises(Killed):
            desk.tuner().run()
    assert desk.store.last_snapshot(NAME) is None
    finish(desk)
    counts = [snapshot.trials for snapshot in desk.store.snapshots(NAME)]
    assert counts == [3, 7, 11, 15]
