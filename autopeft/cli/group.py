"""The commands as typer runs them, with errors told in one place: one line each, or JSON."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import takewhile
from typing import Any

import typer
from typer.core import TyperGroup

from autopeft.cli.faults import report
from autopeft.cli.usage import USAGE_ERROR, input_error, unknown_command
from autopeft.errors import AutopeftError
from autopeft.study.disk import disk_fault


class CommandGroup(TyperGroup):
    """Commands whose errors, those of their use among them, end with a fault and an exit code."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        """Run a command line; an `AutopeftError` ends with its exit code, a full disk as one."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            return super().main(words, *more, **extra)
        except (AutopeftError, OSError) as error:
            told = error if isinstance(error, AutopeftError) else disk_fault(error)
            if told is None:
                raise
            report(told, as_json=asks_for_json(words))
            sys.exit(told.exit_code)

    def make_context(
        self, info_name: str | None, args: list[str], *more: Any, **extra: Any
    ) -> Any:
        """The context of the group's own options."""
        with _usage_as_input(info_name or ""):
            return super().make_context(info_name, args, *more, **extra)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names."""
        known = self.list_commands(ctx)
        if args[0] not in known:
            raise unknown_command(ctx.command_path, args[0], known)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _usage_as_input(ctx.command_path, ctx):
            return super().invoke(ctx)


class Commands(Mapping[str, Any]):
    """Commands by name, each imported when it is first asked for: none waits for the others.

    Args:
        package: Where they are: a module for each, which holds the command under its own name,
            as a function or as an application with commands of its own.
        names: What there is, in the order of `--help`.
    """

    def __init__(self, package: str, names: Sequence[str]) -> None:
        self._package, self._names = package, tuple(names)
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _load(self, name: str) -> Any:
        found = getattr(import_module(f"{self._package}.{name}"), name)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, rich_markup_mode=None)
            alone.command(name)(found)
            found = alone
        command: Any = typer.main.get_command(found)
        command.name = name
        return command


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether a command line has `--json`; read from its words, so that it is known early."""
    return "--json" in takewhile(lambda word: word != "--", words)


@contextmanager
def _usage_as_input(group: str, context: Any = None) -> Iterator[None]:
    """Turn what cannot be read into an input error of the command that was being read."""
    try:
        yield
    except USAGE_ERROR as error:
        name = context.invoked_subcommand if context else None
        raise input_error(error, f"{group} {name}" if name else group) from error
