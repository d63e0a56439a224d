"""`autopeft validate`: every fault of a study file at once."""

from pathlib import Path
from typing import Annotated

import typer

from autopeft.cli.options import JsonOption
from autopeft.cli.streams import print_json


def validate(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml", help="The study file.", show_default=False)
    ],
    render: Annotated[
        bool, typer.Option("--render", help="Print the file with every default filled in.")
    ] = False,
    file_only: Annotated[
        bool, typer.Option("--file-only", help="Look at neither model nor data.")
    ] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Bring model and data onto this machine.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a study file; tell every fault at once."""
    from autopeft import api

    definition = api.validate(study, check_model=not file_only)
    fetched = api.fetch(study) if fetch else []
    if as_json:
        plain = {"definition": definition.to_plain()} if render else {}
        more = {"fetched": fetched} if fetch else {}
        print_json({"ok": True, "errors": [], "study": definition.study.name, **plain, **more})
    elif render:
        typer.echo(api.render(study), nl=False)
    else:
        for line in fetched:
            typer.echo(line)
        typer.echo(f"ok: {study} (study {definition.study.name})")
