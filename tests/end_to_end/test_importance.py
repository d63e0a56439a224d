"""Importance is measured once: by whoever needs it first, for all studies on the same data."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.api import planning, training
from autopeft.api.importance_need import (
    configuration_needs_importance,
    study_needs_importance,
)
from autopeft.api.preparation import Preparation
from autopeft.errors import InputError, InterruptedStudyError
from autopeft.importance import measuring
from autopeft.importance.settings import MEASURED, SCORES
from autopeft.study.definition import load_definition
from autopeft.study.progress import MEASURING, Progress, Silent, Stopper
from storage import open_store

MakePath = Callable[..., Path]
Cli = Callable[..., str]
SEARCH = {
    "initial": 1, "pack": 1, "rungs": [1.0], "searcher": "random", "baselines": [],
    "importance": True,
}  # fmt: skip


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def on_event(self, text: str) -> None:
        self.lines.append(text)

    def on_progress(self, progress: Progress) -> None:
        if progress.phase == MEASURING:
            self.steps.append((progress.step, progress.total_steps))


@pytest.fixture
def place(tmp_path: Path, bert_folder: Path, make_data: MakePath, make_study: MakePath) -> Path:
    """A folder with a study file that asks for a map."""
    data = make_data(tmp_path / "data")
    make_study(tmp_path, bert_folder, data, search=SEARCH, budget={"trials": 1})
    return tmp_path


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fingerprints that were measured from now on."""
    seen: list[str] = []
    original = measuring.measure

    def noted(*given: Any, **named: Any) -> Any:
        found = original(*given, **named)
        seen.append(found.fingerprint)
        return found

    monkeypatch.setattr(measuring, "measure", noted)
    return seen


def url(place: Path) -> str:
    return f"sqlite:///{place}/autopeft.db"


def search(place: Path, *overrides: str) -> tuple[Any, Heard]:
    heard = Heard()
    study = autopeft.search(
        place / "study.yaml",
        storage=url(place),
        output_dir=place / "out",
        overrides=overrides,
        listener=heard,
    )
    return study, heard


def test_the_first_study_measures_and_all_others_reuse_it(place: Path, passes: list[str]) -> None:
    study, heard = search(place)
    assert len(passes) == 1
    assert heard.steps == [(done, 6) for done in range(1, 7)], "96 rows in batches of 16"
    (found,) = study.importance_maps()
    assert found.fingerprint == passes[0]
    assert found.examples == 96
    assert set(found.scores) == set(MEASURED)
    assert study.record.facts["importance"]["key"] == passes[0]
    other, heard = search(place, "study.name=other", "study.seed=1", "budget.trials=2")
    assert other.record.facts["importance"]["key"] == passes[0]
    assert not heard.steps
    search(place, "study.name=other", "study.seed=1", "budget.trials=3")  # and when it goes on
    again = autopeft.importance_map(place / "study.yaml", storage=url(place))
    assert again.facts["stored_at"]
    assert len(passes) == 1


def test_other_data_batches_or_examples_are_measured_anew(place: Path, passes: list[str]) -> None:
    def measured(**more: Any) -> Any:
        where = {"storage": url(place), "output_dir": place / "out"}
        return autopeft.importance_map(place / "study.yaml", **where, **more)

    measured()
    first = measured()
    assert len(passes) == 1
    measured(examples=32)
    text = (place / "data" / "train.csv").read_text().replace("w1 ", "w2 ")
    (place / "data" / "train.csv").write_text(text)
    measured()
    assert len(set(passes)) == 3
    again = measured(again=True)
    assert "stored_at" not in again.facts
    assert again.fingerprint == passes[2]
    assert first.fingerprint == passes[0]
    assert len(passes) == 4


def test_the_backbone_of_a_study_knows_its_map_before_the_space_is_bound(place: Path) -> None:
    definition = load_definition(place / "study.yaml")
    prepared = Preparation(definition, place / "out", Silent())
    found = prepared._problem.anatomy.measured()
    assert prepared._materials.backbone.anatomy.importance is found
    assert set(found.scores) == set(SCORES)
    assert found.fine


def test_a_study_that_needs_none_measures_none(place: Path, passes: list[str]) -> None:
    study, _ = search(place, "search.importance=false")
    assert passes == []
    assert study.record.facts["importance"] is None
    assert study.importance_maps() == []


def test_asked_to_stop_it_stops_and_stores_nothing(place: Path) -> None:
    stopper = Stopper()
    stopper.request("test")
    with pytest.raises(InterruptedStudyError, match="nothing is stored"):
        autopeft.importance_map(
            place / "study.yaml", storage=url(place), output_dir=place / "out", stopper=stopper
        )
    assert not (place / "autopeft.db").exists()


