import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.space.dimension import Dimension

DIMENSIONS = [
    Dimension.flag("flag"),
    Dimension("ordered", "ordered", (0, 1, 3, 6, 12)),
    Dimension("category", "category", ("relu", "gelu", "tanh")),
    Dimension("integer", "integer", range(2, 9)),
    Dimension("log integer", "integer", range(1, 801), log=True),
    Dimension("real", "real", low=0.0, high=0.3),
    Dimension("shifted real", "real", low=-3.0, high=7.0),
    Dimension("log real", "real", low=1e-4, high=5e-3, log=True),
]
dimensions = st.sampled_from(DIMENSIONS)


@settings(deadline=None)
@given(dimensions, st.floats(-0.5, 1.5))
def test_decode_then_encode_then_decode(dimension: Dimension, u: float) -> None:
    value = dimension.decode(u)
    place = dimension.encode(value)
    assert 0.0 <= place <= 1.0
    assert dimension.decode(place) == value
    assert dimension.read({dimension.name: value}) == value


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda dimension: dimension.name)
def test_every_value_owns_an_equal_share_and_ends_are_reached(dimension: Dimension) -> None:
    if dimension.continuous or dimension.log:
        low, high = dimension.decode(0.0), dimension.decode(1.0)
        ends = (dimension.low, dimension.high) if dimension.continuous else (1, 800)
        assert (low, high) == ends
    else:
        values = [dimension.decode(u) for u in (np.arange(840) + 0.5) / 840]
        assert {values.count(value) for value in dimension.values} == {
            840 // len(dimension.values)
        }
        assert dimension.encode(dimension.values[0]) == 0.0
        assert dimension.encode(dimension.values[-1]) == 1.0


@settings(deadline=None)
@given(dimensions, st.integers(0, 2**32))
def test_near_stays_legal(dimension: Dimension, seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = dimension.sample(rng)
    near = dimension.near(value, rng)
    assert dimension.read({dimension.name: near}) == near
    if not dimension.continuous:
        assert near != value


@pytest.mark.parametrize(
    "dimension",
    [Dimension("range", "integer", range(65)), Dimension("list", "ordered", tuple(range(65)))],
    ids=lambda dimension: dimension.name,
)
def test_sizes_are_drawn_by_their_logarithm(dimension: Dimension) -> None:
    rng = np.random.default_rng(0)
    sizes = [dimension.sample_size(rng) for _ in range(2000)]
    assert min(sizes) == 1
    assert max(sizes) == 64
    assert all(type(size) is int for size in sizes)
    assert 2.0 < math.log2(float(np.median(np.array(sizes, dtype=float)))) < 4.0


def test_a_huge_range_is_drawn_without_listing_it() -> None:
    dimension = Dimension("size", "integer", range(1, 10**12))
    assert 1 <= int(dimension.sample_size(np.random.default_rng(0))) < 10**12


@pytest.mark.parametrize("sizes", [(0, 1, 4, 16), range(17)])
def test_the_nearest_size_is_never_absent(sizes: tuple[int, ...] | range) -> None:
    dimension = Dimension("size", "ordered", sizes)
    assert [dimension.nearest(size) for size in (0.1, 5, 1000)] == [
        1,
        4 if sizes[2] == 4 else 5,
        16,
    ]
