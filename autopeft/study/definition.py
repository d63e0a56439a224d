"""What a study is, as its file says: backbone, data, objectives, space, budget, seed.

`parse_definition` is the one gate: whatever comes from a file, a flag or the database passes
through it, and all faults are told at once. Behind it the definition is trusted.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from autopeft.errors import Fault, InputError
from autopeft.space.document import read_yaml
from autopeft.space.faults import shown
from autopeft.study.blocks import (
    Block,
    ModelBlock,
    StudyBlock,
    TrainingBlock,
)
from autopeft.study.data_block import DataBlock, task_context
from autopeft.study.faults import faults_of, refusal, refusals
from autopeft.study.findings import Finding
from autopeft.study.layout import yaml_text
from autopeft.study.metrics import DEFAULT_COST, DEFAULT_QUALITY, METRICS
from autopeft.study.names import NAME_PATTERN
from autopeft.study.overrides import with_overrides
from autopeft.study.paths import with_absolute_paths
from autopeft.study.search_blocks import (
    BudgetBlock,
    Constraint,
    ExecutionBlock,
    Objective,
    SearchBlock,
    budget_findings,
    objective_findings,
    read_deploy,
    read_space,
)

SCHEMA = "autopeft/v1"

_OTHER_SCHEMAS = {
    "autopeft/config/v1": "this is an exported configuration: autopeft train trains it",
    "autopeft/space/v1": "this is a search space: name its file under `space`",
}


def _schema(value: Any) -> str:
    if value != SCHEMA:
        raise refusal(value, SCHEMA, _OTHER_SCHEMAS.get(str(value), ""))
    return SCHEMA


class StudyDefinition(Block):
    """A study file with every default filled in; immutable.

    Attributes are named as the keys. Beyond the keys' own meaning: `objectives` are filled in by
    task where none are given, goals are always set, the data's keys are those of their format,
    `budget.wall_clock` is in seconds, and paths are absolute.
    """

    schema_version: Annotated[Literal["autopeft/v1"], BeforeValidator(_schema)] = Field(
        default="autopeft/v1", alias="schema", description="the format of this file"
    )
    study: StudyBlock = StudyBlock()
    model: ModelBlock
    data: DataBlock
    training: TrainingBlock = TrainingBlock()
    objectives: tuple[Objective, ...] = Field(
        default=(), validate_default=True, description="a quality, then one or two costs"
    )
    constraints: tuple[Constraint, ...] = Field(
        default=(), description="costs, capped and not optimised"
    )
    space: Annotated[str | dict[str, Any], BeforeValidator(read_space)] = Field(
        default="mixed",
        description="a name (quick, mixed), a file, or a block; plan: its source",
    )
    search: SearchBlock = SearchBlock()
    deploy: Annotated[tuple[str, ...], BeforeValidator(read_deploy)] = Field(
        default=(), description="[peft]: propose only what HF peft can carry"
    )
    budget: BudgetBlock = BudgetBlock()
    execution: ExecutionBlock = ExecutionBlock()

    @field_validator("objectives", mode="before")
    @classmethod
    def _default_objectives(cls, value: Any, info: ValidationInfo) -> Any:
        if value != ():
            return value
        model = info.data.get("model")
        quality = DEFAULT_QUALITY[model.task] if model else "loss"
        return ({"metric": quality}, {"metric": DEFAULT_COST})

    @field_validator("objectives", mode="after")
    @classmethod
    def _sound_objectives(
        cls, value: tuple[Objective, ...], info: ValidationInfo
    ) -> tuple[Objective, ...]:
        model, data = info.data.get("model"), info.data.get("data")
        task = model.task if model else None
        without_choices = data is not None and data.choices is None
        if findings := objective_findings(value, task, without_choices=without_choices):
            raise refusals(findings)
        return value

    @field_validator("constraints", mode="after")
    @classmethod
    def _single_constraints(cls, value: tuple[Constraint, ...]) -> tuple[Constraint, ...]:
        names = [constraint.metric for constraint in value]
        twice = [index for index, name in enumerate(names) if name in names[:index]]
        if twice:
            raise refusals([Finding((i, "metric"), names[i], "every metric once") for i in twice])
        return value

    @field_validator("search", mode="after")
    @classmethod
    def _other_studies(cls, value: SearchBlock, info: ValidationInfo) -> SearchBlock:
        study = info.data.get("study")
        if study is not None and study.name in value.warm_start:
            loc = ("warm_start", value.warm_start.index(study.name))
            raise refusals([Finding(loc, study.name, "an earlier study, not this one")])
        return value

    @field_validator("budget", mode="after")
    @classmethod
    def _fitting_budget(cls, value: BudgetBlock, info: ValidationInfo) -> BudgetBlock:
        search = info.data.get("search")
        if search is not None and (findings := budget_findings(value, search)):
            raise refusals(findings)
        return value

    @property
    def bounded(self) -> list[Objective | Constraint]:
        """Everything that may carry a cap: objectives, then constraints."""
        return [*self.objectives, *self.constraints]

    @property
    def measured(self) -> tuple[str, ...]:
        """Metrics of objectives and constraints that a probe has to measure."""
        named = dict.fromkeys(each.metric for each in self.bounded)
        return tuple(name for name in named if METRICS[name].kind == "measured")

    @property
    def reached(self) -> tuple[str, ...]:
        """Costs of objectives and constraints that are measured once trials are trained."""
        named = dict.fromkeys(each.metric for each in self.bounded)
        return tuple(name for name in named if METRICS[name].kind == "reached")

    def to_plain(self) -> dict[str, Any]:
        """The definition as JSON can carry it; `parse_definition` gives it back."""
        return self.model_dump(mode="json", by_alias=True)


def parse_definition(
    plain: Mapping[str, Any], *, where: str, base: Path | None
) -> StudyDefinition:
    """The definition that a study file's content stands for.

    Args:
        plain: The content; a block that is absent or null takes its defaults, but a model and a
            data source must be named.
        where: What the content is called in errors: a file, a flag.
        base: Where relative paths start; None leaves them as they are.

    Raises:
        InputError: All faults, in the order in which they stand in the content.
    """
    given = {key: value for key, value in plain.items() if value is not None}
    if base is not None:
        given = with_absolute_paths(given, base)
    try:
        return StudyDefinition.model_validate(
            {"model": {}, "data": {}} | given, context=task_context(given)
        )
    except ValidationError as error:
        # The cause is dropped: it quotes the input, in which a URL may have a password.
        raise InputError(faults_of(error, StudyDefinition, given, where)) from None


def load_definition(path: Path, overrides: Sequence[str] = ()) -> StudyDefinition:
    """The definition in a study file; a study without a name is called as its file.

    Args:
        path: The file.
        overrides: `key.path=value` texts that replace what the file says; paths in them start at
            the working directory.

    Raises:
        InputError: The file cannot be read, or all its faults.
    """
    plain = with_absolute_paths(read_yaml(path), path.parent)
    return parse_definition(
        with_overrides(_named(plain, path.stem), overrides), where=str(path), base=None
    )


def _named(plain: Mapping[str, Any], stem: str) -> dict[str, Any]:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")
    study = plain.get("study") or {}
    if not isinstance(study, Mapping) or not re.fullmatch(NAME_PATTERN, name):
        return dict(plain)
    return {**plain, "study": {"name": name, **study}}


def default_definition(overrides: Sequence[str] = ()) -> StudyDefinition:
    """The embedded default: a small search that needs neither hub nor GPU.

    Raises:
        InputError: All faults of the overrides.
    """
    return parse_definition(
        with_overrides(default_plain(), overrides), where="the embedded default", base=None
    )


def default_plain() -> dict[str, Any]:
    """What the embedded default says, as the content of a study file; a fresh copy."""
    return {
        "schema": SCHEMA,
        "study": {"name": "demo", "seed": 0},
        "model": {"name_or_path": "builtin:minilm"},
        "data": {
            "source": "builtin:docstrings",
            "text": "text",
            "label": "label",
            "splits": {"train": "train", "validation": "validation", "test": "test"},
            "max_length": 32,
            "limit": {"train": 640, "validation": 400},
        },
        # Pack and precision are pinned, so that the results repeat on any machine.
        "training": {
            "epochs": 3,
            "batch_size": 32,
            "learning_rate": 1.0e-3,
            "precision": "fp32",
        },
        "space": "quick",
        "search": {"initial": 5, "pack": 4, "rungs": [0.34, 1.0]},
        "budget": {"trials": 16},
    }


def render(definition: StudyDefinition) -> str:
    """The definition as YAML text, every default filled in."""
    return yaml_text(definition.to_plain())


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Fault]:
    """What keeps a stored study from being resumed with a definition.

    Args:
        old: The stored plain definition.
        new: The plain definition it is resumed with.

    Returns:
        A fault per key that differs, `study.name` and the blocks that may change left out.
    """
    free = ("budget", "execution", "study.name")
    name = (new.get("study") or {}).get("name", "")
    hint = "a stored study keeps its definition: give this one another name"
    return [
        Fault(f"study {name}", key, shown(given), shown(stored), hint)
        for key, stored, given in _differing(old, new, "")
        if key not in free and key.split(".")[0] not in free
    ]


def _differing(old: Any, new: Any, key: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [*old, *(name for name in new if name not in old)]
        return [
            leaf
            for name in names
            for leaf in _differing(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [leaf for i, (a, b) in pairs for leaf in _differing(a, b, f"{key}.{i}")]
    return [] if old == new else [(key, old, new)]
