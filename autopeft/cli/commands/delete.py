"""`autopeft delete`: remove a study and what belongs to it."""

import sys
from typing import Annotated

import typer

from autopeft.cli.options import JsonOption, OutputDirOption, StorageOption
from autopeft.cli.streams import print_json, say
from autopeft.errors import Fault, InputError


def delete(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="The study's name.", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a study, its trials and its artifacts, for good."""
    from autopeft import api

    loaded = api.load_study(study, storage=storage, output_dir=output_dir)
    if not yes:
        _confirm(loaded.name, len(loaded.trials()), as_json=as_json)
    api.delete(loaded.name, storage=storage, output_dir=output_dir)
    if as_json:
        print_json({"study": loaded.name, "deleted": True})
    else:
        say(f"deleted study {loaded.name}")


def _confirm(name: str, trials: int, *, as_json: bool) -> None:
    """Ask on the terminal.

    Raises:
        InputError: There is nobody to ask.
    """
    if as_json or not sys.stdin.isatty():
        raise InputError(Fault("delete", "", "no answer", "", "pass --yes to delete unasked"))
    question = f"Delete study {name} with its {trials} trials, checkpoints and caches?"
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)
