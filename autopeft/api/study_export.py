"""A whole study in a format that other tools show."""

from collections.abc import Mapping
from typing import Any

from autopeft.api.problem import bind_space, build
from autopeft.api.study import Study, bounds
from autopeft.backbone.skeleton import config_anatomy
from autopeft.configuration import Configuration
from autopeft.errors import ExportError, Fault
from autopeft.export.optuna_study import StudyContents, write_optuna_study
from autopeft.passwords import blotted
from autopeft.searchers.front import Bound
from autopeft.space.schema import Scalar
from autopeft.space.space import BoundSpace
from autopeft.study.definition import StudyDefinition, parse_definition
from autopeft.study.records import StudyRecord, TrialRecord
from autopeft.training.setup import backbone_request

STUDY_FORMATS = ("optuna",)


def export_study(study: Study, output: str, *, format: str) -> dict[str, Any]:  # noqa: A002
    """Write a study in a format; see `Study.export_study`.

    Raises:
        ExportError: An unknown format, or a study or place that it cannot be written to.
        StorageError: The place cannot be reached.
    """
    if format not in STUDY_FORMATS:
        raise ExportError(Fault("--format", "", format, ", ".join(STUDY_FORMATS)))
    record, trials = study.record, study.trials()
    definition = parse_definition(record.definition, where=f"study {record.name}", base=None)
    space = _space(record, definition)
    limits = bounds(record)

    def answers(configuration: Configuration) -> Mapping[str, Scalar] | None:
        point = space.nearest(configuration.to_dict())
        if point is None or build(definition, space, point) != configuration:
            return None
        return space.answers(point)

    def excess(trial: TrialRecord) -> Mapping[str, float]:
        return {_name(limit): limit.excess(trial) for limit in limits}

    contents = StudyContents(record, trials, study.curve, space.dimensions, answers, excess)
    states = write_optuna_study(contents, output)
    return {"study": record.name, "output": blotted(output), "trials": states}


def _space(record: StudyRecord, definition: StudyDefinition) -> BoundSpace:
    """The space that the study was created with; the model's configuration alone is read."""
    space = bind_space(definition, config_anatomy(backbone_request(definition.model)))
    if space.hash != record.space_hash:
        raise ExportError(
            Fault(
                f"study {record.name}",
                "space",
                space.hash,
                record.space_hash,
                "the space has changed since the study was created: put its file back",
            )
        )
    return space


def _name(limit: Bound) -> str:
    words = [f"at most {limit.cap:g}"] if limit.cap is not None else []
    words += [f"at least {limit.floor:g}"] if limit.floor is not None else []
    return f"{limit.metric} {' and '.join(words)}"
