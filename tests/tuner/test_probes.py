"""Solo probes: once for each trial, before it is trained; what a broken cap does."""

from collections.abc import Callable
from typing import Any

import pytest

from autopeft.configuration import Configuration
from autopeft.errors import InterruptedStudyError, TrialError
from autopeft.searchers.base import Observation, Problem
from autopeft.searchers.registry import make_searcher
from autopeft.study.records import TrialRecord, TrialState

Make = Callable[..., Any]
NAME, STEPS = "toy", 30
LATENCY = {"metric": "latency_seconds"}
TWO = [{"metric": "accuracy"}, LATENCY]
RANGES = {"latency_seconds": (0.001, 0.009)}


class Killed(BaseException):
    """What SIGKILL looks like from inside."""


def latency(configuration: Configuration) -> float:
    """A millisecond for each layer in use, and one more."""
    return 0.001 * (1 + len(configuration.layers))


def probe(configuration: Configuration) -> dict[str, Any]:
    return {"latency_seconds": latency(configuration), "seconds": 0.5}


@pytest.fixture
def make_measured(make_desk: Make) -> Make:
    """A desk whose study minimises latency, unless told otherwise."""

    def make(name: str = "one", **changes: Any) -> Any:
        fields = {"objectives": TWO, "measured": RANGES, "probes": True} | changes
        desk = make_desk(name, **fields)
        desk.runner.costs = probe
        desk.create()
        return desk

    return make


def finish(desk: Any) -> list[TrialRecord]:
    desk.tuner().run()
    return list(desk.store.trials(NAME))


def test_every_trial_is_measured_once_and_keeps_what_was_found(make_measured: Make) -> None:
    desk = make_measured(rung_steps={0.4: 12, 1.0: STEPS})
    trials = finish(desk)
    assert sorted(desk.runner.probed) == sorted(trial.hash for trial in trials)
    for trial in trials:
        assert trial.profile["probe"] == probe(trial.configuration)
        assert trial.objectives["latency_seconds"] == latency(trial.configuration)
        assert trial.objectives["accuracy"] is not None
        assert trial.profile["optimizer_steps"] > 0, "training's profile is lost"
        assert trial.attempts == 1
    spent = desk.store.study(NAME).spent
    assert spent["probe_seconds"] == pytest.approx(0.5 * len(trials))
    assert desk.store.snapshots(NAME)[-1].hypervolume > 0


@pytest.mark.parametrize("searcher", ["random", "evolution", "gp"])
def test_a_kill_measures_nothing_twice(make_measured: Make, searcher: str) -> None:
    calm = make_measured("calm", search={"searcher": searcher})
    expected = [(t.number, t.hash, dict(t.objectives)) for t in finish(calm)]
    desk = make_measured("killed", search={"searcher": searcher})
    for kind in ("probing", "training", "probing"):
        before = len(desk.runner.probed)

        def dies_probing(configuration: Configuration, before: int = before) -> dict[str, Any]:
            if len(desk.runner.probed) == before + 2:
                raise Killed
            return probe(configuration)

        def dies_training(lanes: object, step: int) -> None:
            if step == STEPS // 2:
                raise Killed

        desk.runner.costs = dies_probing if kind == "probing" else probe
        desk.runner.before_step = dies_training if kind == "training" else lambda lanes, at: None
        with pytest.raises(Killed):
            desk.tuner().run()
    desk.runner.costs, desk.runner.before_step = probe, lambda lanes, at: None
    assert [(t.number, t.hash, dict(t.objectives)) for t in finish(desk)] == expected
    assert len(desk.runner.probed) == len(set(desk.runner.probed)) == len(expected)


class Heard:
    """A random searcher that keeps what it is told."""

    def __init__(self, problem: Problem) -> None:
        self._inner, self.told = make_searcher("random", problem), dict[int, Observation]()
        self.ask = self._inner.ask

    def tell(self, observations: Any) -> None:
        self.told |= {each.number: each for each in observations}
        self._inner.tell(observations)


