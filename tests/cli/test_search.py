"""`autopeft search` around a search that is played."""

import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import storage
from autopeft import api
from autopeft.errors import (
    AutopeftError,
    Fault,
    InputError,
    InterruptedStudyError,
    StudyHeldError,
)
from autopeft.study.ending import Ending, Reason
from autopeft.study.progress import Progress
from storage.lease import this_process

Run = Callable[..., Result]


class PlayedSearch:
    """Stands for `api.search`: puts a finished study in its place and tells of it."""

    def __init__(self, seeded: Path) -> None:
        self.seeded = seeded
        self.given: Mapping[str, Any] = {}
        self.phases = ("loading", "suggesting", "training", "finished")
        self.error: AutopeftError | None = None

    def __call__(self, study: Path | None = None, **given: Any) -> api.Study:
        self.given = {"study": study, **given}
        listener = given["listener"]
        listener.on_progress(Progress("demo", "loading", 0, 0))
        shutil.copy(self.seeded, "autopeft.db")
        for done, phase in enumerate(self.phases):
            listener.on_progress(Progress("demo", phase, done, 16, (3,), 20, 60, "accuracy", 0.8))
        listener.on_event("trial 3 completed")
        if self.error is not None:
            raise self.error
        return api.load_study("demo")


@pytest.fixture
def played(place: Path, seeded: Path, monkeypatch: pytest.MonkeyPatch) -> PlayedSearch:
    search = PlayedSearch(seeded)
    monkeypatch.setitem(vars(api), "search", search)
    return search


def test_a_search_ends_with_front_verdict_and_next_commands(
    run: Run, played: PlayedSearch
) -> None:
    result = run("search")
    assert result.exit_code == 0
    assert "accuracy over log10 trainable_params" in result.stdout
    assert "trial 2 reaches the accuracy of the best baseline lora-r8" in result.stdout
    assert "already finished" not in result.stderr
    assert "trial 3 completed" in result.stderr
    assert "\x1b" not in result.output


def test_the_next_commands_run_as_they_stand(run: Run, played: PlayedSearch) -> None:
    result = run("search", "--storage", "sqlite:///autopeft.db", "--output-dir", "my runs")
    after = result.stdout.partition("Next:")[2].splitlines()
    lines = [shlex.split(line, comments=True) for line in after if line.strip()]
    assert [line[:2] for line in lines] == [
        ["autopeft", name] for name in ("show", "confirm", "export", "train", "dashboard")
    ]
    for line in lines[:3]:
        assert line[-4:] == ["--storage", "sqlite:///autopeft.db", "--output-dir", "my runs"]
    for line in (lines[0], lines[2]):
        assert run(*line[1:]).exit_code == 0
    assert Path("best.yaml").read_text().count("trial: 2\n") == 1
    assert lines[3][2] == "best.yaml"


def test_a_place_that_was_not_given_is_not_repeated(run: Run, played: PlayedSearch) -> None:
    assert "--storage" not in run("search").stdout


def test_flags_become_overrides_and_set_wins(run: Run, played: PlayedSearch) -> None:
    run(
        "search", "study.yaml", "--name", "n", "--model", "a: b", "--data", "d.csv", "--space",
        "lora", "--trials", "4", "--seed", "0", "--executor", "local", "--devices", "cpu",
        "--ray-address", "head:6379", "--ray-workers", "3",
        "--warm-start", "old, older", "--stop-after", "1h30m",
        "--set", "budget.trials=5", "--set", "model.revision=007",
    )  # fmt: skip
    assert played.given["study"] == Path("study.yaml")
    assert played.given["name"] == "n"
    assert played.given["stop_after"] == 5400.0
    assert list(played.given["overrides"]) == [
        'model.name_or_path="a: b"', 'data.source="d.csv"', 'space="lora"', "budget.trials=4",
        "study.seed=0", 'execution.executor="local"', 'execution.devices="cpu"',
        'execution.ray.address="head:6379"', "execution.ray.workers=3",
        'search.warm_start=["old", "older"]',
        "budget.trials=5", "model.revision=007",
    ]  # fmt: skip


def test_overrides_from_flags_are_read_as_text(place: Path) -> None:
    from autopeft.study.definition import default_definition

    flags = ['model.name_or_path="a: b"', "study.seed=3", 'search.warm_start=["old", "7"]']
    definition = default_definition(flags)
    assert definition.model.name_or_path == "a: b"
    assert definition.search.warm_start == ("old", "7")
    assert definition.study.seed == 3


