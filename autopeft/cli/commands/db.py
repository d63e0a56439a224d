"""`autopeft db`: looking after the database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from autopeft.cli.group import CommandGroup
from autopeft.cli.options import JsonOption, QuietOption, StorageOption
from autopeft.cli.streams import console, interactive, print_json, say

db = typer.Typer(
    cls=CommandGroup,
    help="Look after the database.",
    no_args_is_help=True,
    add_completion=False,
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
        say(f"{api.shown_storage(storage)} is up to date ({after})")
    else:
        say(f"{api.shown_storage(storage)}: upgraded from {before or 'no schema'} to {after}")


@db.command()
def copy(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="URL of the database to read.", show_default=False)
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="DST", help="URL of the other; made if missing.", show_default=False
        ),
    ],
    study: Annotated[
        list[str] | None,
        typer.Option("--study", metavar="NAME", help="Only this one; may be given repeatedly."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Copy studies to another database; done again, it goes on where it ended.

    Trials, curves, fronts and importance maps; SRC stays as it is, artifacts stay
    where they are. A running study is refused, and one whose name another has in DST.
    """
    from autopeft import api

    with _bar(shown=not (quiet or as_json)) as on_progress:
        done = api.copy_studies(source, target, study or (), on_progress=on_progress)
    if as_json:
        print_json(done)
        return
    for each in done["studies"]:
        say(f"{each['study']}: {each['trials']} trials {each['result']}")
    maps = f" and {done['importances']} importance maps" if done["importances"] else ""
    say(f"{len(done['studies'])} studies{maps} are in {done['to']}")


@contextmanager
def _bar(*, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr that a copy moves; none where nobody looks."""
    target = console(stderr=True)
    if not shown or not interactive(target):
        yield lambda *_: None
        return
    from rich.progress import Progress

    with Progress(console=target, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda name, done, total: progress.update(
            task, description=name, completed=done, total=total
        )