def test_what_breaks_a_cap_is_told_but_never_trained(make_measured: Make) -> None:
    heard: list[Heard] = []

    def searcher(problem: Problem) -> Heard:
        heard.append(Heard(problem))
        return heard[-1]

    cap = 0.003
    desk = make_measured(
        objectives=[{"metric": "accuracy"}, {"metric": "trainable_params"}],
        constraints=[{**LATENCY, "cap": cap}],
        searcher=searcher,
    )
    trials = finish(desk)
    own = [trial for trial in trials if trial.baseline is None]
    broken = [trial for trial in own if latency(trial.configuration) > cap]
    assert 0 < len(broken) < len(own) == 12, "the case is empty; infeasible trials count"
    trained = {number for pack in desk.runner.packs for number in pack}
    for trial in broken:
        assert (trial.state, trial.cause) == (TrialState.FAILED, "infeasible")
        assert "latency_seconds" in str(trial.message)
        assert "over the cap of 0.003" in str(trial.message)
        assert trial.number not in trained
        told = heard[-1].told[trial.number]
        assert told.infeasible
        assert told.failed
        assert told.objectives["latency_seconds"] == latency(trial.configuration)
    for trial in (each for each in own if each not in broken):
        assert trial.state is TrialState.COMPLETED
        assert trial.number in trained
        assert not heard[-1].told[trial.number].infeasible
    baselines = [trial for trial in trials if trial.baseline is not None]
    assert all(trial.state is TrialState.COMPLETED for trial in baselines), "they are exempt"
    assert desk.store.summary(NAME).failures == {"infeasible": len(broken)}


def test_a_cap_that_is_broken_does_not_decide_who_shares_a_pack(make_measured: Make) -> None:
    """Cohorts of 8 in packs of 4: without the infeasible, the packs are those of all, thinned."""
    fields = {"proposals": 8, "trials": 8, "rung_steps": {1.0: STEPS}}
    free = make_measured("free", **fields)
    finish(free)
    capped = make_measured("capped", objectives=[TWO[0], {**LATENCY, "cap": 0.003}], **fields)
    kept = {t.number for t in finish(capped) if t.state is TrialState.COMPLETED}
    thinned = [[n for n in pack if n in kept] for pack in free.runner.packs]
    assert capped.runner.packs == [pack for pack in thinned if pack]
    assert len(kept) < 11


def test_a_stop_while_probing_keeps_what_was_measured(make_measured: Make) -> None:
    desk = make_measured()

    def stopping(configuration: Configuration) -> dict[str, Any]:
        if len(desk.runner.probed) == 1:
            desk.stopper.request("test")
        return probe(configuration)

    desk.runner.costs = stopping
    with pytest.raises(InterruptedStudyError):
        desk.tuner().run()
    trials = desk.store.trials(NAME)
    assert sum("probe" in trial.profile for trial in trials) == 2
    assert all(trial.state is TrialState.WAITING for trial in trials)
    assert desk.runner.packs == []


def test_a_probe_that_does_not_fit_ends_its_trial_alone(make_measured: Make) -> None:
    desk = make_measured()

    def tight(configuration: Configuration) -> dict[str, Any]:
        if len(configuration.layers) == 4:
            raise TrialError("the device is out of memory", cause="out-of-memory")
        return probe(configuration)

    desk.runner.costs = tight
    trials = finish(desk)
    failed = [trial for trial in trials if trial.state is TrialState.FAILED]
    assert {len(trial.configuration.layers) for trial in failed} == {4}
    assert {trial.cause for trial in failed} == {"out-of-memory"}
    assert all("latency_seconds" not in trial.objectives for trial in failed)


def test_three_objectives_one_of_them_measured(make_measured: Make) -> None:
    objectives = [{"metric": "accuracy"}, {"metric": "trainable_params"}, LATENCY]
    desk = make_measured(
        objectives=objectives,
        search={"searcher": "gp"},
        rung_steps={0.4: 12, 1.0: STEPS},
        trials=16,
    )
    trials = finish(desk)
    assert [frame.scale for frame in desk.problem.frame] == ["linear", "log10", "log10"]
    assert any("expected_gain" in trial.details for trial in trials), "the GP never proposed"
    done = [trial for trial in trials if trial.state is TrialState.COMPLETED]
    assert all(set(trial.objectives) == {o["metric"] for o in objectives} for trial in done)
    assert 0 < desk.store.snapshots(NAME)[-1].hypervolume < 1
