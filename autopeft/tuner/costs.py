"""What is known of a trial's costs: in closed form, from its probe, or from its last rung."""

from collections.abc import Mapping
from typing import Any

from autopeft.searchers.base import Problem
from autopeft.study.metrics import metrics_of
from autopeft.study.records import TrialRecord

PROBE = "probe"
"""The key of a profile under which the solo probe is kept."""

REACHED = "reached"
"""The key of a profile under which the costs are kept that its last rung measured."""

MEASURED = metrics_of("measured")


def costs(problem: Problem, trial: TrialRecord) -> dict[str, float]:
    """Known, measured and reached costs of a trial by name; what was not measured is missing."""
    probed = measured_costs(trial.profile)
    return {**problem.known(trial.configuration), **probed, **trial.profile.get(REACHED, {})}


def reached_costs(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The costs among what a rung measured, as a profile keeps them; {} where there are none."""
    found = {name: values[name] for name in metrics_of("reached") if name in values}
    return {REACHED: found} if found else {}


def measured_costs(profile: Mapping[str, Any]) -> dict[str, float]:
    """What a trial's probe measured, of the metrics that a study may name."""
    probe = profile.get(PROBE, {})
    return {name: float(probe[name]) for name in MEASURED if name in probe}


def kept(profile: Mapping[str, Any]) -> dict[str, Any]:
    """What of a profile stays when training writes it anew."""
    return {PROBE: profile[PROBE]} if PROBE in profile else {}
