"""Before a search: check a study file, look at a model's sites, write a first study file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from autopeft.configuration import Configuration
from autopeft.errors import Fault, InputError
from autopeft.space.document import read_yaml
from autopeft.study.definition import (
    StudyDefinition,
    default_definition,
    load_definition,
    parse_definition,
)
from autopeft.study.definition import render as rendered

if TYPE_CHECKING:
    from autopeft.api.starting import Beginning
    from autopeft.backbone.anatomy import Anatomy
    from autopeft.training.data.guess import Guess


def validate(path: Path, *, check_model: bool = True) -> StudyDefinition:
    """Check a study file: its keys and values, and all that a search refuses before it trains.

    Weights are not read; of the model only its configuration. The data are read, but never
    downloaded: see `autopeft.api.checks.study_faults`. Nothing is left on the disk.

    Args:
        path: The study file.
        check_model: Whether to look at model and data; without it, the file and its space are
            checked for themselves alone, and caps not at all.

    Raises:
        InputError: All faults at once: what is at fault in the file is left out, and model, data
            and space are held against the rest.
    """
    where = str(path)
    plain = read_yaml(path)  # a file that cannot be read is one fault, and told once
    from autopeft.api.checks import study_faults, written_faults

    try:
        definition = load_definition(path)
    except InputError as error:
        faults = list(error.faults)
        rest = _without(plain, faults)
        more = _rest_faults(rest, path, check_model=check_model)
        if more is None:
            more = _space_faults(plain, path, faults)
        known = {fault.key for fault in faults}
        faults += [fault for fault in more if fault.key not in known]
        raise InputError(faults) from error
    if check_model:
        with _scratch() as folder:
            faults = study_faults(definition, where=where, output_dir=folder)
    else:
        faults = written_faults(definition, where=where)
    if faults:
        raise InputError(faults)
    return definition


def _without(plain: Mapping[str, Any], faults: Sequence[Fault]) -> dict[str, Any]:
    """A file's content without the keys that are at fault; of a list, the whole list goes."""
    rest = deepcopy(dict(plain))
    for fault in faults:
        block: Any = rest
        *parents, last = fault.key.split(".")
        for name in parents:
            inner = block.get(name) if isinstance(block, dict) else None
            if not isinstance(inner, dict):
                last = name
                break
            block = inner
        if isinstance(block, dict):
            block.pop(last, None)
    return rest


def _rest_faults(rest: Mapping[str, Any], path: Path, *, check_model: bool) -> list[Fault] | None:
    """Faults of model, data and space in the sound part; None where that is too little."""
    from autopeft.api.checks import study_faults, written_faults

    try:
        definition = parse_definition(rest, where=str(path), base=path.parent)
    except InputError:
        return None
    if not check_model:
        return written_faults(definition, where=str(path))
    with _scratch() as folder:
        return study_faults(definition, where=str(path), output_dir=folder)


