from pathlib import Path

import pytest

from autopeft.errors import InputError
from autopeft.study.overrides import with_overrides


def test_values_are_yaml_and_the_original_stays() -> None:
    plain = {"budget": {"trials": 1}, "objectives": [{"metric": "accuracy"}, {"metric": "flops"}]}
    changed = with_overrides(
        plain,
        [
            "budget.trials=40",
            "training.learning_rate=3e-5",
            "search.rungs=[0.5, 1.0]",
            "objectives.1.cap=2M",
            "data.splits={train: train, validation: 0.1}",
            "data.revision=12e5",
            "model.revision=null",
            "deploy=",
        ],
    )
    assert changed == {
        "budget": {"trials": 40},
        "objectives": [{"metric": "accuracy"}, {"metric": "flops", "cap": "2M"}],
        "training": {"learning_rate": 3e-5},
        "search": {"rungs": [0.5, 1.0]},
        "data": {"splits": {"train": "train", "validation": 0.1}, "revision": "12e5"},
        "model": {"revision": None},
        "deploy": None,
    }
    assert plain == {
        "budget": {"trials": 1},
        "objectives": [{"metric": "accuracy"}, {"metric": "flops"}],
    }


def test_later_ones_win_and_null_blocks_open() -> None:
    assert with_overrides({"study": None}, ["study.seed=1", "study.seed=2"]) == {
        "study": {"seed": 2}
    }


def test_paths_start_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changed = with_overrides({}, ["data.source=rows.csv", "space=mine.yaml", "study.name=rows"])
    assert changed == {
        "data": {"source": str(tmp_path / "rows.csv")},
        "space": str(tmp_path / "mine.yaml"),
        "study": {"name": "rows"},
    }


def test_all_faults_at_once() -> None:
    wrong = ["trials", "=3", "space.layers=1", "rungs.5=1", "rungs.x=1", "a=[1", "ok=1", "e.0=1"]
    with pytest.raises(InputError) as error:
        with_overrides({"space": "mixed", "rungs": [1.0], "e": []}, wrong)
    assert len(error.value.faults) == len(wrong) - 1
    assert all(fault.where.startswith("--set") for fault in error.value.faults)
    assert error.value.faults[2].hint == "set space as a whole"
