"""Databases to open, and one small study to keep in them."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from autopeft.configuration import Configuration, Group
from autopeft.study.records import (
    Measurement,
    NewStudy,
    NewTrial,
    ObjectiveFrame,
    Origin,
    TrialState,
)
from storage import SqlStore, open_store
from storage.lease import this_process

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    with open_store(url, create=True) as opened:
        yield opened


@pytest.fixture
def small_study() -> Callable[[SqlStore], int]:
    """Puts the study `small` into a store: two trials, one of them completed; its token."""

    def fill(store: SqlStore) -> int:
        frame = (ObjectiveFrame("accuracy", "max", "linear", 0.5, 1.0),)
        definition = {"study": {"name": "small", "seed": 3}}
        store.create_study(NewStudy("small", definition, "f00d", frame, {}, {}, {"steps": 10}))
        token = store.claim("small", this_process(), 60.0)
        trials = [
            NewTrial(
                Configuration.of(
                    [Group.of("lora", [0, 1], ["query"], rank=rank)],
                    training={"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06},
                ),
                Origin.SEARCHER,
                trainable_params=768 * rank,
                head_params=770,
                pack=0,
            )
            for rank in (4, 8)
        ]
        store.add_trials("small", token, trials)
        store.start_trials("small", token, [0, 1])
        store.record(
            "small",
            token,
            0,
            measurements=[Measurement(10, "accuracy", "validation", 0.75, 1.0)],
            objectives={"accuracy": 0.75},
            rung=1.0,
            optimizer_steps=10,
        )
        store.finish_trial("small", token, 0, TrialState.COMPLETED, profile={"seconds": 2.5})
        store.add_snapshot("small", token, trials=1, front=[0], hypervolume=0.25)
        return token

    return fill


@pytest.fixture
def without_privileges() -> Callable[[Path], AbstractContextManager[None]]:
    """Gives a block in which nothing below a folder can be written, not even by root."""

    @contextmanager
    def block(folder: Path) -> Iterator[None]:
        if os.geteuid() != 0:
            folder.chmod(0o555)
            try:
                yield
            finally:
                folder.chmod(0o755)
            return
        for parent in (folder, *folder.parents):
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o055)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    return block
