"""A stored study to read, made through the storage package, and a way to run commands."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import storage
from autopeft.cli.main import app
from autopeft.configuration import Configuration, Group
from autopeft.study.definition import default_definition
from autopeft.study.records import (
    Holder,
    Measurement,
    NewStudy,
    NewTrial,
    ObjectiveFrame,
    Origin,
    StudyState,
    TrialState,
)

N_LAYERS = 6
HOLDER = Holder("here", 1, "boot")
FRAMES = (
    ObjectiveFrame("accuracy", "max", "linear", worst=0.2, best=1.0),
    ObjectiveFrame("trainable_params", "min", "log10", worst=2_000_000, best=768),
)
TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}

# number: (accuracy, rank, layers, baseline, state)
TRIALS: Sequence[tuple[float | None, int, range, str | None, TrialState]] = (
    (0.70, 8, range(6), "lora-r8", TrialState.COMPLETED),
    (0.60, 1, range(5, 6), None, TrialState.COMPLETED),
    (0.78, 4, range(3, 6), None, TrialState.COMPLETED),
    (0.82, 32, range(6), None, TrialState.COMPLETED),
    (0.50, 16, range(6), None, TrialState.COMPLETED),
    (0.40, 2, range(6), None, TrialState.STOPPED),
    (None, 64, range(6), None, TrialState.FAILED),
)


def configuration(rank: int, layers: Sequence[int]) -> Configuration:
    groups = [
        Group.of("lora", layers, ["query", "value"], rank=rank, alpha=2 * rank, dropout=0.0),
        Group.of("prefix", [5], length=rank),
    ]
    return Configuration.of(groups, training=TRAINING)


def new_study(name: str, frames: Sequence[ObjectiveFrame] = FRAMES) -> NewStudy:
    return NewStudy(
        name=name,
        definition=default_definition([f"study.name={name}"]).to_plain(),
        space_hash="space",
        frame=tuple(frames),
        fingerprints={"data": "d", "backbone": "b"},
        versions={"autopeft": "0"},
        facts={"n_layers": N_LAYERS, "n_baselines": 1, "label_names": ["a", "b"]},
    )


def seed(
    url: str,
    name: str = "demo",
    trials: Sequence[tuple[Any, ...]] = TRIALS,
    state: StudyState = StudyState.FINISHED,
) -> None:
    """Create a study and let its trials end as listed."""
    with storage.open_store(url, create=True) as store:
        store.create_study(new_study(name))
        token = store.claim(name, HOLDER, 60.0)
        for quality, rank, layers, baseline, final in trials:
            n_params = 768 * rank * len(layers)
            [record] = store.add_trials(
                name, token, [_new_trial(configuration(rank, layers), n_params, baseline)]
            )
            store.start_trials(name, token, [record.number])
            full = final is TrialState.COMPLETED
            if quality is not None:
                store.record(
                    name,
                    token,
                    record.number,
                    measurements=_curve(quality),
                    objectives={"accuracy": quality, "trainable_params": float(n_params)},
                    rung=1.0 if full else 0.33,
                    optimizer_steps=60 if full else 20,
                )
            failed = final is TrialState.FAILED
            store.finish_trial(
                name,
                token,
                record.number,
                final,
                cause="diverged" if failed else None,
                message="the loss is not a number" if failed else None,
                profile={"train_seconds": 12.5},
            )
        store.add_snapshot(name, token, trials=len(trials), front=[1, 2, 3], hypervolume=0.4321)
        store.update_study(name, token, state=state, spent={"train_seconds": 75.0})
        store.release(name, token)


def _new_trial(chosen: Configuration, n_params: int, baseline: str | None) -> NewTrial:
    return NewTrial(
        chosen,
        Origin.BASELINE if baseline else Origin.SEARCHER,
        trainable_params=n_params,
        head_params=770,
        pack=0,
        baseline=baseline,
        known={"trainable_params": float(n_params)},
        details={"expected_gain": 0.01},
    )


def _curve(quality: float) -> list[Measurement]:
    return [
        Measurement(20 * index, "accuracy", "validation", quality * index / 3, rung=None)
        for index in (1, 2, 3)
    ]


@pytest.fixture
def seed_study() -> Callable[..., None]:
    return seed


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, without anything in the environment that names a study."""
    monkeypatch.chdir(tmp_path)
    for name in ("AUTOPEFT_STORAGE", "AUTOPEFT_OUTPUT", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one finished study, made once: it is copied, never written to."""
    path = tmp_path_factory.mktemp("seeded") / "autopeft.db"
    seed(f"sqlite:///{path}")
    return path


@pytest.fixture
def stored(place: Path, seeded: Path) -> Path:
    """A working directory with one finished study in `autopeft.db`."""
    shutil.copy(seeded, place / "autopeft.db")
    return place


@pytest.fixture
def run() -> Callable[..., Result]:
    """Runs a command line and gives its result; a bug's exception is raised."""

    def invoke(*words: str, env: Mapping[str, str] | None = None, **extra: Any) -> Result:
        result = CliRunner().invoke(app, list(words), env=env, **extra)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke
