"""One configuration as a YAML file that trains on another machine with nothing else.

The file holds the whole model and data blocks with their fingerprints, the resolved training block
with the seed, the configuration, its results and where it came from. The training values of the
configuration stand in the training block and nowhere else, so that there is one place to edit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from autopeft.configuration import TRAINING_KEYS, Configuration
from autopeft.errors import InputError, SpaceError
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

    def __post_init__(self) -> None:
        own = {key: self.configuration.training_value(key) for key in TRAINING_KEYS}
        object.__setattr__(self, "training", self.training.model_copy(update=own))

    def to_plain(self) -> dict[str, Any]:
        """The content of the YAML file."""
        configuration = self.configuration.to_dict()
        training = self.training.model_dump(mode="json") | configuration.pop("training")
        return {
            "schema": SCHEMA,
            "model": self.model.model_dump(mode="json") | {"fingerprint": self.model_fingerprint},
            "data": self.data.model_dump(mode="json") | {"fingerprint": self.data_fingerprint},
            "training": training | {"seed": self.seed},
            "configuration": configuration,
            "results": dict(self.results),
            "origin": dict(self.origin),
        }


def write_configuration(file: ConfigurationFile) -> str:
    """The file's YAML text; `load_configuration_file` gives an equal record back."""
    return f"{_HEADER}\n{yaml_text(file.to_plain())}"


def load_configuration_file(path: Path) -> ConfigurationFile:
    """The record in a configuration file.

    Methods and their parameters are not looked up here; see
    `autopeft.study.configuration_check.check_configuration`.

    Raises:
        InputError: The file cannot be read, or all its faults of form.
    """
    plain = {key: value for key, value in read_yaml(path).items() if value is not None}
    plain = with_absolute_paths(plain, path.parent)
    try:
        content = _Content.model_validate(
            {"model": {}, "data": {}, "training": {}} | plain, context=task_context(plain)
        )
    except ValidationError as error:
        raise InputError(faults_of(error, _Content, plain, str(path))) from error
    return _record(content, plain["training"], str(path))


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


class _Content(Block):
    schema_version: Annotated[Literal["autopeft/config/v1"], read_with(_schema)] = Field(
        alias="schema"
    )
    model: _Model
    data: _Data
    training: _Training
    configuration: Annotated[dict[str, Any], read_with(_read_groups)]
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
