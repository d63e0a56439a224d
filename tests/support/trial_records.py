"""Trials as a study holds them, without a store."""

from datetime import UTC, datetime
from typing import Any

from autopeft.configuration import Configuration
from autopeft.study.records import Origin, TrialRecord, TrialState


def completed_trial(number: int, configuration: Configuration, **changes: Any) -> TrialRecord:
    """A searcher's trial at its full budget; `changes` are any of its fields."""
    fields: dict[str, Any] = {
        "study": "s",
        "state": TrialState.COMPLETED,
        "origin": Origin.SEARCHER,
        "baseline": None,
        "objectives": {},
        "trainable_params": 1,
        "head_params": 10,
        "rung": 1.0,
        "optimizer_steps": 100,
        "seed": 0,
        "replicate": 0,
        "pack": 0,
        "attempts": 1,
        "cause": None,
        "message": None,
        "profile": {},
        "details": {},
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "started_at": None,
        "finished_at": None,
    }
    fields |= {"number": number, "configuration": configuration, "hash": configuration.hash}
    return TrialRecord(**(fields | changes))
