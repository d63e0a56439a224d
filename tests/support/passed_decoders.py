"""Decoders with a lane of one `peft` type, trained here and, as the reference, by transformers."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.methods.lane_operator import Call
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.state import LaneState
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings

RATE, DECAY, CLIP = 1e-2, 0.1, 0.5
"""Of AdamW: learning rate, weight decay, and the norm to which gradients are clipped."""


def pack_of(
    backbone: Backbone, configuration: Configuration, dtype: torch.dtype, **options: Any
) -> Pack:
    """A lane by itself, with a head of three classes."""
    lanes = [Lane(0, configuration)]
    return Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0), dtype=dtype, **options)


def train(pack: Pack, architecture: str, steps: int, **call: Any) -> list[float]:
    """Losses of the first steps, all on the architecture's tiny batch.

    Args:
        pack: Of one lane.
        architecture: A name of `tiny_backbones`.
        steps: How many.
        call: Of `Call`, beside the draws.
    """
    batch = tiny.tiny_batch(architecture)
    optimizer = LaneAdamW(
        pack.stacked(), 1, learning_rates=[RATE], weight_decays=[DECAY], max_grad_norm=CLIP
    )
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        draws = StepUniform(Seeds(0), step, 0, len(batch), torch.device("cpu"))
        with pack.running():
            logits = pack(batch, Call(True, draws, **call))[0]
            loss = nn.functional.cross_entropy(logits, batch.labels)
            loss.backward()
        optimizer.step(torch.ones(1))
        losses.append(float(loss.detach()))
    return losses


def task_model(backbone: Backbone, head: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """transformers' own classifier around the same weights and head."""
    config = copy.deepcopy(backbone.config)
    config.num_labels, config.pad_token_id = 3, 0
    model = AutoModelForSequenceClassification.from_config(config).to(dtype).eval()
    getattr(model, model.base_model_prefix).load_state_dict(backbone.model.state_dict())
    model.score.weight.data.copy_(head["head.0_weight"].T)
    return model


def check_it_goes_on(
    backbone: Backbone, configuration: Configuration, precision: str, folder: Path
) -> None:
    """The loop ends where it does without an interruption, from a state in a file halfway."""
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(4, 64, n).astype(np.int32) for n in rng.integers(3, 10, 24))
    examples = Examples(ids, rng.integers(0, 3, 24))
    data = TaskData(examples, examples, ("a", "b", "c"), "", ())
    settings = LoopSettings(
        task="sequence-classification", metrics=("accuracy", "loss"), total_steps=6, batch_size=8,
        micro_batch_size=4, precision=precision,
    )  # fmt: skip
    trainer, lane = Trainer(backbone, data, settings, study_seed=3), Lane(0, configuration)
    whole = trainer.start([lane])
    whole.train(6)
    first = trainer.start([lane])
    first.train(3)
    first.states()[0].save(folder / "state")
    rest = trainer.start([lane], states={0: LaneState.load(folder / "state")})
    rest.train(6)
    wanted, found = whole.states()[0], rest.states()[0]
    assert set(wanted.tensors) == set(found.tensors)
    for name, tensor in wanted.tensors.items():
        assert torch.allclose(tensor, found.tensors[name], atol=1e-6), name
    assert rest.evaluate()[0].values == pytest.approx(whole.evaluate()[0].values, rel=1e-5)
