"""The configurations that are trained: quick draws, random mixes, single LoRA trials."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.counting import first_layer, site_params, training_flops
from autopeft.methods import registry
from autopeft.searchers.base import Problem
from autopeft.searchers.baselines import baselines
from autopeft.searchers.random import RandomSearcher
from autopeft.space.library import load_space
from autopeft.space.space import Point
from autopeft.sparsity import rules
from autopeft.training.lanes.pack import Lane

QUICK_DRAWS = Path(__file__).resolve().parents[1] / "quick_draws.json"
DRAWS = 13
TRAINING = {"weight_decay": 0.0, "warmup_ratio": 0.06}
"""What a study file sets where it says nothing."""


def sixteen(anatomy: Anatomy) -> list[Configuration]:
    """The three baselines and the first draws of `quick.yaml`, seed 0.

    The draws on MiniLM's shape are kept in `quick_draws.json`, so that they stay what they were;
    those on other shapes are drawn now.
    """
    tuned = baselines(["lora-r8"], anatomy, training=TRAINING).values()
    kept = json.loads(QUICK_DRAWS.read_text(encoding="utf-8"))
    if kept["shape"] == shape_of(anatomy):
        draws = [Configuration.from_dict(plain) for plain in kept["configurations"]]
    else:
        draws = quick_draws(anatomy)
    return [*tuned, *draws]


def shape_of(anatomy: Anatomy) -> dict[str, Any]:
    """What of a backbone the draws depend on."""
    return {"layers": len(anatomy.layers), "hidden_size": anatomy.hidden_size}


def quick_draws(anatomy: Anatomy) -> list[Configuration]:
    """The first draws of the random searcher from `quick.yaml`, seed 0."""
    shape = anatomy.shape(registry.carried_by(anatomy))
    space = load_space("quick", schemas=registry.schemas(), rules=rules.schemas()).bind(shape)

    def build(point: Point) -> Configuration:
        assignment = space.assignment(point)
        training = {**TRAINING, **dict(assignment.get("training", {}))}
        return Configuration.from_dict({**assignment, "training": training})

    problem = Problem(
        space=space,
        anatomy=anatomy,
        frame=(),
        build=build,
        known=lambda configuration: {},
        site_params=lambda configuration: site_params(configuration, anatomy),
        feasible=lambda configuration: True,
        flops=lambda configuration: training_flops(configuration, anatomy, 1),
        n_validation=1,
        seed=0,
        initial=0,
    )
    return [proposal.configuration for proposal in RandomSearcher(problem).ask(DRAWS)]


def lora(anatomy: Anatomy, layers: Sequence[int], *, rate: float = 1e-3) -> Configuration:
    """LoRA r=8, alpha 16, on query and value of these layers."""
    group = Group.of("lora", layers, ["query", "value"], rank=8, alpha=16.0, dropout=0.0)
    return Configuration.of([group], training={**TRAINING, "learning_rate": rate})


def top_third(anatomy: Anatomy) -> range:
    """The upper third of the layers."""
    n = len(anatomy.layers)
    return range(n - max(1, n // 3), n)


def eight(layers: Sequence[int]) -> list[Configuration]:
    """Eight LoRA lanes at these layers that differ in rank and learning rate."""
    found = []
    for index in range(8):
        rank = (2, 4, 8, 16)[index % 4]
        group = Group.of(
            "lora",
            layers,
            ["query", "value"],
            rank=rank,
            alpha=2.0 * rank,
            dropout=0.0,
        )
        training = {**TRAINING, "learning_rate": 5e-4 * (index + 1)}
        found.append(Configuration.of([group], training=training))
    return found


def random_mix(anatomy: Anatomy, n: int, seed: int) -> list[Configuration]:
    """n configurations of one or two methods at random layers, sites and sizes."""
    rng = np.random.default_rng(seed)
    return [_random(anatomy, rng) for _ in range(n)]


def _random(anatomy: Anatomy, rng: np.random.Generator) -> Configuration:
    n = len(anatomy.layers)
    methods = sorted(registry.carried_by(anatomy) & set(_GROUPS))
    chosen = rng.choice(methods, size=int(rng.integers(1, 3)), replace=False)
    groups = []
    for method in chosen:
        layers = rng.choice(n, size=int(rng.integers(1, n + 1)), replace=False)
        groups.append(_GROUPS[str(method)]([int(layer) for layer in layers], rng))
    rate = float(10 ** rng.uniform(-3.5, -2.5))
    return Configuration.of(groups, training={**TRAINING, "learning_rate": rate})


def _random_lora(layers: Sequence[int], rng: np.random.Generator) -> Group:
    roles = ["query", "value", "up", "down"]
    sites = [str(s) for s in rng.choice(roles, size=int(rng.integers(1, 5)), replace=False)]
    rank = int(rng.choice([1, 2, 4, 8, 16]))
    return Group.of("lora", layers, sites, rank=rank, alpha=2.0 * rank, dropout=0.0)


def _random_adapter(method: str, layers: Sequence[int], rng: np.random.Generator) -> Group:
    scale = 4.0 if method == "parallel_adapter" else 1.0
    size = int(rng.choice([8, 16, 32, 64]))
    return Group.of(
        method, layers, ["ffn"], size=size, activation="relu", scale=scale, dropout=0.0
    )


def _random_prefix(layers: Sequence[int], rng: np.random.Generator) -> Group:
    return Group.of("prefix", layers, length=int(rng.choice([4, 8, 16])), reparametrise=False)


_GROUPS: Mapping[str, Callable[[Sequence[int], np.random.Generator], Group]] = {
    "lora": _random_lora,
    "parallel_adapter": partial(_random_adapter, "parallel_adapter"),
    "prefix": _random_prefix,
    "serial_adapter": partial(_random_adapter, "serial_adapter"),
}


def packs(
    configurations: Mapping[int, Configuration], size: int, anatomy: Anatomy
) -> list[list[Lane]]:
    """Lanes in packs of at most `size`, neighbours by branch point, as a packer groups them."""
    lanes = [Lane(number, configuration) for number, configuration in configurations.items()]
    lanes.sort(key=lambda lane: (first_layer(lane.configuration, anatomy), lane.number))
    return [lanes[start : start + size] for start in range(0, len(lanes), size)]
