"""No step of the loop waits for the device, rules that ask and types that draw among them.

A CPU has nothing to wait for, so it takes ways of its own where they cost nothing: they are shut
here, and what would make a GPU's host wait is noted (`waits`).
"""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from waits import SETTLED, STEPS, drawing_lane, one_shape, ruled_lanes, waits

from autopeft.backbone.loading import Backbone
from autopeft.methods.lane_operator import SILENT
from autopeft.training import batches
from autopeft.training.lanes import attention, passes
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.rules import LaneRules
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.loop import PackRun

BACKBONES = ["bert", "llama"]


class Replayed:
    """Runs again what it is given, as a graph would."""

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """`run` itself."""
        return run


@pytest.fixture
def _as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths are rounded up, nobody looks at masks, layers that train are not read back."""

    def rules(*args: Any, **settings: Any) -> LaneRules:
        return LaneRules(*args, **settings | {"spares": False})

    monkeypatch.setattr(batches, "LENGTH_STEPS", {})
    monkeypatch.setattr(attention, "looks_at_masks", lambda device: False)
    monkeypatch.setattr(passes, "LaneRules", rules)


def _settled(backbone: Backbone, lanes: list[Lane]) -> set[str]:
    """Where the steps wait that come after the first ones."""
    run: PackRun = one_shape(backbone).start(lanes)
    run.train(SETTLED)
    with waits(everywhere=True) as noted:
        run.train(STEPS)
    asked = run.states()[0].of_rule()["scores"]
    assert float(asked.abs().max()) > 1e-4, "IST has learnt nothing"
    return noted.found


@pytest.mark.usefixtures("_as_a_gpu")
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("recorder", [None, Replayed()], ids=["eager", "replayed"])
def test_rules_make_no_step_wait(
    name: str, recorder: Replayed | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "recorder_for", lambda device: recorder)
    assert not _settled(tiny.tiny_backbone(name, torch.float32), ruled_lanes())


@pytest.mark.usefixtures("_as_a_gpu")
@pytest.mark.parametrize("name", BACKBONES)
def test_types_that_draw_make_no_step_wait(name: str) -> None:
    assert not _settled(tiny.tiny_backbone(name, torch.float32), [drawing_lane()])


def test_a_cpu_reads_what_costs_it_nothing() -> None:
    """The same steps, with a CPU's own ways: the notes see them."""
    found = _settled(tiny.tiny_backbone("bert", torch.float32), ruled_lanes())
    files = {each.rsplit("/", 1)[-1].split(":")[0] for each in found}
    assert files == {"rules.py", "attention.py"}


@pytest.mark.parametrize("name", ["bert", "llama", "modernbert", "t5"])
def test_whole_masks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded or not, trunk and lanes are what they are where masks are looked at."""
    backbone = tiny.tiny_backbone(name)
    pack = Pack(backbone, backbone.head(3), ruled_lanes()[-1:], seeds=Seeds(0))
    before = str(backbone.config._attn_implementation)
    for padded in (True, False):
        batch = tiny.tiny_batch(name)
        if not padded:
            batch.mask.fill_(1)
            batch.inputs["attention_mask"].fill_(1)
        outputs = []
        for looks in (True, False):
            monkeypatch.setattr(attention, "looks_at_masks", lambda device, own=looks: own)
            with torch.no_grad(), pack.running():
                assert looks or backbone.config._attn_implementation == attention.ATTENTION
                outputs.append(pack(batch, SILENT))
            assert str(backbone.config._attn_implementation) == before
        assert float((outputs[0] - outputs[1]).abs().max()) < 1e-12
