"""Packed and solo runs on real checkpoints, in float32, through the loop that users run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import stories

from autopeft.backbone.loading import Backbone, BackboneRequest, load_backbone
from autopeft.configuration import Configuration, Group
from autopeft.training.activations import CacheBudget
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings

STEPS, ROWS = 20, 24
TALES = ("a dog ran to the park", "a cat sat in the sun", "Tom had a red ball", "Lily ate a cake")


def _lanes(n_layers: int) -> list[Lane]:
    """Three methods, three branch points, three learning rates."""
    top, training = n_layers - 1, {"weight_decay": 0.01, "warmup_ratio": 0.1}
    groups = [
        Group.of("lora", range(n_layers), ["query", "value"], rank=4, alpha=8.0, dropout=0.1),
        Group.of(
            "serial_adapter", [top - 1, top], ["ffn"],
            size=6, activation="relu", scale=1.0, dropout=0.0,
        ),
        Group.of("prefix", [top], length=3, reparametrise=False),
    ]  # fmt: skip
    return [
        Lane(n, Configuration.of([group], training={**training, "learning_rate": rate}))
        for n, (group, rate) in enumerate(zip(groups, (1e-3, 5e-4, 1e-3), strict=True))
    ]


def _hold(trainers: Sequence[Trainer], n_rows: int) -> None:
    """Lanes together, with and without a cache, against each alone."""
    lanes = _lanes(len(trainers[0].backbone.anatomy.layers))
    solo = {}
    for lane in lanes:
        run = trainers[0].start([lane])
        run.train(STEPS)
        solo[lane.number] = run.states()[lane.number], run.evaluate()[lane.number]
    for trainer in trainers:
        packed = trainer.start(lanes)
        packed.train(STEPS)
        states, found = packed.states(), packed.evaluate()
        for number, (state, values) in solo.items():
            for name, tensor in state.weights().items():
                apart = float((tensor - states[number].weights()[name]).abs().max())
                assert apart < 1e-5, (number, name)
            for metric, value in values.values.items():
                most = 1e-3 if metric == "loss" else 1 / n_rows + 1e-9
                assert abs(found[number].values[metric] - value) <= most, (number, metric)


def _trainers(backbone: Backbone, data: TaskData, task: str, metric: str) -> list[Trainer]:
    def trainer(**changes: object) -> Trainer:
        settings = LoopSettings(
            task,
            (metric, "loss"),
            total_steps=STEPS,
            batch_size=8,
            micro_batch_size=8,
            **changes,  # type: ignore[arg-type]
        )
        return Trainer(backbone, data, settings, study_seed=1)

    cache = CacheBudget(memory_bytes=1 << 28)
    return [trainer(), trainer(lanes_per_pass=3), trainer(lanes_per_pass=1, cache=cache)]


def test_a_sentence_encoder() -> None:
    backbone = load_backbone(BackboneRequest("builtin:minilm"))
    rng = np.random.default_rng(0)

    def examples(count: int) -> Examples:
        texts = [" ".join(rng.choice(TALES, 2)) for _ in range(count)]
        ids = backbone.tokenizer(texts)["input_ids"]
        labels = np.array(["dog" in text for text in texts], dtype=np.int64)
        return Examples(tuple(np.array(row, dtype=np.int32) for row in ids), labels)

    data = TaskData(examples(ROWS), examples(ROWS), ("no", "yes"), "", ())
    _hold(_trainers(backbone, data, "sequence-classification", "accuracy"), ROWS)


def test_a_story_teller(tmp_path: Path) -> None:
    folder = stories.save_stories(tmp_path / "stories")
    backbone = load_backbone(BackboneRequest(str(folder), task="causal-lm"))

    def examples(count: int) -> Examples:
        ids = [
            np.array(backbone.tokenizer(TALES[n % 4] + " again" * (n % 5))["input_ids"])
            for n in range(count)
        ]
        targets = tuple(np.arange(len(row)) >= 4 for row in ids)
        rows = tuple(row.astype(np.int32) for row in ids)
        return Examples(rows, np.zeros(count, dtype=np.int64), targets=targets)

    data = TaskData(examples(ROWS), examples(ROWS), (), "", ())
    tokens = sum(int(mask.sum()) for mask in data.validation.targets or ())
    _hold(_trainers(backbone, data, "causal-lm", "token_accuracy"), tokens)


@pytest.mark.parametrize("metric", ["loss"])
def test_the_story_tellers_loss_falls(metric: str, tmp_path: Path) -> None:
    folder = stories.save_stories(tmp_path / "stories")
    backbone = load_backbone(BackboneRequest(str(folder), task="causal-lm"))
    ids = [np.array(backbone.tokenizer(tale)["input_ids"], dtype=np.int32) for tale in TALES]
    targets = tuple(np.arange(len(row)) >= 2 for row in ids)
    rows = Examples(tuple(ids), np.zeros(len(ids), dtype=np.int64), targets=targets)
    trainer = _trainers(backbone, TaskData(rows, rows, (), "", ()), "causal-lm", metric)[0]
    run = trainer.start(_lanes(5)[:1])
    before = run.evaluate()[0].values[metric]
    run.train(STEPS)
    assert run.evaluate()[0].values[metric] < 0.95 * before
