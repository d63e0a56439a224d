import numpy as np
import pytest
import torch
from scipy import stats

from autopeft.searchers.reference import searcher as reference
from autopeft.searchers.reference.climbing import Climb, LocalSearch
from autopeft.searchers.reference.searcher import Recipe, ReferenceSearcher, copula
from autopeft.searchers.registry import make_searcher
from autopeft.study.records import Origin

SMALL = Recipe(
    initial=6,
    warmup=8,
    samples=4,
    thinning=2,
    max_depth=3,
    mc_samples=16,
    starts=3,
    evaluations=90,
)


def started(problem, observe, n=6, **changes):
    searcher = ReferenceSearcher(problem, SMALL)
    told = [observe(i, p.configuration, **changes) for i, p in enumerate(searcher.ask(n))]
    searcher.tell(told)
    return searcher, told


def test_the_copula_gives_normal_scores() -> None:
    values = np.array([0.3, -1.0, 0.3, 5.0, 0.0])
    expected = stats.norm.ppf(np.minimum(stats.rankdata(values, method="max") / 5.0, 1.0 - 1e-4))
    assert copula(values, values) == pytest.approx(expected)
    assert copula(values, np.array([-9.0])) == pytest.approx(stats.norm.ppf(1e-4))


def test_a_hundred_random_ones_start_it(make_problem) -> None:
    proposals = make_searcher("reference", make_problem(initial=8)).ask(100)
    assert {proposal.origin for proposal in proposals} == {Origin.INITIAL}
    assert len({proposal.configuration.hash for proposal in proposals}) == 100


def test_baselines_do_not_count_as_its_start(make_problem, observe) -> None:
    problem = make_problem()
    others = make_searcher("random", make_problem(seed=5)).ask(3)
    searcher = ReferenceSearcher(problem, SMALL)
    searcher.tell([observe(i, p.configuration, baseline=True) for i, p in enumerate(others)])
    assert [each.origin for each in searcher.ask(6)] == [Origin.INITIAL] * 6


def test_what_was_optimised_is_proposed(make_problem, observe, monkeypatch) -> None:
    """Not the start of the winning search, as the released code does."""
    searcher, _ = started(make_problem(), observe)
    climbs: list[list[Climb]] = []
    climb = LocalSearch.climb

    def spied(self, *arguments):
        climbs.append(climb(self, *arguments))
        return climbs[-1]

    monkeypatch.setattr(LocalSearch, "climb", spied)
    proposed = [each.configuration.hash for each in searcher.ask(3)]
    won = [max(each, key=lambda one: one.gain) for each in climbs]
    assert proposed == [each.best.hash for each in won]
    assert any(each.best.hash != each.start.hash for each in won)


def test_it_learns_from_full_trials_only(make_problem, observe) -> None:
    """Rungs below the full budget change nothing, be they ever so good."""
    problem = make_problem()
    one, told = started(problem, observe)
    other, _ = started(problem, observe)
    third = make_searcher("random", make_problem(seed=7)).ask(1)[0].configuration
    for searcher, accuracy in ((one, 0.2), (other, 0.99)):
        searcher.tell([observe(20, third, rung=0.1, accuracy=accuracy)])
    assert [p.configuration.hash for p in one.ask(2)] == [
        p.configuration.hash for p in other.ask(2)
    ]
    assert len(reference.full_trials(one._history)) == len(told)


def test_every_objective_is_modelled_by_ranks(make_problem, observe, monkeypatch) -> None:
    """Also the parameter count; and the reference point goes through the same transform."""
    searcher, told = started(make_problem(), observe)
    seen = {}

    def spied(models, floor, X, pending, **settings):
        seen.update(n=len(models), floor=floor, rows=X.shape, y=[m._alpha.shape for m in models])
        raise KeyboardInterrupt

    monkeypatch.setattr(reference, "NoisyImprovement", spied)
    with pytest.raises(KeyboardInterrupt):
        searcher.ask(1)
    assert seen["n"] == 2
    assert seen["floor"] == pytest.approx([stats.norm.ppf(1e-4)] * 2)
    assert seen["rows"] == (len(told), len(make_problem().space.dimensions))


def test_it_climbs(make_problem, observe) -> None:
    """On a known score the local search ends far above its starts."""
    problem = make_problem()
    searcher, _ = started(problem, observe)
    rng = np.random.default_rng(0)
    starts = searcher._search.starts([], 3, rng, frozenset())
    search = LocalSearch(problem, searcher._candidates, 900)
    found = search.climb(starts, lambda X: -((X - 0.5) ** 2).sum(-1), rng, frozenset())
    begun = [float(-((_vector(problem, c.start) - 0.5) ** 2).sum()) for c in found]
    assert all(climb.gain >= start for climb, start in zip(found, begun, strict=True))
    assert max(climb.gain for climb in found) > max(begun) + 0.1
    for climb in found:
        expected = float(-((_vector(problem, climb.best) - 0.5) ** 2).sum())
        assert climb.gain == pytest.approx(expected)


def _vector(problem, candidate) -> torch.Tensor:
    return torch.from_numpy(problem.space.encode(candidate.point))
