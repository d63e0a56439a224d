"""A database with one study per situation that the dashboard must cope with."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from importance_maps import importance_map

from autopeft.api.place import STORAGE_VARIABLE
from autopeft.backbone.anatomy import Anatomy, Layer, Site
from autopeft.backbone.importance import ImportanceMap
from autopeft.configuration import Configuration, Group
from autopeft.importance.settings import MEASURED, ImportanceSettings
from autopeft.importance.stored import to_record
from autopeft.searchers import front as fronts
from autopeft.searchers.dominance import hypervolume
from autopeft.study.definition import parse_definition
from autopeft.study.ending import Ending, Interruption
from autopeft.study.records import (
    Measurement,
    NewStudy,
    NewTrial,
    ObjectiveFrame,
    Origin,
    StudyState,
    TrialState,
    TrialUpdate,
)
from storage import SqlStore, open_store
from storage.lease import this_process

FRAMES = (
    ObjectiveFrame("accuracy", "max", "linear", 0.25, 1.0),
    ObjectiveFrame("trainable_params", "min", "log10", 500_000.0, 768.0),
)
SPECIAL = "50% <b>&_x_ $y$ [z](w) :red[!]"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture
def served(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL, as the dashboard under test finds it; nothing cached from another test."""
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    st.cache_data.clear()
    st.cache_resource.clear()
    return url