def test_a_finished_study_says_so_and_exits_0(run: Run, played: PlayedSearch) -> None:
    played.phases = ("finished",)
    result = run("search")
    assert result.exit_code == 0
    assert "study demo is already finished" in result.stderr
    assert "accuracy over" in result.stdout


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("trials", "a larger --trials"),
        ("wall_clock", "a larger budget.wall_clock (--set budget.wall_clock=...)"),
        ("gpu_hours", "a larger budget.gpu_hours"),
        ("optimizer_steps", "a larger budget.optimizer_steps"),
        ("exhausted", "a larger space"),
        ("min_gain", "a smaller budget.min_gain"),
    ],
)
def test_a_finished_study_says_what_lets_it_go_on(
    run: Run, played: PlayedSearch, reason: Reason, says: str
) -> None:
    ended = Ending(reason, trials=7, min_gain=0.01 if reason == "min_gain" else None).to_dict()
    played.seeded = Path(shutil.copy(played.seeded, "ended.db"))
    with storage.open_store("sqlite:///ended.db") as store:
        token = store.claim("demo", this_process(), 60.0)
        store.update_study("demo", token, facts={"ended": ended})
    played.phases = ("finished",)
    (told,) = [line for line in run("search").stderr.splitlines() if "already finished" in line]
    assert says in told


def test_no_front_exits_1(
    run: Run, played: PlayedSearch, tmp_path_factory: pytest.TempPathFactory, seed_study: Any
) -> None:
    played.seeded = tmp_path_factory.mktemp("empty") / "autopeft.db"
    seed_study(f"sqlite:///{played.seeded}", trials=())
    result = run("search")
    assert result.exit_code == 1
    assert "no front" in result.stdout
    assert "Next:" not in result.stdout


def test_quiet_leaves_the_result(run: Run, played: PlayedSearch) -> None:
    result = run("search", "--quiet")
    assert result.stderr == ""
    assert "accuracy over" in result.stdout


def test_json_lines(run: Run, played: PlayedSearch) -> None:
    result = run("search", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [line["type"] for line in lines]
    assert kinds[-1] == "status"
    assert lines[-1] == {"type": "status", **json.loads(run("status", "--json").stdout)}
    assert [line["trial"] for line in lines if line["type"] == "trial"] == list(range(7))
    assert [line["front"] for line in lines if line["type"] == "snapshot"] == [[1, 2, 3]]
    assert {"type": "event", "text": "trial 3 completed"} in lines
    assert "progress" in kinds


def test_an_interruption_exits_75_with_the_command_that_goes_on(
    run: Run, played: PlayedSearch
) -> None:
    played.error = InterruptedStudyError("study demo: stopped after 3 of 16 trials")
    result = run(
        "search",
        "s.yaml",
        "--trials",
        "9",
        "--stop-after",
        "5m",
        "--storage",
        "sqlite:///autopeft.db",
    )
    assert result.exit_code == 75
    assert result.stdout == ""
    assert "stopped after 3 of 16 trials" in result.stderr
    assert result.stderr.splitlines()[-1] == (
        "resume with: autopeft search s.yaml --set budget.trials=9 --storage sqlite:///autopeft.db"
    )


def test_an_interruption_in_json_ends_with_the_status(run: Run, played: PlayedSearch) -> None:
    played.error = InterruptedStudyError("stopped")
    result = run("search", "--json")
    assert result.exit_code == 75
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[-1]["type"] == "status"
    [told] = [line for line in lines if line["type"] == "interrupted"]
    assert told["exit_code"] == 75
    assert told["ok"] is False


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError([Fault("s.yaml", "budgt", "", "budget")] * 2), 2), (StudyHeldError("held"), 4)],
)
def test_errors_of_a_search(
    run: Run, played: PlayedSearch, error: AutopeftError, code: int
) -> None:
    played.error = error
    result = run("search")
    assert result.exit_code == code
    assert result.stdout == ""
    assert len([e for e in result.stderr.splitlines() if e.startswith("error:")]) == len(
        error.faults
    )
    result = run("search", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["exit_code"] == code


@pytest.mark.parametrize("given", ["5", "soon", "0m"])
def test_a_duration_needs_its_unit(run: Run, played: PlayedSearch, given: str) -> None:
    result = run("search", "--stop-after", given, "--json")
    assert result.exit_code == 2
    [fault] = json.loads(result.stdout)["errors"]
    assert fault["where"] == "--stop-after"
    assert "45m" in fault["allowed"]
    assert played.given == {}
