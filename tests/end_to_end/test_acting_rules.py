"""A search that is stopped at a rung, or between two, goes on where its rules were."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import autopeft
from autopeft.errors import InterruptedStudyError
from autopeft.study.progress import Progress, Silent, Stopper
from autopeft.study.records import TrialState
from autopeft.training.lanes.state import LaneState
from autopeft.training.loop import PackRun

MakePath = Callable[..., Path]

LORA = {"layers": [0, 1], "sites": ["query", "value", "up"], "rank": 4, "alpha": 8}
RULES: tuple[Mapping[str, Any], ...] = (
    {"rule": "ist", "interval": 2, "candidates": 2, "suppress": 0.5, "step": 50.0, "keep": 0.5},
    {"rule": "id3", "budget": 0.4},
    {"rule": "adalora", "interval": 2, "warmup": 0.1, "final": 0.25, "target": 0.5},
)
RUNG, STEPS = 6, 12


class StopsAt(Silent):
    """Asks for a stop once, after a step."""

    def __init__(self, step: int) -> None:
        self.stopper, self._step = Stopper(), step

    def on_progress(self, progress: Progress) -> None:
        if progress.phase == "training" and progress.step == self._step:
            self.stopper.request("test")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> dict[int, LaneState]:
    """The lanes' states when they were last evaluated, by trial."""
    seen: dict[int, LaneState] = {}
    evaluate = PackRun.evaluate

    def noted(run: PackRun, *given: Any, **named: Any) -> Any:
        seen.update(run.states())
        return evaluate(run, *given, **named)

    monkeypatch.setattr(PackRun, "evaluate", noted)
    monkeypatch.setattr("autopeft.tuner.reporter.EVERY_STEPS", 1)
    return seen


@pytest.mark.parametrize("step", [RUNG, RUNG + 2], ids=["at the rung", "between rungs"])
def test_an_interrupted_study_ends_as_one_that_was_not(
    step: int,
    ends: dict[int, LaneState],
    tmp_path: Path,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
) -> None:
    search = {
        "initial": 1, "pack": 3, "rungs": [RUNG / STEPS, 1.0], "searcher": "random",
        "stopping": "none", "baselines": [],
        "enqueue": [{"lora": [LORA], "sparsity": dict(rule)} for rule in RULES],
    }  # fmt: skip
    blocks = {"training": {"epochs": 2}, "budget": {"trials": len(RULES)}}
    data = make_data(tmp_path / "data")
    make_study(tmp_path, bert_folder, data, search=search, **blocks)

    def sit(name: str, listener: StopsAt) -> Any:
        return autopeft.search(
            tmp_path / "study.yaml",
            name=name,
            storage=f"sqlite:///{tmp_path}/autopeft.db",
            output_dir=tmp_path / name,
            listener=listener,
            stopper=listener.stopper,
        )

    calm = sit("calm", StopsAt(-1)).trials()
    expected = dict(ends)
    ends.clear()
    with pytest.raises(InterruptedStudyError):
        sit("stopped", StopsAt(step))
    assert all(state.step < STEPS for state in ends.values())
    trials = sit("stopped", StopsAt(-1)).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETED] * len(RULES)
    assert [dict(t.objectives) for t in trials] == [dict(t.objectives) for t in calm]
    assert ends.keys() == expected.keys() == set(range(len(RULES)))
    for number, state in expected.items():
        again = ends[number]
        assert (again.step, again.updates) == (state.step, state.updates) == (STEPS, STEPS)
        assert again.tensors.keys() == state.tensors.keys()
        assert state.of_rule(), "a rule that learns nothing shows nothing"
        for name, tensor in state.tensors.items():
            assert torch.equal(again.tensors[name], tensor), (RULES[number]["rule"], name)
