"""The released reference's defects, and that the repaired one has them not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from autopeft.api.problem import Facts, bind_space, make_problem
from autopeft.backbone.discovery import discover
from autopeft.searchers.base import Observation, Problem, Proposal
from autopeft.searchers.reference import searcher as repaired
from autopeft.searchers.reference.climbing import Climb, LocalSearch
from autopeft.searchers.reference.searcher import Recipe, ReferenceSearcher
from autopeft.study.definition import default_definition
from benchmarks.quality import released
from benchmarks.quality.released import ReleasedSearcher

SMALL = Recipe(initial=6, starts=3, evaluations=120)
Searcher = ReleasedSearcher | ReferenceSearcher


@pytest.fixture(scope="module")
def problem() -> Problem:
    with torch.device("meta"):
        model = tf.AutoModel.from_config(
            tf.BertConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4)
        )
    anatomy = discover(model, model.config)
    definition = default_definition(["space=quick"])
    space = bind_space(definition, anatomy)
    return make_problem(definition, anatomy, space, Facts(0.2, 1.0, 200, 1000, 100))


class Peak:
    """In place of the acquisition, which is not under test: a peak in the unit cube."""

    def __init__(self, X: torch.Tensor) -> None:
        self.told = X

    def score(self, X: torch.Tensor) -> torch.Tensor:
        return -((X - 0.7) ** 2).sum(-1)

    def choose(self, x: torch.Tensor) -> None:
        """Nothing: the peak stays."""


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What searchers search from, win and tell their acquisition."""
    seen: dict[str, list[Any]] = {"won": [], "barred": [], "told": []}
    climb, starts = LocalSearch.climb, LocalSearch.starts

    def spied_climb(self: LocalSearch, *arguments: Any) -> list[Climb]:
        climbs = climb(self, *arguments)
        seen["won"].append(max(climbs, key=lambda each: each.gain))
        return climbs

    def spied_starts(self: LocalSearch, parents: Any, n: int, rng: Any, barred: Any) -> Any:
        seen["barred"].append(set(barred))
        return starts(self, parents, n, rng, barred)

    def peak(X: torch.Tensor, *_: Any) -> Peak:
        seen["told"].append(X)
        return Peak(X)

    monkeypatch.setattr(LocalSearch, "climb", spied_climb)
    monkeypatch.setattr(LocalSearch, "starts", spied_starts)
    monkeypatch.setattr(repaired, "improvement", peak)
    monkeypatch.setattr(released, "improvement", peak)
    return seen


def run(make: Callable[..., Searcher], problem: Problem) -> tuple[Searcher, list[Proposal]]:
    """Six random ones, a batch of four, and one more."""
    searcher = make(problem, SMALL)
    every: list[Proposal] = []
    for n in (6, 4, 1):
        proposals = searcher.ask(n)
        searcher.tell(
            [
                Observation(
                    len(every) + index,
                    proposal.configuration,
                    {"accuracy": 0.5 + 0.01 * index, **problem.known(proposal.configuration)},
                    1.0,
                )
                for index, proposal in enumerate(proposals)
            ]
        )
        every += proposals
    return searcher, every


def vector(problem: Problem, point: Any) -> Any:
    return pytest.approx(problem.space.encode(point), abs=1e-6)


def test_the_released_one_trains_starts_as_if_they_were_optimised(
    problem: Problem, watched: dict[str, list[Any]]
) -> None:
    _, every = run(ReleasedSearcher, problem)
    won, told = watched["won"], watched["told"][1].numpy()
    assert [each.configuration.hash for each in every[6:]] == [each.start.hash for each in won]
    for place, climb in enumerate(won[:4]):
        assert told[6 + place] == vector(problem, climb.best.point)
        assert told[6 + place] != vector(problem, climb.start.point)


def test_the_repaired_one_trains_what_it_optimised(
    problem: Problem, watched: dict[str, list[Any]]
) -> None:
    _, every = run(ReferenceSearcher, problem)
    won, told = watched["won"], watched["told"][1].numpy()
    assert [each.configuration.hash for each in every[6:]] == [each.best.hash for each in won]
    for place, climb in enumerate(won[:4]):
        assert told[6 + place] == vector(problem, climb.best.point)
    assert len({each.configuration.hash for each in every}) == len(every)


@pytest.mark.parametrize(("make", "bars"), [(ReleasedSearcher, False), (ReferenceSearcher, True)])
def test_only_the_repaired_one_bars_what_was_trained(
    problem: Problem, watched: dict[str, list[Any]], make: Callable[..., Searcher], bars: bool
) -> None:
    _, every = run(make, problem)
    trained = {each.configuration.hash for each in every[:6]}
    assert all((trained <= barred) is bars for barred in watched["barred"])


def test_a_repeat_is_told_as_what_it_was_proposed_for(problem: Problem) -> None:
    searcher = ReleasedSearcher(problem, SMALL)
    drawn = searcher.ask(2)
    points = [problem.space.sample(np.random.default_rng(9)) for _ in range(1)]
    again = drawn[0].configuration
    searcher._told_as[again.hash].append(points[0])
    trials = [
        Observation(number, configuration, {"accuracy": 0.5}, 1.0)
        for number, configuration in enumerate([again, drawn[1].configuration, again])
    ]
    first, _, second = searcher.told_as(trials)
    assert problem.build(first) == again
    assert second == points[0]
