"""A block of torch computations of its own: its random stream, one thread, no known warnings."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autopeft.searchers.bo import (
    InputDataWarning,
    NumericalWarning,
    NumericsWarning,
    OptimizationWarning,
)


@contextmanager
def numerics(seed: int) -> Iterator[None]:
    """Runs a block in a random stream of its own, on one thread, without known warnings.

    One thread makes sums, and so choices, the same on every machine size; the matrices are too
    small to gain from more. The random state and the thread count are restored afterwards.

    Args:
        seed: Seeds torch within the block.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Jitter on a nearly singular matrix, and an optimiser that stops at its bound, are
        # expected here; constant outputs and inputs beyond the unit cube are handled.
        for benign in (NumericalWarning, NumericsWarning, OptimizationWarning, InputDataWarning):
            warnings.simplefilter("ignore", benign)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
