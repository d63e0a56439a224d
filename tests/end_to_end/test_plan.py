"""What `plan` foretells is what the study then is; what calibration chose is stored once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.api import planning
from autopeft.api.timing import Timed
from autopeft.study.progress import Silent

MakePath = Callable[..., Path]
FIXED = {"search": {"pack": 2, "rungs": [0.9, 1.0]}}


class Heard(Silent):
    """Keeps every line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_event(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def make(
    tmp_path: Path, bert_folder: Path, make_data: MakePath, make_study: MakePath
) -> Callable[..., Path]:
    """A study file beside its data."""
    data = make_data(tmp_path / "data")
    return lambda **blocks: make_study(tmp_path, bert_folder, data, **blocks)


def _search(folder: Path, study: Path, trials: int, heard: Heard | None = None) -> Any:
    return autopeft.search(
        study,
        storage=f"sqlite:///{folder}/plan.db",
        output_dir=folder / "out",
        overrides=[f"budget.trials={trials}"],
        listener=heard,
    )


def test_a_plan_is_what_the_study_then_is(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = make(**FIXED)
    found = autopeft.plan(study)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not list(tmp_path.glob("*.db")), "a plan made a database"
    assert not (tmp_path / "autopeft-runs").exists(), "a plan left artifacts"
    assert found["calibration"] is found["hours"] is None
    record = _search(tmp_path, study, 1).record
    facts = record.facts
    assert found["trainable_params"] == facts["param_range"]
    assert found["head_params"] == facts["head_params"] > 0
    assert found["steps"]["total"] == facts["total_steps"] == 24
    assert found["steps"]["rungs"] == facts["rung_steps"]
    assert found["steps"]["baselines"] == facts["n_baselines"] == 3
    assert set(found["baselines"]) == {"lora-r8"}
    assert "2106.09685" in found["baselines"]["lora-r8"]
    space = found["space"]
    assert (space["cardinality"], space["distinct"]) == (facts["cardinality"], facts["distinct"])
    assert space["dimensions"] > space["continuous"] == 1
    memory = found["memory"]
    parts = ("backbone", "lanes", "activations", "working", "overhead")
    assert memory["total_bytes"] == sum(memory[f"{part}_bytes"] for part in parts)
    own, local = (
        autopeft.plan(make(**FIXED, execution={"executor": name}))["memory"]
        for name in ("in-process", "local")
    )
    assert own["overhead_bytes"] > local["overhead_bytes"]
    assert own["activations_bytes"] == local["activations_bytes"]
    assert memory["pack_size"] == 2
    assert memory["largest_pack"] >= 2
    assert memory["baseline_total_bytes"] < memory["total_bytes"]
    assert facts["calibration"] is None, "nothing was open, so nothing is measured"
    assert (facts["precision"], facts["pack_size"], facts["proposals"]) == ("fp32", 2, 2)


def test_a_plan_tells_sizes_that_do_not_divide(make: Callable[..., Path]) -> None:
    """A search passes them over, and says the same."""
    sizes = {"methods": {"oft": {"block_size": {"choice": [4, 5]}}}}
    (note,) = autopeft.plan(make(space=sizes))["never_proposed"]
    assert "of oft is never proposed, such as 5 at layers 0, 1" in note
    sizes["methods"]["oft"]["block_size"]["choice"] = [4, 8]
    assert autopeft.plan(make(space=sizes))["never_proposed"] == []


def test_proposals_beyond_a_pack_make_cohorts_of_several(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    search = {"pack": 2, "proposals": 4, "baselines": [], "rungs": [0.9, 1.0], "stopping": "none"}
    study = make(search=search)
    found = _search(tmp_path, study, 4)
    assert (found.record.facts["pack_size"], found.record.facts["proposals"]) == (2, 4)
    trials = found.trials()
    assert {trial.pack for trial in trials} == {0}
    assert {trial.profile["pack_lanes"] for trial in trials} == {2}
    assert all(trial.profile["optimizer_steps"] == 24 for trial in trials)


def test_a_probe_gives_hours_and_stores_nothing(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = autopeft.plan(make(**FIXED), probe=True)
    assert 0 < found["hours"]["min"] <= found["hours"]["max"] < 1
    assert found["calibration"]["pack_size"] == 2
    assert set(found["calibration"]["step_seconds"]) == {"1", "2"}
    assert not list(tmp_path.glob("*.db"))


def test_hours_follow_what_stops_trials_and_how_many_runners_train(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With given timings, so that the same are compared: nothing is trained."""
    timed = {"pack_size": 2, "precision": "fp32", "step_seconds": {"2": 0.1},
             "samples_per_second": {}, "bf16_speedup": None}  # fmt: skip
    monkeypatch.setattr(planning, "stored_timing", lambda *_: Timed("study", timed))

    def planned(search: dict[str, Any], **execution: Any) -> dict[str, Any]:
        study = make(search=FIXED["search"] | search, execution=execution)
        found = autopeft.plan(study, probe=True)
        assert found["timed_by"] == "study"
        return found

    one = planned({"proposals": 4})
    assert one["runners"] == 1
    assert one["hours"]["min"] < one["hours"]["max"]
    unstopped = planned({"proposals": 4, "stopping": "none"})["hours"]
    assert one["hours"]["min"] < unstopped["min"] < unstopped["max"] == one["hours"]["max"]
    flops, steps = one["flops"], one["steps"]
    baselines = steps["baselines"] / (steps["trials"] + steps["baselines"])
    of_trials = unstopped["min"] / unstopped["max"] - baselines
    assert of_trials == pytest.approx((1 - baselines) * flops["least"] / flops["mean"])
    ray = {"executor": "ray", "ray": {"workers": 2}}
    two = planned({"proposals": 4}, **ray)
    assert two["runners"] == 2
    for end in ("min", "max"):
        assert two["hours"][end] == pytest.approx(one["hours"][end] / 2.0)
    alone = planned({"proposals": 1}, **ray)["hours"]
    assert alone["max"] == pytest.approx(one["hours"]["max"]), "a cohort of one keeps one busy"


def test_what_calibration_chose_is_stored_and_never_asked_again(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    study = make(search={"pack": "auto"}, training={"precision": "auto"})
    first, second = Heard(), Heard()
    facts = _search(tmp_path, study, 1, first).record.facts
    chosen = facts["calibration"]
    assert facts["pack_size"] == chosen["pack_size"] >= 4
    assert facts["proposals"] == 4, "how many are proposed at once is not for timing to decide"
    assert facts["precision"] == chosen["precision"]
    assert facts["tf32"] is False
    assert chosen["margins"] == {"pack_gain": 0.05, "bf16_speedup": 1.15, "limit_seconds": 20.0}
    assert sum(line.startswith("calibrated in") for line in first.lines) == 1
    again = _search(tmp_path, study, 2, second)
    ended = {"ended": again.record.facts["ended"]}  # tells what of the wall clock was left
    assert again.record.facts == {**facts, **ended}
    assert len(again.trials()) == 5
    assert not any("calibrat" in line for line in second.lines)
    profile = again.trial(4).profile
    assert profile["pack_lanes"] == 1
    assert profile["loading_seconds"] > 0
