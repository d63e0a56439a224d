from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.space.quantities import parse_bytes, parse_duration_s, parse_fraction, parse_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3e-5", 3e-5),
        ("2M", 2_000_000),
        ("1.5k", 1500),
        ("1.5B", 1_500_000_000),
        ("7", 7),
        ("-0.5", -0.5),
        (" 10 ", 10),
        (3, 3),
        (0.25, 0.25),
    ],
)
def test_numbers_have_the_value_and_type_they_were_written_with(text: Any, number: Any) -> None:
    parsed = parse_number(text)
    assert parsed == number
    assert type(parsed) is type(number)


@pytest.mark.parametrize(
    "wrong",
    ["", "two", "2m", "1/2", "nan", "inf", "1e999", True, None, [1], float("nan"), 10**400],
)
def test_no_number_says_what_is_allowed(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"allowed: a number such as 8, 3e-5, 1\.5k or 2M"):
        parse_number(wrong)


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_round_trip(number: int) -> None:
    assert parse_number(str(number)) == number


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_reals_round_trip(number: float) -> None:
    assert parse_number(repr(number)) == number


def test_fractions_are_exact() -> None:
    assert parse_fraction("1/128") == Fraction(1, 128)
    assert parse_fraction("0.1") == Fraction(1, 10)
    assert parse_fraction(0) == 0


@pytest.mark.parametrize("wrong", ["1/0", "a/b", "1/2/3", None])
def test_no_fraction_is_told(wrong: Any) -> None:
    with pytest.raises(ValueError, match="a fraction such as 1/128"):
        parse_fraction(wrong)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("20GiB", 20 * 2**30),
        ("20GB", 20 * 10**9),
        ("1.5KiB", 1536),
        ("512 MiB", 512 * 2**20),
        ("7B", 7),
        ("1024", 1024),
        (4096, 4096),
    ],
)
def test_bytes(text: Any, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("wrong", ["20G", "20Gi", "-1GB", -5, "much", True, 1.5, None])
def test_ambiguous_or_wrong_bytes_are_told(wrong: Any) -> None:
    with pytest.raises(ValueError, match="20GiB or 20GB"):
        parse_bytes(wrong)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("45m", 2700), ("24h", 86400), ("1d", 86400), ("1h30m", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("wrong", ["45", 45, "", "0m", "-1h", "1w", None])
def test_a_bare_number_is_no_duration(wrong: Any) -> None:
    with pytest.raises(ValueError, match="a duration with its unit"):
        parse_duration_s(wrong)
