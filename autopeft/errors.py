"""Every exception of autopeft, drawn as a tree.

A leaf says where the fault is, what was given, what is allowed and what to do. Each carries the
exit code that the command line ends with, and survives pickling, so that it can cross processes.

    AutopeftError                     exit 1
    +-- InputError (ValueError)       exit 2   what the user wrote cannot be used
    |   +-- SpaceError                         a search space or a configuration
    |   +-- DataError                          a data set, its columns, splits or labels
    |   +-- BackboneError                      a model that cannot be loaded or understood
    |   +-- StudyMismatchError                 an existing study with another definition
    |   +-- NotFoundError (KeyError)           a study or trial that does not exist
    |   +-- ExportError                        what a format cannot carry
    +-- StorageError (OSError)        exit 3   the database cannot be used
    |   +-- StorageVersionError                older (upgrade it) or newer than this release
    +-- OutputError (OSError)         exit 3   the output folder's disk is full or fails
    +-- StudyHeldError                exit 4   another coordinator holds the study
    +-- StudyTakenOverError           exit 0   another coordinator goes on with the study
    +-- RunnerAwayError               exit 1   no place for a runner just now; others may go on
    +-- InterruptedStudyError         exit 75  stopped before its end; the same command goes on
    +-- TrialError (RuntimeError)     exit 1   one trial failed; `cause` tells how
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from autopeft.passwords import blotted


@dataclass(frozen=True)
class Fault:
    """One fault of an input: the error form of every command's `--json`.

    What was written may hold a URL with a password: none is kept, whoever shows the fault.

    Attributes:
        where: The file, flag or table in which the fault lies.
        key: The dotted key within it, or "" where the whole is meant.
        given: What was given, as short text.
        allowed: What is allowed, as short text.
        hint: What to do about it, as one imperative sentence, or "".
    """

    where: str
    key: str
    given: str
    allowed: str
    hint: str = ""

    def __post_init__(self) -> None:
        for name in ("where", "key", "given", "allowed", "hint"):
            object.__setattr__(self, name, blotted(getattr(self, name)))

    def __str__(self) -> str:
        place = f"{self.where}: {self.key}" if self.key else self.where
        parts = [place]
        if self.given:
            parts.append(f"got {self.given}")
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.hint:
            parts.append(self.hint)
        return "; ".join(parts)

    def to_dict(self) -> dict[str, str]:
        """The binding JSON shape of an error."""
        return {
            "where": self.where,
            "key": self.key,
            "given": self.given,
            "allowed": self.allowed,
            "hint": self.hint,
        }


class AutopeftError(Exception):
    """The root: anything that autopeft raises on purpose.

    Args:
        message: One line: where, what was given, what is allowed.
        hint: What to do about it, or "".
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message, self.hint = blotted(message), blotted(hint)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), dict(self.__dict__)))

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The error as faults: what `--json` prints."""
        return (Fault(where=self.message, key="", given="", allowed="", hint=self.hint),)


def _rebuild(kind: type[AutopeftError], state: dict[str, Any]) -> AutopeftError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class InputError(AutopeftError, ValueError):
    """What the user wrote cannot be used; carries all faults at once.

    Args:
        faults: Faults, or one message where no key can be named.
        hint: What to do about it, where one message is given.
    """

    exit_code = 2

    def __init__(self, faults: Sequence[Fault] | Fault | str, *, hint: str = "") -> None:
        if isinstance(faults, str):
            faults = (Fault(where=faults, key="", given="", allowed="", hint=hint),)
        elif isinstance(faults, Fault):
            faults = (faults,)
        self._faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self._faults))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults, in the order in which they stand in the input."""
        return self._faults


class SpaceError(InputError):
    """A search space or a configuration that cannot be."""


class DataError(InputError):
    """A data set that cannot be read, or lacks columns, splits, labels or rows."""


class BackboneError(InputError):
    """A model that cannot be loaded, or whose layers and sites are not understood."""


class StudyMismatchError(InputError):
    """A study of that name exists with another definition, data or backbone."""


class NotFoundError(InputError, KeyError):
    """A study, trial or space that does not exist."""

    __str__ = AutopeftError.__str__


class ExportError(InputError):
    """A configuration that a format cannot carry: refused rather than cut down."""


class StorageError(AutopeftError, OSError):
    """The database cannot be reached, read or written."""

    exit_code = 3


class StorageVersionError(StorageError):
    """The database's schema is older or newer than this release's."""


class OutputError(AutopeftError, OSError):
    """What a study keeps beside its database cannot be written: no trial's fault."""

    exit_code = 3


class StudyHeldError(AutopeftError):
    """Another coordinator holds the study."""

    exit_code = 4


class StudyTakenOverError(AutopeftError):
    """The lease passed to another coordinator, which goes on: nothing failed, nothing is to do."""

    exit_code = 0


class RunnerAwayError(AutopeftError):
    """There is no place for a runner at the moment; another one may do its work meanwhile."""


class InterruptedStudyError(AutopeftError):
    """The study was stopped before its end; the same command goes on."""

    exit_code = 75


class TrialError(AutopeftError, RuntimeError):
    """One trial failed.

    Args:
        message: One line.
        cause: `out-of-memory`, `diverged`, `timeout`, `lost`, `error` or `infeasible`.
    """

    def __init__(self, message: str, *, cause: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.cause = cause
