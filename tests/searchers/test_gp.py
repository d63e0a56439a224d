import logging
from statistics import median

import numpy as np
import pytest
import torch

from autopeft.searchers import gp, surrogate
from autopeft.searchers.bo import ModelFittingError
from autopeft.searchers.front import hypervolume, utilities
from autopeft.searchers.registry import make_searcher
from autopeft.searchers.surrogate import fit_surrogate, noise_variance, numerics
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


def test_the_machines_state_does_not_matter_and_is_left_alone(make_problem, observe) -> None:
    problem = make_problem(initial=0)
    observations = told(problem, observe, 10)

    def ask() -> list[str]:
        searcher = make_searcher("gp", problem)
        searcher.tell(observations)
        return [proposal.configuration.hash for proposal in searcher.ask(2)]

    threads = torch.get_num_threads()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = ask()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.set_num_threads(2)
    try:
        assert ask() == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_failed_fit_is_logged_and_survived(make_problem, observe, monkeypatch, caplog) -> None:
    def fail(*args, **kwargs):
        raise ModelFittingError("no")

    monkeypatch.setattr(surrogate, "fit_gpytorch_mll", fail)
    problem = make_problem(initial=0)
    searcher = make_searcher("gp", problem)
    searcher.tell(told(problem, observe, 8))
    with caplog.at_level(logging.WARNING):
        assert len(searcher.ask(2)) == 2
    assert "fit failed" in caplog.text


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


def test_the_surrogate_learns_and_knows_its_noise() -> None:
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.random((40, 3)))
    y = torch.sin(4.0 * X[:, 0]) + torch.from_numpy(rng.normal(0.0, 0.05, 40))
    with numerics(0):
        model = fit_surrogate(X, y, n_inputs=2, n_groups=2, noise=0.05**2)
        at = torch.tensor([[0.1, 0.5, 0.0], [0.9, 0.5, 0.9]], dtype=torch.float64)
        posterior = model.posterior(at)
    assert posterior.mean.squeeze().tolist() == pytest.approx(
        torch.sin(4.0 * at[:, 0]).tolist(), abs=0.1
    )
    noise = float(model.likelihood.noise.detach()) * float(y.var())
    assert 0.05**2 * 0.99 <= noise < 4 * 0.05**2
    assert model.covar_module.lengthscale.shape[-1] == 2


def test_the_noise_floor_is_binomial() -> None:
    frame = ObjectiveFrame("accuracy", "max", "linear", worst=0.5, best=1.0)
    assert noise_variance(frame, [0.9], 100) == pytest.approx(0.9 * 0.1 / 100 / 0.25)
    assert noise_variance(frame, [1.0], 100) > 0.0
    loss = ObjectiveFrame("loss", "min", "linear", worst=1.0, best=0.0)
    assert noise_variance(loss, [0.5], 100) == noise_variance(frame, [], 100) == 0.0


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
