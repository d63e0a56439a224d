"""What layers hand on beside hidden states, so that layers can be left out of a pass.

T5's first layer makes a position bias that all others read, and every layer returns it. Where a
layer is left out, since the hidden states behind it are known, something has to be returned in its
place: without the bias, the layers above would silently take zeros.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbone.anatomy import Anatomy
from autopeft.errors import BackboneError, Fault

logger = logging.getLogger(__name__)

Others = tuple[Any, ...] | None
"""What a layer returns behind its hidden states; None where it returns no tuple."""


@dataclass(frozen=True)
class HandedOn:
    """What every layer of a backbone returns behind its hidden states.

    Beside trunk inputs by layer, the tensors among it have negative keys: -1 the first thing
    returned, -2 the second, and so on.

    Attributes:
        tensors: Which of it are tensors, the rest being None; None where layers return no tuple.
        from_first: Whether all layers return the tensors that the first one made, so that others
            can be left out.
    """

    tensors: tuple[bool, ...] | None = None
    from_first: bool = True

    @classmethod
    def of(cls, others: Sequence[Others]) -> "HandedOn":
        """What layers were seen to return, bottom up."""
        first = others[0]
        same = all(_are_same(own, first) for own in others)
        if first is None:
            return cls(None, same)
        return cls(tuple(isinstance(value, Tensor) for value in first), same)

    @property
    def keys(self) -> list[int]:
        """Of the tensors."""
        return [-1 - place for place, tensor in enumerate(self.tensors or ()) if tensor]

    def lacks(self, known: Mapping[int, Tensor]) -> bool:
        """Whether some of the tensors are not among what is known."""
        return any(key not in known for key in self.keys)

    def by_key(self, others: Others) -> dict[int, Tensor]:
        """The tensors that a layer has returned."""
        return {key: others[-1 - key] for key in self.keys} if others else {}

    def in_place(self, known: Mapping[int, Tensor]) -> Others:
        """What is returned in place of a layer that is left out.

        Raises:
            BackboneError: The tensors are not known, or layers make their own.
        """
        if not self.from_first or self.lacks(known):
            raise BackboneError(
                Fault(
                    "backbone",
                    "",
                    "a pass without its lower layers, which hand on more than hidden states",
                    "that together with what they hand on, made by the first layer",
                    "take what is known of the trunk from `SharedTrunk.known`",
                )
            )
        if self.tensors is None:
            return None
        return tuple(
            known[-1 - place] if tensor else None for place, tensor in enumerate(self.tensors)
        )


@torch.no_grad()
def find_handed_on(model: Any, anatomy: Anatomy) -> HandedOn:
    """What the layers of a model hand on; runs it on two tokens, or a black image.

    Args:
        model: A transformers base model in eval mode, whose layers nobody has patched.
        anatomy: Its layers. Where lanes cannot share a pass, the model is not run.
    """
    smallest = _smallest_input(model, anatomy) if anatomy.packable else None
    if smallest is None:
        return HandedOn(from_first=False)
    others: list[Others] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        others.append(output[1:] if isinstance(output, tuple) else None)

    hooks = [
        model.get_submodule(layer.module).register_forward_hook(note) for layer in anatomy.layers
    ]
    try:
        model(**smallest)
    finally:
        for hook in hooks:
            hook.remove()
    found = HandedOn.of(others)
    if not found.from_first:
        logger.info("%s: each layer hands on its own; none is left out", anatomy.architecture)
    return found


def _smallest_input(model: Any, anatomy: Anatomy) -> dict[str, Tensor] | None:
    """None for images whose size the configuration does not tell."""
    if anatomy.modality == "text":
        return {"input_ids": torch.ones(1, 2, dtype=torch.long, device=model.device)}
    size, channels = (getattr(model.config, name, 0) for name in ("image_size", "num_channels"))
    if not (size and channels):
        return None
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.zeros(1, channels, height, width, dtype=model.dtype, device=model.device)
    return {"pixel_values": pixels}


def _are_same(one: Others, other: Others) -> bool:
    """Whether two layers return the same tensors, and None where there are none."""
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and all(
        mine is theirs and (mine is None or isinstance(mine, Tensor))
        for mine, theirs in zip(one, other, strict=True)
    )
