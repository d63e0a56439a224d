"""`autopeft doctor`: what this machine has."""

from collections.abc import Mapping

import typer

from autopeft.cli.options import JsonOption, StorageOption
from autopeft.cli.streams import print_json


def doctor(storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Report on this machine: what there is and what lacks."""
    from autopeft import api
    from autopeft.cli.wording import flattened, plain_text

    found = api.doctor(storage)
    if as_json:
        print_json(found)
        return
    for section, content in found.items():
        if not isinstance(content, Mapping):
            typer.echo(f"{section}: {plain_text(content)}")
            continue
        typer.echo(f"{section}:")
        for key, value in flattened(content).items():
            typer.echo(f"  {key + ':':<24} {plain_text(value)}")
