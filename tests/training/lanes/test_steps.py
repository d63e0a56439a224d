"""Replayed steps: draws of one name in several shapes, many shapes of batches, failed captures."""

import logging
from collections.abc import Callable

import pytest
import tiny_backbones as tiny
import torch
from lane_training import STEPS, Make, Training, furthest, without_cache

from autopeft.configuration import Configuration, Group
from autopeft.training.lanes import steps
from autopeft.training.lanes.pack import Lane

CALM = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}


class Replayed:
    """Runs again what it is given, as a graph would: on the buffers it was recorded with.

    Args:
        refuses: Which records, by their order, fail as a capture may.
    """

    def __init__(self, refuses: tuple[int, ...] = ()) -> None:
        self.records, self._refuses = 0, refuses

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """`run` itself, or RuntimeError."""
        self.records += 1
        if self.records in self._refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        return run


def _lanes() -> list[Lane]:
    """A lane in every layer, one in the top, and one that trains its head alone."""
    lora = [
        Group.of("lora", layers, ["query", "up"], rank=2, alpha=4.0, dropout=0.1)
        for layers in ([0, 1, 2], [2])
    ]
    groups = [[lora[0]], [lora[1]], []]
    return [Lane(n, Configuration.of(own, training=CALM)) for n, own in enumerate(groups)]


def _make(widths: tuple[int, ...] = (7,)) -> Make:
    return without_cache(
        lambda step: tiny.tiny_batch("bert", tokens=widths[step % len(widths)], seed=step)
    )


def test_a_name_may_be_drawn_in_several_shapes_in_one_pass() -> None:
    """The last layer's dropout: the trunk draws for all tokens, lanes that run it on the first
    token for that one."""
    backbone = tiny.tiny_backbone("bert")
    lanes = _lanes()
    eager = Training(backbone, lanes, backbone_dropout=True).run(_make())
    again = Training(backbone, lanes, backbone_dropout=True, recorder=Replayed())
    replayed = again.run(_make())
    assert again.steps.replayed == STEPS - 1
    assert max(furthest(replayed[n], eager[n]) for n in eager) < 1e-12


def test_shapes_beyond_the_limit_run_eagerly_and_are_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(steps, "MAX_GRAPHS", 2)
    backbone, make = tiny.tiny_backbone("bert"), _make((7, 8, 9, 10))
    eager = Training(backbone, _lanes()).run(make)
    limited = Training(backbone, _lanes(), recorder=Replayed())
    with caplog.at_level(logging.WARNING):
        found = limited.run(make)
    assert limited.steps.replayed == 2 * (STEPS // 4 - 1)
    assert [record.message for record in caplog.records] == [
        "over 2 shapes of batches: those that come after them run eagerly"
    ]
    assert max(furthest(found[n], eager[n]) for n in eager) < 1e-12


def test_an_update_that_cannot_be_captured_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    backbone, recorder = tiny.tiny_backbone("bert"), Replayed(refuses=(2,))
    eager = Training(backbone, _lanes()).run(_make())
    with caplog.at_level(logging.WARNING):
        found = Training(backbone, _lanes(), recorder=recorder).run(_make())
    assert recorder.records == 2, "one pass and one update"
    assert len(caplog.records) == 1
    assert "updates run eagerly" in caplog.text
    assert max(furthest(found[n], eager[n]) for n in eager) < 1e-12
