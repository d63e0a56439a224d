"""How far a study is, as `autopeft status` tells it; read from its summary, so that no trial is.

Apart from `api.study`, as lists of studies need this alone, and no arrays.
"""

from collections.abc import Sequence
from typing import Any

from autopeft.space.quantities import parse_duration_s
from autopeft.study.confirmation import FIRST_REPLICATE, ConfirmationRun, Opening
from autopeft.study.records import StudyRecord, StudyState, TrialState
from autopeft.study.summary import StudySummary


def status(summary: StudySummary) -> dict[str, Any]:
    """A study's progress, in the binding JSON shape."""
    record, counts, snapshot = summary.record, summary.counts, summary.last
    budget = dict(record.definition["budget"])
    baselines = int(record.facts.get("n_baselines", 0))
    begun = max(0, sum(counts.values()) - baselines)
    done = sum(counts[state] for state in TrialState if state.final)
    trials_left = None if budget.get("trials") is None else max(0, budget["trials"] - begun)
    open_trials = counts[TrialState.RUNNING] + counts[TrialState.WAITING]
    wall = float(record.spent.get("wall_seconds", 0.0))
    text = budget.get("wall_clock")
    limit = None if text is None else parse_duration_s(text)
    per_trial = wall / done if done else None
    remaining = None if trials_left is None else trials_left + open_trials
    finished = record.state is StudyState.FINISHED
    return {
        "study": record.name,
        "state": record.state.value,
        "trials": {state.value: counts[state] for state in TrialState},
        "hypervolume": snapshot.hypervolume if snapshot else 0.0,
        "reference_point": {frame.name: frame.worst for frame in record.frame},
        "front_size": len(snapshot.front) if snapshot else 0,
        "budget": budget,
        "left": {
            "trials": trials_left,
            "wall_clock": None if limit is None else max(0.0, limit - wall),
            "gpu_hours": _hours_left(budget.get("gpu_hours"), record),
            "optimizer_steps": _steps_left(budget.get("optimizer_steps"), record),
        },
        "eta_seconds": 0.0
        if finished
        else (None if per_trial is None or remaining is None else per_trial * remaining),
        "spent": {
            "trials": begun,
            "train_seconds": record.spent.get("train_seconds", 0.0),
            "preparation_seconds": record.spent.get("preparation_seconds", 0.0),
            "optimizer_steps": int(record.spent.get("optimizer_steps", 0)),
            "suggest_seconds": record.spent.get("suggest_seconds", 0.0),
            "wall_seconds": wall,
            "device_seconds": record.device_seconds,
        },
        "failures": dict(summary.failures),
        "attempts": dict(summary.attempts),
        "orphans": summary.orphans,
        "ended": record.facts.get("ended"),
        "interrupted": record.facts.get("interrupted"),
        "held": summary.holder is not None,
        "confirmed": {
            **_confirmed(summary.confirmations),
            "attempts": dict(summary.confirmation_attempts),
        },
        "test": _test(record, summary.openings),
        "objectives": [frame.name for frame in record.frame],
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
    }


def _hours_left(budget: float | None, record: StudyRecord) -> float | None:
    """Device hours left; None without such a budget."""
    if budget is None:
        return None
    return max(0.0, float(budget) - record.device_seconds / 3600.0)


def _steps_left(budget: int | None, record: StudyRecord) -> int | None:
    """Optimizer steps left; None without such a budget."""
    return None if budget is None else max(0, budget - int(record.spent.get("optimizer_steps", 0)))


def _confirmed(runs: Sequence[ConfirmationRun]) -> dict[str, Any]:
    """Which trials other seeds have confirmed, with how many results of how many runs."""
    return {
        "trials": sorted({run.trial for run in runs}),
        "seeds": len({run.replicate for run in runs if run.replicate >= FIRST_REPLICATE}),
        "runs": len(runs),
        "ended": sum(run.ended for run in runs),
    }


def _test(record: StudyRecord, openings: Sequence[Opening]) -> dict[str, Any]:
    """Whether the test split is locked, and who opened it."""
    there = record.definition.get("data", {}).get("splits", {}).get("test") is not None
    state = "opened" if openings else "locked" if there else "none"
    return {"state": state, "openings": [opening.to_dict() for opening in openings]}