class Seeding:
    """Writes one study the way a search does."""

    def __init__(self, store: SqlStore, name: str, *, n_baselines: int = 0) -> None:
        self.store, self.name, self.index = store, name, 0
        plain = {
            "study": {"name": "demo", "seed": 3},
            "model": {"name_or_path": "builtin:minilm"},
            "data": {"source": "builtin:docstrings"},
            "budget": {"trials": 24},
        }
        definition = parse_definition(plain, where="test", base=None).to_plain()
        definition["study"]["name"] = name
        facts = {
            "n_layers": 6,
            "n_baselines": n_baselines,
            "total_steps": 100,
            "rung_steps": {"0.33": 33, "1.0": 100},
            "method_sources": {"lora": "LoRA's *paper*", "boft": "BOFT's paper"},
        }
        fingerprints = {"data": "d1", "backbone": "b1"}
        store.create_study(
            NewStudy(name, definition, "f00d", FRAMES, fingerprints, {"autopeft": "0.1"}, facts)
        )
        self.token = store.claim(name, this_process(), 600.0)
        store.update_study(name, self.token, state=StudyState.RUNNING)

    def add(
        self,
        rank: int,
        *,
        layers: Sequence[int] = (3, 4, 5),
        rate: float = 1e-3,
        baseline: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> int:
        groups = [Group.of("lora", layers, ["query", "value"], rank=rank, alpha=2 * rank)]
        if rank > 8:
            groups.append(Group.of("serial_adapter", layers[:1], size=rank))
        training = {"learning_rate": rate, "weight_decay": 0.0, "warmup_ratio": 0.06}
        trial = NewTrial(
            Configuration.of(groups, training=training),
            Origin.BASELINE if baseline else Origin.SEARCHER,
            trainable_params=1536 * rank * len(layers),
            head_params=3080,
            pack=0,
            baseline=baseline,
            known={"trainable_params": 1536.0 * rank * len(layers)},
            details=details or {},
        )
        return self.store.add_trials(self.name, self.token, [trial])[0].number

    def train(self, number: int, quality: float, *, rung: float = 1.0) -> None:
        self.store.start_trials(self.name, self.token, [number])
        steps = [step for step in (20, 33, 60, 100) if step <= 100 * rung]
        for step in steps:
            share = 1 - math.exp(-step / 25)
            self.store.record(
                self.name,
                self.token,
                number,
                measurements=[
                    Measurement(step, "accuracy", "validation", 0.25 + (quality - 0.25) * share),
                    Measurement(step, "loss", "train", 1.4 - share),
                ],
                objectives=self._objectives(number, quality),
                rung=rung if step == steps[-1] else None,
                optimizer_steps=step,
            )

    def _objectives(self, number: int, quality: float | None) -> dict[str, float | None]:
        params = self.store.trial(self.name, number).trainable_params
        return {"accuracy": quality, "trainable_params": float(params)}

    def finish(self, number: int, state: TrialState = TrialState.COMPLETED, **cause: str) -> None:
        profile = {
            "train_seconds": 2.5 + number,
            "pack_train_seconds": 120.0,
            "tokens": 4096,
            "pack_lanes": 4,
        }
        self.store.finish_trial(self.name, self.token, number, state, profile=profile, **cause)
        trials = self.store.trials(self.name)
        members = fronts.front(trials, FRAMES)
        self.store.add_snapshot(
            self.name,
            self.token,
            trials=sum(trial.state.final for trial in trials),
            front=[member.number for member in members],
            hypervolume=hypervolume(fronts.utility_points(members, FRAMES)),
        )

    def complete(self, rank: int, quality: float, **more: Any) -> int:
        number = self.add(rank, **more)
        self.train(number, quality)
        self.finish(number)
        return number

    def end(self, state: StudyState) -> None:
        self.store.update_study(
            self.name,
            self.token,
            state=state,
            spent={"train_seconds": 60.0, "suggest_seconds": 2.0, "wall_seconds": 75.0},
        )
        self.store.release(self.name, self.token)


def _searched(seeding: Seeding) -> None:
    """Two baselines, a front of four, one dominated, one stopped, one failed."""
    for rate, quality in ((1e-4, 0.41), (1e-3, 0.78)):
        seeding.complete(8, quality, layers=range(6), rate=rate, baseline=f"lora-r8-lr{rate:g}")
    why = {
        "reason": "expected hypervolume gain",
        "expected_gain": 0.0123,
        "predicted": {"accuracy": {"mean": 0.8, "sd": 0.03}},
    }
    for rank, quality in ((1, 0.55), (2, 0.71), (4, 0.8), (32, 0.9), (16, 0.6)):
        seeding.complete(rank, quality, details=why)
    stopped = seeding.add(16, layers=(0, 1))
    seeding.train(stopped, 0.4, rung=0.33)
    seeding.finish(stopped, TrialState.STOPPED)
    failed = seeding.add(32, layers=(0,), rate=5e-2)
    seeding.train(failed, 0.3, rung=0.33)
    seeding.finish(failed, TrialState.FAILED, cause="diverged", message="not finite by step <40>")


def _finished(store: SqlStore, name: str = "finished") -> None:
    seeding = Seeding(store, name, n_baselines=2)
    _searched(seeding)
    seeding.end(StudyState.FINISHED)


def _running(store: SqlStore, name: str = "running") -> Seeding:
    """A search at work: one trial half-way, one waiting, one measured as nothing."""
    seeding = Seeding(store, name, n_baselines=2)
    _searched(seeding)
    half = seeding.add(2, layers=(5,))
    seeding.train(half, 0.5, rung=0.33)
    seeding.add(4, layers=(5,))
    store.update_study(name, seeding.token, spent={"train_seconds": 80.0, "wall_seconds": 90.0})
    odd = seeding.add(8, layers=(5,))
    store.start_trials(name, seeding.token, [odd])
    store.record(
        name,
        seeding.token,
        odd,
        measurements=[Measurement(20, "accuracy", "validation", None)],
        objectives={"accuracy": None},
        rung=None,
        optimizer_steps=20,
    )
    return seeding


def _killed(store: SqlStore, name: str = "killed") -> None:
    """A search that was killed at work: nobody holds it."""
    store.release(name, _running(store, name).token)


def _failed_only(store: SqlStore, name: str = "failed") -> None:
    seeding = Seeding(store, name)
    for rank in (1, 2):
        number = seeding.add(rank)
        store.start_trials(name, seeding.token, [number])
        seeding.finish(
            number, TrialState.FAILED, cause="out-of-memory", message="no memory for *4* lanes"
        )
    why = Interruption("/disk/*states*: no space left on device", "free some space there")
    store.update_study(name, seeding.token, facts={"interrupted": why.to_dict()})
    seeding.end(StudyState.INTERRUPTED)


def _single(store: SqlStore, name: str = "single") -> None:
    Seeding(store, name).complete(4, 0.8)


def _beaten(store: SqlStore, name: str = "beaten") -> None:
    """A search that found something smaller, but nothing better than its baseline."""
    seeding = Seeding(store, name, n_baselines=1)
    seeding.complete(8, 0.9, layers=range(6), baseline="lora-r8")
    seeding.complete(1, 0.7)
    seeding.end(StudyState.FINISHED)


def _ended(store: SqlStore, name: str = "ended") -> None:
    """A search that ended by itself; what its trial costs by itself was measured."""
    seeding = Seeding(store, name)
    number = seeding.complete(4, 0.8)
    second = seeding.add(2)
    seeding.train(second, 0.7)
    probe = {"latency_seconds": 0.0125, "peak_memory_bytes": 2**27, "step_seconds": [0.5]}
    profile = {"train_seconds": 2.5, "pack_train_seconds": 10.0, "probe": probe}
    store.finish_trial(name, seeding.token, second, TrialState.COMPLETED, profile=profile)
    assert (number, second) == (0, 1)
    ending = Ending("min_gain", trials=7, min_gain=0.01, gains=(0.009, 0.003))
    store.update_study(name, seeding.token, facts={"ended": ending.to_dict()})
    seeding.end(StudyState.FINISHED)


def _explained(store: SqlStore, name: str = "explained") -> None:
    """A search long enough to be explained: rank and learning rate decide, layers do not."""
    seeding = Seeding(store, name, n_baselines=1)
    seeding.complete(8, 0.74, layers=range(6), baseline="lora-r8")
    rng = np.random.default_rng(0)
    for index in range(40):
        rank, first = 2 ** int(rng.integers(0, 6)), int(rng.integers(0, 6))
        decades = float(rng.uniform(-1, 1))
        quality = 0.45 + 0.06 * math.log2(rank) + 0.15 * math.exp(-3 * decades**2)
        quality += float(rng.normal(0, 0.01))
        details: dict[str, Any] = {"reason": "space-filling start"}
        if index >= 12:
            off = float(rng.normal(0, 0.03))
            details = {
                "reason": "expected hypervolume gain",
                "expected_gain": 0.02 / index,
                "relative_cost": 0.5 + rank / 32,
                "predicted": {"accuracy": {"mean": quality + off, "sd": 0.025}},
                "source": "acquisition",
            }
        number = seeding.add(
            rank, layers=range(first, 6), rate=2e-3 * 10**decades, details=details
        )
        stopped = quality < 0.52
        seeding.train(number, quality * (0.8 if stopped else 1.0), rung=0.33 if stopped else 1.0)
        seeding.finish(number, TrialState.STOPPED if stopped else TrialState.COMPLETED)
    seeding.end(StudyState.FINISHED)


def _no_trials(store: SqlStore, name: str = "no-trials") -> None:
    Seeding(store, name)


def measured_map() -> ImportanceMap:
    """Of six layers, of which the top two matter most."""
    found = importance_map(tiny_anatomy(6), scores=MEASURED, ranking=(5, 4, 3, 2, 1, 0))
    facts = {
        "backbone": "builtin:minilm",
        "task": "sequence-classification",
        "head": "fitted",
        "batch_size": "32",
        "seconds": "9.5",
        "device": "cpu",
    }
    return replace(found, facts=facts)


def tiny_anatomy(n_layers: int) -> Anatomy:
    """Six sites a layer, 8 wide, 12 within the FFN."""
    shapes = dict.fromkeys(("query", "key", "value", "output"), (8, 8))
    shapes |= {"up": (8, 12), "down": (12, 8)}
    layers = tuple(
        Layer(
            index,
            f"layer.{index}",
            {
                role: Site(index, role, f"layer.{index}.{role}", d_in, d_out)
                for role, (d_in, d_out) in shapes.items()
            },
        )
        for index in range(n_layers)
    )
    return Anatomy("bert", layers, 8, 12, 2, 2, 4, 1000)


def _scored(store: SqlStore, name: str = "scored") -> None:
    """A search whose backbone and data are measured."""
    _finished(store, name)
    record = to_record(
        measured_map(), ImportanceSettings(block=4), backbone="b1", data="d1", batch_size=32
    )
    store.keep_importance(record)


def _retried(store: SqlStore, name: str = "retried") -> None:
    """A trial that was lost twice and has completed; what the first coordinator held came late."""
    seeding = Seeding(store, name)
    number = seeding.add(4)
    for _ in range(2):
        store.start_trials(name, seeding.token, [number])
        store.requeue_trials(name, seeding.token, message="killed by SIGKILL", log="<b>oh</b>")
    store.add_orphans(
        name,
        seeding.token,
        [TrialUpdate(number, objectives={"accuracy": 0.625}, rung=0.33, optimizer_steps=33)],
    )
    seeding.train(number, 0.8)
    seeding.finish(number)
    seeding.end(StudyState.FINISHED)


SEEDS = (1, 2, 3, 4, 5)


def _confirmed(store: SqlStore, name: str = "confirmed") -> None:
    """A finished search of which the best baseline and two members were confirmed and tested.

    Member 4 is no better than the baseline by these seeds, member 5 is; one seed of 4 diverged.
    """
    seeding = Seeding(store, name, n_baselines=2)
    _searched(seeding)
    means = {1: 0.78, 4: 0.79, 5: 0.89}
    store.add_confirmations(name, seeding.token, list(means), SEEDS)
    store.add_opening(name, seeding.token, by="ann@<host>", trials=list(means), replicates=SEEDS)
    for seed in SEEDS:
        store.start_confirmations(name, seeding.token, seed, list(means))
        updates, tested = [], {}
        for number, mean in means.items():
            value = mean + 0.01 * math.sin(7.0 * seed * number)
            diverged = (number, seed) == (4, 5)
            point = Measurement(100, "accuracy", "validation", None if diverged else value, 1.0)
            updates.append(
                TrialUpdate(
                    number,
                    (point,),
                    optimizer_steps=100,
                    state=TrialState.FAILED if diverged else TrialState.COMPLETED,
                    cause="diverged" if diverged else None,
                    message="not finite by step <9>" if diverged else None,
                )
            )
            if not diverged:
                tested[number] = {"accuracy": value - 0.02}
        store.update_confirmations(name, seeding.token, seed, updates)
        store.keep_test(name, seeding.token, seed, tested)
    seeding.end(StudyState.FINISHED)


SITUATIONS: dict[str, Callable[[SqlStore], object]] = {
    "finished": _finished,
    "running": _running,
    "killed": _killed,
    "failed": _failed_only,
    "single": _single,
    "no-trials": _no_trials,
    "beaten": _beaten,
    "ended": _ended,
    "explained": _explained,
    "scored": _scored,
    "confirmed": _confirmed,
    "retried": _retried,
    SPECIAL: lambda store: _finished(store, SPECIAL),
}


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """Databases by the situations in them, each written once."""
    folder = tmp_path_factory.mktemp("templates")

    @cache
    def written(situations: tuple[str, ...]) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.db"
        with open_store(f"sqlite:///{path}", create=True) as store:
            for situation in situations:
                SITUATIONS[situation](store)
        return path

    return written


@pytest.fixture
def seed(url: str, templates: Callable[[tuple[str, ...]], Path]) -> Callable[..., None]:
    """Puts a database with the studies of these situations where `url` says."""

    def put(*situations: str) -> None:
        shutil.copy(templates(situations), url.removeprefix("sqlite:///"))

    return put


@pytest.fixture
def special_name() -> str:
    """A study's name that is Markdown, HTML, mathematics and a link at once."""
    return SPECIAL
