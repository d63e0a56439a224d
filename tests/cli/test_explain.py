"""`explain`, and the reasons that `show` gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import storage
from autopeft.configuration import Configuration, Group
from autopeft.searchers.explain import importances
from autopeft.study.records import Holder, Measurement, NewTrial, Origin, TrialState

Run = Callable[..., Result]
URL = "sqlite:///autopeft.db"
GAIN = {
    "reason": "expected hypervolume gain",
    "expected_gain": 0.0123,
    "relative_cost": 0.8,
    "predicted": {"accuracy": {"mean": 0.7, "sd": 0.05}},
    "sampler": {"name": "x"},
}
SOURCES = {"lora": "Hu et al. 2021, LoRA", "psoft": "Wu et al. 2025, PSOFT"}
FACTS = {"rung_steps": {"0.33": 20, "1.0": 60}, "method_sources": SOURCES}


@pytest.fixture
def searched(place: Path, seed_study: Callable[..., None]) -> None:
    """A study of 24 trials in which the rank decides; the last one was stopped at a rung."""
    seed_study(URL, trials=())
    with storage.open_store(URL) as store:
        token = store.claim("demo", Holder("here", 1, "boot"), 60.0)
        store.update_study("demo", token, facts=FACTS)
        for index in range(24):
            _train(store, token, index, stopped=index == 23)


def _train(store: Any, token: int, index: int, *, stopped: bool) -> None:
    rank = 2 ** (index % 6)
    group = Group.of("lora", [index // 6 % 3], ["query"], rank=rank, alpha=2 * rank, dropout=0.0)
    training = {"learning_rate": 1e-3 * (1 + index % 5), "weight_decay": 0.0, "warmup_ratio": 0.0}
    chosen = Configuration.of([group], training=training)
    known = {"trainable_params": 768.0 * rank}
    new = NewTrial(
        chosen, Origin.SEARCHER, 768 * rank, 770, 0, known=known, details=GAIN if index else {}
    )
    [record] = store.add_trials("demo", token, [new])
    store.start_trials("demo", token, [record.number])
    quality = 0.4 + 0.08 * (index % 6) + 0.001 * (index % 5)
    store.record(
        "demo",
        token,
        record.number,
        measurements=[Measurement(20, "accuracy", "validation", quality / 2, rung=0.33)],
        objectives={"accuracy": quality / 2 if stopped else quality, **known},
        rung=0.33 if stopped else 1.0,
        optimizer_steps=20 if stopped else 60,
    )
    state = TrialState.STOPPED if stopped else TrialState.COMPLETED
    store.finish_trial("demo", token, record.number, state)


@pytest.fixture
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importances, "TREES", 10)


@pytest.mark.usefixtures("searched", "small_forests")
def test_what_mattered_comes_first(run: Run) -> None:
    text = run("explain").stdout
    assert "accuracy: 24 trials (1 stopped early), held-out ones predicted with" in text
    rows = [line.split() for line in text.splitlines() if "+-" in line]
    assert rows[0][:2] == ["lora", "rank"]
    assert "####" in " ".join(rows[0])
    assert "learning rate" in text.split("not told from noise:")[1]
    assert "accuracy was predicted for 23 trials; 22 of them completed the full budget" in text
    sources = text.split("Sources of the methods\n")[1]
    assert sources == "  lora: Hu et al. 2021, LoRA\n", "of what is clear alone"


@pytest.mark.usefixtures("searched", "small_forests")
def test_the_json_of_explain(run: Run) -> None:
    plain = json.loads(run("explain", "--json").stdout)
    assert list(plain["importances"]) == ["quality", "hypervolume"]
    quality = plain["importances"]["quality"]
    assert (quality["target"], quality["trials"], quality["stopped"]) == ("accuracy", 24, 1)
    assert quality["choices"][0]["choice"] == "lora.rank"
    assert set(quality["choices"][0]) == {"choice", "share", "error", "clear"}
    (accuracy,) = plain["predictions"]
    assert (accuracy["proposed"], accuracy["completed"]) == (23, 22)
    assert len(accuracy["pairs"]) == 22
    assert plain["method_sources"] == SOURCES


def test_with_few_trials_it_says_so_instead_of_guessing(run: Run, stored: Path) -> None:
    text = run("explain").stdout
    assert "it takes 16 trials that ended with a value to tell what mattered" in text
    assert "+-" not in text
    assert "no trial was proposed with a prediction" in text
    plain = json.loads(run("explain", "--json").stdout)
    assert plain["importances"]["quality"]["choices"] == []
    assert plain["importances"]["quality"]["rank_correlation"] is None


@pytest.mark.usefixtures("searched")
def test_show_says_why_a_trial_was_proposed(run: Run) -> None:
    text = run("show", "4").stdout
    assert "Why it was proposed" in text
    assert "proposed because: expected gain 0.0123 hypervolume at 0.8x the mean cost" in text
    assert "predicted accuracy 0.7 +- 0.05, measured 0.724 (0.5 sd above)" in text
    assert "sampler.name" in text
    assert "proposed by the searcher, which kept no reason" in run("show", "0").stdout
    assert json.loads(run("show", "4", "--json").stdout)["details"] == GAIN


@pytest.mark.usefixtures("searched")
def test_show_says_where_a_trials_methods_are_from(run: Run) -> None:
    text = run("show", "4").stdout
    assert text.split("Sources of its methods\n")[1].split("\n\n")[0].split() == [
        *("lora", "Hu", "et", "al.", "2021,", "LoRA")
    ]
    assert json.loads(run("show", "4", "--json").stdout)["method_sources"] == {
        "lora": "Hu et al. 2021, LoRA"
    }


def test_a_study_that_kept_no_sources_is_told_without(run: Run, stored: Path) -> None:
    for words in (["explain"], ["show", "1"]):
        assert "Sources of" not in run(*words).stdout
        assert json.loads(run(*words, "--json").stdout)["method_sources"] == {}


def test_show_says_what_a_baseline_is_for(run: Run, stored: Path) -> None:
    assert "baseline lora-r8: run before the search" in run("show", "0").stdout
