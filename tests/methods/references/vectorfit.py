"""VectorFit as a weight composed again from numpy's SVD, in float64."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def dense(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(U diag(s + ds) V^T)^T and b + db."""
    left, values, right = np.linalg.svd(weight.detach().numpy().T, full_matrices=False)
    s = torch.from_numpy(values) + tensors["values"]
    whole = (torch.from_numpy(left) @ torch.diag(s) @ torch.from_numpy(right)).T
    assert ("bias" in tensors) <= bool(settings["bias"])
    if "bias" in tensors:
        bias = tensors["bias"] + (0.0 if bias is None else bias)
    return whole, bias
