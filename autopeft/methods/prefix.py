"""Prefix tuning: trainable keys and values before a layer's own (arXiv 2101.00190).

Each layer of the group gets `length` key and value vectors per key/value head, seen by all.
Positions are not shifted: rotary or learned positions of the real tokens stay what they were. (HF
`peft` shifts them; where they are rotary, and every layer has a prefix, other keys undo that.)

With `reparametrise`, keys and values are a function of a smaller source during training:
tanh(E W_1 + b_1) W_2 + b_2, folded away when the adapter is saved. The paper and AutoPEFT share E
and W_1 between layers; here each layer has its own, so that a layer's prefix does not depend on
the placement, and E is as wide as a head, so that it stays small.
"""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.methods.base import Draw, Kept, Reached, Start, registry
from autopeft.methods.inherited import Unchosen
from autopeft.methods.lane_operator import LaneOperator, Place, Stack, size_class
from autopeft.space.schema import MethodSchema, ParameterSchema

INITIAL_STD = 0.02


class PrefixOperator(LaneOperator):
    """Keys and values of k lanes, padded to one length P; `valid` [k, P] tells padding apart.

    Padded positions are masked in attention, so their gradients are exactly zero.
    """

    hook = "attention"
    valid: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        lengths = torch.tensor(stack.ints("length"))
        steps = torch.arange(int(lengths.max()))
        self.register_buffer("valid", steps.unsqueeze(0) < lengths.unsqueeze(1))

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """Keys and values, each [k, P, n_kv_heads * head_dim]."""
        raise TypeError("PrefixOperator is abstract")


class PlainPrefix(PrefixOperator):
    """Stacked keys and values [k, P, n_kv_heads * head_dim], trained as they are."""

    keys: Tensor
    values: Tensor

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """The tensors themselves."""
        return self.keys, self.values


class ReparametrisedPrefix(PrefixOperator):
    """Keys and values as tanh(E W_1 + b_1) W_2 + b_2 of stacked E [k, P, e]."""

    source: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """Folded keys and values."""
        keys, values = fold(self.source, self.w1, self.b1, self.w2, self.b2).chunk(2, dim=-1)
        return keys, values


def fold(source: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """tanh(E W_1 + b_1) W_2 + b_2: [k, P, e] -> [k, P, 2 n_kv_heads head_dim]."""
    hidden = torch.tanh(lane_product(source, w1, b1))
    return lane_product(hidden, w2, b2)


class Prefix(Unchosen):
    """The method `prefix`."""

    schema = MethodSchema(
        name="prefix",
        size="length",
        parameters=(
            ParameterSchema("length", "int", minimum=1),
            ParameterSchema("reparametrise", "bool", default=False),
            ParameterSchema("hidden", "int", default=64, minimum=1, when=("reparametrise", True)),
        ),
    )
    source = "Li and Liang 2021, Prefix-Tuning, arXiv 2101.00190"
    reached: Reached = "attention"
    stands_for: tuple[str, ...] = ("key", "value")
    identity = "no: the prefix takes part in every softmax from the first step"
    peft_type = "PREFIX_TUNING"

    def carried_by(self, anatomy: Anatomy) -> str:
        """Attention must be scaled dot products, through transformers' attention interface."""
        if anatomy.carries_prefix:
            return ""
        return (
            "its attention does not go through transformers' attention interface, "
            "or is more than scaled dot products (a soft cap, sinks)"
        )

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer; d_in is a head's width, d_out that of all key/value heads."""
        width = anatomy.n_kv_heads * anatomy.head_dim
        return [Place(layer, "prefix", anatomy.head_dim, width) for layer in group.layers]

    def count(self, group: Group, place: Place) -> int:
        """2 P n_kv_heads head_dim: what is stored after folding."""
        return 2 * int(group["length"]) * place.d_out

    def training_count(self, group: Group, place: Place) -> int:
        """The same, or E, W_1, b_1, W_2 and b_2 while re-parametrised."""
        if not group["reparametrise"]:
            return self.count(group, place)
        length, hidden = int(group["length"]), int(group["hidden"])
        return length * place.d_in + (place.d_in + 1) * hidden + (hidden + 1) * 2 * place.d_out

    def keys(self, group: Group) -> int:
        """The prefix."""
        return int(group["length"])

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """Nothing of a token; the memory model counts prefixes with attention's keys."""
        return Kept(reads=False)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Keys and values N(0, 0.02); re-parametrised: E N(0, 1), maps uniform as in Linear."""
        length = int(group["length"])
        if not group["reparametrise"]:
            return {
                name: torch.randn(length, place.d_out, generator=start.draw(name)) * INITIAL_STD
                for name in ("keys", "values")
            }
        hidden = int(group["hidden"])
        return {
            "source": torch.randn(length, place.d_in, generator=start.draw("source")),
            **_linear("1", place.d_in, hidden, start.draw),
            **_linear("2", hidden, 2 * place.d_out, start.draw),
        }

    def folded_group(self, group: Group) -> Group:
        """The same prefix without its re-parametrisation."""
        return Group.of("prefix", group.layers, length=group["length"], reparametrise=False)

    def folded_tensors(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keys and values [P, n_kv_heads * head_dim]."""
        if not group["reparametrise"]:
            return dict(tensors)
        stacked = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
        keys, values = fold(**stacked).squeeze(0).chunk(2, dim=-1)
        return {"keys": keys.contiguous(), "values": values.contiguous()}

    def stack_key(self, group: Group) -> Hashable:
        """Lengths of one size class with the same re-parametrisation stack."""
        return size_class(int(group["length"])), group["reparametrise"], group.get("hidden")

    def operator(self, stack: Stack) -> LaneOperator:
        """The stacked operator."""
        kind = ReparametrisedPrefix if stack.groups[0]["reparametrise"] else PlainPrefix
        return kind(stack)


def _linear(suffix: str, d_in: int, d_out: int, draw: Draw) -> dict[str, Tensor]:
    """torch's own initialisation of a Linear: weight and bias uniform in +-1/sqrt(d_in)."""
    bound = d_in**-0.5
    weight = torch.empty(d_in, d_out).uniform_(-bound, bound, generator=draw(f"w{suffix}"))
    bias = torch.empty(d_out).uniform_(-bound, bound, generator=draw(f"b{suffix}"))
    return {f"w{suffix}": weight, f"b{suffix}": bias}


registry.register(Prefix())
