"""The entry: what `--help` costs, how errors are told, which exit codes there are."""

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import Result

from autopeft import api
from autopeft.cli.main import app, main
from autopeft.errors import (
    AutopeftError,
    BackboneError,
    DataError,
    ExportError,
    Fault,
    InputError,
    InterruptedStudyError,
    NotFoundError,
    SpaceError,
    StorageError,
    StorageVersionError,
    StudyHeldError,
    StudyMismatchError,
    TrialError,
)

Run = Callable[..., Result]

COMMANDS = [
    "search", "init", "validate", "plan", "sites", "methods", "importance", "studies", "status",
    "trials", "show", "compare", "front", "explain", "confirm", "export", "train", "stop",
    "delete", "dashboard", "doctor", "db",
]  # fmt: skip

HEAVY = (
    "torch", "transformers", "datasets", "botorch", "sklearn", "streamlit", "sqlalchemy",
    "alembic", "plotly", "plotext", "pandas", "peft", "optuna",
)  # fmt: skip

HELP_OF_ALL = f"""
import sys
from autopeft.cli.main import app
for words in [[], *([name] for name in {COMMANDS!r}), ["db", "upgrade"], ["db", "copy"]]:
    try:
        app(args=[*words, "--help"], prog_name="autopeft")
    except SystemExit as end:
        assert end.code == 0, words
found = sorted(set({HEAVY!r}) & set(sys.modules))
sys.exit(f"imported: {{found}}" if found else 0)
"""


def test_help_lists_exactly_the_commands_of_this_release(run: Run) -> None:
    group: Any = typer.main.get_command(app)
    assert list(group.commands) == COMMANDS
    assert list(group.commands["db"].commands) == ["upgrade", "copy"]
    help_text = run("--help").stdout
    assert all(f"\n  {name} " in help_text for name in COMMANDS)


def test_no_help_imports_a_heavy_package() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_methods_are_told_within_100_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = run("methods").stdout
    assert max(map(len, shown.splitlines())) <= 100
    for card in (*api.methods(), *api.passed_types()):
        assert f" {card.name} " in shown, "no name is broken"
    for name in api.absent_methods():
        assert f" {name} " in shown
    assert "size: rank; parameters: r (d_in + d_out); with DoRA, d_out more" in shown


def test_every_option_is_explained() -> None:
    def params(group: Any) -> list[Any]:
        commands = getattr(group, "commands", {}).values()
        return [*group.params, *(each for command in commands for each in params(command))]

    assert not [each.name for each in params(typer.main.get_command(app)) if not each.help]


def test_version(run: Run) -> None:
    assert run("--version").stdout == "autopeft 0.1.0\n"


