"""What typer says of a command line that it cannot read, as a fault like any other.

Typer raises its parser's errors, but names only `BadParameter` of them, and where the others live
changes from release to release: they are known by their common base and read by their attributes.
"""

import re
from typing import Any

import typer

from autopeft.errors import Fault, InputError

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""The base of everything that is wrong with a command line."""

_QUOTED = re.compile(r"'(.*?)' is not")
_VALID = re.compile(r"\ba valid \w+")
_EXTRA = re.compile(r"extra arguments?(?:\(s\))? \((.*)\)")


def input_error(error: Any, command: str) -> InputError:
    """A usage error as an input error of one fault.

    Args:
        error: What typer raised; a `USAGE_ERROR`.
        command: The command that was being read, where the error does not know it.

    Raises:
        Exception: The error itself, where it is no error but a page of help.
    """
    if error.ctx and error.message == error.ctx.get_help():
        raise error
    where = error.ctx.command_path if error.ctx else command
    key, given, allowed, close = _told(error)
    hint = f"did you mean {close}?" if close else f"see {where} --help"
    return InputError(Fault(where, key, given, allowed, hint))


def unknown_command(group: str, name: str, known: list[str]) -> InputError:
    """A command that there is not, with the one that it resembles."""
    from autopeft.space.faults import nearest

    close = nearest(name, known)
    hint = f"did you mean {close}?" if close else f"see {group} --help"
    return InputError(Fault(group, "COMMAND", name, ", ".join(known), hint))


def _told(error: Any) -> tuple[str, str, str, str]:
    """Key, what was given, what is allowed, and what is spelled nearly so."""
    if hasattr(error, "possibilities"):
        close = next(iter(error.possibilities or ()), "")
        return error.option_name, "an unknown option", "", close
    if hasattr(error, "option_name"):
        if "requires" in error.message:
            return error.option_name, "no value", "a value", ""
        return error.option_name, "a value", "no value", ""
    if getattr(error, "param", None) is not None:
        return _name(error.param), *_value(error, error.param), ""
    extra = _EXTRA.search(error.message)
    if extra:
        return "", extra[1], "no further argument", ""
    return "", error.message.rstrip(".").lower().replace("missing ", "no "), "", ""


def _name(param: Any) -> str:
    """An option's long name, or what an argument is called in the help."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    return str(max(param.opts, key=len))


def _value(error: Any, param: Any) -> tuple[str, str]:
    """What was given, and what is allowed."""
    choices = (param.metavar or "").split("|")
    valid = _VALID.search(error.message)
    allowed = ", ".join(choices) if len(choices) > 1 else valid[0] if valid else ""
    if hasattr(error, "param_type"):  # it is missing
        return "nothing", allowed or "a value"
    quoted = _QUOTED.search(error.message)
    return quoted[1] if quoted else _input(error) or error.message.rstrip("."), allowed


def _input(error: Any) -> str:
    """What pydantic was given, where it checked the value."""
    details: list[Any] = getattr(error.__cause__, "errors", list)()
    return str(details[0]["input"]) if details else ""
