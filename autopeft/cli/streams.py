"""Where the command line writes: results on stdout, everything else on stderr.

With `--json`, stdout carries JSON alone. Escape codes go to terminals only, and what a terminal's
encoding lacks is replaced, never raised. Rich is imported when something is drawn.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_WIDTH = 140
"""Columns where nobody says how wide the output is: a file has room for a whole table row."""


def console(*, stderr: bool = False) -> "Console":
    """A console on stdout or stderr; text is printed as it is, without markup."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


def draw(target: "Console", drawing: "RenderableType") -> None:
    """Print a drawing; blanks that fill its lines up to the width go to terminals only."""
    if target.is_terminal:
        target.print(drawing)
        return
    with target.capture() as captured:
        target.print(drawing)
    lines = (line.rstrip() for line in captured.get().splitlines())
    target.print("\n".join(lines), soft_wrap=True)


def ascii_only(target: "Console") -> bool:
    """Whether the stream's encoding lacks the characters that drawings are made of."""
    return target.options.ascii_only


def interactive(target: "Console") -> bool:
    """Whether somebody looks at the stream, and it can be redrawn; FORCE_COLOR alone is nobody."""
    return target.file.isatty() and not target.is_dumb_terminal


def say(text: str = "") -> None:
    """One line on stderr."""
    typer.echo(text, err=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """A value as JSON on stdout; nan and infinity become null. Written through at once."""
    typer.echo(json.dumps(_finite(value), indent=indent, allow_nan=False))
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
