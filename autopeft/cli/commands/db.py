"""`autopeft db`: looking after the database."""

import typer

from autopeft.cli.group import CommandGroup
from autopeft.cli.options import JsonOption, StorageOption
from autopeft.cli.streams import print_json, say

db = typer.Typer(
    cls=CommandGroup,
    help="Look after the database.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@db.callback()
def group() -> None:
    """Look after the database."""


@db.command()
def upgrade(storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Bring an older database to this release's schema; its studies stay."""
    from autopeft import api

    before, after = api.upgrade_storage(storage)
    if as_json:
        print_json({"from": before, "to": after})
    elif before == after:
        say(f"{api.storage_url(storage)} is up to date ({after})")
    else:
        say(f"{api.storage_url(storage)}: upgraded from {before or 'no schema'} to {after}")
