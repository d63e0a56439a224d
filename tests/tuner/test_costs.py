"""Costs of a trial, from where its record keeps them."""

from types import SimpleNamespace
from typing import Any

from autopeft.searchers.front import Bound
from autopeft.study.records import TrialRecord
from autopeft.tuner.costs import costs, kept, reached_costs

PROBED: dict[str, Any] = {"probe": {"latency_seconds": 0.25, "seconds": 1.0}}


def test_known_probed_and_reached_costs_come_together() -> None:
    problem: Any = SimpleNamespace(known=lambda configuration: {"trainable_params": 7.0})
    values = {"accuracy": 0.5, "loss": 1.0, "activation_density": 0.75}
    profile = PROBED | {"train_seconds": 3.0} | reached_costs(values)
    assert profile["reached"] == {"activation_density": 0.75}
    trial: Any = SimpleNamespace(configuration=None, profile=profile)
    assert costs(problem, trial) == {
        "trainable_params": 7.0,
        "latency_seconds": 0.25,
        "activation_density": 0.75,
    }
    assert kept(profile) == PROBED, "what a rung reached is written anew by the next"
    assert reached_costs({"accuracy": 0.5}) == {}


def test_a_cap_on_a_reached_cost_that_is_no_objective_bounds_the_front() -> None:
    record: Any = SimpleNamespace(
        objectives={}, profile=reached_costs({"activation_density": 0.7})
    )
    trial: TrialRecord = record
    assert Bound("activation_density", cap=0.7).keeps(trial)
    assert not Bound("activation_density", cap=0.6).keeps(trial)
