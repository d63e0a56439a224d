"""Packs in this process: regrouping of saved lanes, and what a profile adds up to."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_backbones as tiny
import torch

from autopeft.configuration import Configuration, Group
from autopeft.counting import training_flops
from autopeft.execution.base import state_path
from autopeft.execution.inprocess import InProcessRunner
from autopeft.execution.states import CohortStates
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.state import LaneState
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings

STEPS = 8


def configuration(number: int) -> Configuration:
    group = Group.of(
        "lora", range(number, 3), ["query", "up"], rank=2 + number, alpha=8.0, dropout=0.1
    )
    rest = {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_ratio": 0.1}
    return Configuration.of([group], training=rest)


LANES = [(number, configuration(number)) for number in range(3)]


@pytest.fixture
def trainer() -> Trainer:
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(4, 64, 6).astype(np.int32) for _ in range(32))
    examples = Examples(ids, rng.integers(0, 3, 32))
    backbone = tiny.tiny_backbone("bert", torch.float32)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    settings = LoopSettings("sequence-classification", ("accuracy",), STEPS, 8, 8)
    data = TaskData(examples, examples, ("a", "b", "c"), "", ())
    return Trainer(backbone, data, settings, study_seed=0)


def test_lanes_regrouped_at_a_rung_end_where_they_end_together(
    trainer: Trainer, tmp_path: Path
) -> None:
    runner, states = InProcessRunner(trainer), CohortStates(tmp_path, 0)
    whole = runner.start(LANES, resume={}, waited={})
    whole.train(STEPS, on_step=lambda step: True)
    whole.save(tmp_path)
    for part in ([0, 1], [2]):
        run = runner.start([LANES[n] for n in part], resume={}, waited={})
        run.train(3, on_step=lambda step: True)
        states.save(run, part)
    for part in ([0, 2], [1]):
        saved = {number: states.newest(number) for number in part}
        resume = {number: lane.path for number, lane in saved.items() if lane}
        run = runner.start([LANES[n] for n in part], resume=resume, waited={})
        assert run.step == 3
        run.train(STEPS, on_step=lambda step: True)
        states.save(run, part)
    for number in range(3):
        expected = LaneState.load(state_path(tmp_path, number)).weights()
        newest = states.newest(number)
        assert newest is not None
        found = LaneState.load(newest.path).weights()
        assert all(torch.allclose(found[n], expected[n], atol=1e-6) for n in expected)


def test_a_profile_adds_up_over_packs_and_shares_out_the_seconds(
    trainer: Trainer, tmp_path: Path
) -> None:
    runner, states = InProcessRunner(trainer), CohortStates(tmp_path, 0)
    first = runner.start(LANES, resume={}, waited={0: 1.5, 1: 0.0, 2: 0.0})
    first.train(3, on_step=lambda step: True)
    first.measure()
    states.save(first, [0, 1, 2])
    early = {number: first.profile(number) for number in range(3)}
    flops = {n: training_flops(c, trainer.backbone.anatomy, 1) for n, c in LANES}
    for number, profile in early.items():
        share = flops[number] / sum(flops.values())
        for name in ("train_seconds", "evaluation_seconds", "loading_seconds"):
            assert profile[f"pack_{name}"] > 0
            assert profile[name] == pytest.approx(share * profile[f"pack_{name}"], abs=1e-3)
        assert (profile["packs"], profile["pack_lanes"]) == (1, 3)
        assert (profile["optimizer_steps"], profile["samples"]) == (3, 24)
    assert (early[0]["waiting_seconds"], early[1]["waiting_seconds"]) == (1.5, 0.0)
    assert early[0]["peak_memory_bytes"] > 10_000_000

    saved = states.newest(0)
    assert saved is not None
    alone = runner.start(LANES[:1], resume={0: saved.path}, waited={0: 0.25})
    alone.train(STEPS, on_step=lambda step: True)
    profile = alone.profile(0)
    assert (profile["packs"], profile["pack_lanes"]) == (2, 1)
    assert (profile["optimizer_steps"], profile["samples"]) == (STEPS, 8 * STEPS)
    assert profile["waiting_seconds"] == 1.75
    assert profile["train_seconds"] > early[0]["train_seconds"]
    assert profile["pack_train_seconds"] > early[0]["pack_train_seconds"]
