from statistics import median

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from autopeft.searchers import gp, surrogate
from autopeft.searchers.dominance import hypervolume
from autopeft.searchers.encoding import Encoding
from autopeft.searchers.features import Features
from autopeft.searchers.front import utilities
from autopeft.searchers.gaussian_process import Prior
from autopeft.searchers.registry import make_searcher
from autopeft.searchers.surrogate import fit_quality, noise_variance
from autopeft.study.records import ObjectiveFrame, Origin


def told(problem, observe, n: int, **changes):
    proposals = make_searcher("random", problem).ask(n)
    return [observe(i, p.configuration, **changes) for i, p in enumerate(proposals)]


def test_proposals_say_why(make_problem, observe) -> None:
    problem = make_problem(initial=0)
    searcher = make_searcher("gp", problem)
    searcher.tell(told(problem, observe, 12))
    for proposal in searcher.ask(2):
        assert proposal.origin is Origin.SEARCHER
        details = proposal.details
        predicted = details["predicted"]["accuracy"]
        assert 0.0 < details["expected_gain"] < 1.0
        assert 0.1 < predicted["mean"] < 1.1
        assert 0.0 < predicted["sd"] < 0.5
        assert details["known"] == problem.known(proposal.configuration)


def test_the_number_of_threads_does_not_matter(make_problem, observe) -> None:
    problem = make_problem(initial=0)
    observations = told(problem, observe, 40)

    def ask(threads: int) -> list[str]:
        searcher = make_searcher("gp", problem)
        searcher.tell(observations)
        with threadpool_limits(threads):
            return [proposal.configuration.hash for proposal in searcher.ask(2)]

    assert ask(1) == ask(2)


def test_failures_are_avoided(make_problem, observe) -> None:
    """Large learning rates diverge; proposals then keep away from them."""
    problem = make_problem(initial=0)

    def diverges(configuration) -> bool:
        return configuration.training_value("learning_rate") > 1e-3

    observations = [
        observe(o.number, o.configuration, failed=diverges(o.configuration))
        for o in told(problem, observe, 40)
    ]
    searcher = make_searcher("gp", problem)
    searcher.tell(observations)
    assert sum(diverges(p.configuration) for p in searcher.ask(4)) <= 1


def test_low_rungs_inform_but_do_not_count_as_reached(make_problem, observe) -> None:
    problem = make_problem(initial=0)
    observations = told(problem, observe, 12)
    partial = [
        observe(o.number, o.configuration, rung=0.1, accuracy=0.9 * o.objectives["accuracy"])
        for o in observations
    ]
    searcher = make_searcher("gp", problem)
    searcher.tell([*partial, *observations[:4]])
    means = [p.details["predicted"]["accuracy"]["mean"] for p in searcher.ask(2)]
    assert all(0.1 < mean < 1.1 for mean in means)


def test_more_rows_than_are_fitted(make_problem, observe, monkeypatch) -> None:
    monkeypatch.setattr(surrogate, "FIT_ROWS", 12)
    monkeypatch.setattr(gp, "MAX_ROWS", 30)
    problem = make_problem(initial=0)
    searcher = make_searcher("gp", problem)
    searcher.tell(told(problem, observe, 40))
    assert len(searcher.ask(2)) == 2


@pytest.mark.slow
def test_many_trials(make_problem, observe) -> None:
    problem = make_problem(initial=0)
    searcher = make_searcher("gp", problem)
    searcher.tell(told(problem, observe, 600))
    assert len(searcher.ask(2)) == 2


def test_the_noise_floor_is_binomial() -> None:
    frame = ObjectiveFrame("accuracy", "max", "linear", worst=0.5, best=1.0)
    assert noise_variance(frame, 0.9, 100) == pytest.approx(0.9 * 0.1 / 100 / 0.25)
    assert noise_variance(frame, 1.0, 100) > 0.0
    loss = ObjectiveFrame("loss", "min", "linear", worst=1.0, best=0.0)
    assert noise_variance(loss, 0.5, 100) == noise_variance(frame, None, 100) == 0.0


def test_quality_is_predicted_in_its_unit(make_problem, observe) -> None:
    """What was not measured is predicted within a few predicted standard deviations."""
    problem = make_problem(initial=0)
    observations = told(problem, observe, 60)
    configurations = [each.configuration for each in observations]
    encoding = Encoding.of(problem, Features(problem), configurations)
    model = fit_quality(problem, encoding, observations[:45], Prior())
    mean, sd = model.predict(encoding.rows(configurations[45:]))
    true = np.array([utilities(problem.frame, o.objectives)[0] for o in observations[45:]])
    error = mean - true
    assert np.corrcoef(mean, true)[0, 1] > 0.8
    assert np.mean(np.abs(error) < 2 * sd) > 0.7
    assert np.abs(error).mean() < 0.5 * np.abs(true - true.mean()).mean()


def test_cheaper_trials_are_preferred_as_far_as_they_gain(make_problem, observe) -> None:
    """The same problem, once with training that costs a hundred times more with many layers."""

    def cost(configuration) -> float:
        return 1.0 if len(configuration.layers) <= 2 else 100.0

    def layers(**changes) -> float:
        problem = make_problem(initial=0, **changes)
        searcher = make_searcher("gp", problem)
        searcher.tell(told(problem, observe, 20))
        return np.mean([len(p.configuration.layers) for p in searcher.ask(4)])

    assert layers(flops=cost) <= 2 < layers(flops=lambda c: 1.0)


@pytest.mark.slow
def test_the_gp_beats_random_search(make_problem, observe) -> None:
    """Median hypervolume after 24 trials over five seeds; random reaches about 0.5."""

    def reached(name: str, seed: int) -> float:
        problem = make_problem(seed=seed, initial=8)
        searcher, observations = make_searcher(name, problem), []
        while len(observations) < 24:
            new = [
                observe(len(observations) + i, p.configuration)
                for i, p in enumerate(searcher.ask(4))
            ]
            searcher.tell(new)
            observations += new
        return hypervolume(
            np.array([utilities(problem.frame, o.objectives) for o in observations])
        )

    scores = {n: median(reached(n, seed) for seed in range(5)) for n in ("random", "gp")}
    assert scores["gp"] > scores["random"] + 0.05, scores
