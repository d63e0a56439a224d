"""What an executor is made from: limits of time and devices that fit what was measured."""

from types import SimpleNamespace
from typing import Any

import pytest

from autopeft.api.executors import _check_alike, _limits
from autopeft.errors import InputError
from autopeft.study.definition import parse_definition


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
