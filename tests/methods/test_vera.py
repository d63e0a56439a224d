"""VeRA's frozen matrices are the same on every machine, for every rank and width."""

import pytest
import torch

from autopeft.methods.vera import INPUT_SEED, directions


def test_the_stream_is_pinned() -> None:
    """A saved adapter holds none of these numbers: they must never change."""
    pinned = [
        [-0.7697556354068817, -0.0065510118500236025, 0.9190525994124241],
        [-0.8295952238761342, -0.40846619051800226, 0.9241523479307263],
    ]
    assert directions(INPUT_SEED, 2, 3).tolist() == [
        pytest.approx(row, abs=1e-15) for row in pinned
    ]


def test_ranks_and_widths_lead_each_other() -> None:
    whole = directions(INPUT_SEED, 8, 48)
    assert torch.equal(directions(INPUT_SEED, 3, 20), whole[:3, :20])
    assert float(whole.mean().abs()) < 0.1
    assert float(whole.var()) == pytest.approx(1.0 / 3.0, rel=0.15)
