"""What is kept on disk is shared by trainers of the same passes, and by no others."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch

from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.configuration import Configuration, Group
from autopeft.training.activations import CacheBudget
from autopeft.training.batches import Batch
from autopeft.training.caching import cache_budget
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.lanes.steps import autocast
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings

ROWS = 24
TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
Kept = dict[int, torch.Tensor]


def _examples(rows: int, seed: int, *, pairs: bool = False) -> Examples:
    """Rows of 3 to 13 tokens; of `pairs`, the second half is another text."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, tiny.VOCABULARY, n).astype(np.int32) for n in rng.integers(3, 14, rows)]
    types = tuple((np.arange(len(row)) >= len(row) // 2).astype(np.int32) for row in ids)
    return Examples(tuple(ids), rng.integers(0, 3, rows), types if pairs else None)


def _other_token() -> Examples:
    """The same rows, but for one token."""
    examples = _examples(ROWS, 0)
    ids = [row.copy() for row in examples.token_ids]
    ids[5][1] = ids[5][1] % (tiny.VOCABULARY - 1) + 1
    return replace(examples, token_ids=tuple(ids))


def _backbone(dtype: torch.dtype = torch.float32, *, shift: float = 0.0) -> Backbone:
    """Its fingerprint is that of the float32 weights, as a file's does not tell how it is held."""
    model = tiny.tiny_backbone("bert", torch.float32).model
    with torch.no_grad():
        model.get_parameter("embeddings.word_embeddings.weight")[7, 0] += shift
    backbone = backbone_of(model, tokenizer=SimpleNamespace(pad_token_id=0))
    backbone.model.to(dtype)
    return backbone


def _eager() -> Backbone:
    backbone = _backbone()
    model: Any = backbone.model
    model.set_attn_implementation("eager")
    return backbone


def _trainer(
    folder: Path,
    *,
    backbone: Callable[[], Backbone] = _backbone,
    train: Callable[[], Examples] = lambda: _examples(ROWS, 0),
    fingerprint: str = "data",
    seed: int = 3,
    **changes: Any,
) -> Trainer:
    settings: dict[str, Any] = {
        "task": "sequence-classification",
        "metrics": ("loss",),
        "total_steps": 3,
        "batch_size": 8,
        "micro_batch_size": 8,
        "cache": CacheBudget(disk_bytes=1 << 20, folder=folder),
    }
    data = TaskData(train(), _examples(12, 1), ("a", "b", "c"), fingerprint, ())
    return Trainer(backbone(), data, LoopSettings(**settings | changes), study_seed=seed)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every batch that went through the trunk."""
    rows: list[int] = []
    trunk = Pack.trunk

    def noting(self: Pack, batch: Batch, *args: Any) -> Kept:
        rows.append(len(batch))
        return trunk(self, batch, *args)

    monkeypatch.setattr(Pack, "trunk", noting)
    return rows


def _known(trainer: Trainer) -> Kept:
    """What a lane of the top layers is given of all training examples."""
    group = Group.of("lora", [1, 2], ["query"], rank=2, alpha=4.0, dropout=0.0)
    lane = Lane(0, Configuration.of([group], training=TRAINING))
    pack = Pack(trainer.backbone, trainer.recipe, [lane], seeds=Seeds(0))
    with pack.running(), autocast(trainer.device, trainer.settings.precision):
        return trainer.caches[trainer.train].known(pack, np.arange(ROWS))


def _same(one: Kept, other: Kept) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_second_trainer_computes_nothing_again(tmp_path: Path, runs: list[int]) -> None:
    kept = _known(_trainer(tmp_path))
    assert sum(runs) == ROWS
    runs.clear()
    again = _known(_trainer(tmp_path))
    assert runs == []
    assert list(again) == [1]
    assert _same(kept, again)


def test_a_second_trainer_trains_on_what_the_first_one_kept(
    tmp_path: Path, runs: list[int]
) -> None:
    """The whole loop, evaluation included; lanes of other trials, but of the same branch point."""
    group = Group.of("lora", [2], ["value"], rank=2, alpha=4.0, dropout=0.1)
    lanes = [Lane(n, Configuration.of([group], training=TRAINING)) for n in range(2)]
    counts, ends = [], []
    for number in (0, 1):
        run = _trainer(tmp_path).start([lanes[number]])
        run.train(3)
        run.evaluate()
        counts.append(sum(runs))
        ends.append(run.states()[number].weights())
    assert counts == [ROWS + 12, ROWS + 12]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


DIFFERENT: Mapping[str, dict[str, Any]] = {
    "weight": {"backbone": lambda: _backbone(shift=1e-3)},
    "type it is held in": {"backbone": lambda: _backbone(torch.bfloat16)},
    "attention": {"backbone": _eager},
    "token": {"train": _other_token},
    "token types": {"train": lambda: _examples(ROWS, 0, pairs=True)},
    "data": {"fingerprint": "other"},
    "precision": {"precision": "bf16"},
    "number of blocks": {"micro_batch_size": 3},
    "company in the blocks": {"seed": 4},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_trainers_that_differ_share_nothing(what: str, tmp_path: Path, runs: list[int]) -> None:
    shared, changes = tmp_path / "shared", DIFFERENT[what]
    _known(_trainer(shared))
    runs.clear()
    found = _known(_trainer(shared, **changes))
    assert sum(runs) == ROWS, "it took what another trainer had kept"
    assert _same(found, _known(_trainer(tmp_path / "apart", **changes)))


def test_the_deepest_layers_are_kept_and_nothing_without_a_budget(tmp_path: Path) -> None:
    """Room for one layer of the training examples: the last layer's output."""
    assert not _trainer(tmp_path, cache=CacheBudget(folder=tmp_path)).caches
    room = (_examples(ROWS, 0).n_tokens + 1) * tiny.HIDDEN * 4
    trainer = _trainer(tmp_path, cache=CacheBudget(memory_bytes=room))
    pack = trainer.start([Lane(0, Configuration.of([], training=TRAINING))]).packs[0]
    with pack.running():
        for examples, layers in ((trainer.train, [3]), (trainer.validation, [])):
            assert list(trainer.caches[examples].known(pack, np.arange(12))) == layers


def test_runners_of_a_machine_share_its_memory_and_its_disk(tmp_path: Path) -> None:
    """Together they keep what one may; a GPU has memory of its own."""

    def of(device: str, runners: int) -> CacheBudget:
        return cache_budget(1200, 900, device=device, folder=tmp_path, runners=runners)

    assert of("cpu", 1) == CacheBudget(1200, 900, tmp_path)
    assert of("cpu", 3) == CacheBudget(400, 300, tmp_path)
    assert of("cuda:1", 3) == CacheBudget(1200, 300, tmp_path)
    whole = cache_budget("auto", "auto", device="cpu", folder=tmp_path)
    half = cache_budget("auto", "auto", device="cpu", folder=tmp_path, runners=2)
    assert (half.memory_bytes, half.disk_bytes) == (
        whole.memory_bytes // 2,
        whole.disk_bytes // 2,
    )
