"""What an executor is made from: limits of time and devices that fit what was measured."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autopeft.api import calibrating
from autopeft.api.executors import Ground, _check_alike, _limits, _request, make_executor
from autopeft.configuration import Configuration, Group
from autopeft.errors import InputError
from autopeft.execution import fitting, heap
from autopeft.execution.worker_materials import build_runner, load_map
from autopeft.study.definition import parse_definition
from autopeft.study.progress import Silent, Stopper
from autopeft.study.records import ImportanceRecord
from autopeft.training import setup


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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_packs_that_recompute_layers_on_this_cpu_keep_tensors_apart(
    device: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(heap, "tensors_apart", lambda: calls.append("apart"))
    monkeypatch.setattr(setup, "device_of", lambda _: torch.device(device))
    own = ground(executor="in-process")
    own.gradient_checkpointing = checkpointing
    own.in_process = lambda: calls.append("runner")
    make_executor(own)
    assert calls == [*(["apart"] if checkpointing and device == "cpu" else []), "runner"]


@pytest.mark.parametrize("executor", ["local", "in-process"])
def test_memory_is_that_of_the_process_that_trains(
    executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def fits(*_: object, in_process: bool, **__: object) -> int:
        asked.append(in_process)
        return 3

    monkeypatch.setattr(fitting, "lanes_that_fit", fits)
    anatomy = SimpleNamespace(packable=True)
    settings = SimpleNamespace(gradient_checkpointing=False, micro_batch_size=8)
    materials: Any = SimpleNamespace(
        trainer=SimpleNamespace(settings=settings), backbone=SimpleNamespace(anatomy=anatomy)
    )
    definition = ground(executor=executor).definition
    group = Group.of("lora", [0], ["query"], rank=2, alpha=4.0, dropout=0.0)
    rest = {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_ratio": 0.0}
    largest = Configuration.of([group], training=rest)
    assert calibrating._question(materials, definition, largest, 9).largest == 3
    monkeypatch.setattr(
        fitting,
        "fitted_settings",
        lambda *_, in_process, **__: asked.append(in_process) or settings,
    )
    assert calibrating.fitted(materials, definition, largest, Silent()) is materials
    assert asked == [executor == "in-process"] * 2


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
