"""Prompt tokens as they stand before the text; the first one last in a lane's tensor."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def before(settings: Mapping[str, Any], own: Mapping[str, Tensor]) -> Tensor:
    """[P, d], in the order of reading."""
    return own["tokens"].flip(0)