# words: (where, key, given, part of what is allowed, hint)
USAGE = {
    "serch": ("autopeft", "COMMAND", "serch", "search, init", "did you mean search?"),
    "xyzzy": ("autopeft", "COMMAND", "xyzzy", "search, init", "see autopeft --help"),
    "db upgrde": ("autopeft db", "COMMAND", "upgrde", "upgrade", "did you mean upgrade?"),
    "--bogus status": ("autopeft", "--bogus", "an unknown option", "", "see autopeft --help"),
    "status --stor": (
        "autopeft status", "--stor", "an unknown option", "", "did you mean --storage?",
    ),
    "front --pick foo": (
        "autopeft front", "--pick", "foo", "best, knee, smallest", "see autopeft front --help",
    ),
    "search --trials abc": (
        "autopeft search", "--trials", "abc", "a valid integer", "see autopeft search --help",
    ),
    "show one": ("autopeft show", "TRIAL", "one", "a valid integer", "see autopeft show --help"),
    "show": ("autopeft show", "TRIAL", "nothing", "a value", "see autopeft show --help"),
    "train a.yaml": (
        "autopeft train", "--output", "nothing", "a value", "see autopeft train --help",
    ),
    "status --quiet": (
        "autopeft status", "--quiet", "an unknown option", "", "see autopeft status --help",
    ),
    "search --quiet=3": (
        "autopeft search", "--quiet", "a value", "no value", "see autopeft search --help",
    ),
    "db upgrade x y": (
        "autopeft db upgrade", "", "x y", "no further argument", "see autopeft db upgrade --help",
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", USAGE)
def test_a_usage_error_is_one_line_and_exits_with_2(run: Run, line: str) -> None:
    result = run(*line.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    [told] = result.stderr.splitlines()
    assert told.startswith(f"error: {USAGE[line][0]}")
    assert all(part in told for part in USAGE[line])


@pytest.mark.parametrize("line", USAGE)
def test_a_usage_error_is_json_where_json_was_asked_for(run: Run, line: str) -> None:
    result = run(*line.split(), "--json")
    where, key, given, allowed, hint = USAGE[line]
    assert result.exit_code == 2
    assert result.stderr == ""
    plain = json.loads(result.stdout)
    [fault] = plain.pop("errors")
    assert plain == {"ok": False, "exit_code": 2}
    assert allowed in fault.pop("allowed")
    assert fault == {"where": where, "key": key, "given": given, "hint": hint}


def test_an_option_without_its_value(run: Run) -> None:
    [told] = run("search", "--trials").stderr.splitlines()
    assert told.startswith("error: autopeft search: --trials; got no value; allowed: a value")


def test_no_command_shows_the_help(run: Run) -> None:
    for words in ([], ["db"]):
        result = run(*words)
        assert "Commands:" in result.output
        assert "error:" not in result.output
    assert "got no command" in run("--debug").stderr


def test_a_double_dash_ends_the_options(run: Run, place: Any) -> None:
    result = run("status", "--", "--json")
    assert result.stdout == ""
    assert result.stderr.startswith("error:")


FAULTS = [Fault("a.yaml", "budget.trials", "-1", "1 or more", "give more"), Fault("b", "", "", "")]
ERRORS: list[tuple[AutopeftError, int]] = [
    (AutopeftError("broken", hint="mend it"), 1),
    (InputError(FAULTS), 2),
    (SpaceError(FAULTS), 2),
    (DataError(FAULTS), 2),
    (BackboneError("no such model"), 2),
    (StudyMismatchError(FAULTS), 2),
    (NotFoundError("no study x"), 2),
    (ExportError(FAULTS), 2),
    (StorageError("locked"), 3),
    (StorageVersionError("too new"), 3),
    (StudyHeldError("held by 7"), 4),
    (InterruptedStudyError("stopped"), 75),
    (TrialError("diverged", cause="diverged"), 1),
]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[AutopeftError], None]:
    """Lets `autopeft studies` fail."""

    def fail_with(error: AutopeftError) -> None:
        def raise_it(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setitem(vars(api), "list_studies", raise_it)

    return fail_with


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda each: type(each).__name__)
def test_each_fault_is_one_line_on_stderr(
    run: Run, failing: Callable[..., None], error: AutopeftError, code: int
) -> None:
    failing(error)
    result = run("studies")
    assert result.exit_code == code
    assert result.stdout == ""
    told = FAULTS if error.faults == tuple(FAULTS) else [error]
    assert result.stderr.splitlines() == [f"error: {each}" for each in told]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda each: type(each).__name__)
def test_errors_are_json_where_json_was_asked_for(
    run: Run, failing: Callable[..., None], error: AutopeftError, code: int
) -> None:
    failing(error)
    result = run("studies", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout) == {
        "ok": False,
        "errors": [fault.to_dict() for fault in error.faults],
        "exit_code": code,
    }
    assert result.stderr == ""


def test_a_bug_is_not_disguised(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(vars(api), "list_studies", broken)
    with pytest.raises(ZeroDivisionError):
        run("studies")


@pytest.fixture
def _logging_put_back() -> Any:
    loggers = [logging.getLogger(name) for name in ("autopeft", "storage", "dashboard")]
    before = [(each.level, each.propagate, list(each.handlers)) for each in loggers]
    yield
    for each, (level, propagate, handlers) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.propagate = propagate
        each.handlers[:] = handlers


@pytest.mark.usefixtures("_logging_put_back")
@pytest.mark.parametrize("words", [["--debug", "studies"], ["studies", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    failing: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    failing(StorageError("locked"))
    monkeypatch.setattr(sys, "argv", ["autopeft", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback (most recent call last)" in shown.err
    assert shown.err.count("error: locked") == 1


def test_a_full_disk_is_one_line_and_any_other_fault_its_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [errno.ENOSPC, errno.ENOTTY]

    def failing(*_: Any) -> None:
        number = numbers.pop(0)
        raise OSError(number, os.strerror(number), "/somewhere/file")

    monkeypatch.setitem(vars(api), "list_studies", failing)
    found = run("studies")
    assert found.exit_code == 3
    assert found.stderr.startswith("error: /somewhere/file: no space left on device (")
    assert found.stderr.count("\n") == 1
    with pytest.raises(OSError, match="ioctl"):
        run("studies")


def test_a_keyboard_interrupt_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(api), "list_studies", interrupted)
    assert run("studies").exit_code == 130
