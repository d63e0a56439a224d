"""A small fake space, which keeps the protocol honest, and a study with a known quality."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import grid_points
import numpy as np
import pytest
from bound_problems import bound_problem
from trial_records import completed_trial

import autopeft.searchers.bo  # noqa: F401 - first, as it quiets the imports of BoTorch and gpytorch
from autopeft.backbone.anatomy import Anatomy, Layer, Site
from autopeft.configuration import Configuration, Group
from autopeft.searchers.base import Observation, Problem
from autopeft.space.dimension import Dimension
from autopeft.study.records import ObjectiveFrame, TrialRecord

ROLES = ("query", "value", "up", "down")
RANKS = (0, 1, 2, 4, 8, 16, 32)
RATES = tuple(round(10 ** (-4 + index / 4), 6) for index in range(8))
WIDTH = 64


class FakeSpace:
    """LoRA by rank, sites and layer bits, a prefix by length, and the learning rate."""

    hash = "fake"
    continuous = False
    distinct = None

    def __init__(self, n_layers: int = 6) -> None:
        self.values: dict[str, tuple[Any, ...]] = {
            "lora.rank": RANKS,
            **{f"lora.sites.{role}": (False, True) for role in ROLES},
            **{f"layers.{layer}": (False, True) for layer in range(n_layers)},
            "prefix.length": (0, 4, 16),
            "learning_rate": RATES,
        }

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        return grid_points.dimensions(self.values)

    def dialogue(self, choose: Callable[[Dimension], Any]) -> tuple[dict[str, Any], ...]:
        return grid_points.dialogue(self.values, choose)

    def answers(self, point: Mapping[str, Any]) -> dict[str, Any]:
        return grid_points.answers(self.values, point)

    def nearest(self, plain: Mapping[str, Any]) -> dict[str, Any] | None:
        point = {name: values[0] for name, values in self.values.items()}
        for group in plain.get("lora", ()):
            point |= {"lora.rank": group["rank"]}
            point |= {f"lora.sites.{site}": True for site in group["sites"]}
            point |= {f"layers.{layer}": True for layer in group["layers"]}
        for group in plain.get("prefix", ()):
            point |= {"prefix.length": group["length"]}
            point |= {f"layers.{layer}": True for layer in group["layers"]}
        point["learning_rate"] = plain["training"]["learning_rate"]
        return grid_points.legal(self.values, point)

    def encode(self, point: Mapping[str, Any]) -> np.ndarray:
        return np.array([each.encode(point[each.name]) for each in self.dimensions])

    def contains(self, point: Mapping[str, Any]) -> bool:
        return all(point[name] in values for name, values in self.values.items())

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        return {
            name: values[int(rng.integers(len(values)))] for name, values in self.values.items()
        }

    def smallest(self) -> list[dict[str, Any]]:
        return [{name: values[0] for name, values in self.values.items()}]

    def largest(self) -> dict[str, Any]:
        return {name: values[-1] for name, values in self.values.items()}

    def largest_by_method(self) -> list[dict[str, Any]]:
        return [self.largest()]

    def neighbours(
        self, point: Mapping[str, Any], rng: np.random.Generator, n: int
    ) -> list[dict[str, Any]]:
        near = []
        for _ in range(n):
            name = list(self.values)[int(rng.integers(len(self.values)))]
            others = [value for value in self.values[name] if value != point[name]]
            if others:
                near.append({**point, name: others[int(rng.integers(len(others)))]})
        return near


class TinySpace(FakeSpace):
    """Twelve points, nine configurations."""

    def __init__(self) -> None:
        self.values = {
            "lora.rank": (0, 1, 2, 4),
            "lora.sites.query": (True,),
            "layers.0": (True,),
            "prefix.length": (0,),
            "learning_rate": RATES[:3],
        }


def build(point: Mapping[str, Any]) -> Configuration:
    layers = [int(name[7:]) for name, on in point.items() if name.startswith("layers.") and on]
    sites = [name[11:] for name, on in point.items() if name.startswith("lora.sites.") and on]
    groups = []
    if (rank := point["lora.rank"]) and sites:
        groups.append(Group.of("lora", layers, sites, rank=rank, alpha=2 * rank, dropout=0.05))
    if length := point["prefix.length"]:
        groups.append(Group.of("prefix", layers, length=length))
    training = {"learning_rate": point["learning_rate"], "weight_decay": 0.0, "warmup_ratio": 0.06}
    return Configuration.of(groups, training=training)


def site_params(configuration: Configuration) -> dict[tuple[int, str], int]:
    counts: dict[tuple[int, str], int] = {}
    for group in configuration.groups:
        for layer in group.layers:
            for site in group.sites or (group.method,):
                size = int(group.get("rank") or group.get("length") or 0)
                counts[layer, site] = counts.get((layer, site), 0) + 2 * WIDTH * size
    return counts


def params(configuration: Configuration) -> int:
    return sum(site_params(configuration).values())


def quality(configuration: Configuration) -> float:
    """Chance is 0.2; upper layers and more parameters help, at a learning rate near 1e-3."""
    places = site_params(configuration)
    reach = sum(math.log1p(n) * (1.0 + layer) ** 1.5 for (layer, _), n in places.items())
    rate = math.log10(configuration.training_value("learning_rate") / 1e-3)
    return 0.2 + 0.75 * (1.0 - math.exp(-reach / 250.0)) * math.exp(-1.5 * rate**2)


def anatomy(n_layers: int = 6) -> Anatomy:
    layers = tuple(
        Layer(
            index,
            f"layer.{index}",
            {role: Site(index, role, f"layer.{index}.{role}", WIDTH, WIDTH) for role in ROLES},
        )
        for index in range(n_layers)
    )
    return Anatomy("fake", layers, WIDTH, WIDTH, 4, 4, 16, 1_000_000)


ACCURACY = ObjectiveFrame("accuracy", "max", "linear", worst=0.2, best=1.0)
PARAMS = ObjectiveFrame("trainable_params", "min", "log10", worst=100_000, best=128)
FLOPS = ObjectiveFrame("flops", "min", "log10", worst=1e6, best=1e3)
ONE = ACCURACY
TWO = (ACCURACY, PARAMS)


@pytest.fixture
def frames() -> tuple[ObjectiveFrame, ...]:
    return TWO


@pytest.fixture
def flops_frame() -> ObjectiveFrame:
    return FLOPS


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    def make(**changes: Any) -> Problem:
        space = changes.pop("space", FakeSpace())
        known = lambda c: {"trainable_params": float(params(c)), "flops": 10.0 * params(c) + 7}  # noqa: E731
        fields: dict[str, Any] = {
            "space": space,
            "anatomy": anatomy(),
            "frame": TWO,
            "build": build,
            "known": known,
            "site_params": site_params,
            "feasible": lambda c: bool(c.groups) and params(c) <= 100_000,
            "flops": lambda c: float(params(c)),
            "n_validation": 1000,
            "seed": 0,
            "initial": 8,
        }
        return Problem(**(fields | changes))

    return make


@pytest.fixture
def make_bound_problem() -> Callable[..., Problem]:
    """On a space that comes with autopeft, by name."""
    return bound_problem


@pytest.fixture
def tiny_space() -> TinySpace:
    return TinySpace()


@pytest.fixture
def observe() -> Callable[..., Observation]:
    """What training a configuration would have measured."""

    def measured(number: int, configuration: Configuration, **changes: Any) -> Observation:
        value = changes.pop("accuracy", quality(configuration))
        objectives = {"accuracy": value, "trainable_params": float(params(configuration))}
        fields: dict[str, Any] = {"rung": 1.0} | changes
        return Observation(number, configuration, objectives, **fields)

    return measured


@pytest.fixture
def make_trial() -> Callable[..., TrialRecord]:
    def make(number: int, accuracy: float | None, n_params: int, **changes: Any) -> TrialRecord:
        made = Configuration.of(
            [Group.of("lora", [0], ["query"], rank=number + 1, alpha=1, dropout=0.0)],
            training={"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0},
        )
        configuration = changes.pop("configuration", made)
        objectives = {"accuracy": accuracy, "trainable_params": float(n_params)}
        fields: dict[str, Any] = {"objectives": objectives, "trainable_params": n_params}
        return completed_trial(number, configuration, **(fields | changes))

    return make
