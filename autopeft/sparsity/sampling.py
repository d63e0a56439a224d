"""Draws of layers without replacement."""

import numpy as np


def weighted_subset(log_weights: np.ndarray, count: int, uniforms: np.ndarray) -> tuple[int, ...]:
    """Positions drawn one after the other, each with probability proportional to its weight.

    The largest of log w_i + Gumbel_i are such a draw (Efraimidis and Spirakis 2006), and need one
    uniform number per position, whatever has been drawn before.

    Args:
        log_weights: [n].
        count: Of positions, at most n.
        uniforms: In [0, 1), [n].

    Returns:
        Ascending positions.
    """
    gumbel = -np.log(-np.log(np.maximum(uniforms, np.finfo(np.float64).tiny)))
    order = np.argsort(-(log_weights + gumbel), kind="stable")
    return tuple(sorted(int(index) for index in order[:count]))


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """log(1 / (1 + e^-x)), without overflow."""
    logs: np.ndarray = -np.logaddexp(0.0, -x)
    return logs
