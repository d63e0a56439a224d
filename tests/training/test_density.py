"""Activation density, against merged weights run by transformers; and what its penalty does."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch

from autopeft.configuration import Configuration, Group
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.settings import LoopSettings

STEPS = 20
DENSITY = "activation_density"


def _examples(rows: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    ids = tuple(rng.integers(3, 64, n).astype(np.int32) for n in rng.integers(3, 12, rows))
    return Examples(ids, rng.integers(0, 3, rows))


def _trainer(architecture: str, **changes: Any) -> Trainer:
    settings = LoopSettings(
        task="sequence-classification",
        metrics=("accuracy", "loss"),
        total_steps=STEPS,
        batch_size=8,
        micro_batch_size=4,
        **changes,
    )
    backbone = tiny.tiny_backbone(architecture, torch.float32)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    data = TaskData(_examples(32, 0), _examples(20, 1), ("a", "b", "c"), "", ())
    return Trainer(backbone, data, settings, study_seed=3)


def _lane(number: int, layers: list[int], **options: float) -> Lane:
    group = Group.of("lora", layers, ["up", "query"], rank=4, alpha=8.0, dropout=0.0)
    training = {"learning_rate": 5e-3, "weight_decay": 0.0, "warmup_ratio": 0.0} | options
    return Lane(number, Configuration.of([group], training=training))


def _reference(trainer: Trainer, run: PackRun, number: int) -> float:
    """LoRA merged into a copy of the model, every row by itself, its real tokens alone."""
    backbone, weights = trainer.backbone, run.states()[number].weights()
    model = copy.deepcopy(backbone.model)
    for name, a in weights.items():
        method, layer, site, tensor = name.split(".") if name.count(".") == 3 else [""] * 4
        if method == "lora" and tensor == "A":
            change = 2.0 * a @ weights[f"lora.{layer}.{site}.B"]
            module = model.get_submodule(backbone.anatomy.site(int(layer), site).module)
            module.weight.data += change.T
    seen: list[torch.Tensor] = []
    for layer in backbone.anatomy.layers:
        down = model.get_submodule(layer.sites["down"].module)
        down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    rows = []
    for ids in _examples(20, 1).token_ids:
        seen.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor(ids.astype(np.int64)).unsqueeze(0))
        if backbone.anatomy.architecture == "bert":
            seen[-1] = seen[-1][:, :1]  # its head reads the first token alone
        rows.append([float((h.abs() > 1e-7**0.5).float().mean()) for h in seen])
    return float(np.mean(rows))


@pytest.mark.parametrize("architecture", ["bert", "opt", "t5", "deberta-v2"])
def test_density_is_that_of_merged_weights_and_its_penalty_lowers_it(architecture: str) -> None:
    trainer = _trainer(architecture, density=True)
    penalty = {"density_weight": 10.0, "density_epsilon": 0.1}
    lanes = [_lane(0, [0, 2]), _lane(1, [1], **penalty), _lane(2, [0, 2], **penalty)]
    run = trainer.start(lanes)
    before = {number: found.values[DENSITY] for number, found in run.evaluate().items()}
    assert max(before.values()) - min(before.values()) < 1e-6, "nothing is trained yet"
    run.train(STEPS)
    after = {number: found.values[DENSITY] for number, found in run.evaluate().items()}
    for number, density in after.items():
        assert density == pytest.approx(_reference(trainer, run, number), abs=2e-4), number
    if architecture == "opt":  # ReLU: of bert's GELU next to nothing is ever zero
        assert after[2] < after[0] - 0.02
        assert after[1] < before[1] - 0.02
        assert before[2] > 0.3
    one_by_one = _trainer(architecture, density=True, lanes_per_pass=1)
    states = run.states()
    apart = one_by_one.start(lanes, states=states).evaluate()
    alone = {number: found.values[DENSITY] for number, found in apart.items()}
    assert alone == pytest.approx(after, abs=1e-6)


def test_nobody_measures_it_unasked() -> None:
    run = _trainer("bert").start([_lane(0, [1])])
    assert set(run.evaluate()[0].values) == {"accuracy", "loss"}
