"""`autopeft trials`: all trials of a study."""

from typing import Annotated

import typer

from autopeft.cli.options import (
    JsonOption,
    OutputDirOption,
    StorageOption,
    StudyArgument,
    TableFormat,
)
from autopeft.cli.streams import console, print_json


def trials(
    study: StudyArgument = None,
    form: Annotated[
        TableFormat,
        typer.Option(
            "--format", metavar="|".join(TableFormat), help="How to print them.", show_default=True
        ),
    ] = TableFormat.TABLE,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a study's trials; a star marks those on the front."""
    from autopeft import api
    from autopeft.cli.tables import print_table, trials_csv, trials_table

    loaded = api.load_study(study, storage=storage, output_dir=output_dir)
    found = loaded.trials()
    if as_json or form is TableFormat.JSON:
        print_json([trial.to_dict() for trial in found])
    elif form is TableFormat.CSV:
        typer.echo(trials_csv(found, loaded.frames), nl=False)
    else:
        marked = {trial.number for trial in loaded.front()}
        print_table(console(), trials_table(found, loaded.frames, marked=marked))
