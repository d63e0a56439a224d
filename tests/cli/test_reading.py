"""The commands that read: what they print, as text and as JSON, and that they create nothing."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import Result

import storage
from autopeft.cli.options import ExportFormat, Pick
from autopeft.errors import OutputError
from autopeft.searchers.front import PICKS
from autopeft.study.ending import Ending, Interruption
from autopeft.study.records import Holder, StudyState, TrialUpdate

Run = Callable[..., Result]

READING = [
    ["studies"],
    ["status"],
    ["trials"],
    ["show", "1"],
    ["compare", "1", "2"],
    ["front"],
    ["explain"],
    ["export"],
]
STATUS_KEYS = {
    "study", "state", "trials", "hypervolume", "reference_point", "front_size", "budget", "left",
    "eta_seconds", "spent", "failures",
}  # fmt: skip
TRIAL_KEYS = {
    "trial", "state", "origin", "baseline", "objectives", "trainable_params", "head_params",
    "rung", "seed", "optimizer_steps", "hash", "configuration",
}  # fmt: skip


@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_reading_never_creates_a_database(run: Run, place: Path, words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 3
    assert str(place / "autopeft.db") in result.stderr
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("words", [*READING, ["front", "--pick", "best"]], ids=" ".join)
def test_output_that_is_no_terminal_has_no_escape_codes(
    run: Run, stored: Path, words: list[str]
) -> None:
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.output
    assert result.stdout


READ = """
import sys
from autopeft.cli.main import app
for words in {words!r}:
    try:
        app(args=words, prog_name="autopeft")
    except SystemExit as end:
        assert end.code == 0, words
    found = {{"torch", "transformers", "datasets", "botorch", "streamlit"}} & set(sys.modules)
    assert not found, (words, found)
"""


def test_reading_imports_no_torch(stored: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ.format(words=READING)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# What no command needs that reads a study: each of these takes a tenth of a second, or seconds.
SLOW = (
    "alembic", "botorch", "numpy", "pandas", "plotly", "plotext", "scipy", "sklearn", "torch",
    "yaml", "autopeft.methods", "autopeft.study.definition", "sqlalchemy.dialects.postgresql",
)  # fmt: skip

LEAN = f"""
import gc, sys
from autopeft.cli.main import main
name = "autopeft.cli.commands."
for words in (
    ["studies"], ["studies", "--json"], ["status"], ["status", "--json"], ["trials", "--json"],
    ["trials"], ["show", "3", "--json"], ["show", "3"], ["front", "--json"], ["front"],
):
    sys.argv = ["autopeft", *words]
    gc.enable()
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
    assert not gc.isenabled() and gc.get_freeze_count(), words
    found = sorted(set({SLOW!r}) & sys.modules.keys())
    assert not found, (words, found)
