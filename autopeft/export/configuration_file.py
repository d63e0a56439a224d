"""One configuration as a YAML file that trains on another machine with nothing else.

The file holds the whole model and data blocks with their fingerprints, the resolved training block
with the seed, the configuration, its results and where it came from. The training values of the
configuration stand in the training block and nowhere else, so that there is one place to edit.
What it trains may be decided by importance scores; the outcome then stands there too, see
`decision`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from autopeft.configuration import TRAINING_KEYS, TRAINING_OPTIONS, Configuration
from autopeft.errors import ExportError, Fault, InputError, SpaceError
from autopeft.export.decision import Decision, read_decision, tensors_path
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
from autopeft.study.faults import faults_of, refusal, refusals
from autopeft.study.findings import Finding
from autopeft.study.layout import yaml_text
from autopeft.study.paths import with_absolute_paths
from autopeft.study.readers import json_value, number
from autopeft.study.records import BLOCK_SIDE, KEPT_SHARE

SCHEMA = "autopeft/config/v1"

_OWN = (*TRAINING_KEYS, *TRAINING_OPTIONS)
"""Keys of the training block that are the configuration's."""

_OTHER_SCHEMAS = {
    "autopeft/v1": "this is a study file: autopeft search runs it",
    "autopeft/space/v1": "this is a search space: name its file under `space` of a study file",
}

_HEADER = """\
# A configuration found by autopeft. It trains on any machine with autopeft installed:
#
#   autopeft train THIS_FILE -o adapter/
#
# `configuration` says which methods sit where; its learning rate, weight decay, warm-up and
# options stand under `training`. `results` and `origin` tell what was measured and where; training
# ignores them.
"""

_DECIDED = """\
#
# Scores of the data decided what exactly it trains: `importance` holds the outcome{beside}.
# autopeft train --rescore leaves it alone, measures the scores again and decides anew.
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
        decision: What importance scores decided of the configuration; None where none decide, or
            where they are to be measured again.
        decided_before: Facts of the importance map that did, where `decision` leaves it alone.
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
    decision: Decision | None = None
    decided_before: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = {key: self.configuration.training_value(key) for key in _OWN}
        object.__setattr__(self, "training", self.training.model_copy(update=own))

    @property
    def trained(self) -> Configuration:
        """What is built: the configuration as scores decided it, where any do."""
        return self.configuration if self.decision is None else self.decision.trained

    @property
    def has_tensors(self) -> bool:
        """Whether a file of tensors belongs beside it."""
        return self.decision is not None and not self.decision.is_listed

    def to_plain(self, tensors: str = "") -> dict[str, Any]:
        """The content of the YAML file; `tensors` names the file of tensors beside it."""
        configuration = self.configuration.to_dict()
        own = self.decision
        importance = {} if own is None else own.to_plain(self.configuration, tensors)
        training = self.training.model_dump(mode="json") | configuration.pop("training")
        return {
            "schema": SCHEMA,
            "model": self.model.model_dump(mode="json") | {"fingerprint": self.model_fingerprint},
            "data": self.data.model_dump(mode="json") | {"fingerprint": self.data_fingerprint},
            "training": training | {"seed": self.seed},
            "configuration": configuration,
            **({"importance": importance} if importance else {}),
            "results": dict(self.results),
            "origin": dict(self.origin),
        }


def write_configuration(file: ConfigurationFile, tensors: str = "") -> str:
    """The file's YAML text; `load_configuration_file` gives an equal record back.

    Args:
        file: The record.
        tensors: The name of the file of tensors beside it, where it needs one.

    Raises:
        ExportError: It needs a file of tensors, and has no file beside which that could lie.
    """
    if file.has_tensors and not tensors:
        hint = "name a file: the numbers of its sparse weights are written beside it"
        raise ExportError(Fault("-o", "", "nothing", "a file", hint))
    beside = f",\n# with {tensors} beside this file" if file.has_tensors else ""
    decided = _DECIDED.format(beside=beside) if file.decision else ""
    return f"{_HEADER}{decided}\n{yaml_text(file.to_plain(tensors))}"


def save_configuration(file: ConfigurationFile, path: Path) -> str:
    """Write the file, and the tensors that it needs beside it; its text."""
    beside = tensors_path(path)
    text = write_configuration(file, beside.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.unlink(missing_ok=True)  # those of an earlier file of this name
    if file.decision and file.has_tensors:
        file.decision.save(beside)
    path.write_text(text, encoding="utf-8")
    return text


def load_configuration_file(path: Path, *, rescore: bool = False) -> ConfigurationFile:
    """The record in a configuration file.

    Args:
        path: The file.
        rescore: Whether what scores decided is left alone, as it will be decided anew.

    Methods and their parameters are not looked up here; see
    `autopeft.study.configuration_check.check_configuration`.

    Raises:
        InputError: The file cannot be read, or all its faults of form; or what scores decided is
            missing or not as it was exported.
    """
    plain = {key: value for key, value in read_yaml(path).items() if value is not None}
    plain = with_absolute_paths(plain, path.parent)
    try:
        content = _Content.model_validate(
            {"model": {}, "data": {}, "training": {}} | plain, context=task_context(plain)
        )
    except ValidationError as error:
        # The cause is dropped: it quotes the input, in which a URL may have a password.
        raise InputError(faults_of(error, _Content, plain, str(path))) from None
    record = _record(content, plain["training"], str(path))
    if content.importance is None:
        return record
    if rescore:
        return replace(record, decided_before=content.importance.facts)
    decision = read_decision(content.importance.model_dump(), record.configuration, path)
    return replace(record, decision=decision)


def _schema(value: Any) -> str:
    if value != SCHEMA:
        raise refusal(value, SCHEMA, _OTHER_SCHEMAS.get(str(value), ""))
    return SCHEMA


def _read_block(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise refusal(value, "a block of keys and values")
    block: dict[str, Any] = json_value(value)
    return block


def _side(value: Any) -> None:
    """Facts are texts."""
    if not (str(value).isdecimal() and int(value) > 0):
        raise refusal(value, "a whole number >= 1")


_ASKED = {KEPT_SHARE: number(above=0.0, maximum=1.0), BLOCK_SIDE: _side}
"""Facts of a map that it is measured by again."""


def _read_facts(value: Any) -> dict[str, Any]:
    facts = _read_block(value)
    for name, read in _ASKED.items():
        if name in facts:
            read(facts[name])
    return facts


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


class _Importance(Block):
    fingerprint: str
    examples: int
    facts: Annotated[dict[str, Any], read_with(_read_facts)] = Field(default_factory=dict)
    scores: Annotated[dict[str, Any], read_with(_read_block)] = Field(default_factory=dict)
    resolved: Annotated[dict[str, Any], read_with(_read_groups)] = Field(default_factory=dict)
    chosen: dict[str, list[int]] = Field(default_factory=dict)
    tensors: str = ""
    sha256: str


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
    for key in (key for key in _OWN if key in training):
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
