"""Why a trial was proposed, in sentences: from what its proposer kept in the details.

Studies of earlier releases kept less, other searchers keep something else: what is missing is not
spoken of, and what has no sentence is left to the reader as it is (`unspoken`).
"""

from collections.abc import Mapping
from typing import Any

from autopeft.searchers.explain.predictions import as_number, predicted
from autopeft.study.placement import RESOLVED
from autopeft.study.records import Origin, TrialRecord, TrialState

ACQUISITION = "acquisition"
"""The source of what a searcher thought out itself; any other source is a citation."""

_SPOKEN = {
    "reason", "source", "parent", "expected_gain", "relative_cost", "gain_per_cost", "predicted",
    "known", RESOLVED,
}  # fmt: skip

_ORIGINS = {
    Origin.ENQUEUED: "enqueued in the study file (search.enqueue)",
    Origin.INITIAL: "proposed because: space-filling start",
    Origin.WARM_START: "taken over from an earlier study",
    Origin.SEARCHER: "proposed by the searcher, which kept no reason",
}
"""What is said where there is no reason."""


def sentences(trial: TrialRecord, *, plus_minus: str = "+-") -> list[str]:
    """Why the trial was proposed, and what came of it.

    Args:
        trial: Any trial.
        plus_minus: How a standard deviation is set off.

    Returns:
        At least one sentence, without a full stop.
    """
    return [_cited(_reason(trial), trial.details), *_predictions(trial, plus_minus)]


def unspoken(details: Mapping[str, Any]) -> dict[str, Any]:
    """What the sentences leave out; known objectives are told with the trial's values.

    What a rule made of the configuration is drawn as its placement.
    """
    return {key: value for key, value in details.items() if key not in _SPOKEN}


def _reason(trial: TrialRecord) -> str:
    if trial.baseline is not None:
        return f"baseline {trial.baseline}: run before the search, as what it has to beat"
    details = trial.details
    if (gain := as_number(details.get("expected_gain"))) is not None:
        return f"proposed because: expected gain {_shown(gain)} hypervolume{_cost(details)}"
    reason, parent = details.get("reason"), as_number(details.get("parent"))
    if not isinstance(reason, str) or not reason:
        return _ORIGINS.get(trial.origin, "no reason was kept")
    if parent is not None:
        return f"proposed because: {reason} of trial {parent:.0f}, which was on the front"
    if trial.origin in (Origin.ENQUEUED, Origin.WARM_START):
        return f"{_ORIGINS[trial.origin]}: {reason}"
    return f"proposed because: {reason}"


def _cost(details: Mapping[str, Any]) -> str:
    """At which cost the gain was expected; "" where that was not kept."""
    relative = as_number(details.get("relative_cost"))
    if relative is None:
        return ""
    rate = as_number(details.get("gain_per_cost"))
    per = "" if rate is None else f" ({_shown(rate)} per mean cost)"
    return f" at {relative:.2g}x the mean cost{per}"


def _cited(reason: str, details: Mapping[str, Any]) -> str:
    source = details.get("source")
    cited = isinstance(source, str) and source and source != ACQUISITION
    return f"{reason}; source: {source}" if cited else reason


def _predictions(trial: TrialRecord, plus_minus: str) -> list[str]:
    said = []
    for metric, (mean, sd) in predicted(trial).items():
        spread = "" if sd is None else f" {plus_minus} {_shown(sd)}"
        name = metric.replace("_", " ")
        said.append(f"predicted {name} {_shown(mean)}{spread}, {_came(trial, metric, mean, sd)}")
    return said


def _came(trial: TrialRecord, metric: str, mean: float, sd: float | None) -> str:
    """What was measured in the end, or how far the trial came."""
    value = trial.objectives.get(metric)
    if trial.state is TrialState.FAILED:
        return f"not measured: it failed ({trial.cause or 'error'})"
    if value is None or trial.rung is None:
        return "not measured yet" if not trial.state.final else "not measured"
    if trial.rung < 1.0:
        ended = ", where it was stopped" if trial.state is TrialState.STOPPED else " so far"
        return f"measured {_shown(value)} at {trial.rung:.0%} of the budget{ended}"
    if not sd:
        return f"measured {_shown(value)}"
    off = (value - mean) / sd
    return f"measured {_shown(value)} ({abs(off):.1f} sd {'above' if off >= 0 else 'below'})"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
