"""Aligner: a few tokens that all layers attend to, each through a gate (arXiv 2312.05503).

One set of tokens G [N, d] serves all layers of the group. A layer's own frozen key and value maps
read them, its queries attend to them apart from everything else, and what they get is added to the
output of every head before the output map:
  o_h + gate_h softmax(scale q_h (G W_k)_h^T) (G W_v)_h
Gates, one for each head of each layer, start at zero: the model starts as the backbone. The tokens
have no positions (q is rotated, their keys are not), and keys are not normalised where the
backbone's are. Maps with a bias keep it; other operators do not change the maps for the tokens.

G starts N(0, 1), as released (JosephZZ/lit-llama), which leaves layers 0 and 1 out: so may the
placement. HF `peft`'s ADAPTION_PROMPT has tokens for each layer and one gate for all heads.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Group
from autopeft.methods.base import Kept, Reached, Start, registry
from autopeft.methods.inherited import Unfolded
from autopeft.methods.lane_operator import LaneOperator, Place, Stack, size_class
from autopeft.space.schema import MethodSchema, ParameterSchema


class AlignerOperator(LaneOperator):
    """Stacked gates [k, H], and G [k, N, d], held at the lanes' first layer.

    Padded tokens of G are masked, so their gradients are exactly zero.
    """

    hook = "attention"
    frozen_roles = ("key", "value")
    gate: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        lengths = torch.tensor(stack.ints("length"))
        steps = torch.arange(int(lengths.max()))
        self.register_buffer("valid", steps.unsqueeze(0) < lengths.unsqueeze(1))

    def attended(self, query: Tensor, scale: float) -> Tensor:
        """What the members' heads get of their tokens, [k, B, H, T, head_dim].

        Args:
            query: As the layer's attention has it, members only, [k, B, H, T, head_dim].
            scale: On scores.
        """
        k, _, heads, _, width = query.shape
        tokens = self.trained("tokens").to(query.dtype)
        keys, values = (self._mapped(role, tokens, heads, width) for role in self.frozen_roles)
        scores = query @ keys.transpose(-2, -1).unsqueeze(1) * scale
        seen = self.get_buffer("valid")[:, None, None, None]
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
        gate = self.gate.view(k, 1, heads, 1, 1).to(query.dtype)
        return gate * (weights @ values.unsqueeze(1))

    def _mapped(self, role: str, tokens: Tensor, heads: int, width: int) -> Tensor:
        """Keys or values of the tokens, once for every query head, [k, H, N, head_dim]."""
        frozen = self.frozen_maps[role]
        made = frozen.product(tokens)
        made = made if frozen.bias is None else made + frozen.bias.to(made.dtype)
        by_head = made.view(*made.shape[:2], -1, width).transpose(1, 2)
        return by_head.repeat_interleave(heads // by_head.shape[1], dim=1)


class Aligner(Unfolded):
    """The method `aligner`."""

    operator_type = AlignerOperator
    schema = MethodSchema(
        name="aligner",
        size="length",
        parameters=(ParameterSchema("length", "int", minimum=1),),
    )
    source = "Ziheng Zhou et al. 2023, Aligner, arXiv 2312.05503; JosephZZ/lit-llama"
    reached: Reached = "norms"
    stands_for: tuple[str, ...] = ("key", "value")
    identity = "exact"

    def carried_by(self, anatomy: Anatomy) -> str:
        """Attention must be scaled dot products, whose key and value maps are known."""
        if not {"key", "value"} <= set(anatomy.roles):
            return "its key and value maps were not found"
        if not anatomy.carries_prefix:
            return "its attention is not transformers' scaled dot products"
        return ""

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer; d_out is the number of query heads."""
        return [
            Place(layer, "aligner", anatomy.hidden_size, anatomy.n_heads, anatomy.head_dim)
            for layer in group.layers
        ]

    def count(self, group: Group, place: Place) -> int:
        """A gate per head, and N d for the tokens at the first layer."""
        held = 0 if self.owners(group, place) else int(group["length"]) * place.d_in
        return held + place.d_out

    training_count = count

    def frozen_work(self, group: Group, place: Place) -> int:
        """Scores and values of every token, N each per channel; tokens held elsewhere."""
        return 2 * int(group["length"]) * place.d_out * place.head_dim

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """Queries, weights, and what they give before the gate."""
        heads, length = place.d_out, int(group["length"])
        return Kept(heads * (length + 2 * place.head_dim), reads=False)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Gates zero, tokens N(0, 1)."""
        tensors = {"gate": torch.zeros(place.d_out)}
        if self.owners(group, place):
            return tensors
        shape = int(group["length"]), place.d_in
        return tensors | {"tokens": torch.randn(shape, generator=start.draw("tokens"))}

    def owners(self, group: Group, place: Place) -> Mapping[str, tuple[int, str]]:
        """The first layer holds the tokens."""
        first = group.layers[0]
        return {} if place.layer == first else {"tokens": (first, place.site)}

    def stack_key(self, group: Group) -> Hashable:
        """Lengths of one size class, on the same layers."""
        return size_class(int(group["length"])), group.layers


registry.register(Aligner())
