"""What an executor is made from: limits of time and devices that fit what was measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autopeft.api.executors import Ground, _check_alike, _limits, _request, make_executor
from autopeft.errors import InputError
from autopeft.execution.worker_materials import build_runner, load_map
from autopeft.study.definition import parse_definition
from autopeft.study.progress import Stopper
from autopeft.study.records import ImportanceRecord


def ground(*, probes: bool = False, **execution: Any) -> Any:
    blocks = {"model": {"name_or_path": "m"}, "data": {"source": "d"}, "execution": execution}
    facts = {"device": "cpu", "calibration": {"step_seconds": {"1": 2.0, "4": 5.0}}}
    return SimpleNamespace(
        definition=parse_definition(blocks, where="test", base=None),
        record=SimpleNamespace(name="toy", facts=facts),
        probes=probes,
    )


def test_what_was_timed_limits_packs_on_such_a_device_alone() -> None:
    assert _limits(ground(), "cpu").step_seconds == {1: 2.0, 4: 5.0}
    assert _limits(ground(), "cuda:1").step_seconds == {}
    assert _limits(ground(pack_limit="2h"), "cuda").given_s == 7200.0


def test_costs_are_not_measured_on_two_kinds_of_devices() -> None:
    _check_alike(ground(), "cuda")
    _check_alike(ground(probes=True), "cpu")
    with pytest.raises(InputError, match=r"study toy: execution.ray.gpus; got cuda.*cpu"):
        _check_alike(ground(probes=True), "cuda")


def whole_ground(folder: Path, **changes: Any) -> Ground:
    blocks = ground(**changes.pop("execution"))
    given: dict[str, Any] = {
        "definition": blocks.definition,
        "record": SimpleNamespace(name="toy", facts={}, fingerprints={}),
        "folder": folder,
        "precision": "fp32",
        "micro_batch_size": 8,
        "gradient_checkpointing": False,
        "probes": False,
        "importance": lambda: None,
        "stopper": Stopper(),
        "in_process": lambda: pytest.fail("that is another executor"),
    }
    return Ground(**{**given, **changes})


def test_a_map_is_read_only_for_runners_of_other_processes(tmp_path: Path) -> None:
    record = ImportanceRecord("key", "b", "d", {}, {}, b"units", b"fine")
    ours = whole_ground(
        tmp_path,
        execution={"executor": "in-process"},
        importance=lambda: pytest.fail("it was read"),
        in_process=lambda: SimpleNamespace(device="cpu"),
    )
    make_executor(ours)
    theirs = whole_ground(tmp_path, execution={"executor": "local"}, importance=lambda: record)
    assert load_map(Path(_request(theirs)["importance"])) == record


def test_a_list_of_gpus_is_as_many_runners(tmp_path: Path) -> None:
    executor = make_executor(whole_ground(tmp_path, execution={"devices": ["cuda:1", "cuda:0"]}))
    terms = [runner._terms for runner in executor.runners]  # type: ignore[attr-defined]
    assert [each.device for each in terms] == ["cuda:1", "cuda:0"]
    assert [each.log.name for each in terms] == ["runner-0.log", "runner-1.log"]


class FoundError(Exception):
    """What a runner does with its device was seen."""


@pytest.mark.parametrize(("device", "current"), [("cuda:1", "cuda:1"), ("cuda", "cuda:0")])
def test_a_runner_makes_its_gpu_the_current_one_before_it_loads(
    device: str, current: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_device(found: torch.device) -> None:
        raise FoundError(str(found))

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    fields = ("definition", "output_dir", "activations", "precision", "micro_batch_size")
    asked = dict.fromkeys((*fields, "gradient_checkpointing", "probes", "importance"), "")
    with pytest.raises(FoundError, match=f"^{current}$"):
        build_runner({**asked, "fingerprints": {}, "device": device, "index": 1, "runners": 2})
