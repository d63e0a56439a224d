"""All that the dashboard reads, as plain values; nothing here writes or knows of Streamlit.

A `StudyView` is one consistent-enough look at a study: it is made once per change of the study and
shared by everyone who looks, so it must not be changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from autopeft.api.loading import open_store
from autopeft.api.place import output_folder
from autopeft.api.status import status
from autopeft.api.study import Study, bounds
from autopeft.backbone.importance import ImportanceMap
from autopeft.errors import AutopeftError
from autopeft.searchers import confirmed
from autopeft.searchers import front as fronts
from autopeft.searchers.explain.importances import Importances
from autopeft.study.confirmation import Confirmation
from autopeft.study.placement import PlacementMap, placed, placement_map
from autopeft.study.records import (
    Measurement,
    ObjectiveFrame,
    Snapshot,
    StudyRecord,
    StudyState,
    TrialRecord,
)
from autopeft.study.summary import StudySummary
from dashboard.tables import trial_table


@dataclass(frozen=True)
class StudyLine:
    """One study in the list of studies.

    Attributes:
        name: Its name.
        state: Where it is in its life.
        lost: Whether it calls itself running, but its process is gone.
        model: Its backbone.
        data: Its data source.
        done: Trials in a final state, baselines included.
        total: Trials that the budget foresees, baselines included, or None without such a budget.
        failed: How many of the trials failed.
        metric: Its quality metric.
        best: The best quality on the front, or None.
        front_size: Trials on the front.
        hypervolume: Of the front, in [0, 1].
        updated_at: When something last changed.
    """

    name: str
    state: StudyState
    lost: bool
    model: str
    data: str
    done: int
    total: int | None
    failed: int
    metric: str
    best: float | None
    front_size: int
    hypervolume: float
    updated_at: datetime


@dataclass(frozen=True)
class StudyView:
    """A study as its pages show it.

    Attributes:
        record: The stored record.
        status: Its progress, in the shape of `autopeft status --json`.
        total: Trials that the budget foresees, baselines included, or None.
        trials: By number.
        front: From the cheapest to the best.
        snapshots: The front and its hypervolume after every tell.
        table: See `dashboard.tables.trial_table`.
        verdict: One sentence comparing the front with the best baseline.
        choices: `knee`, `best`, `smallest` -> the trial of the front and why; {} without one.
        baseline: The best finished baseline, or None.
        confirmation: What other seeds than the search's say.
        orphans: What came too late, see `Store.orphans`.
    """

    record: StudyRecord
    status: Mapping[str, Any]
    total: int | None
    trials: Mapping[int, TrialRecord]
    front: tuple[TrialRecord, ...]
    snapshots: tuple[Snapshot, ...]
    table: pd.DataFrame
    verdict: str
    choices: Mapping[str, fronts.Choice]
    baseline: TrialRecord | None
    confirmation: Confirmation
    orphans: tuple[Mapping[str, Any], ...]

    @property
    def frames(self) -> tuple[ObjectiveFrame, ...]:
        """The objectives, quality first."""
        return self.record.frame

    @property
    def done(self) -> int:
        """Trials in a final state, baselines included."""
        return sum(trial.state.final for trial in self.trials.values())

    @property
    def running(self) -> bool:
        """Whether more is to come without anyone's doing."""
        return self.record.state in (StudyState.CREATED, StudyState.RUNNING) and not self.lost

    @property
    def lost(self) -> bool:
        """Whether it calls itself running, but its process is gone."""
        return _lost(self.status, self.record)

    def best(self) -> TrialRecord | None:
        """The trial of the highest quality on the front, or None."""
        return self.choices["best"][0] if self.choices else None


@dataclass(frozen=True)
class TrialView:
    """What is shown of one trial beyond its record.

    Attributes:
        record: The stored record.
        curve: Its measurements by step.
        attempts: How often it was started, and what became of it.
        confirmation_attempts: The same of its runs with other seeds.
        orphans: What of it came too late.
        placement: Layers x sites.
        rung_steps: Steps at which the study's rungs end, by their share of the full budget.
        sources: Papers or code of its methods, by name.
    """

    record: TrialRecord
    curve: tuple[Measurement, ...]
    attempts: tuple[Mapping[str, Any], ...]
    confirmation_attempts: tuple[Mapping[str, Any], ...]
    orphans: tuple[Mapping[str, Any], ...]
    placement: PlacementMap
    rung_steps: Mapping[float, int]
    sources: Mapping[str, str]


@contextmanager
def opened(storage_url: str, name: str) -> Iterator[Study]:
    """The study of that name, for reading.

    Raises:
        NotFoundError: There is none of that name (from its first use).
        StorageError: The database is missing or cannot be read.
    """
    with closing(open_store(storage_url, read_only=True)) as store:
        yield Study(store, name, output_dir=output_folder(name))


