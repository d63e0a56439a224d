"""The packer is a pure function: balanced packs of near branch points."""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.tuner.packing import grouped


@dataclass(frozen=True)
class Numbered:
    """What the packer reads of a trial."""

    number: int
    configuration: Configuration


def trial(number: int, first: int) -> Numbered:
    group = Group.of("lora", range(first, 4), ["query"], rank=2, alpha=4.0, dropout=0.0)
    rest = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    return Numbered(number, Configuration.of([group], training=rest))


def numbers(packs: list[list[Numbered]]) -> list[list[int]]:
    return [[trial.number for trial in pack] for pack in packs]


def test_seven_lanes_at_size_four_are_four_and_three_by_branch_point(toy_anatomy: Anatomy) -> None:
    firsts = [3, 0, 2, 1, 0, 3, 1]
    trials = [trial(number, first) for number, first in enumerate(firsts)]
    packs = grouped(trials, toy_anatomy, size=4)
    assert numbers(packs) == [[1, 3, 4, 6], [0, 2, 5]]


@pytest.mark.parametrize(
    ("lanes", "size", "expected"), [(10, 4, [4, 3, 3]), (8, 8, [8]), (3, 1, [1, 1, 1])]
)
def test_sizes_are_balanced(
    toy_anatomy: Anatomy, lanes: int, size: int, expected: list[int]
) -> None:
    packs = grouped([trial(n, n % 4) for n in range(lanes)], toy_anatomy, size=size)
    assert [len(pack) for pack in packs] == expected


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 6), st.randoms())
def test_packs_are_a_partition_that_no_order_changes(
    toy_anatomy: Anatomy, firsts: list[int], size: int, random: Random
) -> None:
    trials = [trial(number, first) for number, first in enumerate(firsts)]
    packs = grouped(trials, toy_anatomy, size=size)
    shuffled = list(trials)
    random.shuffle(shuffled)
    assert grouped(shuffled, toy_anatomy, size=size) == packs
    assert sorted(n for pack in numbers(packs) for n in pack) == list(range(len(firsts)))
    sizes = [len(pack) for pack in packs]
    assert max(sizes, default=0) <= size
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(packs) == -(-len(firsts) // size)
    branches = [{firsts[n] for n in pack} for pack in numbers(packs)]
    for lower, upper in pairwise(branches):
        assert max(lower) <= min(upper)


def test_trials_without_a_lane_axis_are_packs_of_one(toy_anatomy: Anatomy) -> None:
    rest = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    group = Group.of("peft:LORA", [2], ["query"], r=2)
    passed = [Numbered(number, Configuration.of([group], training=rest)) for number in (1, 4)]
    trials = [trial(0, 2), passed[0], trial(2, 2), trial(3, 2), passed[1]]
    assert numbers(grouped(trials, toy_anatomy, size=8)) == [[1], [4], [0, 2, 3]]
