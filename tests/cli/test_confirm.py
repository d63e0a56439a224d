"""`confirm` where all is trained already: what it prints, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import storage
from autopeft.errors import InterruptedStudyError, StudyTakenOverError
from autopeft.study.records import Holder, Measurement, TrialState, TrialUpdate

Run = Callable[..., Any]
SEEDS = (1, 2, 3, 4, 5)
VALUES = {
    0: (0.70, 0.72, 0.71, 0.70, 0.72),
    2: (0.71, 0.71, 0.73, 0.70, 0.72),
    3: (0.81, 0.82, 0.84, 0.82, 0.83),
}
WORDS = ("confirm", "--trial", "2", "--trial", "3", "--seeds", "5")


@pytest.fixture
def confirmed(stored: Path) -> Path:
    """The stored study with its baseline 0 and trials 2 and 3 confirmed with five seeds."""
    with storage.open_store(f"sqlite:///{stored}/autopeft.db") as store:
        token = store.claim("demo", Holder("here", 1, "boot"), 60.0)
        store.add_confirmations("demo", token, list(VALUES), SEEDS)
        for seed in SEEDS:
            store.start_confirmations("demo", token, seed, list(VALUES))
            updates = [
                TrialUpdate(
                    number,
                    (Measurement(60, "accuracy", "validation", values[seed - 1], rung=1.0),),
                    optimizer_steps=60,
                    state=TrialState.COMPLETED,
                )
                for number, values in VALUES.items()
            ]
            store.update_confirmations("demo", token, seed, updates)
        store.release("demo", token)
    return stored


@pytest.fixture
def opened(confirmed: Path) -> Path:
    """The same, with the test split opened for trial 3."""
    with storage.open_store(f"sqlite:///{confirmed}/autopeft.db") as store:
        token = store.claim("demo", Holder("here", 1, "boot"), 60.0)
        store.add_opening("demo", token, by="ann@host", trials=[0, 3], replicates=SEEDS)
        for seed in SEEDS:
            values = {n: {"accuracy": VALUES[n][seed - 1] - 0.1} for n in (0, 3)}
            store.keep_test("demo", token, seed, values)
        store.release("demo", token)
    return confirmed


def test_it_prints_means_intervals_marks_and_notes(run: Run, confirmed: Path) -> None:
    result = run(*WORDS, env={"COLUMNS": "140"})
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    rows = {line.split()[0]: line for line in lines if line[:6].strip().isdigit()}
    assert list(rows) == ["0", "2", "3"]
    assert "(lora-r8)" in rows["0"]
    assert "0.7140 (" in rows["2"]
    assert "not significant" in rows["2"]
    assert "+0.1140 (" in rows["3"]
    assert rows["3"].rstrip().endswith("better")
    assert "Test split: locked." in result.stdout
    assert "Holm's correction over 2 compared" in result.stdout
    assert "Fewer than 5 seeds" not in result.stdout
    assert "not confirmed yet" not in result.stdout


def test_nothing_heavy_is_imported_to_show_what_is_there(confirmed: Path) -> None:
    script = (
        "import sys; from autopeft.cli.main import app\n"
        "try: app(args=sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, *WORDS], check=True, stdout=subprocess.DEVNULL)


def test_as_json(run: Run, confirmed: Path) -> None:
    plain = json.loads(run(*WORDS, "--json").stdout)
    assert (plain["study"], plain["metric"], plain["reference"]) == ("demo", "accuracy", 0)
    marks = {e["trial"]: e["validation"]["difference"] for e in plain["trials"]}
    assert marks[0] is None
    assert marks[3]["mark"] == "better"
    assert marks[3]["p"] <= marks[3]["p_holm"]
    assert plain["test"] == {"state": "locked", "openings": []}


def test_front_show_status_and_csv_tell_it(run: Run, opened: Path) -> None:
    front = json.loads(run("front", "--json").stdout)
    known = {each["trial"]: each["confirmed"] for each in front}
    assert known[1] is None
    assert known[3]["test"]["mean"] == pytest.approx(0.724, abs=1e-4)
    text = run("front", env={"COLUMNS": "160"}).stdout
    assert "over seeds" in text
    assert "better" in text
    shown = run("show", "3").stdout
    assert "validation accuracy" in shown
    assert "test accuracy" in shown
    assert "by ann@host" in shown
    status = run("status").stdout
    assert "confirmed:    trials 0, 2, 3 with 5 seeds (15 of 15 runs)" in status
    assert "by ann@host for trials 0, 3" in status
    run("front", "--save", "front.csv")
    header, *rows = (opened / "front.csv").read_text().splitlines()
    assert "validation_mean" in header
    assert "test_vs_baseline" in header
    assert sum("better" in row for row in rows) == 1


def test_an_unconfirmed_front_has_no_column_for_it(run: Run, stored: Path) -> None:
    assert "over seeds" not in run("front").stdout
    assert "not confirmed yet" in run("front").stdout
    status = run("status").stdout
    assert "confirmed:    no trial yet" in status
    assert "test split:   locked" in status


def test_the_page_has_error_bars(run: Run, opened: Path) -> None:
    assert run("front", "--save", "front.html").exit_code == 0
    page = (opened / "front.html").read_text()
    assert "validation, mean of seeds" in page
    assert "test, mean of seeds" in page
    assert "front of the means" in page


def test_the_second_opening_shows_what_was_stored(run: Run, opened: Path) -> None:
    words = ("confirm", "--trial", "3", "--seeds", "5", "--open-test")
    result = run(*words, env={"COLUMNS": "140"})
    assert result.exit_code == 0
    assert "accuracy on test" in result.stdout
    assert "by ann@host for trials 0, 3" in result.stdout


def test_others_are_refused_without_again(run: Run, opened: Path) -> None:
    result = run(*WORDS, "--open-test", "--json")
    assert result.exit_code == 2
    (error,) = json.loads(result.stdout)["errors"]
    assert error["given"] == "trials 2 with seeds 1-5"
    assert "ann@host" in error["allowed"]
    assert "--again" in error["hint"]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (("--trial", "5"), "5, which is stopped"),
        (("--trial", "6"), "6, which is failed"),
        (("--seeds", "4"), "4"),
        (("--top", "0"), "0"),
        (("--again",), "without --open-test"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Run, stored: Path, words: tuple[str, ...], given: str
) -> None:
    result = run("confirm", *words, "--json")
    assert result.exit_code == 2
    (error,) = json.loads(result.stdout)["errors"]
    assert error["given"] == given


def test_it_can_train_elsewhere_than_the_search_did(
    run: Run, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def stopped(study: str | None, **wanted: Any) -> None:
        given.update(wanted)
        raise InterruptedStudyError("stopped")

    monkeypatch.setattr("autopeft.api.confirm", stopped, raising=False)
    where = ("--executor", "ray", "--ray-address", "n1:6379", "--ray-workers", "2")
    result = run("confirm", "--trial", "2", *where)
    assert result.exit_code == 75
    assert list(given["overrides"]) == [
        'execution.executor="ray"',
        'execution.ray.address="n1:6379"',
        "execution.ray.workers=2",
    ]
    assert f"resume with: autopeft confirm --trial 2 --seeds 5 {' '.join(where)}" in result.stderr


def test_one_that_was_replaced_shows_what_there_is_and_exits_0(
    run: Run, confirmed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(study: str | None, **wanted: Any) -> None:
        raise StudyTakenOverError("another coordinator has taken over")

    monkeypatch.setattr("autopeft.api.confirm", replaced, raising=False)
    result = run(*WORDS)
    assert result.exit_code == 0
    assert "another coordinator has taken over" in result.stderr
    assert "accuracy on validation" in result.stdout


@pytest.mark.parametrize(
    ("words", "key"),
    [(("--executor", "cloud"), "execution.executor"), (("--ray-workers", "0"), "execution.ray.")],
)
def test_a_wrong_place_is_refused_even_where_nothing_is_left_to_do(
    run: Run, confirmed: Path, words: tuple[str, ...], key: str
) -> None:
    result = run(*WORDS, *words, "--json")
    assert result.exit_code == 2
    (error,) = json.loads(result.stdout)["errors"]
    assert error["key"].startswith(key)


def test_a_held_study_exits_with_4(run: Run, stored: Path) -> None:
    with storage.open_store(f"sqlite:///{stored}/autopeft.db") as store:
        store.claim("demo", Holder("another-host", 1, "boot"), 600.0)
        result = run("confirm", "--trial", "2")
    assert result.exit_code == 4
    assert "another-host" in result.stderr
