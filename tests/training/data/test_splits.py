import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.training.data.request import DataRequest, Splits
from autopeft.training.data.splits import limited_rows, part_rows, split_faults, stratified_order

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(
    lambda values: np.array(values, dtype=np.int64)
)


@given(LABELS, st.integers(0, 2**31), st.integers(1, 80))
def test_every_beginning_is_stratified(labels: np.ndarray, seed: int, n: int) -> None:
    order = stratified_order(labels, seed=seed, purpose="p")
    assert sorted(order) == list(range(len(labels)))
    n = min(n, len(labels))
    counts = np.bincount(labels, minlength=5)
    taken = np.bincount(labels[order[:n]], minlength=5)
    classes = np.count_nonzero(counts)
    if n >= classes:
        assert (taken[counts > 0] > 0).all()
    assert (np.abs(taken - n * counts / len(labels)) <= classes).all()


@given(LABELS, st.integers(0, 9), st.integers(1, 40), st.integers(1, 40))
def test_a_smaller_limit_keeps_a_part_of_the_larger(
    labels: np.ndarray, seed: int, a: int, b: int
) -> None:
    small, large = (
        limited_rows(labels, limit, seed=seed, purpose="p") for limit in (min(a, b), max(a, b))
    )
    assert set(small) <= set(large)
    assert len(large) == min(max(a, b), len(labels))
    assert list(large) == sorted(large)


@given(LABELS.filter(lambda labels: len(labels) > 4), st.integers(0, 9))
def test_shares_part_the_rows(labels: np.ndarray, seed: int) -> None:
    request = DataRequest("s", ("t",), "l", splits=Splits("train", 0.2, 0.2), seed=seed)
    parts = [part_rows(request, part, labels) for part in ("train", "validation", "test")]
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert len(parts[1]) == len(parts[2]) == max(1, round(0.2 * len(labels)))


def test_shares_keep_class_shares_and_depend_on_the_seed() -> None:
    labels = np.repeat([0, 1], [900, 100])
    first, second = (
        part_rows(DataRequest("s", ("t",), "l", splits=Splits("train", 0.1), seed=s), "validation",
                  labels)
        for s in (0, 1)
    )  # fmt: skip
    assert np.bincount(labels[first]).tolist() == [90, 10]
    assert set(first) != set(second)


def test_numbers_are_shuffled_plainly() -> None:
    labels = np.linspace(0, 1, 50, dtype=np.float32)
    order = stratified_order(labels, seed=3, purpose="p")
    assert sorted(order) == list(range(50))
    assert list(order) != list(range(50))
    assert not np.array_equal(order, stratified_order(labels, seed=3, purpose="q"))


@pytest.mark.parametrize(
    ("splits", "names", "key", "hint"),
    [
        (Splits("trian"), ("train", "validation"), "train", "did you mean 'train'?"),
        (Splits(), ("train", "dev"), "validation", "write 'dev', or a share of train such as 0.1"),
        (Splits(), ("train",), "validation", "write validation: 0.1 to take a share of train"),
        (
            Splits(),
            ("train", "validation_matched"),
            "validation",
            "did you mean 'validation_matched'?",
        ),
        (Splits("train", 0.1, "tset"), ("train", "test"), "test", "did you mean 'test'?"),
        (Splits("train", "train"), ("train",), "validation", ""),
    ],
)
def test_a_split_that_is_not_there(
    splits: Splits, names: tuple[str, ...], key: str, hint: str
) -> None:
    (fault,) = split_faults(DataRequest("s", ("t",), "l", splits=splits), names)
    assert fault.key == f"data.splits.{key}"
    assert fault.hint == hint
