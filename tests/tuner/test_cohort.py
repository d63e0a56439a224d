"""A cohort in packs: regrouping at rungs, and what kills and full memory leave behind."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from autopeft.configuration import Configuration
from autopeft.counting import first_layer
from autopeft.errors import InterruptedStudyError, TrialError
from autopeft.execution.base import state_path
from autopeft.execution.states import CohortStates
from autopeft.study.records import TrialState

Lanes = Sequence[tuple[int, Configuration]]
Make = Callable[..., Any]
NAME, RUNG, STEPS = "toy", 12, 30


class Killed(BaseException):
    """What SIGKILL looks like from inside."""


def outcome(desk: Any) -> list[Any]:
    return [
        (t.number, t.hash, t.state, t.rung, dict(t.objectives), t.optimizer_steps)
        for t in desk.store.trials(NAME)
    ]


def test_survivors_are_regrouped_and_judged_over_the_whole_cohort(calm: Any) -> None:
    trials = {t.number: t for t in calm.store.trials(NAME)}
    cohorts = {t.pack for t in trials.values()}
    assert sorted(cohorts) == [0, 1, 2]
    regrouped = 0
    for cohort in sorted(cohorts - {0}):
        own = {n for n, t in trials.items() if t.pack == cohort}
        packs = [set(pack) for pack in calm.runner.packs if set(pack) <= own]
        survivors = {n for n in own if trials[n].state is TrialState.COMPLETED}
        assert len(own) == 8
        assert packs[0] | packs[1] == own
        assert max(map(len, packs)) == 4
        later = packs[2:]
        assert set().union(*later) == survivors, "a stopped trial trained on"
        assert sum(map(len, later)) == len(survivors)
        assert len(later) == -(-len(survivors) // 4)
        regrouped += any(pack not in (packs[0], packs[1]) for pack in later)
        lowest, highest = (
            [first_layer(trials[n].configuration, calm.anatomy) for n in pack]
            for pack in packs[:2]
        )
        assert max(lowest) <= min(highest)
    stopped = [t for t in trials.values() if t.state is TrialState.STOPPED]
    assert stopped
    assert regrouped
    assert all((t.rung, t.optimizer_steps) == (0.4, RUNG) for t in stopped)
    assert not any((calm.folder / "states").glob("cohort-*/*")), "states outlived their cohort"


@pytest.mark.parametrize("calls", [1, 31, 42, 43, 54, 55, 73, 90])
def test_a_kill_at_any_moment_of_a_cohort_changes_nothing(
    make_desk: Make, calm: Any, calls: int
) -> None:
    desk = make_desk("killed", **calm.changes)
    desk.create()
    steps: list[list[int]] = []

    def before_step(lanes: Lanes, at: int) -> None:
        steps.append([number for number, _ in lanes])
        if len(steps) == calls:
            raise Killed

    desk.runner.before_step = before_step
    with pytest.raises(Killed):
        desk.tuner().run()
    lost = steps[-1]
    desk.runner.before_step = lambda lanes, at: None
    done_before = len(desk.runner.packs)
    desk.tuner().run()
    assert outcome(desk) == outcome(calm)
    assert desk.runner.packs[done_before] == lost, "a lost pack was rerun with other lanes"
    assert set(desk.runner.resumed) == {RUNG}


def test_a_kill_between_the_ends_of_two_lanes_leaves_the_rung_whole(
    make_desk: Make, calm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk("killed", **calm.changes)
    desk.create()

    def killed(self: Any, trial: Any) -> None:
        if trial.state is TrialState.STOPPED:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("autopeft.tuner.reporter.Reporter.ended", killed)
        with pytest.raises(Killed):
            desk.tuner().run()
    first = {t.number: t.state for t in calm.store.trials(NAME)}
    cohort = min(t.pack for t in calm.store.trials(NAME) if t.state is TrialState.STOPPED)
    for trial in desk.store.trials(NAME):
        if trial.pack == cohort:
            ended = trial.state is TrialState.STOPPED
            assert ended == (first[trial.number] is TrialState.STOPPED)
    desk.tuner().run()
    assert outcome(desk) == outcome(calm)


def test_a_stop_between_packs_goes_on_with_the_same_packs(make_desk: Make, calm: Any) -> None:
    desk = make_desk("stopped", **calm.changes)
    desk.create()

    def stop_in_the_second_pack(lanes: Lanes, at: int) -> None:
        if len(desk.runner.packs) == 4 and at == 7:
            desk.stopper.request("test")

    desk.runner.before_step = stop_in_the_second_pack
    with pytest.raises(InterruptedStudyError):
        desk.tuner().run()
    desk.stopper.reason = ""
    desk.tuner().run()
    assert desk.runner.resumed[0] == 8
    assert outcome(desk) == outcome(calm)


def test_full_memory_halves_one_pack_and_later_packs_stay_within_it(
    make_desk: Make, calm: Any
) -> None:
    desk = make_desk("full", **calm.changes)
    desk.create()
    events: list[str] = []

    def fail(lanes: Lanes, at: int) -> None:
        if len(lanes) > 3 and at == 5 and len(desk.runner.packs) == 3:
            raise TrialError("no memory left", cause="out-of-memory")

    desk.runner.before_step = fail
    tuner = desk.tuner()
    tuner._reporter.event = events.append
    tuner.run()
    packs = [len(pack) for pack in desk.runner.packs]
    assert packs[2:6] == [4, 2, 2, 4], "more than the one pack was halved"
    assert set(packs[6:]) <= {1, 2}
    assert desk.store.study(NAME).facts["memory_limit"] == {"lanes": 2, "device": "cpu"}
    assert any("at most 2" in text for text in events)
    assert outcome(desk) == outcome(calm)


def test_a_lone_trial_that_is_too_large_does_not_shrink_the_packs(
    make_desk: Make, calm: Any
) -> None:
    desk = make_desk("heavy", **calm.changes)
    desk.create()

    def fail(lanes: Lanes, at: int) -> None:
        if 5 in [number for number, _ in lanes]:
            raise TrialError("no memory left", cause="out-of-memory")

    desk.runner.before_step = fail
    desk.tuner().run()
    assert "memory_limit" not in desk.store.study(NAME).facts
    failed = [t.number for t in desk.store.trials(NAME) if t.state is TrialState.FAILED]
    assert failed == [5]
    assert max(len(pack) for pack in desk.runner.packs[8:]) == 4


def test_a_kill_between_halves_goes_on_with_each_lane_where_it_was(
    make_desk: Make, calm: Any
) -> None:
    desk = make_desk("halves", **calm.changes)
    desk.create()

    def fail(lanes: Lanes, at: int) -> None:
        packs = desk.runner.packs
        if len(lanes) > 3 and at == 5 and len(packs) == 3:
            raise TrialError("no memory left", cause="out-of-memory")
        if len(packs) == 5 and at == 6:  # the second half
            raise Killed

    desk.runner.before_step = fail
    with pytest.raises(Killed):
        desk.tuner().run()
    first, second = desk.runner.packs[3:5]
    assert all(desk.store.trial(NAME, number).rung == 0.4 for number in first)
    assert all(desk.store.trial(NAME, number).rung is None for number in second)
    desk.runner.before_step = lambda lanes, at: None
    desk.tuner().run()
    assert desk.runner.packs[5] == second
    assert outcome(desk) == outcome(calm)


def test_the_newest_state_of_each_lane_is_found_whatever_pack_saved_it(tmp_path: Path) -> None:
    class Saving:
        def __init__(self, step: int, numbers: Sequence[int]) -> None:
            self.step, self._numbers = step, numbers

        def save(self, folder: Path) -> None:
            for number in self._numbers:
                state_path(folder, number).write_text(json.dumps(self.step))
                state_path(folder, number).with_suffix(".json").write_text("{}")

    states = CohortStates(tmp_path, 3)
    for step, numbers in ((12, [0, 1, 2, 3]), (20, [0, 2]), (30, [2])):
        states.save(Saving(step, numbers), numbers)
    found = {n: saved.step for n in range(5) if (saved := states.newest(n))}
    assert found == {0: 20, 1: 12, 2: 30, 3: 12}
    kept = sorted(path.name for path in tmp_path.glob("cohort-00003/*/trial-*"))
    assert len(kept) == 8, "files of older states were left behind"

    class Dying(Saving):
        def save(self, folder: Path) -> None:
            state_path(folder, 1).write_text("half")
            raise Killed

    with pytest.raises(Killed):
        states.save(Dying(40, [1, 3]), [1, 3])
    assert (states.newest(1).step, states.newest(3).step) == (12, 12)
    states.save(Saving(40, [1, 3]), [1, 3])
    assert not list(tmp_path.glob("cohort-00003/*.partial"))
    assert states.drop_torn() == {}
    (older,) = tmp_path.glob("cohort-00003/step-00000020-*")
    state_path(older, 0).with_suffix(".json").write_text("")
    (newer,) = tmp_path.glob("cohort-00003/step-00000040-*")
    (newer / "sums.json").write_text('{"trial-00001')
    assert states.drop_torn() == {0: 20, 1: 40, 3: 40}
    assert [n for n in range(4) if states.newest(n)] == [2]
    assert len(list(tmp_path.glob("cohort-00003/step-*"))) == 1, "an empty save was left behind"
    states.clear()
    assert states.newest(2) is None
