"""`autopeft export`: one configuration as a file that trains elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopeft.cli.faults import writing
from autopeft.cli.next_commands import command, listed
from autopeft.cli.options import (
    ExportFormat,
    JsonOption,
    OutputDirOption,
    Pick,
    StorageOption,
    StudyArgument,
)
from autopeft.cli.streams import print_json, say
from autopeft.errors import Fault, InputError

if TYPE_CHECKING:
    from autopeft.api.study import Study


def export(
    study: StudyArgument = None,
    trial: Annotated[
        int | None, typer.Option(metavar="N", help="This trial, on the front or not.")
    ] = None,
    pick: Annotated[
        Pick | None,
        typer.Option(
            metavar="|".join(Pick), help="Choose from the front; the knee where no trial is given."
        ),
    ] = None,
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format", metavar="|".join(ExportFormat), help="What to write.", show_default=True
        ),
    ] = ExportFormat.YAML,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="PATH", help="File (yaml) or folder (peft); else stdout."
        ),
    ] = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a configuration as a file that trains elsewhere.

    Without --trial or --pick, the knee of the front is taken. A format that cannot carry the
    configuration is refused.
    """
    from autopeft import api

    if trial is not None and pick is not None:
        raise InputError(Fault("--pick", "", "--trial as well", "one of --trial and --pick"))
    loaded = api.load_study(study, storage=storage, output_dir=output_dir)
    how = (pick or Pick.KNEE).value
    number, why = _choose(loaded, trial, how)
    with writing(output or Path(), flag="-o"):
        text = loaded.export(output, trial=trial, pick=how, format=form.value)
    if as_json:
        written = None if output is None else str(output)
        plain = {"trial": number, "why": why, "format": form.value, "output": written}
        print_json({**plain, "text": text})
        return
    say(why)
    if output is None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        _tell_written(output, form)


def _choose(study: "Study", trial: int | None, how: str) -> tuple[int, str]:
    """The trial's number, and why it is taken."""
    if trial is not None:
        return study.trial(trial).number, f"trial {trial}, as asked"
    chosen, why = study.pick(how)
    return chosen.number, why


def _tell_written(output: Path, form: ExportFormat) -> None:
    """Where the file is, and what can be done with it."""
    say(f"wrote {output}")
    if form is ExportFormat.YAML:
        for line in listed([(command("train", str(output), "-o", "adapter"), "train it")]):
            say(line)
