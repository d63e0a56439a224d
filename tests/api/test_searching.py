"""What a search pays for its preparation, and how it stops there: on a clock that tests move."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from stand_in_search import StandInPreparation

import autopeft
from autopeft.errors import InterruptedStudyError
from autopeft.execution.base import Executor
from autopeft.study.definition import parse_definition
from autopeft.study.progress import Stopper
from autopeft.study.records import StudyState
from autopeft.study.sitting import Sitting

LOADING_S, CALIBRATION_S, PROBES_S = 40.0, 16.0, 4.0
PREPARED_S = LOADING_S + CALIBRATION_S + PROBES_S


class Idle:
    """An executor that is never asked for anything."""

    apart, runners = True, (SimpleNamespace(last_lines=lambda: None),)

    def attend(self, call: Callable[[], object]) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing runs."""


class World:
    """A clock, and what happens while a study is prepared."""

    def __init__(self, folder: Path) -> None:
        self.now, self.url = 0.0, f"sqlite:///{folder}/toy.db"
        self.folder, self.stopper = folder, Stopper()
        self.while_loading: Callable[[], None] = lambda: None

    def search(
        self, stop_after: float | None = None, wall_s: float = 10_000.0, **budget: Any
    ) -> Any:
        plain = {
            "study": {"name": "toy"},
            "model": {"name_or_path": "toy"},
            "data": {"source": "toy.csv"},
            "space": "lora",
            "search": {"baselines": []},
            "budget": {"wall_clock": f"{wall_s:g}s", **budget},
            "execution": {"executor": "in-process"},
        }
        return autopeft.search(
            parse_definition(plain, where="test", base=None),
            storage=self.url,
            output_dir=self.folder / "out",
            stopper=self.stopper,
            stop_after=stop_after,
        )

    @contextmanager
    def on(self, sitting: Sitting, seconds: float) -> Iterator[None]:
        """Some seconds of the device."""
        with sitting.on_device():
            for _ in range(round(seconds)):
                sitting.heed("toy", "nothing is stored")
                self.now += 1.0
        yield


class Prepared(StandInPreparation):
    """A preparation that takes its time."""

    def __init__(self, world: World, *given: Any, sitting: Sitting, **_: Any) -> None:
        super().__init__(*given)
        self._world = world
        world.now += LOADING_S
        world.while_loading()

    def calibrate(self, _: Any, sitting: Sitting) -> None:
        with self._world.on(sitting, CALIBRATION_S):
            pass

    def probe_space(self, _: Any, __: Any, sitting: Sitting) -> None:
        with self._world.on(sitting, PROBES_S):
            pass

    def _executor(self, _: Stopper) -> Executor:
        return Idle()  # type: ignore[return-value]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    for module, names in {
        "autopeft.api.preparation": {"Preparation": partial(Prepared, made)},
        "autopeft.api.warm_start": {"sources": lambda *_: []},
    }.items():
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
        vars(sys.modules[module]).update(names)
    sitting = partial(Sitting, clock=lambda: made.now)
    monkeypatch.setattr("autopeft.api.searching.Sitting", sitting)
    return made


def test_preparation_is_paid_by_the_wall_clock_of_every_sitting(world: World) -> None:
    study = world.search(wall_s=PREPARED_S)
    assert study.record.state is StudyState.FINISHED
    assert study.record.facts["ended"]["reason"] == "wall_clock"
    assert study.record.spent["wall_seconds"] == PREPARED_S
    # A little more, all of which the next sitting spends while it loads.
    study = world.search(wall_s=PREPARED_S + LOADING_S)
    assert study.record.facts["ended"]["reason"] == "wall_clock"
    assert study.record.spent["wall_seconds"] == PREPARED_S + LOADING_S
    assert study.trials() == []
    assert study.status()["left"]["wall_clock"] == 0.0


def test_what_devices_do_before_the_first_trial_counts_among_their_hours(world: World) -> None:
    on_device = CALIBRATION_S + PROBES_S
    study = world.search(gpu_hours=on_device / 3600.0)
    assert study.record.facts["ended"]["reason"] == "gpu_hours"
    assert study.record.device_seconds == on_device
    spent = study.status()["spent"]
    assert (spent["preparation_seconds"], spent["train_seconds"]) == (on_device, 0.0)


def test_a_sitting_that_ends_while_it_loads_pays_for_what_it_loaded(world: World) -> None:
    world.search(wall_s=PREPARED_S)
    world.while_loading = lambda: world.stopper.request("SIGTERM")
    with pytest.raises(InterruptedStudyError, match="all is as it was saved"):
        world.search()
    study = autopeft.load_study("toy", storage=world.url)
    assert study.record.spent["wall_seconds"] == PREPARED_S + LOADING_S
    assert study.status()["held"] is False


@pytest.mark.parametrize("stop_after", [LOADING_S - 1.0, LOADING_S + 3.0, PREPARED_S - 1.0])
def test_the_time_of_a_sitting_ends_within_preparation(world: World, stop_after: float) -> None:
    with pytest.raises(InterruptedStudyError, match=r"sitting is over.*nothing is"):
        world.search(stop_after=stop_after)
    assert world.now == max(stop_after, LOADING_S)
    assert not (world.folder / "toy.db").exists()


def test_the_time_of_a_sitting_ends_before_the_first_trial(world: World) -> None:
    world.search(wall_s=PREPARED_S)
    with pytest.raises(InterruptedStudyError, match="time of this sitting is over"):
        world.search(stop_after=LOADING_S)
    study = autopeft.load_study("toy", storage=world.url)
    assert study.trials() == []
