"""Tokens of a backbone's vocabulary as its layers see them: what prompts may start from."""

from typing import Any

import torch
from torch import Tensor, nn


class _Reached(Exception):  # noqa: N818
    """Ends a pass at a layer, with what the layer was to read."""


def random_tokens(
    model: nn.Module, layer: nn.Module, count: int, generator: torch.Generator
) -> Tensor:
    """Hidden states at a layer's input, of tokens drawn from the vocabulary.

    Every token is a row of its own, at the first position and without company.

    Args:
        model: The base model, of text.
        layer: One of its layers.
        count: How many.
        generator: On the CPU.

    Returns:
        float32 on the CPU, [count, d].
    """
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    ids = torch.randint(0, len(table.weight), (count, 1), generator=generator)
    ids = ids.to(table.weight.device)
    handle = layer.register_forward_pre_hook(_stop, with_kwargs=True)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except _Reached as reached:
        hidden: Tensor = reached.args[0]
        return hidden[:, 0].float().cpu()
    finally:
        handle.remove()
    raise RuntimeError("the layer was not reached")


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
