"""How errors are told: one line per fault on stderr, or one JSON object on stdout."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopeft.cli.streams import print_json, say
from autopeft.errors import AutopeftError, Fault, InputError

logger = logging.getLogger(__name__)


def error_object(error: AutopeftError, exit_code: int | None = None) -> dict[str, object]:
    """The binding JSON form of an error."""
    return {
        "ok": False,
        "errors": [fault.to_dict() for fault in error.faults],
        "exit_code": error.exit_code if exit_code is None else exit_code,
    }


def report(error: AutopeftError, *, as_json: bool) -> None:
    """Tell an error that ends the command; its traceback goes to the debug log."""
    logger.debug("the command failed", exc_info=error)
    if as_json:
        print_json(error_object(error), indent=None)  # a line: `search` prints JSON lines
        return
    for line in lines_of(error):
        say(f"error: {line}")


def lines_of(error: AutopeftError) -> list[str]:
    """One line per fault; an error without faults of an input is its own line."""
    told = error.faults if isinstance(error, InputError) else (error,)
    return [" ".join(str(each).split()) for each in told]


def write_result(path: Path, content: str | bytes, *, flag: str) -> None:
    """Write a result where a flag says; makes the folder.

    Raises:
        InputError: The place cannot be written.
    """
    plain = content.encode() if isinstance(content, str) else content
    with writing(path, flag=flag):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(plain)


@contextmanager
def writing(path: Path, *, flag: str) -> Iterator[None]:
    """Turn what the file system refuses into the fault of the flag that named the place.

    Raises:
        InputError: The place cannot be written.
    """
    try:
        yield
    except AutopeftError:  # a StorageError is an OSError too, but none of the place
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        given = f"{path} ({reason})"
        raise InputError(Fault(flag, "", given, "a place that can be written")) from error
