"""A study whose costs are measured: from the ends of its space to the front, and back again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.api.preparation import Preparation
from autopeft.errors import StudyMismatchError
from autopeft.execution.probe import SoloProbe
from autopeft.study.progress import Silent
from autopeft.study.records import TrialState

MakePath = Callable[..., Path]
Cli = Callable[..., str]
METRICS = ["accuracy", "trainable_params", "latency_seconds"]
BLOCKS: dict[str, Any] = {
    "objectives": [{"metric": name} for name in METRICS],
    "constraints": [{"metric": "peak_memory_bytes", "cap": "1GiB"}],
    "search": {"initial": 3, "pack": 4, "rungs": [1.0], "searcher": "gp"},
    "budget": {"trials": 4},
}


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_event(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
) -> Path:
    """A folder with a study file."""
    folder = tmp_path_factory.mktemp("measured")
    make_study(folder, bert_folder, make_data(folder / "data"), **BLOCKS)
    return folder


def _search(place: Path, *overrides: str) -> tuple[Any, Heard]:
    heard = Heard()
    study = autopeft.search(
        place / "study.yaml",
        storage=f"sqlite:///{place}/autopeft.db",
        output_dir=place / "out",
        overrides=overrides,
        listener=heard,
    )
    return study, heard


def test_measured_costs_from_the_space_to_the_front(
    place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = autopeft.plan(place / "study.yaml")
    assert plan["measured"] == {"latency_seconds": None, "peak_memory_bytes": None}
    study, heard = _search(place)
    record, trials = study.record, study.trials()
    assert [frame.name for frame in record.frame] == METRICS
    probes = record.facts["probes"]
    assert set(probes["ends"]) == {"smallest", "lightest", "largest"}
    assert sum("of one trial by itself" in line for line in heard.lines) == 2
    assert len(trials) == 7
    for trial in trials:
        probe = trial.profile["probe"]
        assert 0 < trial.objectives["latency_seconds"] == probe["latency_seconds"]
        assert 0 < probe["peak_memory_bytes"] < 2**30
        assert "train_seconds" not in probe, "nobody asked for it"
        assert trial.profile["optimizer_steps"] == 24
    low, high = probes["ranges"]["peak_memory_bytes"]
    assert low < high
    assert study.front()
    out = cli(place, "show", "3")
    assert "By itself (solo probe)" in out
    assert "peak_memory_bytes" in out
    assert "latency_" in cli(place, "trials"), "the name may be broken over lines"
    assert "ended" in cli(place, "status")
    # -- a larger budget goes on with the frame that is stored, and measures what is new alone
    measured: list[str] = []
    original = SoloProbe.measure

    def noted(self: SoloProbe, configuration: Any) -> dict[str, Any]:
        measured.append(configuration.hash)
        return original(self, configuration)

    monkeypatch.setattr(SoloProbe, "measure", noted)
    study, _ = _search(place, "budget.trials=5")
    assert study.record.frame == record.frame
    assert measured == [study.trials()[-1].hash]
    # -- seconds and bytes of another device do not compare
    prepared = Preparation(study_definition(place), place / "out", Silent())
    moved = replace(study.record, facts={**study.record.facts, "device": "cuda"})
    with pytest.raises(StudyMismatchError, match=r"execution\.devices"):
        prepared.check(moved, Silent())


def study_definition(place: Path) -> Any:
    from autopeft.api.searching import resolve_definition

    return resolve_definition(place / "study.yaml")


def test_a_cap_that_nothing_keeps_trains_baselines_alone(
    tmp_path: Path, place: Path, bert_folder: Path, make_study: MakePath
) -> None:
    cap = [{"metric": "peak_memory_bytes", "cap": 1000}]
    search = {"initial": 2, "pack": 2, "rungs": [1.0], "searcher": "gp", "baselines": ["lora-r1"]}
    make_study(
        tmp_path,
        bert_folder,
        place / "data",
        constraints=cap,
        search=search,
        budget={"trials": 4},
    )
    study, heard = _search(tmp_path)
    assert any("below all that was probed" in line for line in heard.lines)
    own = [trial for trial in study.trials() if trial.baseline is None]
    assert [(t.state, t.cause, t.optimizer_steps) for t in own] == [
        (TrialState.FAILED, "infeasible", 0)
    ] * 4
    status = study.status()
    assert status["failures"] == {"infeasible": 4}
    assert study.front() == [], "baselines break the cap too, which marks them"
    assert json.loads(json.dumps(status, allow_nan=False)) == status
