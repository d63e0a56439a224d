"""IST in tensors against the same in plain numbers, round by round: gains, scores, layers."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from autopeft.configuration import Configuration, Group
from autopeft.sparsity.acting import Subject
from autopeft.sparsity.ist import MAX_DRAWS, ImportantLayers
from autopeft.sparsity.sampling import first_different

SETTINGS = {"keep": 0.3, "suppress": 0.5, "step": 10.0, "beta": 0.25, "batch": 16, "interval": 5}
CASES: dict[str, dict[str, Any]] = {
    "usual": {"n": 9, "candidates": 3},
    "few sets": {"n": 4, "candidates": 6},
    "two layers": {"n": 2, "candidates": 3},
    "more layers than a word has bits": {"n": 70, "candidates": 5},
    "extreme": {"n": 8, "candidates": 4, "scores": 50.0},
    "sure": {"n": 8, "candidates": 4, "scores": 700.0},
    "five of nine": {"n": 9, "candidates": 8, "scores": [0.0] * 5 + [-50.0] * 4},
}
"""The last one learns from five sets, all that leave one of five out, where eight are wanted."""


class Slow:
    """IST as its page says it, in numpy and Python's own sets.

    Args:
        layers: That the configuration occupies.
        n_layers: Of the backbone.
        draws: As `Subject` has them.
        candidates: Wanted.
    """

    def __init__(self, layers: list[int], n_layers: int, draws: Any, candidates: int) -> None:
        self.layers, self.n_layers, self.draws = layers, n_layers, draws
        self.suppressed = max(1, int(SETTINGS["suppress"] * len(layers)))
        self.kept = max(1, int(SETTINGS["keep"] * len(layers)))
        self.candidates = min(candidates, math.comb(len(layers), self.suppressed))
        self.scores = [0.0] * len(layers)
        self.sets: list[frozenset[int]] = []

    def _drawn(self, generator: np.random.Generator, signs: float, count: int) -> frozenset[int]:
        uniforms = generator.random(self.n_layers)
        keys = []
        for score, layer in zip(self.scores, self.layers, strict=True):
            u = max(uniforms[layer], np.finfo(float).tiny)
            keys.append(-np.logaddexp(0.0, -signs * score) - math.log(-math.log(u)))
        return frozenset(sorted(range(len(keys)), key=lambda i: -keys[i])[:count])

    def ask(self, step: int) -> None:
        """The candidates of a step."""
        generator, self.sets = self.draws("ist suppress", step), []
        for _ in range(self.candidates * MAX_DRAWS):
            drawn = self._drawn(generator, 1.0, self.suppressed)
            if drawn not in self.sets and len(self.sets) < self.candidates:
                self.sets.append(drawn)

    def learn(self, losses: list[float]) -> None:
        """One update; `losses` of the candidates that there are."""
        if not all(math.isfinite(loss) for loss in losses):
            return
        rewards = [math.exp(-loss) for loss in losses]
        mean = sum(rewards) / len(rewards)
        before = list(self.scores)
        for chosen, reward in zip(self.sets, rewards, strict=True):
            for i in chosen:
                p = 1.0 / (1.0 + math.exp(-before[i]))
                self.scores[i] += SETTINGS["step"] * (reward - mean) * p * (1.0 - p)

    def layers_at(self, step: int) -> set[int]:
        """Those that train."""
        chosen = self._drawn(self.draws("ist train", step), -1.0, self.kept)
        return {self.layers[i] for i in chosen}


def _pair(case: dict[str, Any], seed: int) -> tuple[ImportantLayers, Slow]:
    rng, n = np.random.default_rng(seed), case["n"]
    n_layers = n + 3
    layers = sorted(rng.choice(n_layers, n, replace=False).tolist())

    def draws(purpose: str, step: int) -> np.random.Generator:
        return np.random.default_rng([seed, step, *purpose.encode()])

    group = Group.of("lora", layers, ["query"], rank=2, alpha=4.0, dropout=0.0)
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    configuration = Configuration.of([group], training=training)
    subject = Subject(configuration, n_layers, 1000, draws, {}, {}, {})
    fast = ImportantLayers(subject, {**SETTINGS, "candidates": case["candidates"]})
    slow = Slow(layers, n_layers, draws, case["candidates"])
    if "scores" in case:
        given = case["scores"]
        signs = 1.0 if isinstance(given, list) else rng.choice([-1.0, 1.0], n)
        slow.scores = (np.array(given) * signs).tolist()
        fast.scores = torch.tensor(slow.scores, dtype=torch.float64)
    return fast, slow


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(12))
def test_rounds_are_those_of_plain_numbers(name: str, seed: int) -> None:
    fast, slow = _pair(CASES[name], seed)
    rng = np.random.default_rng(100 + seed)
    for step in range(5, 30, 5):
        question = fast.question(step)
        slow.ask(step)
        assert question is not None
        gains = question.gains.numpy()
        assert gains.shape == (slow.candidates, slow.n_layers)
        wanted = np.ones_like(gains)
        for row, chosen in zip(wanted, slow.sets, strict=False):
            row[[slow.layers[i] for i in chosen]] = SETTINGS["beta"]
        assert np.array_equal(gains, wanted), "those that are missing suppress nothing"
        losses = rng.uniform(0.0, 3.0, slow.candidates)
        if step == 15:
            losses[0] = np.nan
        if step == 20:
            losses[len(slow.sets) :] = np.inf  # of candidates that do not count
        fast.score_losses(step, torch.from_numpy(losses))
        slow.learn(losses[: len(slow.sets)].tolist())
        assert fast.scores.dtype == torch.float64
        assert fast.scores.tolist() == pytest.approx(slow.scores, rel=1e-12, abs=1e-12)
        for after in range(step, step + 5):
            mask = fast.schedule(after)
            assert isinstance(mask, torch.Tensor)
            assert set(mask.nonzero().flatten().tolist()) == slow.layers_at(after)


def test_extreme_scores_leave_fewer_sets_than_were_asked_for() -> None:
    """Else the cases above would not show what becomes of the missing ones."""
    fewest = []
    for seed in range(12):
        for name in ("sure", "five of nine"):
            _, slow = _pair(CASES[name], seed)
            slow.ask(5)
            fewest.append(len(slow.sets))
    assert min(fewest[::2]) < 4
    assert fewest[1::2] == [5] * 12


@pytest.mark.parametrize("n", [1, 5, 62, 63, 70, 130])
def test_the_first_different_sets_keep_their_order(n: int) -> None:
    rng = np.random.default_rng(n)
    pool = rng.random((6, n)) < 0.5
    pool[2:] = pool[1]
    for row, place in enumerate(range(max(0, n - 4), n), start=2):
        pool[row, place] ^= True  # apart in one late place alone
    for count in (1, 3, 6, 10):
        sets = pool[rng.integers(0, len(pool), 40)]
        wanted: list[tuple[bool, ...]] = []
        for row in sets.tolist():
            if tuple(row) not in wanted and len(wanted) < count:
                wanted.append(tuple(row))
        found, counts = first_different(torch.from_numpy(sets), count)
        assert found.shape == (count, n)
        assert counts.tolist() == [index < len(wanted) for index in range(count)]
        assert [tuple(row) for row in found[counts].tolist()] == wanted