def study_names(storage_url: str) -> list[str]:
    """The names of all studies, the one that changed last first.

    Raises:
        StorageError: The database is missing or cannot be read.
    """
    with closing(open_store(storage_url, read_only=True)) as store:
        return store.names()


def study_lines(storage_url: str) -> list[StudyLine]:
    """All studies, the one that changed last first.

    Raises:
        StorageError: The database is missing or cannot be read.
    """
    with closing(open_store(storage_url, read_only=True)) as store:
        lines = [_line(summary) for summary in store.summaries()]
    return sorted(lines, key=lambda line: line.updated_at, reverse=True)


def held(study: Study) -> bool:
    """Whether a study that calls itself running has a process that runs it; True for others."""
    record = study.record
    return record.state is not StudyState.RUNNING or not _lost(study.status(), record)


def read_study(study: Study) -> StudyView:
    """One look at a study: every trial, the front and what follows from them."""
    record, trials, found = study.record, study.trials(), study.confirmation()
    members = _front(trials, record)
    choices = (
        {how: pick(members, record.frame) for how, pick in fronts.PICKS.items()} if members else {}
    )
    return StudyView(
        record=record,
        status=study.status(),
        total=_total(record),
        trials={trial.number: trial for trial in trials},
        front=tuple(members),
        snapshots=tuple(study.snapshots()),
        table=trial_table(trials, (trial.number for trial in members), record.frame),
        verdict=fronts.compare_with_baseline(
            members,
            trials,
            record.frame,
            beyond=lambda number: confirmed.verdict(found, number),
        ),
        choices=choices,
        baseline=fronts.best_baseline(trials, record.frame),
        confirmation=found,
        orphans=tuple(study.orphans()),
    )


def read_trial(study: Study, number: int) -> TrialView:
    """One look at a trial.

    Raises:
        NotFoundError: The study has no trial of that number.
    """
    trial, facts = study.trial(number), study.record.facts
    layers = trial.configuration.layers
    n_layers = int(facts.get("n_layers") or (max(layers) + 1 if layers else 1))
    return TrialView(
        record=trial,
        curve=tuple(study.curve(number)),
        attempts=tuple(study.attempts(number)),
        confirmation_attempts=tuple(study.confirmation_attempts(number)),
        orphans=tuple(each for each in study.orphans() if each["trial"] == number),
        placement=placement_map(placed(trial), n_layers),
        rung_steps={float(r): int(step) for r, step in facts.get("rung_steps", {}).items()},
        sources=study.trial_sources(trial),
    )


def read_importances(study: Study) -> Mapping[str, Importances]:
    """What mattered, by target, `quality` first; takes about a second to work out."""
    return study.importances()


def read_importance_maps(study: Study) -> tuple[ImportanceMap, ...]:
    """How much every site matters for the study's data, newest measurement first."""
    return tuple(study.importance_maps())


def exported(study: Study, number: int) -> tuple[str, str]:
    """The YAML that trains a trial elsewhere, or "" and why there is none."""
    try:
        return study.export(trial=number, format="yaml"), ""
    except AutopeftError as error:
        return "", str(error)


_BLOCK = 256


def _front(trials: Sequence[TrialRecord], record: StudyRecord) -> list[TrialRecord]:
    """`Study.front()` of trials that are already read, in blocks.

    The front of blocks' fronts is the front; comparing all pairs of 10,000 trials takes seconds.
    """
    limits = bounds(record)
    blocks = (trials[start : start + _BLOCK] for start in range(0, len(trials), _BLOCK))
    ahead = [trial for block in blocks for trial in fronts.front(block, record.frame, limits)]
    return fronts.front(ahead, record.frame, limits)


def _line(summary: StudySummary) -> StudyLine:
    record, progress = summary.record, status(summary)
    definition, trials, quality = record.definition, progress["trials"], record.frame[0]
    return StudyLine(
        name=record.name,
        state=record.state,
        lost=_lost(progress, record),
        model=str(definition.get("model", {}).get("name_or_path", "")),
        data=str(definition.get("data", {}).get("source", "")),
        done=trials["completed"] + trials["stopped"] + trials["failed"],
        total=_total(record),
        failed=trials["failed"],
        metric=quality.name,
        best=summary.best.get(quality.name) if summary.best else None,
        front_size=progress["front_size"],
        hypervolume=progress["hypervolume"],
        updated_at=record.updated_at,
    )


def _lost(progress: Mapping[str, Any], record: StudyRecord) -> bool:
    return record.state is StudyState.RUNNING and not progress.get("held", True)


def _total(record: StudyRecord) -> int | None:
    trials = record.definition["budget"].get("trials")
    return None if trials is None else int(trials) + int(record.facts.get("n_baselines", 0))
