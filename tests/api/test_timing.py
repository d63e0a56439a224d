"""A stored study's timings stand for a probe only where a probe would find the same."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

import storage
from autopeft.api.timing import stored_timing
from autopeft.execution.probe import machine_name
from autopeft.study.definition import StudyDefinition, default_definition
from autopeft.study.records import NewStudy, ObjectiveFrame

FRAME = (ObjectiveFrame("accuracy", "max", "linear", 0.2, 1.0),)
CALIBRATION = {"pack_size": 4, "step_seconds": {"4": 0.5}}


def _asked(*changes: str) -> StudyDefinition:
    return default_definition(["study.name=a1", "execution.devices=cpu", *changes])


def _facts(**other: Any) -> dict[str, Any]:
    here = machine_name(torch.device("cpu"))
    return {"calibration": CALIBRATION, "device": "cpu", "machine": here} | other


def _keep(url: str, facts: Mapping[str, Any]) -> None:
    with storage.open_store(url, create=True) as store:
        store.create_study(
            NewStudy("a1", _asked().to_plain(), "space", FRAME, {"data": "d"}, {}, facts)
        )


def test_the_same_study_on_the_same_machine_is_not_timed_again(sqlite_url: str) -> None:
    _keep(sqlite_url, _facts())
    found = stored_timing(_asked("budget.trials=99"), "d", sqlite_url)
    assert found is not None
    assert (found.by, found.calibration) == ("study", CALIBRATION)


@pytest.mark.parametrize(
    ("facts", "asked", "data"),
    [
        (_facts(), _asked("training.batch_size=8"), "d"),
        (_facts(), _asked(), "other rows"),
        (_facts(machine="another"), _asked(), "d"),
        (_facts(device="cuda"), _asked(), "d"),
        (_facts(calibration=CALIBRATION | {"step_seconds": {}}), _asked(), "d"),
        (_facts(calibration=None), _asked(), "d"),
    ],
    ids=["definition", "data", "machine", "device", "nothing timed", "no calibration"],
)
def test_what_differs_is_measured(
    sqlite_url: str, facts: Mapping[str, Any], asked: StudyDefinition, data: str
) -> None:
    _keep(sqlite_url, facts)
    assert stored_timing(asked, data, sqlite_url) is None
