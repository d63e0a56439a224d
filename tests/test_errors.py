import inspect
import pickle

import pytest

from autopeft import errors
from autopeft.errors import AutopeftError, Fault, InputError, NotFoundError, TrialError

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, AutopeftError)
]
FAULTS = (
    Fault("study.yaml", "training.epochs", "-1", "a whole number of at least 1"),
    Fault("study.yaml", "spaec", "spaec", "space", "write space"),
)


def example(kind: type[AutopeftError]) -> AutopeftError:
    if issubclass(kind, InputError):
        return kind(FAULTS)
    if issubclass(kind, TrialError):
        return kind("trial 3 diverged at step 7", cause="diverged", hint="lower the learning rate")
    return kind("the database is locked", hint="wait for the other process")


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_pickling(kind: type[AutopeftError]) -> None:
    error = example(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__
    assert again.faults == error.faults
    assert again.args == error.args


@pytest.mark.parametrize(
    ("name", "code", "builtin"),
    [
        ("AutopeftError", 1, Exception),
        ("InputError", 2, ValueError),
        ("SpaceError", 2, ValueError),
        ("DataError", 2, ValueError),
        ("BackboneError", 2, ValueError),
        ("StudyMismatchError", 2, ValueError),
        ("NotFoundError", 2, KeyError),
        ("ExportError", 2, ValueError),
        ("StorageError", 3, OSError),
        ("StorageVersionError", 3, OSError),
        ("OutputError", 3, OSError),
        ("StudyHeldError", 4, Exception),
        ("InterruptedStudyError", 75, Exception),
        ("TrialError", 1, RuntimeError),
    ],
)
def test_exit_codes_and_builtins(name: str, code: int, builtin: type[Exception]) -> None:
    kind = getattr(errors, name)
    assert kind.exit_code == code
    assert issubclass(kind, builtin)


def test_a_message_has_one_line_per_fault() -> None:
    assert str(InputError(FAULTS)).splitlines() == [
        "study.yaml: training.epochs; got -1; allowed: a whole number of at least 1",
        "study.yaml: spaec; got spaec; allowed: space; write space",
    ]


def test_not_found_reads_like_the_others_although_it_is_a_key_error() -> None:
    error = NotFoundError("no study called rte", hint="see autopeft studies")
    assert str(error) == "no study called rte; see autopeft studies"


def test_faults_have_the_binding_keys() -> None:
    assert FAULTS[1].to_dict() == {
        "where": "study.yaml",
        "key": "spaec",
        "given": "spaec",
        "allowed": "space",
        "hint": "write space",
    }
    (fault,) = AutopeftError("it broke", hint="mend it").faults
    assert (fault.where, fault.hint) == ("it broke", "mend it")
