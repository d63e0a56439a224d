"""What every searcher keeps: no duplicate, nothing infeasible, the same again after a restart."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import grid_points
import numpy as np
import pytest
from importance_spaces import importance_problem

from autopeft.backbone.anatomy import Anatomy, Layer, Site
from autopeft.configuration import Configuration, Group
from autopeft.searchers import batch, gp, surrogate
from autopeft.searchers.base import Observation, Problem, Proposal, Searcher
from autopeft.searchers.reference import searcher as reference
from autopeft.searchers.registry import SEARCHERS, make_searcher
from autopeft.space.dimension import Dimension
from autopeft.study.records import ObjectiveFrame, Origin

CHOICES: dict[str, tuple[Any, ...]] = {
    "rank": (0, 1, 4, 16),
    "query": (False, True),
    "down": (False, True),
    **{f"layer {layer}": (False, True) for layer in range(4)},
    "learning_rate": (1e-4, 1e-3, 1e-2),
}
TINY: dict[str, tuple[Any, ...]] = {
    **CHOICES,
    "query": (True,),
    "down": (False,),
    **{f"layer {layer}": (True,) for layer in range(4)},
}
"""12 points; 9 configurations, of which 6 keep the cap of the tiny problem."""


SMALL_REFERENCE = reference.Recipe(
    initial=5, warmup=6, samples=4, thinning=2, max_depth=3, mc_samples=8, starts=3, evaluations=60
)


class GridSpace:
    """A space that is a grid: points hold every dimension."""

    hash = "grid"
    continuous = 0

    def __init__(self, choices: Mapping[str, tuple[Any, ...]]) -> None:
        self.choices = choices

    @property
    def distinct(self) -> int:
        return len({build(dict(zip(self.choices, p, strict=True))).hash for p in self.all()})

    def encode(self, point: Mapping[str, Any]) -> np.ndarray:
        return np.array([each.encode(point[each.name]) for each in self.dimensions])

    def all(self) -> list[tuple[Any, ...]]:
        return list(itertools.product(*self.choices.values()))

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        return {
            name: values[int(rng.integers(len(values)))] for name, values in self.choices.items()
        }

    def smallest(self) -> list[dict[str, Any]]:
        return [{name: values[0] for name, values in self.choices.items()}]

    def largest(self) -> dict[str, Any]:
        return {name: values[-1] for name, values in self.choices.items()}

    def largest_by_method(self) -> list[dict[str, Any]]:
        return [self.largest()]

    def neighbours(
        self, point: Mapping[str, Any], rng: np.random.Generator, n: int
    ) -> list[dict[str, Any]]:
        every = [
            {**point, name: value}
            for name, values in self.choices.items()
            for value in values
            if value != point[name]
        ]
        return [every[index] for index in rng.permutation(len(every))[:n]]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        return grid_points.dimensions(self.choices)

    def dialogue(self, choose: Callable[[Dimension], Any]) -> tuple[dict[str, Any], ...]:
        return grid_points.dialogue(self.choices, choose)

    def answers(self, point: Mapping[str, Any]) -> dict[str, Any]:
        return grid_points.answers(self.choices, point)

    def nearest(self, plain: Mapping[str, Any]) -> dict[str, Any] | None:
        [group] = plain["lora"]
        point = {
            "rank": group["rank"],
            **{role: role in group["sites"] for role in ("query", "down")},
            **{f"layer {layer}": layer in group["layers"] for layer in range(4)},
            "learning_rate": plain["training"]["learning_rate"],
        }
        return grid_points.legal(self.choices, point)


def build(point: Mapping[str, Any]) -> Configuration:
    layers = [layer for layer in range(4) if point[f"layer {layer}"]]
    sites = [role for role in ("query", "down") if point[role]]
    groups = []
    if (rank := point["rank"]) and sites:
        groups = [Group.of("lora", layers, sites, rank=rank, alpha=rank, dropout=0.0)]
    training = {"learning_rate": point["learning_rate"], "weight_decay": 0.0, "warmup_ratio": 0.0}
    return Configuration.of(groups, training=training)


def site_params(configuration: Configuration) -> dict[tuple[int, str], int]:
    return {
        (layer, site): 64 * int(group["rank"])
        for group in configuration.groups
        for layer in group.layers
        for site in group.sites
    }


def params(configuration: Configuration) -> float:
    return float(sum(site_params(configuration).values()))


def accuracy(configuration: Configuration) -> float:
    reach = sum((1 + layer) * n for (layer, _), n in site_params(configuration).items())
    slow = configuration.training_value("learning_rate") == 1e-4
    return 0.5 + (0.2 if slow else 0.4) * reach / (reach + 2000.0)


ACCURACY = ObjectiveFrame("accuracy", "max", "linear", worst=0.5, best=1.0)
PARAMS = ObjectiveFrame("trainable_params", "min", "log10", worst=5000, best=64)
FLOPS = ObjectiveFrame("flops", "min", "log10", worst=1e6, best=1e3)
SECONDS = ObjectiveFrame("seconds", "min", "log10", worst=1e4, best=1.0)


def problem(choices: Mapping[str, tuple[Any, ...]] = CHOICES, **changes: Any) -> Problem:
    layers = tuple(
        Layer(
            i, f"{i}", {role: Site(i, role, f"{i}.{role}", 32, 32) for role in ("query", "down")}
        )
        for i in range(4)
    )
    fields: dict[str, Any] = {
        "space": GridSpace(choices),
        "anatomy": Anatomy("fake", layers, 32, 32, 2, 2, 16, 10_000),
        "frame": (ACCURACY, PARAMS),
        "build": build,
        "known": lambda c: {"trainable_params": params(c), "flops": 20.0 * params(c) + 1e3},
        "site_params": site_params,
        "feasible": lambda c: 0 < params(c) <= 5000,
        "flops": params,
        "n_validation": 500,
        "seed": 3,
        "initial": 5,
    }
    return Problem(**(fields | changes))


def told(number: int, configuration: Configuration, **changes: Any) -> Observation:
    objectives = {"accuracy": accuracy(configuration), "trainable_params": params(configuration)}
    objectives["seconds"] = 1.0 + params(configuration) / 100.0
    fields: dict[str, Any] = {"objectives": objectives, "rung": 1.0} | changes
    return Observation(number, configuration, **fields)


def tell_all(proposals: Sequence[Proposal], first: int = 0, **changes: Any) -> list[Observation]:
    return [
        told(first + index, each.configuration, **changes) for index, each in enumerate(proposals)
    ]


def hashes(proposals: Sequence[Proposal]) -> list[str]:
    return [each.configuration.hash for each in proposals]


@pytest.fixture(params=sorted(SEARCHERS))
def make(request: pytest.FixtureRequest) -> Callable[[Problem], Searcher]:
    return lambda given: make_searcher(request.param, given)


@pytest.fixture(autouse=True)
def small_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract is not about quality: the GPs are fitted less, and look at fewer candidates."""
    monkeypatch.setattr(gp, "SAMPLED", 48)
    monkeypatch.setattr(batch, "ROUNDS", 1)
    monkeypatch.setattr(surrogate, "ITERATIONS", 10)
    monkeypatch.setattr(reference, "PUBLISHED", SMALL_REFERENCE)