def test_the_command_measures_stores_and_prints_json(place: Path, cli: Cli) -> None:
    plain = json.loads(cli(place, "importance", "study.yaml", "--json", "--examples", "20"))
    assert plain["study"] == "tiny"
    assert plain["examples"] == 20
    assert set(plain["scores"]) == set(MEASURED)
    with open_store(url(place), read_only=True) as store:
        record = store.importance(plain["fingerprint"])
    assert record is not None
    assert record.settings["examples"] == 20


def test_faults_of_the_study_are_told_before_anything_is_measured(place: Path) -> None:
    text = (place / "study.yaml").read_text()
    (place / "study.yaml").write_text(text.replace("label: label", "label: nothing"))
    with pytest.raises(InputError, match="nothing"):
        autopeft.importance_map(place / "study.yaml", storage=url(place))


def test_a_configuration_that_needs_a_map_has_it_measured_before_it_trains(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = search(place, "search.importance=false")
    study.export(place / "best.yaml", trial=0)
    monkeypatch.setattr(training, "configuration_needs_importance", lambda plain: True)
    seen: list[Any] = []
    fitted = training.fitted_settings
    monkeypatch.setattr(
        training,
        "fitted_settings",
        lambda trainer, *rest, **more: (
            seen.extend([trainer, more["in_process"]]) or fitted(trainer, *rest, **more)
        ),
    )
    heard = Heard()
    monkeypatch.chdir(place)
    autopeft.train(place / "best.yaml", place / "adapter", listener=heard)
    assert any("measuring the importance" in line for line in heard.lines)
    assert set(seen[0].backbone.anatomy.measured().scores) == set(SCORES)
    assert seen[1], "it trains in this process"


def test_a_plan_takes_the_stored_map_and_measures_none(
    place: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = load_definition(place / "study.yaml")
    autopeft.plan(definition, storage=url(place), output_dir=place / "out")
    monkeypatch.setattr(planning, "study_chooses_by_scores", lambda definition: True)
    with pytest.raises(InputError, match=r"`autopeft importance STUDY\.yaml` measures"):
        autopeft.plan(definition, storage=url(place), output_dir=place / "out")
    assert not (place / "autopeft.db").exists()
    autopeft.importance_map(definition, storage=url(place), output_dir=place / "out")
    anatomies: list[Any] = []
    bind = planning.problems.bind_space
    monkeypatch.setattr(
        planning.problems,
        "bind_space",
        lambda definition, anatomy: anatomies.append(anatomy) or bind(definition, anatomy),
    )
    autopeft.plan(definition, storage=url(place), output_dir=place / "out")
    assert anatomies[-1].measured().fine
    assert len(passes) == 1


def test_a_map_of_which_an_earlier_release_kept_the_channels_is_measured_once_more(
    place: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "study_chooses_by_scores", lambda definition: True)
    definition = load_definition(place / "study.yaml")
    autopeft.importance_map(definition, storage=url(place), output_dir=place / "out")
    with open_store(url(place)) as store:
        record = store.importance(passes[0])
        assert record is not None
        store.keep_importance(replace(record, fine=None))
    with pytest.raises(InputError, match=r"`autopeft importance STUDY\.yaml --again` measures"):
        autopeft.plan(definition, storage=url(place), output_dir=place / "out")
    search(place)
    search(place, "study.name=other")
    autopeft.plan(definition, storage=url(place), output_dir=place / "out")
    assert len(passes) == 2


@pytest.mark.parametrize(
    ("plain", "needed"),
    [
        ({"lora": [{"layers": [0]}], "sparsity": {"rule": "none"}}, False),
        ({"sparse": [{"layers": [0]}]}, True),
        ({"sparse": [{"layers": [0], "score": "magnitude"}]}, False),
        ({"lora": [{"layers": [0]}], "sparsity": {"rule": "spt"}}, True),
        ({"lora": [{"layers": [0]}], "sparsity": {"rule": "sparse", "score": "random"}}, False),
        ({"lora": "a fault"}, False),
    ],
)
def test_a_configuration_needs_a_map_where_scores_decide(
    plain: dict[str, Any], needed: bool
) -> None:
    assert configuration_needs_importance(plain) == needed


@pytest.mark.parametrize(
    ("baseline", "needed"),
    [
        ("lora-r8", False),
        ("speft", True),
        ("shira", False),
        ("s2ft", False),
        ("s2ft-fisher", True),
    ],
)
def test_a_study_needs_a_map_for_its_baselines(place: Path, baseline: str, needed: bool) -> None:
    changes = ["search.importance=false", f"search.baselines=[{baseline}]"]
    assert study_needs_importance(load_definition(place / "study.yaml", changes)) == needed


def test_a_study_needs_a_map_where_it_says_so(place: Path) -> None:
    definition = load_definition(place / "study.yaml")
    assert study_needs_importance(definition)
    plain = load_definition(place / "study.yaml", ["search.importance=false"])
    assert not study_needs_importance(plain)