def _space_faults(plain: Mapping[str, Any], path: Path, known: Sequence[Fault]) -> list[Fault]:
    """Faults of the space in a file of which other keys are at fault."""
    from autopeft.api.checks import space_faults

    source = plain.get("space")
    if source is None or any(fault.key.split(".")[0] == "space" for fault in known):
        return []
    return space_faults(source, where=str(path), base=path.parent)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for converted data that nobody needs afterwards."""
    with TemporaryDirectory(prefix="autopeft-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def render(path: Path) -> str:
    """A study file with every default filled in, as YAML."""
    return rendered(load_definition(path))


def fetch(path: Path, *, output_dir: Path | None = None) -> list[str]:
    """Bring a study's model and data onto this machine, for machines without a connection.

    Hub models and data go into the Hugging Face cache (`HF_HOME`), local and built-in data are
    converted into the study's output folder; then `HF_HUB_OFFLINE=1` works.

    Returns:
        One line for each thing that is there now.

    Raises:
        InputError: The model or the data cannot be had or used.
    """
    from autopeft.api.place import output_folder
    from autopeft.backbone.loading import load_backbone
    from autopeft.training.data.text import load_text_data
    from autopeft.training.setup import backbone_request, data_request

    definition = load_definition(path)
    backbone = load_backbone(backbone_request(definition.model))
    request = data_request(definition.data, task=definition.model.task, seed=definition.study.seed)
    folder = output_folder(definition.study.name, output_dir)
    data = load_text_data(request, output_dir=folder)
    return [
        f"model {definition.model.name_or_path}: {backbone.anatomy.n_params:,} parameters",
        f"data {definition.data.source}: {len(data.train)} train, "
        f"{len(data.validation)} validation",
    ]


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
    model: str | None = None,
    data: str | None = None,
    *,
    start: Path | None = None,
    output_dir: Path | None = None,
) -> InitResult:
    """A commented study file for a model and a data set.

    Columns, splits, task and metric are inferred from the data; each guess comes with its reason.
    Without arguments, nothing is guessed: the file says what the embedded default is.

    Args:
        model: Hub id, folder or `builtin:minilm` (the default).
        data: Hub id, file, folder or `builtin:docstrings` (the default).
        start: An `adapter_config.json` or an axolotl file, whose configuration becomes the
            baseline; the model and data that it names are the defaults then.
        output_dir: Where converted data are kept; None keeps none.

    Raises:
        InputError: The model or the data cannot be read, or the columns not told apart, or what
            `start` says cannot be trained; all faults at once.
    """
    from autopeft.export.study_file import study_file_text

    default = default_definition()
    if start is not None:
        return _init_from(start, model, data, output_dir)
    if model is None and data is None:
        return InitResult(study_file_text(default, {}), {}, default)
    return _init(model, data, output_dir)


def _init_from(
    start: Path, model: str | None, data: str | None, output_dir: Path | None
) -> InitResult:
    """Today's configuration as the baseline, and its training values where they are ours too."""
    from autopeft.api.starting import started

    beginning = started(start, model)
    return _init(beginning.model, data or beginning.data or None, output_dir, beginning)


def _init(
    model: str | None,
    data: str | None,
    output_dir: Path | None,
    beginning: "Beginning | None" = None,
) -> InitResult:
    from autopeft.export.study_file import study_file_text

    default = default_definition()
    model = model or default.model.name_or_path
    data = data or default.data.source
    found = _guess(model, data, output_dir)
    plain = {
        "study": {"name": study_name_for(model, data)},
        "model": {"name_or_path": model, "task": found.task},
        "data": {
            "source": data,
            **found.data_keys(),
            "splits": {
                "train": found.splits.train,
                "validation": found.splits.validation,
                "test": found.splits.test,
            },
        },
        "objectives": [{"metric": found.metric}, {"metric": "trainable_params"}],
    }
    if beginning is not None:
        plain |= beginning.blocks(found.task)
    definition = parse_definition(plain, where="init", base=Path.cwd())
    guesses = {_GUESSED[name]: why for name, why in found.reasons.items()}
    guesses |= {} if beginning is None else beginning.reasons
    return InitResult(study_file_text(definition, guesses), guesses, definition)


_GUESSED = {
    "splits": "data.splits",
    "text": "data.text",
    "label": "data.label",
    "task": "model.task",
    "metric": "objectives",
    **{key: f"data.{key}" for key in ("format", "prompt", "completion", "messages", "max_length")},
}
"""What is guessed of the data -> the key of the study file that says it."""


def _guess(model: str, data: str, output_dir: Path | None) -> "Guess":
    """What the data seem to be; the model is looked at too, so that its faults come along."""
    from autopeft.api.checks import tried
    from autopeft.training.data.guess import guess

    faults: list[Fault] = []
    tried(lambda: sites(model), faults, where="init")
    with _scratch() as folder:
        output = folder if output_dir is None else output_dir.absolute()
        found = tried(lambda: guess(data, output_dir=output), faults, where="init")
    if faults or found is None:
        raise InputError(faults)
    return found


def study_name_for(model: str, data: str) -> str:
    """`<data>-<model>` from the last parts of their names, as a study's name may be."""
    import re

    def short(text: str) -> str:
        last = re.split(r"[/:\\]", text.rstrip("/"))[-1]
        stem = re.sub(r"\.(csv|tsv|jsonl?|parquet)$", "", last)
        return re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-").lower()

    return "-".join(filter(None, (short(data), short(model))))[:60] or "study"
