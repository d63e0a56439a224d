"""Configurations of two methods, drawn without a space, and trials of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from trial_records import completed_trial

from autopeft.configuration import Configuration, Group
from autopeft.study.records import TrialRecord


def configuration(
    *,
    rank: int = 0,
    size: int = 0,
    layers: Sequence[int] = (0,),
    other_layers: Sequence[int] = (0,),
    sites: Sequence[str] = ("query",),
    rate: float = 1e-3,
) -> Configuration:
    groups = []
    if rank:
        groups.append(Group.of("lora", layers, sites, rank=rank, alpha=2 * rank, dropout=0.0))
    if size:
        groups.append(Group.of("serial_adapter", other_layers, ["ffn"], size=size))
    training = {"learning_rate": rate, "weight_decay": 0.0, "warmup_ratio": 0.06}
    return Configuration.of(groups, training=training)


def drawn(rng: np.random.Generator, n: int) -> list[Configuration]:
    """`n` random configurations: each method in two of three, blocks of layers, log-uniform."""
    found = []
    while len(found) < n:
        has = rng.random(2) < 2 / 3
        if has.any():
            first, other = (sorted(rng.integers(0, 6, 2)) for _ in range(2))
            found.append(
                configuration(
                    rank=int(has[0]) * 2 ** int(rng.integers(0, 6)),
                    size=int(has[1]) * 2 ** int(rng.integers(1, 7)),
                    layers=range(first[0], first[1] + 1),
                    other_layers=range(other[0], other[1] + 1),
                    sites=[("query",), ("value",), ("query", "value")][int(rng.integers(3))],
                    rate=float(10 ** rng.uniform(-4, -2)),
                )
            )
    return found


def params(configuration: Configuration) -> float:
    counts = [
        float(group.get("rank") or group.get("size") or 0) * len(group.layers) * len(group.sites)
        for group in configuration.groups
    ]
    return 768.0 * sum(counts)


@pytest.fixture
def configure() -> Callable[..., Configuration]:
    return configuration


@pytest.fixture
def draw() -> Callable[[np.random.Generator, int], list[Configuration]]:
    return drawn


@pytest.fixture
def thrift() -> Callable[[Configuration], float]:
    """The utility of a configuration's parameters."""
    return lambda each: 1.0 - math.log10(params(each) / 768.0) / 3.0


@pytest.fixture
def make_trial() -> Callable[..., TrialRecord]:
    def make(number: int, quality: float | None = None, **changes: Any) -> TrialRecord:
        chosen = changes.pop("configuration", configuration(rank=number % 7 + 1))
        fields: dict[str, Any] = {
            "objectives": {} if quality is None else {"accuracy": quality},
            "trainable_params": int(params(chosen)),
        }
        return completed_trial(number, chosen, **(fields | changes))

    return make
