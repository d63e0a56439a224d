"""What is known of a trial's costs before it is trained: in closed form, or from its probe."""

from collections.abc import Mapping
from typing import Any

from autopeft.searchers.base import Problem
from autopeft.study.metrics import metrics_of
from autopeft.study.records import TrialRecord

PROBE = "probe"
"""The key of a profile under which the solo probe is kept."""

MEASURED = metrics_of("measured")


def costs(problem: Problem, trial: TrialRecord) -> dict[str, float]:
    """Known and measured costs of a trial by name; what was not measured is missing."""
    return {**problem.known(trial.configuration), **measured_costs(trial.profile)}


def measured_costs(profile: Mapping[str, Any]) -> dict[str, float]:
    """What a trial's probe measured, of the metrics that a study may name."""
    probe = profile.get(PROBE, {})
    return {name: float(probe[name]) for name in MEASURED if name in probe}


def kept(profile: Mapping[str, Any]) -> dict[str, Any]:
    """What of a profile stays when training writes it anew."""
    return {PROBE: profile[PROBE]} if PROBE in profile else {}
