"""However many passes read a batch, the frozen trunk runs once, and lanes end where alone."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from lane_training import furthest
from method_cases import configuration

from autopeft.backbone.loading import Backbone
from autopeft.configuration import NO_SPARSITY, Configuration, Group
from autopeft.methods.lane_operator import SILENT
from autopeft.training.activations import CacheBudget
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.density import activation_densities
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.lanes.state import LaneState
from autopeft.training.lanes.trunk import SharedTrunk
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.settings import LoopSettings

ROWS, BATCH, MICRO = 17, 8, 4
"""The last batch of an epoch is one row, as many as T5's position bias has."""
EPOCH, MICROS = 3, 5
"""Steps of an epoch, and its micro-batches."""
STEPS = 2 * EPOCH
WAYS = {
    "t5 off": ("t5", {}),
    "t5 memory": ("t5", {"memory_bytes": 1 << 20}),
    "t5 disk": ("t5", {"disk_bytes": 1 << 20}),
    "t5 deepest layers alone": ("t5", {"memory_bytes": 1 << 16}),
    "t5 dropout": ("t5", None),
    "bert dropout": ("bert", None),
}
"""An architecture, and the room for what is kept of it; None for the backbone's own dropout."""


@pytest.fixture(autouse=True)
def _float64(monkeypatch: pytest.MonkeyPatch) -> None:
    double = partial(Pack, dtype=torch.float64)
    monkeypatch.setattr("autopeft.training.lanes.passes.Pack", double)


def _trainer(way: str, folder: Path | None, *, size: int) -> Trainer:
    name, budget = WAYS[way]
    rng = np.random.default_rng(0)
    train, validation = (
        Examples(
            tuple(rng.integers(4, 64, n).astype(np.int32) for n in rng.integers(3, 12, rows)),
            rng.integers(0, 3, rows),
        )
        for rows in (ROWS, 9)
    )
    backbone = tiny.tiny_backbone(name)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    if way == "t5 deepest layers alone":
        room = 2 * (train.n_tokens + 1 + validation.n_tokens + 1) * tiny.HIDDEN * 8
        budget = {"memory_bytes": room}
    settings = LoopSettings(
        "sequence-classification",
        ("loss",),
        total_steps=STEPS,
        batch_size=BATCH,
        micro_batch_size=MICRO,
        backbone_dropout=budget is None,
        cache=CacheBudget(folder=folder, **(budget or {})),
        lanes_per_pass=size,
    )
    return Trainer(
        backbone, TaskData(train, validation, ("a", "b", "c"), "", ()), settings, study_seed=3
    )


def _lora(layers: Sequence[int], rule: dict[str, Any] | None = None) -> Configuration:
    groups = [Group.of("lora", layers, ["query", "up"], rank=2, alpha=8.0, dropout=0.1)]
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    return Configuration.of(
        groups if layers else [], training=training, sparsity=rule or NO_SPARSITY
    )


def _comparing(backbone: Backbone, layer: int) -> Configuration:
    own = {"sites": ["ffn"], "consistency": 2.5, "dropout": 0.2}
    return configuration("adamix", backbone.anatomy, 3, layers=(layer,), **own)


def _prompt(backbone: Backbone) -> Configuration:
    return configuration("prompt", backbone.anatomy, 3, layers=(1,))


def _lanes(configurations: Sequence[Configuration]) -> list[Lane]:
    return [Lane(number, each) for number, each in enumerate(configurations)]


def _every(backbone: Backbone) -> list[Lane]:
    """Branch points 0 to 3 of 3 layers, rules that ask for losses, lanes of two passes."""
    scored = {"rule": "ist", "interval": 2, "batch": 5}
    return _lanes(
        [
            _lora([1, 2]),
            _lora([2]),
            _lora([1, 2], scored),
            _lora([0, 2], scored),
            _lora([]),
            _lora([2]),
            _prompt(backbone),
            _comparing(backbone, 1),
            _comparing(backbone, 2),
            _comparing(backbone, 2),
        ]
    )


def _trained(trainer: Trainer, lanes: list[Lane]) -> PackRun:
    run = trainer.start(lanes)
    run.train(STEPS)
    return run


@cache
def _alone(name: str, *, dropout: bool) -> dict[int, tuple[LaneState, torch.Tensor]]:
    """Every lane's end, and its scores, in a run of its own from which nothing is kept."""
    trainer = _trainer(f"{name} {'dropout' if dropout else 'off'}", None, size=1)
    runs = {lane.number: _trained(trainer, [lane]) for lane in _every(trainer.backbone)}
    return {
        number: (run.states()[number], run.scores(trainer.validation)[0])
        for number, run in runs.items()
    }


