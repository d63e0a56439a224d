"""Tensor trains: a matrix [rows, columns] as a chain of small cores.

rows and columns are written as products of factors near 8, k_1 ... k_D all of them in order, and

    M[(i_1 ... ), ( ... i_D)] = G_1[i_1] G_2[i_2] ... G_D[i_D],    G_j [r_(j-1), k_j, r_j],

with r_0 = r_D = 1 and one rank r in between. Factors of one side stay together, so that no matrix
core mixes an input with an output index (LoRETTA's layout, yifanycc/loretta).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autopeft.methods.base import Draw

USUAL = 8
"""Factors come near this: 768 = 8 * 8 * 12, as released."""


def factors(width: int) -> tuple[int, ...]:
    """About log_8 of them, as alike as primes allow, ascending; (1,) for 1."""
    n = max(1, round(math.log(width, USUAL)))
    products = [1] * n
    for prime in sorted(_primes(width), reverse=True):
        products[products.index(min(products))] *= prime
    return tuple(sorted(products))


def _primes(width: int) -> list[int]:
    primes, divisor = [], 2
    while divisor * divisor <= width:
        while width % divisor == 0:
            primes.append(divisor)
            width //= divisor
        divisor += 1
    return primes + ([width] if width > 1 else [])


def core_shapes(rows: int, columns: int, rank: int) -> list[tuple[int, int, int]]:
    """[r_(j-1), k_j, r_j] of every core."""
    sizes = (*factors(rows), *factors(columns))
    ranks = (1, *[rank] * (len(sizes) - 1), 1)
    return [(ranks[j], size, ranks[j + 1]) for j, size in enumerate(sizes)]


def n_entries(rows: int, columns: int, rank: int) -> int:
    """Entries of all cores."""
    return sum(math.prod(shape) for shape in core_shapes(rows, columns, rank))


def initial_cores(
    name: str, rows: int, columns: int, rank: int, draw: Draw, *, zero: bool
) -> dict[str, Tensor]:
    """Cores `NAME_0`, `NAME_1`, ... whose product has entries of variance 1 / (rows + columns).

    Args:
        name: Prefix of their names.
        rows: Of the matrix.
        columns: Of the matrix.
        rank: Of the train.
        draw: Gives generators.
        zero: Whether the last core is zero, and with it the matrix.
    """
    shapes = core_shapes(rows, columns, rank)
    spread = (rows + columns) ** (-0.5 / len(shapes))
    cores = {}
    for j, shape in enumerate(shapes):
        core = torch.randn(shape, generator=draw(f"{name}_{j}")) * (spread * shape[2] ** -0.5)
        cores[f"{name}_{j}"] = torch.zeros(shape) if zero and j == len(shapes) - 1 else core
    return cores


def product(cores: Sequence[Tensor], rows: int) -> Tensor:
    """The matrix [..., rows, columns] of cores [..., r_(j-1), k_j, r_j]."""
    whole = cores[0].squeeze(-3)
    for core in cores[1:]:
        joined = whole @ core.flatten(-2)
        whole = joined.reshape(*joined.shape[:-2], -1, core.shape[-1])
    return whole.reshape(*whole.shape[:-2], rows, -1)
