"""Whole numbers in proportion: what is known in sum before training decides on the places."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def rounded_share(total: int, share: float) -> int:
    """A share of `total`, rounded half up."""
    return int(total * share + 0.5)


def proportional(counts: Mapping[K, int], total: int) -> dict[K, int]:
    """`total` shared out in proportion to `counts`, by the largest remainder.

    Of equal remainders the first key in the mapping's order gets more.

    Args:
        counts: Not negative; not all zero unless `total` is.
        total: At most their sum; then no share exceeds its count.
    """
    whole = sum(counts.values())
    if not whole:
        return dict.fromkeys(counts, 0)
    shares = {key: count * total // whole for key, count in counts.items()}
    left = total - sum(shares.values())
    by_remainder = sorted(counts, key=lambda key: -(counts[key] * total % whole))
    for key in by_remainder[:left]:
        shares[key] += 1
    return shares
