"""Batches: every row once an epoch, the same for the same seeds, little padding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.training.batches import (
    PaddedExamples,
    evaluation_order,
    rounded,
    steps_per_epoch,
    token_batches,
    training_order,
)
from autopeft.training.data.examples import Examples
from autopeft.training.lanes.seeds import Seeds, StepUniform


@given(rows=st.integers(1, 200), batch_size=st.integers(1, 40), seed=st.integers(0, 5))
def test_an_epoch_visits_every_row_once(rows: int, batch_size: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 50, rows)
    steps = steps_per_epoch(rows, batch_size)
    order = training_order(
        lengths, batch_size=batch_size, total_steps=2 * steps, seeds=Seeds(seed)
    )
    for epoch in (order[:steps], order[steps:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(rows))
        assert all(len(batch) <= batch_size for batch in epoch)


def test_the_order_is_a_function_of_the_seeds() -> None:
    lengths = np.arange(1, 101)

    def order(seeds: Seeds) -> list[list[int]]:
        batches = training_order(lengths, batch_size=8, total_steps=20, seeds=seeds)
        return [batch.tolist() for batch in batches]

    assert order(Seeds(0)) == order(Seeds(0))
    assert order(Seeds(0)) != order(Seeds(1))
    assert order(Seeds(0)) != order(Seeds(0, replicate=1))


def test_bucketing_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 640)

    def computed(batches: list[np.ndarray]) -> int:
        return sum(int(lengths[batch].max()) * len(batch) for batch in batches)

    bucketed = training_order(lengths, batch_size=32, total_steps=20, seeds=Seeds(0))
    shuffled = np.random.default_rng(1).permutation(640).reshape(20, 32)
    assert computed(bucketed) < 0.65 * computed(list(shuffled))
    assert len(evaluation_order(lengths, 100)) == 7


def test_padded_rows_hold_the_tokens_and_nothing_else() -> None:
    rows = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 11, 7)]
    labels = np.array([0, 1, 1])
    padded = PaddedExamples(
        Examples(tuple(rows), labels), pad_token_id=9, device=torch.device("cpu")
    )
    batch = padded.batch(np.array([2, 0]))
    assert batch.inputs["input_ids"].shape == (2, 7)
    assert batch.mask.sum(1).tolist() == [7, 3]
    assert batch.inputs["input_ids"][1].tolist() == [5, 6, 7, 9, 9, 9, 9]
    assert batch.labels.tolist() == [1, 0]
    assert "token_type_ids" not in batch.inputs
    assert padded.batch(np.array([0]), width=9).inputs["input_ids"].shape == (1, 9)


def test_micro_batches_see_their_rows_of_one_draw() -> None:
    cpu, seeds = torch.device("cpu"), Seeds(4)
    whole = StepUniform(seeds, 7, 0, 6, cpu)("site", (6, 3, 2))
    parts = [StepUniform(seeds, 7, start, 6, cpu)("site", (3, 3, 2)) for start in (0, 3)]
    assert torch.equal(whole, torch.cat(parts))
    other = StepUniform(seeds, 8, 0, 6, cpu)("site", (6, 3, 2))
    assert not torch.equal(whole, other)
    assert float(whole.mean()) == pytest.approx(0.5, abs=0.2)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), tokens=st.integers(1, 200))
def test_batches_of_an_evaluation_hold_so_many_tokens(lengths: list[int], tokens: int) -> None:
    own = np.array(lengths)
    batches = token_batches(own, tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(own)))
    for rows, after in zip(batches, [*batches[1:], None], strict=True):
        assert len(rows) == 1 or len(rows) * own[rows].max() <= tokens
        if after is not None:
            assert (len(rows) + 1) * own[after[0]] > tokens, "the next row would have fitted"


def test_sizes_are_few_and_none_is_padded_by_more_than_its_share() -> None:
    """At most so many between a power of two and the next, all of them multiples of the step."""
    for step, per_octave in ((8, 8), (32, 4)):
        sizes = {n: rounded(n, step, per_octave) for n in range(1, 2049)}
        assert all(size >= n and size % step == 0 for n, size in sizes.items())
        assert all(size - n < max(step, n / per_octave) for n, size in sizes.items())
        for octave in (256, 512, 1024):
            own = {size for n, size in sizes.items() if octave < n <= 2 * octave}
            assert len(own) <= per_octave
    assert [rounded(n, 8) for n in (1, 8, 9, 1001)] == [8, 8, 16, 1008]
    assert len({rounded(n, 8, 8) for n in range(1, 513)}) <= 32