Make = Callable[[Problem], Searcher]


def test_nothing_is_proposed_twice_and_nothing_infeasible(make: Make) -> None:
    given = problem()
    searcher, every = make(given), []
    for _ in range(4):
        proposals = searcher.ask(3)
        searcher.tell(tell_all(proposals, len(every)))
        every += proposals
    assert len(every) == len(set(hashes(every))) == 12
    assert all(given.feasible(each.configuration) for each in every)
    assert {each.origin for each in every} <= {Origin.INITIAL, Origin.SEARCHER}
    json.dumps([dict(each.details) for each in every], allow_nan=False)


def test_what_was_told_or_is_pending_is_not_proposed(make: Make) -> None:
    others = make_searcher("random", problem(seed=9)).ask(12)
    baselines, pending = others[:6], [each.configuration for each in others[6:]]
    searcher = make(problem())
    searcher.tell(tell_all(baselines, baseline=True))
    proposals = searcher.ask(12, pending=pending)
    assert len(proposals) == 12
    assert not set(hashes(proposals)) & set(hashes(others))


def test_the_seed_decides(make: Make) -> None:
    def sequence(seed: int) -> list[str]:
        searcher = make(problem(seed=seed))
        first = searcher.ask(6)
        searcher.tell(tell_all(first))
        return hashes(first) + hashes(searcher.ask(3))

    assert sequence(1) == sequence(1)
    assert sequence(1) != sequence(2)


def test_a_restart_changes_nothing(make: Make) -> None:
    searcher = make(problem())
    first, second = searcher.ask(6), searcher.ask(3)
    observations = tell_all(first)
    observations[2] = replace(observations[2], failed=True)
    searcher.tell(observations[:4])
    searcher.tell(observations[4:])
    searcher.tell([told(6, second[0].configuration, rung=0.33)])
    searcher.tell([told(6, second[0].configuration)])
    after = searcher.ask(4, pending=[each.configuration for each in second[1:]])

    fresh = make(problem())
    fresh.tell([*observations, told(6, second[0].configuration, rung=0.33)])
    fresh.tell([told(6, second[0].configuration)])
    replayed = fresh.ask(4, pending=[second[2].configuration, second[1].configuration])
    assert hashes(replayed) == hashes(after)
    assert [each.details for each in replayed] == [each.details for each in after]


def test_what_was_proposed_is_pending_though_not_named(make: Make) -> None:
    named, unnamed = make(problem()), make(problem())
    first = named.ask(6)
    assert hashes(first) == hashes(unnamed.ask(6))
    pending = [each.configuration for each in first]
    assert hashes(named.ask(3, pending=pending)) == hashes(unnamed.ask(3))


