"""One configuration as a YAML file that trains on another machine with nothing else.

The file holds the whole model and data blocks with their fingerprints, the resolved training block
with the seed, the configuration, its results and where it came from. The training values of the
configuration stand in the training block and nowhere else, so that there is one place to edit.
What it trains may be decided by scores; they then lie beside it, see `carried_map`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from autopeft.configuration import TRAINING_KEYS, Configuration
from autopeft.errors import ExportError, Fault, InputError, SpaceError
from autopeft.export.carried_map import CarriedMap, read_carried_map, tensors_path
from autopeft.space.document import read_yaml
from autopeft.space.schema import Scalar
from autopeft.study.blocks import (
    Block,
    LearningRate,
    MaybeText,
    ModelBlock,
    Seed,
    TrainingBlock,
    WarmupRatio,
    WeightDecay,
    read_with,
)
from autopeft.study.configuration_form import form_findings
from autopeft.study.data_block import DataBlock, task_context
from autopeft.study.faults import Finding, faults_of, refusal, refusals
from autopeft.study.layout import yaml_text
from autopeft.study.paths import with_absolute_paths
from autopeft.study.readers import json_value

SCHEMA = "autopeft/config/v1"

_OTHER_SCHEMAS = {
    "autopeft/v1": "this is a study file: autopeft search runs it",
    "autopeft/space/v1": "this is a search space: name its file under `space` of a study file",
}

_HEADER = """\
# A configuration found by autopeft. It trains on any machine with autopeft installed:
#
#   autopeft train THIS_FILE -o adapter/
#
# `configuration` says which methods sit where; its learning rate, weight decay and warm-up stand
# under `training`. `results` and `origin` tell what was measured and where; training ignores them.
"""

_BESIDE = """\
#
# What it trains is decided by `importance`: scores of the data, which lie in {name}
# beside this file. Without it, autopeft train --rescore measures them again.
"""


@dataclass(frozen=True)
class ConfigurationFile:
    """A configuration with everything that it takes to train it.

    The configuration's own learning rate, weight decay and warm-up are the training block's, too:
    where the two differ when a record is made, the configuration's win.

    Attributes:
        model: The backbone and task.
        data: The labelled rows.
        training: Length and optimisation, resolved for this configuration.
        seed: Seed of everything random in its training.
        configuration: What to train.
        model_fingerprint: Fingerprint of the backbone it was measured on, or None.
        data_fingerprint: Fingerprint of the data it was measured on, or None.
        results: What was measured, plain JSON: `{metric: {value, rung, seed}, head_params: n}`.
        origin: Where it came from, plain JSON: study, trial, pick, hash, versions.
        importance: The scores that decide what it trains; None where none do, or where they are
            to be measured again.
    """

    model: ModelBlock
    data: DataBlock
    training: TrainingBlock
    seed: int
    configuration: Configuration
    model_fingerprint: str | None = None
    data_fingerprint: str | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    importance: CarriedMap | None = None

    def __post_init__(self) -> None:
        own = {key: self.configuration.training_value(key) for key in TRAINING_KEYS}
        object.__setattr__(self, "training", self.training.model_copy(update=own))

    def to_plain(self, tensors: str = "") -> dict[str, Any]:
        """The content of the YAML file; `tensors` names the file of scores beside it."""
        configuration = self.configuration.to_dict()
        training = self.training.model_dump(mode="json") | configuration.pop("training")
        return {
            "schema": SCHEMA,
            "model": self.model.model_dump(mode="json") | {"fingerprint": self.model_fingerprint},
            "data": self.data.model_dump(mode="json") | {"fingerprint": self.data_fingerprint},
            "training": training | {"seed": self.seed},
            "configuration": configuration,
            **({"importance": self.importance.to_plain(tensors)} if self.importance else {}),
            "results": dict(self.results),
            "origin": dict(self.origin),
        }


def write_configuration(file: ConfigurationFile, tensors: str = "") -> str:
    """The file's YAML text; `load_configuration_file` gives an equal record back.

    Args:
        file: The record.
        tensors: The name of the file of scores beside it, where it carries any.

    Raises:
        ExportError: It carries scores, and has no file beside which they could lie.
    """
    if file.importance and not tensors:
        hint = "name a file: its importance scores are written beside it"
        raise ExportError(Fault("-o", "", "nothing", "a file", hint))
    beside = _BESIDE.format(name=tensors) if file.importance else ""
    return f"{_HEADER}{beside}\n{yaml_text(file.to_plain(tensors))}"


def save_configuration(file: ConfigurationFile, path: Path) -> str:
    """Write the file, and the scores that it carries beside it; its text."""
    beside = tensors_path(path)
    text = write_configuration(file, beside.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.unlink(missing_ok=True)  # those of an earlier file of this name
    if file.importance:
        file.importance.save(beside)
    path.write_text(text, encoding="utf-8")
    return text


def load_configuration_file(path: Path, *, rescore: bool = False) -> ConfigurationFile:
    """The record in a configuration file.

    Args:
        path: The file.
        rescore: Whether scores beside it are left alone, as they will be measured again.

    Methods and their parameters are not looked up here; see
    `autopeft.study.configuration_check.check_configuration`.

    Raises:
        InputError: The file cannot be read, or all its faults of form; or the scores beside it
            are missing or not those that were exported.
    """
    plain = {key: value for key, value in read_yaml(path).items() if value is not None}
    plain = with_absolute_paths(plain, path.parent)
    try:
        content = _Content.model_validate(
            {"model": {}, "data": {}, "training": {}} | plain, context=task_context(plain)
        )
    except ValidationError as error:
        raise InputError(faults_of(error, _Content, plain, str(path))) from error
    record = _record(content, plain["training"], str(path))
    if content.importance is None or rescore:
        return record
    return replace(record, importance=read_carried_map(content.importance.model_dump(), path))


def _schema(value: Any) -> str:
    if value != SCHEMA:
        raise refusal(value, SCHEMA, _OTHER_SCHEMAS.get(str(value), ""))
    return SCHEMA


def _read_block(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise refusal(value, "a block of keys and values")
    block: dict[str, Any] = json_value(value)
    return block


def _read_groups(value: Any) -> dict[str, Any]:
    findings = form_findings(value)
    if isinstance(value, Mapping) and "training" in value:
        hint = "its values stand in the file's own `training` block"
        findings.append(Finding(("training",), "a block", "methods and sparsity", hint))
    if findings:
        raise refusals(findings)
    return _read_block(value)


class _Model(ModelBlock):
    fingerprint: MaybeText = None


class _Data(DataBlock):
    fingerprint: MaybeText = None


class _Training(TrainingBlock):
    """The training block, in which what belongs to the configuration may not be left out."""

    learning_rate: LearningRate
    weight_decay: WeightDecay
    warmup_ratio: WarmupRatio
    seed: Seed = 0


class _Tensors(Block):
    file: str
    sha256: str


class _Importance(Block):
    fingerprint: str
    examples: int
    block: int
    facts: Annotated[dict[str, Any], read_with(_read_block)] = Field(default_factory=dict)
    scores: Annotated[dict[str, Any], read_with(_read_block)] = Field(default_factory=dict)
    tensors: _Tensors


class _Content(Block):
    schema_version: Annotated[Literal["autopeft/config/v1"], read_with(_schema)] = Field(
        alias="schema"
    )
    model: _Model
    data: _Data
    training: _Training
    configuration: Annotated[dict[str, Any], read_with(_read_groups)]
    importance: _Importance | None = None
    results: Annotated[dict[str, Any], read_with(_read_block)] = Field(default_factory=dict)
    origin: Annotated[dict[str, Any], read_with(_read_block)] = Field(default_factory=dict)


def _record(content: _Content, training: Mapping[str, Any], where: str) -> ConfigurationFile:
    """The record of sound content; `training` is as written: 0 and 0.0 have different hashes."""
    values: dict[str, Scalar] = {}
    for key in TRAINING_KEYS:
        written = training[key]
        values[key] = getattr(content.training, key) if isinstance(written, str) else written
    try:
        configuration = Configuration.from_dict({**content.configuration, "training": values})
    except SpaceError as error:
        raise InputError(
            [replace(f, where=where, key=f"configuration.{f.key}") for f in error.faults]
        ) from error
    return ConfigurationFile(
        model=ModelBlock.model_validate(content.model.model_dump(exclude={"fingerprint"})),
        data=DataBlock.model_validate(content.data.model_dump(exclude={"fingerprint"})),
        training=TrainingBlock.model_validate(content.training.model_dump(exclude={"seed"})),
        seed=content.training.seed,
        configuration=configuration,
        model_fingerprint=content.model.fingerprint,
        data_fingerprint=content.data.fingerprint,
        results=content.results,
        origin=content.origin,
    )
