"""`autopeft`: the console entry; puts the commands together.

Commands raise `AutopeftError`; `CommandGroup` alone makes it text or JSON and an exit code.
Anything else that is raised is a bug, and is shown with its traceback. Importing this module, and
so every `--help`, imports neither torch nor a database.
"""

import logging
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

from autopeft.cli.commands.compare import compare
from autopeft.cli.commands.confirm import confirm
from autopeft.cli.commands.dashboard import dashboard
from autopeft.cli.commands.db import db
from autopeft.cli.commands.delete import delete
from autopeft.cli.commands.doctor import doctor
from autopeft.cli.commands.explain import explain
from autopeft.cli.commands.export import export
from autopeft.cli.commands.front import front
from autopeft.cli.commands.importance import importance
from autopeft.cli.commands.init import init
from autopeft.cli.commands.methods import methods
from autopeft.cli.commands.plan import plan
from autopeft.cli.commands.search import search
from autopeft.cli.commands.show import show
from autopeft.cli.commands.sites import sites
from autopeft.cli.commands.status import status
from autopeft.cli.commands.stop import stop
from autopeft.cli.commands.studies import studies
from autopeft.cli.commands.train import train
from autopeft.cli.commands.trials import trials
from autopeft.cli.commands.validate import validate
from autopeft.cli.group import CommandGroup
from autopeft.passwords import blotted

PROGRAM = "autopeft"
LOGGERS = ("autopeft", "storage", "dashboard")

COMMANDS = (
    search, init, validate, plan, sites, methods, importance, studies, status, trials, show,
    compare, front, explain, confirm, export, train, stop, delete, dashboard, doctor,
)  # fmt: skip
"""In the order of `--help`; `db` follows."""


class BlottingFormatter(logging.Formatter):
    """Records and their tracebacks without the passwords of URLs."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return blotted(super().format(record))


class StderrHandler(logging.StreamHandler[Any]):
    """Logs to stderr as it is at that moment: a live display puts its own in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(BlottingFormatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """One record, on the present stderr."""
        self.stream = sys.stderr
        super().emit(record)


app = typer.Typer(
    name=PROGRAM,
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for each in COMMANDS:
    app.command()(each)
app.add_typer(db, name="db")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and debug logs; goes anywhere.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Search for parameter-efficient fine-tuning configurations, and trust what was found."""
    _set_up_logging(logging.DEBUG if debug else logging.WARNING)


def _set_up_logging(level: int) -> None:
    """Our own loggers to stderr; other packages keep theirs."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
            logger.addHandler(StderrHandler())
        logger.propagate = False


def main() -> None:
    """The console entry."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets ?, no traceback
    arguments = sys.argv[1:]
    if "--debug" in arguments:  # it may stand behind the command as well
        arguments = ["--debug", *(word for word in arguments if word != "--debug")]
    app(args=arguments, prog_name=PROGRAM)
