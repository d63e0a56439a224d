"""A study at a glance: what lists of studies show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopeft.study.confirmation import ConfirmationRun, Opening
from autopeft.study.records import Holder, Snapshot, StudyRecord, TrialState


@dataclass(frozen=True)
class StudySummary:
    """A study at a glance: what lists of studies show, without its trials.

    Attributes:
        record: The study.
        counts: How many trials are in each state; every state is a key.
        failures: How many of the failed trials failed by each cause, commonest first.
        attempts: How many attempts ended by each cause, commonest first.
        orphans: How many results came too late.
        last: The newest snapshot of the front, or None before the first.
        best: The objectives of the last trial of that front, which has the highest quality.
        holder: Who runs the study now, or None.
        confirmations: Runs of trials with further seeds.
        confirmation_attempts: How many attempts at these ended by each cause, commonest first.
        openings: Of the test split, oldest first.
    """

    record: StudyRecord
    counts: Mapping[TrialState, int]
    failures: Mapping[str, int]
    attempts: Mapping[str, int]
    orphans: int
    last: Snapshot | None
    best: Mapping[str, float | None] | None
    holder: Holder | None
    confirmations: Sequence[ConfirmationRun]
    confirmation_attempts: Mapping[str, int]
    openings: Sequence[Opening]
