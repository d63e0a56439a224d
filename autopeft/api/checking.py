"""Before a search: check a study file, look at a model's sites, write a first study file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.configuration import Configuration
from autopeft.errors import Fault, InputError
from autopeft.study.definition import (
    StudyDefinition,
    default_definition,
    load_definition,
    parse_definition,
)
from autopeft.study.definition import render as rendered

if TYPE_CHECKING:
    from autopeft.backbone.anatomy import Anatomy


def validate(path: Path, *, check_model: bool = True) -> StudyDefinition:
    """Check a study file: its keys and values, its space, and the space on its backbone.

    Weights and data are not read; of the model only its configuration file.

    Args:
        path: The study file.
        check_model: Whether to look at the model's configuration; without it, the space is checked
            for itself alone.

    Raises:
        InputError: All faults at once.
    """
    faults: list[Fault] = []
    definition: StudyDefinition | None = None
    try:
        definition = load_definition(path)
    except InputError as error:
        faults += error.faults
    faults += _space_faults(path, definition, check_model=check_model)
    if faults or definition is None:
        raise InputError(faults)
    return definition


def _space_faults(
    path: Path, definition: StudyDefinition | None, *, check_model: bool
) -> list[Fault]:
    """Faults of the space, also where other keys are at fault."""
    from autopeft.api.problem import bind_space, enqueued
    from autopeft.backbone.loading import config_anatomy
    from autopeft.methods import registry
    from autopeft.searchers.baselines import baselines
    from autopeft.space.document import read_yaml
    from autopeft.space.library import load_space
    from autopeft.training.setup import backbone_request

    faults: list[Fault] = []
    try:
        if definition is None:
            source = read_yaml(path).get("space")
            if isinstance(source, str | dict) and source:
                load_space(source, schemas=registry.schemas(), base=path.parent)
            return []
        load_space(definition.space, schemas=registry.schemas())
    except InputError as error:
        return list(error.faults)
    if not check_model:
        return []
    try:
        anatomy = config_anatomy(backbone_request(definition.model))
    except InputError as error:
        return list(error.faults)
    for check in (
        lambda: bind_space(definition, anatomy),
        lambda: enqueued(definition, anatomy),
        lambda: baselines(definition.search.baselines, anatomy, training=_NO_DECAY),
    ):
        try:
            check()
        except InputError as error:
            faults += error.faults
    return faults


_NO_DECAY = {"weight_decay": 0.0, "warmup_ratio": 0.0}


def render(path: Path) -> str:
    """A study file with every default filled in, as YAML."""
    return rendered(load_definition(path))


def load_configuration(path: Path | str) -> Configuration:
    """The configuration in a file that `autopeft export` wrote; InputError with all faults."""
    from autopeft.export.configuration_file import load_configuration_file

    return load_configuration_file(Path(path)).configuration


def sites(
    model: str,
    *,
    revision: str | None = None,
    declared: Mapping[str, str] | None = None,
) -> "Anatomy":
    """A model's layers and sites, from its configuration alone.

    Args:
        model: Hub id, folder or `builtin:minilm`.
        revision: Branch, tag or commit on the hub.
        declared: `{role: regex}` for architectures that are not recognised.

    Raises:
        BackboneError: It cannot be found, reached or understood.
    """
    from autopeft.backbone.loading import BackboneRequest, config_anatomy

    return config_anatomy(BackboneRequest(model, revision=revision, sites=declared))


@dataclass(frozen=True)
class InitResult:
    """A first study file.

    Attributes:
        text: Commented YAML.
        guesses: What was inferred from the data, and why, by dotted key.
        definition: The same as a definition.
    """

    text: str
    guesses: Mapping[str, str]
    definition: StudyDefinition


def init(
    model: str | None = None, data: str | None = None, *, output_dir: Path | None = None
) -> InitResult:
    """A commented study file for a model and a data set.

    Columns, splits, task and metric are inferred from the data; each guess comes with its reason.

    Args:
        model: Hub id, folder or `builtin:minilm` (the default).
        data: Hub id, file, folder or `builtin:docstrings` (the default).
        output_dir: Where converted data go.

    Raises:
        InputError: The model or the data cannot be read, or the columns not told apart.
    """
    from autopeft.api.place import output_folder
    from autopeft.export.study_file import study_file_text
    from autopeft.training.data.guess import guess

    default = default_definition().to_plain()
    model = model or default["model"]["name_or_path"]
    data = data or default["data"]["source"]
    sites(model)
    found = guess(data, output_dir=output_folder("init", output_dir))
    plain = {
        "study": {"name": study_name_for(model, data)},
        "model": {"name_or_path": model, "task": found.task},
        "data": {
            "source": data,
            "text": list(found.text),
            "label": found.label,
            "splits": {
                "train": found.splits.train,
                "validation": found.splits.validation,
                "test": found.splits.test,
            },
        },
        "objectives": [{"metric": found.metric}, {"metric": "trainable_params"}],
    }
    definition = parse_definition(plain, where="init", base=Path.cwd())
    return InitResult(study_file_text(definition, found.reasons), found.reasons, definition)


def study_name_for(model: str, data: str) -> str:
    """`<data>-<model>` from the last parts of their names, as a study's name may be."""
    import re

    def short(text: str) -> str:
        last = re.split(r"[/:\\]", text.rstrip("/"))[-1]
        stem = re.sub(r"\.(csv|tsv|jsonl?|parquet)$", "", last)
        return re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-").lower()

    return f"{short(data)}-{short(model)}"[:60]
