"""`autopeft`: the console entry; puts the commands together.

Commands raise `AutopeftError`; `CommandGroup` alone makes it text or JSON and an exit code.
Anything else that is raised is a bug, and is shown with its traceback. Importing this module
imports no command: what a command imports, only those who call it wait for. No `--help` imports
torch or a database.
"""

import gc
import logging
import sys
from typing import Annotated, Any

import typer

from autopeft.cli.group import CommandGroup, Commands
from autopeft.passwords import blotted

PROGRAM = "autopeft"
LOGGERS = ("autopeft", "storage", "dashboard")

COMMANDS = (
    "search", "init", "validate", "plan", "sites", "methods", "importance", "studies", "status",
    "trials", "show", "compare", "front", "explain", "confirm", "export", "train", "stop",
    "delete", "dashboard", "doctor", "db",
)  # fmt: skip
"""In the order of `--help`; each is a module of `autopeft.cli.commands`."""

READING = frozenset({"studies", "status", "trials", "show", "compare", "front"})
"""Commands that answer at once and end: these do without the search for garbage."""


class Root(CommandGroup):
    """The group of all commands."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        found: Any = Commands("autopeft.cli.commands", COMMANDS)  # none is ever added
        self.commands = found

    def list_commands(self, _ctx: Any) -> list[str]:
        """Their names; imports none of them."""
        return list(COMMANDS)


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
    cls=Root,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

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
    if READING.intersection(arguments[:2]):
        gc.disable()  # it would go through what imports leave, again and again, and find nothing
    try:
        app(args=arguments, prog_name=PROGRAM)
    finally:
        gc.freeze()  # nor need the interpreter, when it ends, go through all that is alive
