"""Writes the CLI reference, `docs/cli.md`, from the commands' own help.

`python -m autopeft.cli.reference > docs/cli.md`; a test keeps the file in step with the commands.
"""

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import typer

from autopeft.cli.main import PROGRAM, app

_HEAD = """\
# Commands

<!-- Written by `python -m autopeft.cli.reference > docs/cli.md`; edit the commands' help. -->

`--storage URL` and `--output-dir DIR` say where a study is kept; without them, `AUTOPEFT_STORAGE`
and `AUTOPEFT_OUTPUT` do, else `autopeft.db` and `autopeft-runs/STUDY/` in the working directory.
`--json` prints JSON on stdout and nothing else there, errors included; logs and progress go to
stderr. `--debug` shows tracebacks and debug logs.

| exit code | meaning |
| --- | --- |
| 0 | ok |
| 1 | the study ended without a front, or something failed |
| 2 | bad input; all faults are told at once |
| 3 | the database cannot be used |
| 4 | another process runs the study |
| 75 | stopped before the end; the same command goes on |
| 130, 143 | interrupted by Ctrl-C, by SIGTERM |
"""


def reference() -> str:
    """The whole page, as Markdown."""
    return "\n".join(
        [_HEAD, *(_section(*each) for each in _commands(typer.main.get_command(app)))]
    )


def _commands(group: Any, above: str = PROGRAM) -> Iterator[tuple[str, Any]]:
    """Every command with its full name, groups opened."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{above} {name}")
        else:
            yield f"{above} {name}", command


def _section(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join([name, *(_argument(each) for each in arguments), "[OPTIONS]"])
    rows = [(_argument(each), each.help) for each in arguments]
    rows += [(_option(each), _explained(each)) for each in options]
    table = [f"| `{_cell(shown)}` | {_cell(text)} |" for shown, text in rows]
    about = inspect.cleandoc(command.help)
    return "\n".join(
        [f"## `{name}`", "", about, "", f"    {usage}", "", "| | |", "| --- | --- |", *table, ""]
    )


def _argument(argument: Any) -> str:
    return str(argument.metavar if argument.required else f"[{argument.metavar}]")


def _option(option: Any) -> str:
    names = ", ".join(option.opts)
    if option.is_flag:
        return names
    return f"{names} {option.metavar}"


def _cell(text: str) -> str:
    """Text that ends no cell of a Markdown table."""
    return text.replace("|", "\\|")


def _explained(option: Any) -> str:
    text = str(option.help)
    if option.required:
        return f"{text} Required."
    if option.default in (None, False, "") or option.is_flag:
        return text
    return f"{text} Default: `{getattr(option.default, 'value', option.default)}`."


if __name__ == "__main__":
    sys.stdout.write(reference())