@pytest.mark.parametrize("way", WAYS)
def test_lanes_of_several_passes_end_where_they_end_alone(way: str, tmp_path: Path) -> None:
    name, budget = WAYS[way]
    trainer = _trainer(way, tmp_path, size=2)
    packed = _trained(trainer, _every(trainer.backbone))
    assert len(packed.packs) > 4
    states, scores = packed.states(), packed.scores(trainer.validation)
    for place, lane in enumerate(packed.lanes):
        state, own = _alone(name, dropout=budget is None)[lane.number]
        assert furthest(state, states[lane.number]) < 1e-9, lane.number
        assert float((own - scores[place]).abs().max()) < 1e-6, "scores are float32"


@contextmanager
def _counted(backbone: Backbone) -> Iterator[Counter[int]]:
    """Inside, how often each layer runs without gradients."""
    count: Counter[int] = Counter()

    def hook(layer: int) -> Any:
        def note(module: object, args: object) -> None:
            count[layer] += not torch.is_grad_enabled()

        return note

    handles = [
        backbone.model.get_submodule(layer.sites["down"].module).register_forward_pre_hook(
            hook(layer.index)
        )
        for layer in backbone.anatomy.layers
    ]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("way", WAYS)
def test_every_layer_of_the_trunk_runs_once_a_batch_or_is_kept(way: str, tmp_path: Path) -> None:
    """Layer 0 lies below all branch points, layers 1 and 2 below some."""
    trainer = _trainer(way, tmp_path, size=2)
    run = trainer.start(
        _lanes([_lora([1]), _lora([1, 2]), *[_lora([2])] * 3, _lora([]), _lora([])])
    )
    assert len(run.packs) == 4
    run.train(EPOCH)
    kept = {"t5 memory": 3, "t5 disk": 3, "t5 deepest layers alone": 2}.get(way, 0)
    with _counted(trainer.backbone) as trained:
        run.train(STEPS)
    # From what is kept, only T5's first layer runs: it makes the position bias.
    lowest = 3 - kept
    assert [trained[layer] for layer in range(3)] == [
        MICROS * (layer == 0 or layer < lowest) for layer in range(3)
    ]
    run.scores(trainer.validation)
    with _counted(trainer.backbone) as again:
        run.scores(trainer.validation)
    with _counted(trainer.backbone) as dense:
        activation_densities(run.packs, trainer.validation)
    assert again[0] == dense[0] == 1, "the validation examples are one batch"


def test_what_is_scored_runs_the_trunk_once_for_all_candidates(tmp_path: Path) -> None:
    trainer = _trainer("t5 off", tmp_path, size=1)
    rule = {"rule": "ist", "interval": 2, "batch": MICRO, "candidates": 3}
    run = trainer.start(_lanes([_lora([1, 2], rule)]))
    with _counted(trainer.backbone) as count:
        run.train(EPOCH)
    assert count[1] > 1, "the candidates' losses were asked for"
    assert count[0] == MICROS + 1


@pytest.mark.parametrize("name", ["vit", "t5"])
def test_packs_share_what_is_no_row_of_examples(name: str) -> None:
    """Images, say: the lower layers are left out of every pass, and outputs are the same."""
    backbone, batch = tiny.tiny_backbone(name), tiny.tiny_batch(name)
    packs = [
        Pack(
            backbone,
            backbone.recipe(3),
            [Lane(0, _lora([first]))],
            seeds=Seeds(1),
            dtype=torch.float64,
        )
        for first in (1, 2)
    ]
    for pack in packs:
        _move(pack)
    known = SharedTrunk(packs).known(batch, np.arange(len(batch)))
    for pack in packs:
        with pack.running(), torch.no_grad():
            expected = pack(batch, SILENT)
            with _counted(backbone) as count:
                found = pack(batch, SILENT, known)
        assert torch.allclose(found, expected, atol=1e-12)
        assert [count[layer] for layer in range(3)] == [
            int(layer >= pack.branch_points[0]) for layer in range(3)
        ]


def _move(pack: Pack) -> None:
    """Maps that start at zero would hide what they read."""
    with torch.no_grad():
        for parameter in pack.operators.parameters():
            parameter.add_(0.1)
