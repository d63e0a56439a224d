"""Answers in token rows: losses and metrics against transformers' own classes and generation."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_causal
import torch

from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.configuration import Configuration, Group
from autopeft.training.data.examples import Choices, Examples, TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.predict import predict
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.settings import LoopSettings

TRAINING = {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_ratio": 0.0}
METRICS = ("loss", "token_accuracy", "exact_match", "choice_accuracy")


def _rows(count: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prompts of random words, answers of the word after the first one, and an end."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(20, 37, n).astype(np.int32) for n in rng.integers(2, 7, count)]
    answers = [np.array([row[0] + 1, 2], dtype=np.int32) for row in prompts]
    return prompts, answers


def _examples(prompts: list[np.ndarray], answers: list[np.ndarray]) -> Examples:
    ids = [np.concatenate(pair) for pair in zip(prompts, answers, strict=True)]
    targets = [
        np.arange(len(row)) >= len(prompt) for row, prompt in zip(ids, prompts, strict=True)
    ]
    return Examples(tuple(ids), np.zeros(len(ids), dtype=np.int64), targets=tuple(targets))


def _with_choices(prompts: list[np.ndarray], answers: list[np.ndarray]) -> Examples:
    """Three candidates a row, the right one in another place each time."""
    plain = _examples(prompts, answers)
    candidates, row, right = [], [], []
    for number, answer in enumerate(answers):
        for place in range(3):
            shift = (place - number % 3) * 3
            candidates.append(np.array([answer[0] + shift, 2], dtype=np.int32))
            row.append(number)
            right.append(shift == 0)
    repeated = [prompts[number] for number in row]
    choices = Choices(_examples(repeated, candidates), np.array(row), np.array(right))
    return Examples(plain.token_ids, plain.labels, targets=plain.targets, choices=choices)


def _backbone(name: str = "llama") -> Backbone:
    backbone = backbone_of(tiny_causal.tiny_causal(name, torch.float32))
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    return backbone


def _trainer(name: str = "llama", **changes: Any) -> Trainer:
    data = TaskData(_examples(*_rows(40, 0)), _with_choices(*_rows(24, 1)), (), "", ())
    settings = {"total_steps": 60, "batch_size": 8, "micro_batch_size": 8} | changes
    return Trainer(
        _backbone(name), data, LoopSettings("causal-lm", METRICS, **settings), study_seed=3
    )


def _lane(number: int = 0, **training: float) -> Lane:
    group = Group.of("lora", [0, 1], ["query", "value", "up"], rank=4, alpha=8.0, dropout=0.0)
    return Lane(number, Configuration.of([group], training=TRAINING | training))


def test_the_first_loss_is_transformers_own() -> None:
    trainer = _trainer("gemma3")
    run = trainer.start([_lane()])
    numbers = trainer.order(0, 1)[0]
    batch = trainer.train.batch(numbers)
    labels = batch.inputs["input_ids"].clone()
    for place, number in enumerate(numbers):
        targets = trainer.train.examples.targets[number]  # type: ignore[index]
        labels[place, : len(targets)][torch.from_numpy(~targets)] = -100
        labels[place, len(targets) :] = -100
    model = tiny_causal.tiny_causal("gemma3", torch.float32)
    expected = float(model(**batch.inputs, labels=labels).loss.detach())
    run.train(1)
    (point,) = run.drain_curve()[0]
    assert point.value == pytest.approx(expected, rel=1e-5)


def test_lanes_learn_to_answer() -> None:
    run = _trainer().start([_lane(0), _lane(1, learning_rate=1e-5)])
    before = run.evaluate()
    run.train(60)
    after = run.evaluate()
    assert after[0].values["loss"] < 0.75 * before[0].values["loss"]
    assert after[0].values["token_accuracy"] > before[0].values["token_accuracy"] + 0.1
    assert after[1].values["loss"] == pytest.approx(before[1].values["loss"], rel=0.1)


def test_micro_batches_and_the_pack_change_nothing() -> None:
    whole = _trainer(total_steps=8).start([_lane(0), _lane(1, learning_rate=1e-3)])
    whole.train(8)
    cut = _trainer(total_steps=8, micro_batch_size=3).start([_lane(1, learning_rate=1e-3)])
    cut.train(8)
    for name, tensor in whole.states()[1].weights().items():
        assert float((tensor - cut.states()[1].weights()[name]).abs().max()) < 1e-5


def _greedy(run: PackRun, backbone: Backbone, prompt: np.ndarray, length: int) -> list[int]:
    """What the lane generates, token by token, through transformers' own forward."""
    assert backbone.lm_head is not None
    ids = [int(token) for token in prompt]
    for _ in range(length):
        answer = np.array([0], dtype=np.int32)
        padded = run._trainer.padded(_examples([np.array(ids, dtype=np.int32)], [answer]))
        hidden = predict(run.packs, padded)[0, 0, len(ids) - 1]
        ids.append(int(backbone.lm_head.logits(hidden).argmax()))
    return ids[len(prompt) :]


def test_metrics_are_those_of_generation_and_of_a_count_by_hand() -> None:
    trainer = _trainer()
    run = trainer.start([_lane()])
    run.train(25)
    values = run.evaluate()[0].values
    prompts, answers = _rows(24, 1)
    made = [_greedy(run, trainer.backbone, prompt, 2) for prompt in prompts]
    exact = [list(answer) == own for answer, own in zip(answers, made, strict=True)]
    assert 0 < sum(exact) < len(exact), "the example should tell right from wrong"
    assert values["exact_match"] == pytest.approx(np.mean(exact))

    def nll(prompt: np.ndarray, answer: np.ndarray) -> float:
        one = trainer.padded(_examples([prompt], [answer]))
        return float(run.scores(one)[0, 0, 0])

    chosen = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        shifts = [(place - number % 3) * 3 for place in range(3)]
        costs = [nll(prompt, np.array([answer[0] + s, 2], dtype=np.int32)) for s in shifts]
        chosen.append(shifts[int(np.argmin(costs))] == 0)
    assert values["choice_accuracy"] == pytest.approx(np.mean(chosen))


def test_a_lane_that_is_not_finite_has_no_values() -> None:
    run = _trainer(total_steps=6).start([_lane(0), _lane(1, learning_rate=1e39)])
    run.train(6)
    found = run.evaluate()
    assert found[1].diverged
    assert not found[0].diverged
