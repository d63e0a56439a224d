"""Measured costs and limits as searchers see them: scale, bounds, what a probe alone teaches."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autopeft.searchers.base import Limit, Observation, Problem
from autopeft.searchers.encoding import Encoding
from autopeft.searchers.features import Features
from autopeft.searchers.front import on_scale, reach, utility
from autopeft.searchers.gaussian_process import Prior
from autopeft.searchers.history import History
from autopeft.searchers.registry import SEARCHERS, make_searcher
from autopeft.searchers.surrogate import Surrogate, fit_cost, fit_quality
from autopeft.study.records import ObjectiveFrame

Make = Callable[..., Problem]
Observe = Callable[..., Observation]
LATENCY = ObjectiveFrame("latency_seconds", "min", "log10", worst=0.016, best=0.001)
CAP = 0.0175


def seconds(problem: Problem, configuration: Any) -> float:
    """A millisecond, doubled with every tenfold of parameters."""
    return float(0.001 * 2 ** math.log10(problem.known(configuration)["trainable_params"]))


def probed(observation: Observation, problem: Problem, **changes: Any) -> Observation:
    value = seconds(problem, observation.configuration)
    objectives = {**observation.objectives, "latency_seconds": value}
    return replace(observation, objectives=objectives, **changes)


def test_seconds_below_one_have_a_scale_of_their_own() -> None:
    assert utility(LATENCY, 0.016) == 0.0
    assert utility(LATENCY, 0.001) == 1.0
    assert utility(LATENCY, 0.004) == pytest.approx(0.5)
    assert utility(LATENCY, 0.1) == 0.0
    assert reach(LATENCY, 0.256) == pytest.approx(-1.0)
    assert reach(LATENCY, 0.00025) == pytest.approx(1.5)


@pytest.mark.parametrize("value", [0, 1, 2, 1000])
def test_counts_keep_the_scale_that_the_design_gives_them(value: int) -> None:
    counts = ObjectiveFrame("trainable_params", "min", "log10", worst=10_000, best=0)
    assert on_scale(counts, value) == math.log10(max(value, 1))
    assert utility(counts, value) == pytest.approx(1 - math.log10(max(value, 1)) / 4)


def test_a_limit_lies_where_its_bound_lies_on_the_frame() -> None:
    cap = Limit(LATENCY, 0.064)
    assert (cap.metric, cap.least) == ("latency_seconds", pytest.approx(-0.5))
    assert cap.keeps(0.064)
    assert not cap.keeps(0.065)
    floor = Limit(ObjectiveFrame("accuracy", "max", "linear", 0.25, 1.0), 0.7)
    assert floor.least == pytest.approx(0.6)
    assert floor.keeps(0.7)
    assert not floor.keeps(0.69)
    for limit in (cap, floor):
        values = np.linspace(0.001, 0.99, 200)
        kept = [reach(limit.frame, v) >= limit.least - 1e-12 for v in values]
        assert kept == [limit.keeps(v) for v in values]


@pytest.fixture
def capped(make_problem: Make) -> Problem:
    frame = make_problem().frame
    return make_problem(frame=(*frame, LATENCY), limits=(Limit(LATENCY, CAP),), initial=4)


def told(problem: Problem, observe: Observe, n: int = 24) -> list[Observation]:
    """Trials at random; those over the cap are infeasible, as the tuner tells them."""
    found = []
    rng = np.random.default_rng(0)
    while len(found) < n:
        configuration = problem.build(problem.space.sample(rng))
        if not problem.feasible(configuration):
            continue
        over = seconds(problem, configuration) > CAP
        failed = {"accuracy": 0.2, "failed": True, "infeasible": True} if over else {}
        found.append(probed(observe(len(found), configuration, **failed), problem))
    assert 2 < sum(each.infeasible for each in found) < n - 2
    return found


def test_history_keeps_apart_what_was_only_probed(capped: Problem, observe: Observe) -> None:
    every = told(capped, observe)
    history = History(capped)
    history.tell(every)
    trained = [each for each in every if not each.infeasible]
    assert history.measurements() == history.trials() == trained
    assert history.probes() == every
    assert history.seen([]) == {each.configuration.hash for each in every}
    assert all(not each.infeasible for each in history.front())


def test_the_front_prefers_what_keeps_its_limits(make_problem: Make, observe: Observe) -> None:
    problem = make_problem(limits=(Limit(make_problem().frame[0], 0.6),))
    rng, history = np.random.default_rng(1), History(problem)
    drawn = [problem.build(problem.space.sample(rng)) for _ in range(60)]
    chosen = [each for each in drawn if problem.feasible(each)][:12]
    trials = [observe(i, c, accuracy=0.3 + 0.05 * i) for i, c in enumerate(chosen)]
    history.tell(trials[:4])
    assert history.front(), "none keeps the floor: all count"
    history.tell(trials)
    assert all(each.objectives["accuracy"] >= 0.6 for each in history.front())


def test_a_measured_cost_is_learnt_on_log_scale_and_at_no_rung(
    capped: Problem, observe: Observe
) -> None:
    every = told(capped, observe, 40)
    curves = [
        replace(each, rung=rung) for each in every if not each.infeasible for rung in (0.1, 1.0)
    ]
    history = History(capped)
    history.tell([*every, *curves])
    configurations = [each.configuration for each in every]
    encoding = Encoding.of(capped, Features(capped), configurations)
    model = fit_cost(LATENCY, encoding, history.probes(), Prior())
    assert model is not None
    assert len(model.data.y) == len(every), "a rung counted as a trial"
    rng = np.random.default_rng(5)
    fresh = [capped.build(capped.space.sample(rng)) for _ in range(60)]
    fresh = [each for each in fresh if capped.feasible(each)]
    truth = np.array([reach(LATENCY, seconds(capped, each)) for each in fresh])
    error = mean(model, encoding, fresh) - truth
    assert np.sqrt((error**2).mean()) < 0.5 * truth.std()


def mean(model: Surrogate, encoding: Encoding, configurations: Any) -> Any:
    """What a model expects, from the data alone."""
    found, _ = model.predict(encoding.rows(configurations))
    return found


def test_infeasible_trials_teach_costs_and_no_quality(capped: Problem, observe: Observe) -> None:
    every = told(capped, observe)
    history = History(capped)
    history.tell(every)
    encoding = Encoding.of(capped, Features(capped), [e.configuration for e in every])
    quality = fit_quality(capped, encoding, history.measurements(), Prior())
    cost = fit_cost(LATENCY, encoding, history.probes(), Prior())
    assert cost is not None
    assert len(quality.data.y) == sum(not each.infeasible for each in every)
    assert len(cost.data.y) == len(every)


@pytest.mark.parametrize("values", [[], [0.004], [0.004] * 6, [0.0, 5.0, 0.004]])
def test_whatever_was_measured_of_a_cost_can_be_modelled(
    values: list[float], capped: Problem, observe: Observe
) -> None:
    rng = np.random.default_rng(2)
    trials = []
    for number in range(6):
        observation = observe(number, capped.build(capped.space.sample(rng)))
        if number < len(values):
            objectives = {**observation.objectives, "latency_seconds": values[number]}
            observation = replace(observation, objectives=objectives)
        trials.append(observation)
    encoding = Encoding.of(capped, Features(capped), [t.configuration for t in trials])
    model = fit_cost(LATENCY, encoding, trials, Prior())
    assert (model is None) == (not values)
    if model is not None:
        assert np.isfinite(mean(model, encoding, [trials[0].configuration])).all()


@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_every_searcher_goes_on_after_infeasible_trials(
    name: str, capped: Problem, observe: Observe
) -> None:
    searcher = make_searcher(name, capped)
    every = told(capped, observe, 12)
    searcher.tell(every)
    seen = {each.configuration.hash for each in every}
    proposals = [*searcher.ask(4), *searcher.ask(4)]
    hashes = {each.configuration.hash for each in proposals}
    assert len(hashes) == len(proposals) == 8
    assert not hashes & seen
    only = make_searcher(name, capped)
    only.tell([replace(each, failed=True, infeasible=True) for each in every])
    assert only.ask(6), "nothing was ever trained"


def test_gp_proposes_what_is_likely_to_keep_a_cap(make_problem: Make, observe: Observe) -> None:
    """Without the cap, quality calls for large configurations; its probes show where it lies."""

    def slowest(cap: float) -> float:
        limits = (Limit(LATENCY, cap),)
        problem = make_problem(limits=limits, initial=0, flops=lambda c: 1.0)
        rng = np.random.default_rng(0)
        drawn = [problem.build(problem.space.sample(rng)) for _ in range(80)]
        every = [each for each in drawn if problem.feasible(each)][:24]
        searcher = make_searcher("gp", problem)
        searcher.tell([probed(observe(i, each), problem) for i, each in enumerate(every)])
        return max(seconds(problem, p.configuration) for p in searcher.ask(6))

    assert slowest(0.008) <= 0.0081
    assert slowest(1.0) > 0.012


def test_gp_looks_above_a_floor(make_problem: Make, observe: Observe) -> None:
    """Small configurations add to the front, but none below the floor counts."""

    def predicted(floor: float) -> float:
        quality = make_problem().frame[0]
        problem = make_problem(limits=(Limit(quality, floor),), initial=0)
        rng = np.random.default_rng(0)
        drawn = [problem.build(problem.space.sample(rng)) for _ in range(80)]
        every = [each for each in drawn if problem.feasible(each)][:30]
        searcher = make_searcher("gp", problem)
        searcher.tell([observe(i, each) for i, each in enumerate(every)])
        means = [p.details["predicted"]["accuracy"]["mean"] for p in searcher.ask(4)]
        return float(np.mean(means))

    low, high = predicted(0.2), predicted(0.75)
    assert high > low + 0.05, (low, high)
