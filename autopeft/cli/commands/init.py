"""`autopeft init`: a commented study file with what could be guessed from model and data."""

from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.faults import write_result
from autopeft.cli.next_commands import command, listed
from autopeft.cli.options import JsonOption, OutputDirOption
from autopeft.cli.streams import print_json, say
from autopeft.errors import Fault, InputError

STDOUT = Path("-")


def init(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A hub id or a folder.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="A hub id, a file or a folder.", show_default=False),
    ] = None,
    file: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write; - is stdout.")
    ] = Path("study.yaml"),
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="An adapter_config.json or an axolotl file: its configuration is the baseline.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a commented study file for a model and data.

    Columns, splits and task are guessed from the data, and every guess is printed with its
    reason. Without arguments, the file says what the embedded default is. --from takes MODEL and
    DATA from the file where they are left out, and says what of it was not taken over.
    """
    from autopeft import api

    if file != STDOUT and file.exists() and not force:
        hint = "give another -o, or --force to overwrite it"
        raise InputError(Fault("-o", "", f"{file}, which exists", "a new file", hint))
    made = api.init(model, data, start=start, output_dir=output_dir)
    if file != STDOUT:
        write_result(file, made.text, flag="-o")
    elif not as_json:
        typer.echo(made.text, nl=False)
    if as_json:
        print_json({"file": str(file), "guesses": dict(made.guesses), "text": made.text})
        return
    for key, why in made.guesses.items():
        say(f"guessed {key}: {why}")
    if file != STDOUT:
        say(f"wrote {file}")
        say("Next:")
        checks = (command("validate", str(file)), "check it, once the guesses are right")
        for line in listed([checks, (command("search", str(file)), "run it")]):
            say(line)
