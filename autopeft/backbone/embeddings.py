"""What stands below a text model's layers: its table of tokens, and whether it takes a cache."""

import inspect
from typing import Any

from torch import nn

from autopeft.backbone.anatomy import Embeddings

CACHES = ("cache", "past_key_values")
"""Names that transformers gives to keys and values of earlier tokens, the newer one first."""

_POSITIONS = ("position_embeddings", "wpe", "embed_positions")
"""Last names of tables of positions."""


def find_embeddings(model: nn.Module) -> Embeddings | None:
    """The table of input tokens; None where the model names no single one. Works on any device.

    T5 names one that its encoder has a copy of, which is what runs.
    """
    named: Any = model
    try:
        table = named.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    if not isinstance(table, nn.Embedding):
        return None
    alike = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.weight is table.weight
    ]
    if len(alike) != 1:
        return None
    return Embeddings(alike[0], table.num_embeddings, table.embedding_dim, _positions(model))


def _positions(model: nn.Module) -> int | None:
    """Rows of the table of positions that tokens may have: some begin behind the padding's."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITIONS:
            padding = module.padding_idx
            skipped = getattr(module, "offset", 0) if padding is None else padding + 1
            return module.num_embeddings - int(skipped)
    return None


def cache_argument(model: nn.Module) -> str:
    """The argument of the model's forward that takes a cache, or ""."""
    taken = inspect.signature(inspect.unwrap(type(model).forward)).parameters
    return next((name for name in CACHES if name in taken), "")
