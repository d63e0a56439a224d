"""A study that starts from what an earlier one found, on other data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft import api
from autopeft.errors import Fault, InputError
from autopeft.searchers.front import front
from autopeft.study.progress import Silent
from autopeft.study.records import Origin, TrialRecord

Cli = Callable[..., str]
MakePath = Callable[..., Path]

FIRST = {"search": {"initial": 4, "baselines": []}, "budget": {"trials": 4}}


class Heard(Silent):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_event(self, text: str) -> None:
        self.events.append(text)


@pytest.fixture(scope="module")
def first(
    tmp_path_factory: pytest.TempPathFactory,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
) -> Path:
    """A folder with a finished study, and with data of another task: the labels trade places."""
    folder = tmp_path_factory.mktemp("first")
    study = make_study(folder, bert_folder, make_data(folder / "data"), **FIRST)
    other = make_data(folder / "other")
    for split in other.iterdir():
        text = split.read_text().replace("class0", "none")
        split.write_text(text.replace("class1", "class0"))
    api.search(study, storage=url(folder), output_dir=folder / "runs")
    return folder


@pytest.fixture
def place(first: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(first, tmp_path / "copy"))


def copied(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder, folder.parent / name))


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'autopeft.db'}"


def second(folder: Path, *overrides: str, listener: Silent | None = None) -> list[TrialRecord]:
    """The trials of a study that starts from the first, on the other data."""
    changes = [f"data.source={folder / 'other'}", "search.warm_start=[tiny]", *overrides]
    return api.search(
        folder / "study.yaml",
        storage=url(folder),
        output_dir=folder / "second",
        name="second",
        overrides=changes,
        listener=listener,
    ).trials()


def known(folder: Path) -> list[TrialRecord]:
    """The first study's front, the best first."""
    study = autopeft.load_study("tiny", storage=url(folder))
    return front(study.trials(), study.frames)[::-1]


def test_the_flag_makes_the_best_of_the_first_be_tried_first(place: Path, cli: Cli) -> None:
    flags = ("--name", "second", "--data", "other", "--warm-start", "tiny", "--trials", "2")
    cli(place, "search", "study.yaml", *flags)
    trials = json.loads(cli(place, "trials", "second", "--json"))
    best = known(place)[0]
    assert len(trials) == 2
    assert trials[0]["origin"] == "warm-start"
    assert trials[0]["hash"] == best.hash
    assert trials[0]["objectives"]["accuracy"] is not None
    study = autopeft.load_study("second", storage=url(place))
    assert study.trial(0).details["source"] == f"study tiny, trial {best.number}"
    assert study.record.facts["warm_start"][0]["hash"] == best.hash


def test_it_goes_on_alike_when_the_first_is_deleted(place: Path) -> None:
    best = known(place)
    one_by_one = ("search.proposals=1", "search.warm_start_trials=1", "search.initial=2")
    whole = second(copied(place, "whole"), *one_by_one, "budget.trials=4")
    second(place, *one_by_one, "budget.trials=2")
    api.delete("tiny", storage=url(place))
    parts = second(place, *one_by_one, "budget.trials=4")
    assert [trial.hash for trial in parts] == [trial.hash for trial in whole]
    assert parts[0].hash == best[0].hash
    # The best of the first study is a part of the start of two trials, and does not come on top.
    assert [trial.origin for trial in parts] == [
        Origin.WARM_START,
        Origin.INITIAL,
        Origin.SEARCHER,
        Origin.SEARCHER,
    ]


def refused(folder: Path, *overrides: str) -> list[Fault]:
    with pytest.raises(InputError) as caught:
        second(folder, *overrides)
    names = [study["study"] for study in api.list_studies(url(folder))]
    assert names == ["tiny"], "a study was made"
    return list(caught.value.faults)


def test_another_space_is_refused_with_what_differs(first: Path) -> None:
    found = refused(first, "space=autopeft")
    assert {fault.key for fault in found} == {"search.warm_start.0"}
    assert len(found) == len(known(first))
    assert all(fault.given.startswith("tiny: trial ") for fault in found)
    assert all("in the space" in fault.given or ", here " in fault.given for fault in found)
    assert "search the space of tiny" in found[0].hint


def test_another_backbone_is_refused(first: Path, llama_folder: Path) -> None:
    (fault,) = refused(first, f"model.name_or_path={llama_folder}")
    assert fault.key == "search.warm_start.0"
    assert fault.given == "tiny, of a backbone bert with 2 layers"
    assert fault.allowed == "a study of a backbone llama with 2 layers"


def test_studies_that_are_not_stored_are_named_before_anything_is_loaded(first: Path) -> None:
    nowhere = "model.name_or_path=/nowhere"
    tony, nothing = refused(first, "search.warm_start=[tony, nothing]", nowhere)
    assert (tony.key, tony.given, tony.allowed) == ("search.warm_start.0", "tony", "tiny")
    assert tony.hint == "did you mean tiny?"
    assert (nothing.key, nothing.hint) == ("search.warm_start.1", "see `autopeft studies`")


def test_what_another_study_holds_of_it_is_taken_and_what_differs_is_told(place: Path) -> None:
    """A wider space, other objectives, another fixed value; the front fits all the same."""
    best, heard = known(place)[0], Heard()
    wider: dict[str, Any] = {"choice": [0, 1, 2, 4, 8, 16]}
    trials = second(
        place,
        f"space.methods.lora.rank={json.dumps(wider)}",
        "objectives=[{metric: loss}, {metric: adapter_bytes}]",
        "training.weight_decay=0.01",
        "budget.trials=1",
        listener=heard,
    )
    assert trials[0].configuration.groups == best.configuration.groups
    assert trials[0].configuration.training_value("weight_decay") == 0.01
    said = [event for event in heard.events if event.startswith("warm start: ")]
    assert said == [
        "warm start: study tiny has another space; what this one's holds exactly is taken over",
        "warm start: study tiny has a front of accuracy, trainable_params, this one of loss, "
        "adapter_bytes",
        "warm start: study tiny trained with weight_decay 0, this one with 0.01 where its space "
        "says nothing else",
        "warm start: 1 of tiny is tried first",
    ]