called = {{each.removeprefix(name) for each in sys.modules if each.startswith(name)}}
assert called == {{"studies", "status", "trials", "show", "front"}}, called
"""


def test_what_reads_a_study_imports_what_it_needs_alone(stored: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_no_line_ends_in_blanks_where_nobody_looks(
    run: Run, stored: Path, words: list[str]
) -> None:
    lines = run(*words).stdout.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []


@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_json_stands_alone_on_stdout(run: Run, stored: Path, words: list[str]) -> None:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)
    assert result.stderr == ""


def test_status_has_the_binding_keys(run: Run, stored: Path) -> None:
    plain = json.loads(run("status", "demo", "--json").stdout)
    assert plain.keys() >= STATUS_KEYS
    assert plain["trials"]["completed"] == 5
    assert plain["failures"] == {"diverged": 1}
    assert json.loads(run("studies", "--json").stdout) == [plain]


def test_status_in_words(run: Run, stored: Path) -> None:
    text = run("status").stdout
    assert "demo (finished)" in text
    assert "5 completed, 1 stopped, 1 failed" in text
    assert "1 diverged" in text


def test_status_says_how_a_search_ended(run: Run, stored: Path) -> None:
    assert "ended" not in run("status").stdout
    ending = Ending("min_gain", trials=7, wall_clock=5400.0, min_gain=0.01, gains=(0.009, 0.003))
    with storage.open_store("sqlite:///autopeft.db") as store:
        token = store.claim("demo", Holder("here", 1, ""), 60.0)
        store.update_study("demo", token, facts={"ended": ending.to_dict()})
        store.release("demo", token)
    text = run("status").stdout
    assert "ended:        the search ended by itself: a full trial was expected to gain" in text
    assert "7 trials, 1.5 hours of wall clock were left" in text
    assert json.loads(run("status", "--json").stdout)["ended"]["reason"] == "min_gain"


def test_status_says_what_interrupted_a_search(run: Run, stored: Path) -> None:
    assert "interrupted:" not in run("status").stdout
    why = Interruption.by(OutputError("no room", hint="make some"))
    with storage.open_store("sqlite:///autopeft.db") as store:
        token = store.claim("demo", Holder("here", 1, ""), 60.0)
        store.update_study("demo", token, facts={"interrupted": why.to_dict()})
        store.release("demo", token)
    assert "interrupted:  no room; make some\n" in run("status").stdout
    told = json.loads(run("status", "--json").stdout)["interrupted"]
    assert told == {"reason": "no room", "hint": "make some"}


def test_a_killed_study_does_not_count_as_running(
    run: Run, place: Path, seed_study: Callable[..., None]
) -> None:
    seed_study("sqlite:///autopeft.db", "killed", state=StudyState.RUNNING)
    killed = "killed? no process holds it: the same search command goes on"
    assert f"killed ({killed})" in run("status").stdout
    lines = run("studies").stdout.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(" killed ")] == [
        ["killed", "killed?"]
    ]
    assert lines[-1] == killed


def test_a_study_that_is_held_is_running(
    run: Run, place: Path, seed_study: Callable[..., None]
) -> None:
    seed_study("sqlite:///autopeft.db", "held", state=StudyState.RUNNING)
    with storage.open_store("sqlite:///autopeft.db") as store:
        store.claim("held", Holder("elsewhere", 1, "boot"), 60.0)
        assert "held (running)" in run("status").stdout
        assert "killed?" not in run("studies").stdout


def test_a_study_is_found_by_its_file(run: Run, stored: Path) -> None:
    (stored / "demo.yaml").write_text(
        "model: {name_or_path: builtin:minilm}\ndata: {source: builtin:docstrings}\n"
    )
    assert json.loads(run("status", "demo.yaml", "--json").stdout)["study"] == "demo"


def test_an_unknown_study_names_those_there_are(run: Run, stored: Path) -> None:
    result = run("status", "dmo")
    assert result.exit_code == 2
    assert "demo" in result.stderr


def test_several_studies_must_be_told_apart(
    run: Run, stored: Path, seed_study: Callable[..., None]
) -> None:
    seed_study("sqlite:///autopeft.db", "other")
    result = run("trials")
    assert result.exit_code == 2
    assert "demo, other" in result.stderr
    assert run("trials", "other").exit_code == 0


def test_storage_may_be_named(run: Run, place: Path, seed_study: Callable[..., None]) -> None:
    seed_study("sqlite:///elsewhere.db")
    assert run("status", "--storage", "sqlite:///elsewhere.db").exit_code == 0
    assert run("status", env={"AUTOPEFT_STORAGE": "sqlite:///elsewhere.db"}).exit_code == 0


def test_what_is_no_database_exits_with_3(run: Run, place: Path) -> None:
    (place / "autopeft.db").write_text("these are notes, and no database at all\n" * 20)
    result = run("studies", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["ok"] is False


def test_trials_have_the_binding_keys(run: Run, stored: Path) -> None:
    plain = json.loads(run("trials", "--format", "json").stdout)
    assert plain == json.loads(run("trials", "--json").stdout)
    assert [each["trial"] for each in plain] == list(range(7))
    assert all(each.keys() >= TRIAL_KEYS for each in plain)
    assert plain[0]["baseline"] is True


def test_trials_as_a_table(run: Run, stored: Path) -> None:
    lines = run("trials").stdout.splitlines()
    rows = [line.split() for line in lines if "lr 0.001" in line]
    assert [row[0] for row in rows] == ["0", "1*", "2*", "3*", "4", "5", "6"]
    assert rows[0][1:5] == ["completed", "lora-r8", "0.7000", "36,864"]
    assert rows[6][1:3] == ["failed", "(diverged)"]
    assert "lora rank 4 query,value @ 3-5; prefix length 4 @ 5; lr 0.001" in run("trials").stdout


def test_trials_as_csv(run: Run, stored: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("trials", "--format", "csv").stdout)))
    assert [row["trial"] for row in rows] == [str(number) for number in range(7)]
    assert rows[2]["accuracy"] == "0.78"
    assert rows[6]["accuracy"] == ""
    assert json.loads(rows[2]["configuration"])["lora"][0]["rank"] == 4


def test_front(run: Run, stored: Path) -> None:
    plain = json.loads(run("front", "--json").stdout)
    assert [each["trial"] for each in plain] == [1, 2, 3]
    text = run("front").stdout
    assert "accuracy over log10 trainable_params" in text
    assert text.count("o") > 3
    assert "baseline lora-r8" in text


def test_picks_are_those_of_the_searchers() -> None:
    assert {each.value for each in Pick} == set(PICKS)


def test_export_formats_are_those_of_the_api() -> None:
    from autopeft.api.exporting import FORMATS
    from autopeft.api.study_export import STUDY_FORMATS

    assert tuple(each.value for each in ExportFormat) == (*FORMATS, *STUDY_FORMATS)


@pytest.mark.parametrize(
    ("words", "number", "why"),
    [
        (["--pick", "best"], 3, "best accuracy"),
        (["--pick", "smallest"], 1, "fewest trainable parameters"),
        (["--pick", "knee"], 2, "bends"),
        (["--within", "10%"], 2, "within 10% of the best accuracy"),
        (["--within", "0.3", "--prefer", "trainable_params"], 1, "within 0.3"),
    ],
)
def test_front_picks_one_and_says_why(
    run: Run, stored: Path, words: list[str], number: int, why: str
) -> None:
    assert [e["trial"] for e in json.loads(run("front", *words, "--json").stdout)] == [number]
    text = run("front", *words).stdout
    assert f"trial {number} " in text
    assert why in text


@pytest.mark.parametrize(
    "words",
    [
        ["--within", "much"],
        ["--within", "1%", "--prefer", "luck"],
        ["--pick", "best", "--within", "1"],
    ],
)
def test_front_refuses_what_it_cannot_choose_by(run: Run, stored: Path, words: list[str]) -> None:
    assert run("front", *words).exit_code == 2


def test_an_empty_front_says_so(run: Run, place: Path, seed_study: Callable[..., None]) -> None:
    seed_study("sqlite:///autopeft.db", trials=())
    assert "has no front yet" in run("front").stdout
    assert json.loads(run("front", "--json").stdout) == []
    assert run("front", "--pick", "knee").exit_code == 2


def test_show(run: Run, stored: Path) -> None:
    text = run("show", "2", "--study", "demo").stdout
    assert "completed, on the front" in text
    assert "lora query   ·  ·  · █4 █4 █4" in text
    assert "accuracy (validation) over optimizer steps" in text
    assert "expected gain 0.01 hypervolume" in text
    assert "training                 12.5 s" in text


def test_show_tells_why_a_trial_failed(run: Run, stored: Path) -> None:
    text = run("show", "6").stdout
    assert "diverged: the loss is not a number" in text


def test_show_as_json_has_everything(run: Run, stored: Path) -> None:
    plain = json.loads(run("show", "2", "--json").stdout)
    assert plain.keys() >= TRIAL_KEYS
    assert [each["step"] for each in plain["curve"]] == [20, 40, 60]
    assert plain["placement"]["rows"] == ["lora query", "lora value", "prefix"]
    assert plain["placement"]["sizes"][0] == [0, 0, 0, 4, 4, 4]
    assert plain["attempts"][0]["attempt"] == 1


def test_what_came_too_late_is_told(run: Run, stored: Path) -> None:
    update = TrialUpdate(2, objectives={"accuracy": 0.0, "loss": None}, rung=0.33)
    with storage.open_store(f"sqlite:///{stored}/autopeft.db") as store:
        store.add_orphans("demo", 1, [update, replace(update, number=3)])
    assert "too late:     2 results from a coordinator that another had replaced" in (
        run("status").stdout
    )
    assert "rung 0.33, accuracy 0\n" in run("show", "2").stdout
    (orphan,) = json.loads(run("show", "2", "--json").stdout)["orphans"]
    assert (orphan["trial"], orphan["token"]) == (2, 1)
    assert "Too late" not in run("show", "1").stdout


def test_an_unknown_trial_exits_with_2(run: Run, stored: Path) -> None:
    assert run("show", "99").exit_code == 2


def test_compare(run: Run, stored: Path) -> None:
    plain = json.loads(run("compare", "1", "3", "--json").stdout)
    assert {"key": "lora.rank", "a": 1, "b": 32} in plain["differences"]
    assert "lora.sites" not in [each["key"] for each in plain["differences"]]
    rows = [line.split() for line in run("compare", "1", "3").stdout.splitlines()]
    assert ["lora.layers", "5", "0-5"] in rows
    assert ["trainable_params", "768", "147,456", "+146,688"] in rows


def test_compare_with_itself(run: Run, stored: Path) -> None:
    assert "the same" in run("compare", "1", "1").stdout
    assert json.loads(run("compare", "1", "1", "--json").stdout)["differences"] == []
