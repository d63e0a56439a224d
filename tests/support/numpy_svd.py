"""A weight's SVD by numpy, with the signs that this project fixes."""

import numpy as np
import torch
from torch import Tensor


def svd_of(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [d_out, n], S [n] and V [d_in, n] of W^T, W [d_in, d_out]; V's largest are positive."""
    left, values, right = np.linalg.svd(weight.detach().numpy().T, full_matrices=False)
    v, u = right.T.copy(), left.copy()
    for column in range(v.shape[1]):
        if v[np.abs(v[:, column]).argmax(), column] < 0.0:
            v[:, column] *= -1.0
            u[:, column] *= -1.0
    return torch.from_numpy(u), torch.from_numpy(values.copy()), torch.from_numpy(v)
