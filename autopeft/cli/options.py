"""The options that several commands share, so that they are called and explained alike.

Nothing here imports more than typer: every command's `--help` passes through this module.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Pick(StrEnum):
    """How a trial of the front is chosen."""

    BEST = "best"
    KNEE = "knee"
    SMALLEST = "smallest"


class TableFormat(StrEnum):
    """How a list of trials is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class ExportFormat(StrEnum):
    """What a configuration, or for optuna the whole study, is exported as."""

    YAML = "yaml"
    PEFT = "peft"
    AXOLOTL = "axolotl"
    LLAMA_FACTORY = "llama-factory"
    OPTUNA = "optuna"


StudyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY",
        help="A study's name or its file; may be left out where only one study exists.",
        show_default=False,
    ),
]
StudyOption = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="STUDY",
        help="A study's name or its file; may be left out where only one study exists.",
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="The database; AUTOPEFT_STORAGE, else sqlite:///autopeft.db.",
    ),
]
OutputDirOption = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        metavar="DIR",
        help="Where the study's artifacts lie; AUTOPEFT_OUTPUT, else autopeft-runs/STUDY/.",
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Call the study so.", show_default=False),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Sets model.name_or_path.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help="Sets data.source.")
]
SpaceOption = Annotated[
    str | None, typer.Option("--space", metavar="SPACE", help="Sets space: a name or a file.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Sets any key; may be repeated."),
]
ExecutorOption = Annotated[
    str | None, typer.Option("--executor", metavar="NAME", help="Sets execution.executor.")
]
DevicesOption = Annotated[
    str | None, typer.Option("--devices", metavar="NAME", help="Sets execution.devices.")
]
RayAddressOption = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="HOST:PORT", help="Sets execution.ray.address."),
]
RayWorkersOption = Annotated[
    int | None, typer.Option("--ray-workers", metavar="N", help="Sets execution.ray.workers.")
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print JSON on stdout and nothing else there, errors included.",
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress; the result is still printed.")
]


def as_overrides(flags: Mapping[str, str | int | list[str] | None]) -> list[str]:
    """Those that were given, as `key.path=value` texts; strings quoted, so that they stay.

    Args:
        flags: What flags were given, or None, by the key that each sets.
    """
    return [f"{key}={json.dumps(given)}" for key, given in flags.items() if given is not None]