def test_a_small_space_is_used_up(make: Make) -> None:
    given = problem(TINY, feasible=lambda c: 0 < params(c) <= 1024)
    searcher, every = make(given), []
    for _ in range(4):
        proposals = searcher.ask(4)
        searcher.tell(tell_all(proposals, len(every)))
        every += proposals
    assert len(set(hashes(every))) == len(every) == 6
    assert searcher.ask(4) == []


def test_a_space_without_a_feasible_configuration_gives_none(make: Make) -> None:
    assert make(problem(TINY, feasible=lambda c: False)).ask(4) == []


def test_a_tight_cap_is_met(make: Make) -> None:
    """One configuration in 20 has rank 1 in one layer and site."""
    given = problem(feasible=lambda c: 0 < params(c) <= 64)
    proposals = make(given).ask(10)
    assert len(proposals) == 10
    assert {params(each.configuration) for each in proposals} == {64.0}


class TopSpace(GridSpace):
    """A space whose samples are all the same and too large."""

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        return self.largest()


def test_what_samples_never_reach_is_found_by_walking(make: Make) -> None:
    given = problem(space=TopSpace(CHOICES), feasible=lambda c: 64 < params(c) <= 128)
    proposals = make(given).ask(6)
    assert len(set(hashes(proposals))) == 6
    assert {params(each.configuration) for each in proposals} == {128.0}


def test_the_order_of_tells_does_not_matter(make: Make) -> None:
    ordered, reverse = make(problem()), make(problem())
    observations = tell_all(ordered.ask(9))
    ordered.tell(observations)
    reverse.tell(observations[::-1])
    replayed = reverse.ask(4)
    assert [(each.configuration.hash, each.details) for each in ordered.ask(4)] == [
        (each.configuration.hash, each.details) for each in replayed
    ]


@pytest.mark.parametrize("initial", [0, 1, 20])
def test_the_start_may_be_smaller_or_larger_than_a_batch(make: Make, initial: int) -> None:
    assert len(make(problem(initial=initial)).ask(4)) == 4


def test_asking_for_nothing_gives_nothing(make: Make) -> None:
    assert make(problem()).ask(0) == []


DEGENERATE: dict[str, Callable[[int, Configuration], Observation]] = {
    "all equal": lambda i, c: told(i, c, objectives={"accuracy": 0.7}),
    "all failed": lambda i, c: told(i, c, failed=True),
    "all at chance": lambda i, c: told(i, c, objectives={"accuracy": 0.5}),
    "all perfect": lambda i, c: told(i, c, objectives={"accuracy": 1.0}),
    "no value": lambda i, c: told(i, c, objectives={}),
    "low rungs only": lambda i, c: told(i, c, rung=0.1),
    "mixed rungs": lambda i, c: told(i, c, rung=(0.1, 0.33, 1.0)[i % 3]),
}


@pytest.mark.parametrize("case", sorted(DEGENERATE))
def test_degenerate_measurements(make: Make, case: str) -> None:
    searcher = make(problem())
    proposals = searcher.ask(6)
    searcher.tell([DEGENERATE[case](i, p.configuration) for i, p in enumerate(proposals)])
    assert len(set(hashes(searcher.ask(3))) - set(hashes(proposals))) == 3


@pytest.mark.parametrize("n_told", [1, 2])
def test_few_measurements(make: Make, n_told: int) -> None:
    searcher = make(problem(initial=2))
    proposals = searcher.ask(2)
    searcher.tell(tell_all(proposals[:n_told]))
    assert len(set(hashes(searcher.ask(3))) - set(hashes(proposals))) == 3


@pytest.mark.parametrize(
    "frame",
    [(ACCURACY,), (ACCURACY, PARAMS, FLOPS), (ACCURACY, PARAMS, SECONDS)],
    ids=["one", "three", "one measured cost"],
)
def test_one_to_three_objectives(make: Make, frame: tuple[ObjectiveFrame, ...]) -> None:
    searcher = make(problem(frame=frame))
    searcher.tell(tell_all(searcher.ask(6)))
    assert len(set(hashes(searcher.ask(3)))) == 3


def test_a_space_by_importance_with_rules(make: Make) -> None:
    """Groups per set of sites, and rules that change what is counted."""
    given = importance_problem(initial=4)

    def measured(number: int, proposal: Proposal) -> Observation:
        known = given.known(proposal.configuration)
        quality = min(0.9, 0.3 + known["trainable_params"] / 1e5)
        return Observation(number, proposal.configuration, {"accuracy": quality, **known}, 1.0)

    def sequence() -> list[Proposal]:
        searcher, every = make(given), []
        for _ in range(3):
            proposals = searcher.ask(3)
            told = [measured(len(every) + i, each) for i, each in enumerate(proposals)]
            searcher.tell(told)
            every += proposals
        return every

    first, again = sequence(), sequence()
    assert len(set(hashes(first))) == 9
    assert hashes(first) == hashes(again)
    for each in first:
        assert given.space.nearest(each.configuration.to_dict()) is not None
