"""A whole study as one of Optuna's: for its dashboard, its plots, or a search that goes on there.

Every trial becomes a trial of the same number, with the values of all objectives as they were
measured. What Optuna has no place for is in user attributes, in the shape of `autopeft trials
--json`, so nothing is lost:

- **Parameters** are the space's dimensions by name, where they mean something. A configuration
  outside the space (a baseline, an enqueued one) has none, and `in_space` is false.
- **States**: completed, running and waiting as they are; stopped is `PRUNED`, with the values at
  the rung; failed is `FAIL`. So is a completed trial with an objective that is not a number, as
  Optuna itself has it.
- **Learning curves** of the quality are intermediate values by step. With several objectives,
  pruned trials have theirs in the user attribute `curve`: Optuna would keep them, but its
  `TPESampler` cannot go on from such a study.
- **Caps and floors** are constraints: `best_trials` is the front.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from autopeft.configuration import Configuration
from autopeft.errors import ExportError, Fault
from autopeft.export.optuna_place import opened
from autopeft.passwords import blotted
from autopeft.space.dimension import Dimension
from autopeft.space.schema import Scalar
from autopeft.study.records import Measurement, StudyRecord, TrialRecord, TrialState

STATES = {
    TrialState.WAITING: OptunaState.WAITING,
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.COMPLETED: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}


@dataclass(frozen=True)
class StudyContents:
    """What is exported.

    Attributes:
        record: The study.
        trials: Its trials by number.
        curve: A trial's number -> its learning curve.
        dimensions: The space's dimensions.
        answers: A configuration -> values of the dimensions that mean something for it; None
            where it lies outside the space.
        excess: A trial -> by bound, how far it is beyond; 0 or less where it keeps it.
    """

    record: StudyRecord
    trials: Sequence[TrialRecord]
    curve: Callable[[int], Sequence[Measurement]]
    dimensions: Sequence[Dimension]
    answers: Callable[[Configuration], Mapping[str, Scalar] | None]
    excess: Callable[[TrialRecord], Mapping[str, float]]


def write_optuna_study(contents: StudyContents, url: str) -> dict[str, int]:
    """Write a study to a database or journal of Optuna's; all of it or nothing.

    Args:
        contents: What to write.
        url: A database's URL, or the path of a journal file.

    Returns:
        How many trials there are in each of Optuna's states.

    Raises:
        ExportError: The place holds a study of that name, or what is not Optuna's.
        StorageError: The place cannot be reached or written.
    """
    trials = [_trial(contents, each) for each in contents.trials]
    with _quiet(), opened(url) as storage:
        study = _new_study(contents.record, storage, url)
        try:
            study.add_trials(trials)
        except BaseException:
            optuna.delete_study(study_name=study.study_name, storage=storage)
            raise
    names = [trial.state.name for trial in trials]
    return {state.name: names.count(state.name) for state in STATES.values()}


def _new_study(record: StudyRecord, storage: BaseStorage, url: str) -> optuna.Study:
    goals = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    directions = [goals[frame.goal] for frame in record.frame]
    try:
        study = optuna.create_study(study_name=record.name, storage=storage, directions=directions)
    except DuplicatedStudyError:
        raise ExportError(
            Fault(
                "-o",
                "",
                f"{blotted(url)}, which holds a study {record.name!r}",
                "a place without a study of that name",
                "name another, or remove it with: "
                f"optuna delete-study --study-name {record.name} --storage URL",
            )
        ) from None
    study.set_metric_names([frame.name for frame in record.frame])
    for name, value in _study_attributes(record).items():
        study.set_user_attr(name, value)
    return study


def _study_attributes(record: StudyRecord) -> dict[str, Any]:
    return {
        "autopeft_study": record.name,
        "state": record.state.value,
        "definition": dict(record.definition),
        "frame": [asdict(frame) for frame in record.frame],
        "space_hash": record.space_hash,
        "fingerprints": dict(record.fingerprints),
        "versions": dict(record.versions),
    }


# -- trials ---------------------------------------------------------------------------------------


def _trial(contents: StudyContents, trial: TrialRecord) -> FrozenTrial:
    frames = contents.record.frame
    values = _values(trial, [frame.name for frame in frames])
    state = STATES[trial.state]
    if state is OptunaState.COMPLETE and values is None:
        state = OptunaState.FAIL
    if state not in (OptunaState.COMPLETE, OptunaState.PRUNED):
        values = None
    answers = contents.answers(trial.configuration)
    attributes = _attributes(trial) | {"in_space": answers is not None}
    curve = _curve(contents.curve(trial.number), frames[0].name)
    if state is OptunaState.PRUNED and len(frames) > 1 and curve:
        attributes["curve"] = {str(step): value for step, value in curve.items()}
        curve = {}
    frozen = create_trial(
        state=state,
        values=values,
        params=dict(answers or {}),
        distributions={
            dimension.name: _distribution(dimension)
            for dimension in contents.dimensions
            if answers and dimension.name in answers
        },
        user_attrs=attributes,
        intermediate_values=curve,
        constraints=dict(contents.excess(trial)) if values else None,
    )
    _set_times(frozen, trial)
    return frozen


def _values(trial: TrialRecord, names: Sequence[str]) -> list[float] | None:
    """The values of all objectives; None where one is not a number."""
    values = [trial.objectives.get(name) for name in names]
    found = [value for value in values if value is not None and math.isfinite(value)]
    return found if len(found) == len(names) else None


def _attributes(trial: TrialRecord) -> dict[str, Any]:
    """What Optuna has no place for; nulls are left out."""
    plain = trial.to_dict() | {"message": trial.message, "details": dict(trial.details)}
    return {name: value for name, value in plain.items() if value not in (None, {})}


def _curve(measurements: Sequence[Measurement], quality: str) -> dict[int, float]:
    """The quality on the validation split, by step."""
    return {
        each.step: each.value
        for each in measurements
        if each.metric == quality and each.split == "validation" and each.value is not None
    }


def _distribution(dimension: Dimension) -> BaseDistribution:
    """What a dimension may be; listed numbers are categories, so as to be shown as they are."""
    values = dimension.values
    if dimension.kind == "real":
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if dimension.kind == "integer":
        return IntDistribution(int(values[0]), int(values[-1]), log=dimension.log)
    return CategoricalDistribution(list(values))


def _set_times(frozen: FrozenTrial, trial: TrialRecord) -> None:
    """Optuna keeps local times without a zone."""
    if frozen.state is not OptunaState.WAITING:
        frozen.datetime_start = _local(trial.started_at or trial.created_at)
    if frozen.state.is_finished():
        frozen.datetime_complete = _local(trial.finished_at or trial.created_at)


def _local(time: datetime) -> datetime:
    return time.astimezone().replace(tzinfo=None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back Optuna's log lines and its warnings that something is experimental."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
