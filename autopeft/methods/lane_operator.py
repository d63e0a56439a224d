"""Operators: what a method's trained tensors do at one place, for many lanes at once.

Notation, here and in every method file: `n` lanes in the stream, `k <= n` of them members of an
operator, `B` rows (examples) per lane, `T` tokens. An operator sees its input as [n, B, T, d_in]
and its output as [n, B, T, d_out]. Each stacked tensor is [k, ...]; a solo run is n = k = 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

from autopeft.backbone.frozen_maps import FrozenMap
from autopeft.backbone.norms import FrozenNorm
from autopeft.configuration import Group


@dataclass(frozen=True)
class Place:
    """Where one operator sits.

    Attributes:
        layer: The layer's index.
        site: A linear role, a norm, `attention`, `ffn`, or the method's own name where it implies
            its place.
        d_in: Width that the operator reads.
        d_out: Width that it writes.
        head_dim: Width of one attention head, on linear maps; else 0.
    """

    layer: int
    site: str
    d_in: int
    d_out: int
    head_dim: int = 0


class Uniform(Protocol):
    """Random numbers shared by all lanes (see `autopeft.training.lanes.seeds`)."""

    def __call__(self, name: str, shape: Sequence[int], *, per_row: bool = True) -> Tensor:
        """Uniform [0, 1) floats of the given shape, a pure function of name and step.

        Args:
            name: Names the draw.
            shape: [rows, ...]; any shape where not `per_row`.
            per_row: Whether every example of the batch has numbers of its own, so that a
                micro-batch sees those of its rows; else all of a step's micro-batches see the
                same numbers.
        """

    def seed(self, name: str) -> int:
        """63 bits for what draws by itself, a pure function of name and step: the host knows it.

        Args:
            name: Names the draw.
        """


@dataclass(frozen=True)
class Call:
    """What an operator may know of the forward pass that it runs in.

    Attributes:
        training: Whether dropout is on.
        uniform: The shared draws of this step.
        gains: [K, n_layers] factors on what each lane's operators add in each layer, of all lanes
            of the pack; None for none. Of a prefix: on the attention that it gets, before it is
            normalised, so that at 0 the layer is the backbone's.
        mask: [B, T], 1 for the real tokens of every row, which come first; a pack puts its
            batch's there.
        row_share: What a row counts in its lane's loss of the step, a scalar: 1 / rows of the
            step's batch, of which this pass may hold a part; None where nothing can be added to
            losses. See `row_losses.with_row_losses`.
    """

    training: bool
    uniform: Uniform
    gains: Tensor | None = None
    mask: Tensor | None = None
    row_share: Tensor | None = None


class _NoDraws:
    """What `Uniform` is outside training."""

    def __call__(self, name: str, shape: Sequence[int], *, per_row: bool = True) -> Tensor:
        raise RuntimeError(f"{name} drew random numbers of shape {tuple(shape)} outside training")

    def seed(self, name: str) -> int:
        raise RuntimeError(f"{name} asked for a seed outside training")


SILENT = Call(training=False, uniform=_NoDraws())
"""The call of every pass outside training: nothing is dropped, and who draws is at fault."""


@dataclass(frozen=True)
class Stack:
    """Lanes that share one operator at one place.

    Attributes:
        name: `method.layer.site`, the prefix of the saved tensors.
        place: Where.
        members: Positions of the lanes in the stream, ascending.
        groups: What each lane has there, with equal stack keys.
        tensors: Per lane, initial tensors by name at its own size.
    """

    name: str
    place: Place
    members: Sequence[int]
    groups: Sequence[Group]
    tensors: Sequence[Mapping[str, Tensor]]

    def floats(self, parameter: str) -> list[float]:
        """Each lane's value of a parameter."""
        return [float(group[parameter]) for group in self.groups]

    def ints(self, parameter: str) -> list[int]:
        """Each lane's value of a whole-number parameter."""
        return [int(group[parameter]) for group in self.groups]


class LaneOperator(nn.Module):
    """Stacked trainable tensors of `k` lanes at one place, padded to one shape.

    Padding is zero and stays zero: every method guarantees that the gradient of padded entries is
    exactly zero (its docstring says why). Operators keep no state in their computations, so that a
    checkpointed layer can be recomputed.

    Args:
        stack: Its lanes, and where it sits.

    Attributes:
        hook: Where it is called: at a linear map, a norm, a sub-layer, inside attention, or on
            the hidden states at the input or the output of a layer (x and y are the same then);
            or it puts tokens of its own there, see `autopeft.methods.prompt`.
        fixed_names: Tensors that are kept and saved with the lane but not trained (indices).
        matrix_names: Trained tensors of one axis that are weights of a matrix all the same, so
            that weight decay applies to them.
        goes_first: At a linear map: whether it takes y for the frozen map's own output, and so is
            called before operators of other methods, which otherwise follow the alphabet.
        products_only: Whether inputs meet its weights in nothing but matrix products, so that
            autocast takes them in whatever type they come: elsewhere they come in its own.
        reads_x: At a map, a norm or a sub-layer: whether `delta` reads x; of what it does not
            read it is given the shape alone, in a tensor without values.
        reads_y: The same of y.
        changes_text: Of a prompt: whether `delta` changes the hidden states that it stands before.
        frozen: At a linear map: the frozen map itself, for operators that multiply with its weight
            or with the parts of it. Shared by all lanes, never written, not saved.
        frozen_roles: Linear sites of its layer whose frozen maps it multiplies with, whatever its
            hook; `frozen_maps` gives them by role.
        norm: At a norm: what it does before its own scale and shift.
        shared: Trained tensors that its lanes hold at another place, by name, see `Method.owners`.
    """

    frozen: FrozenMap
    frozen_maps: Mapping[str, FrozenMap]
    norm: FrozenNorm
    hook: Literal["linear", "norm", "sublayer", "attention", "input", "output", "prompt"] = (
        "linear"
    )
    fixed_names: tuple[str, ...] = ()
    matrix_names: tuple[str, ...] = ()
    goes_first: bool = False
    products_only: bool = False
    reads_x: bool = True
    reads_y: bool = True
    changes_text: bool = False
    frozen_roles: tuple[str, ...] = ()

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.name = stack.name
        self.members = tuple(stack.members)
        self.shared: dict[str, Shared] = {}
        self.own_shapes: dict[str, list[tuple[int, ...]]] = {}
        self.stacked_names = tuple(n for n in stack.tensors[0] if n not in self.fixed_names)
        for tensor_name in stack.tensors[0]:
            own = [lane[tensor_name] for lane in stack.tensors]
            self.own_shapes[tensor_name] = [tuple(tensor.shape) for tensor in own]
            if tensor_name in self.fixed_names:
                self.register_buffer(tensor_name, _stack(own))
            else:
                self.register_parameter(tensor_name, nn.Parameter(_stack(own)))

    def decays(self, tensor_name: str) -> bool:
        """Whether weight decay applies to a trained tensor: matrices do, biases do not."""
        return len(self.own_shapes[tensor_name][0]) > 1 or tensor_name in self.matrix_names

    def rates(self, tensor_name: str) -> tuple[float, ...]:
        """Each member's learning rate of a trained tensor, in units of its lane's; () for 1."""
        return ()

    def trained(self, tensor_name: str) -> Tensor:
        """A stacked trained tensor [k, ...], its own or one that its lanes hold elsewhere."""
        if tensor_name in self.shared:
            return self.shared[tensor_name].taken()
        return self.get_parameter(tensor_name)

    def lane_tensor(self, tensor: Tensor, tensor_name: str, index: int) -> Tensor:
        """The part of a stacked [k, ...] tensor that belongs to member `index`, unpadded."""
        shape = self.own_shapes[tensor_name][index]
        return _corner(tensor[index], shape)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """What the members add to the site's output.

        An operator at a linear map may read y, but autograd must not keep it (multiply a copy):
        the sum takes over its memory.

        Args:
            x: The site's input, members only, [k, B, T, d_in].
            y: The site's output before this operator, members only, [k, B, T, d_out].
            call: The pass it runs in.

        Returns:
            [k, B, T, d_out].
        """
        raise TypeError(f"{type(self).__name__} adds nothing to a site's output")

    def auxiliary_loss(self) -> Tensor | None:
        """What every member adds to its loss in training by its tensors alone, [k]; None: nothing.

        It counts once per step, into gradients and not into the losses that are reported. What
        depends on activations is added by `row_losses.with_row_losses`, in `delta`.
        """
        return None


@dataclass(frozen=True)
class Shared:
    """A trained tensor that lanes hold once for several places, seen from one that lacks it.

    Attributes:
        owner: The operator that holds it.
        name: Its name there.
        index: The lanes' positions among the owner's members, int64 [k].
    """

    owner: LaneOperator
    name: str
    index: Tensor

    def taken(self) -> Tensor:
        """The lanes' part, [k, ...]; gradients flow to the owner."""
        return self.owner.get_parameter(self.name).index_select(0, self.index)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """[k, *largest shape], zero-padded at the end of every axis."""
    largest = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stacked = tensors[0].new_zeros(len(tensors), *largest)
    for index, tensor in enumerate(tensors):
        _corner(stacked[index], tuple(tensor.shape)).copy_(tensor)
    return stacked


def _corner(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The leading part of a tensor, of the given shape, as a view."""
    for axis, size in enumerate(shape):
        tensor = tensor.narrow(axis, 0, size)
    return tensor


def size_class(size: int) -> int:
    """The smallest power of two that is at least `size`: lanes are padded within it only."""
    return 1 << (size - 1).bit_length()


class LaneDropout(nn.Module):
    """Inverted dropout of [k, B, T, d] at each lane's own rate, from one draw shared by all.

    Args:
        name: Names the draw.
        rates: One per member, in [0, 1).
    """

    rates: Tensor

    def __init__(self, name: str, rates: Sequence[float]) -> None:
        super().__init__()
        self._name, self._idle = name, not any(rates)
        self.register_buffer("rates", torch.tensor(list(rates)))

    @classmethod
    def of(cls, stack: Stack) -> Self:
        """At the rates that the groups call `dropout`."""
        return cls(stack.name, stack.floats("dropout"))

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """The input, with entries dropped in training; itself where no member drops any."""
        if self._idle or not call.training:
            return x
        keep = call.uniform(self._name, x.shape[1:]).unsqueeze(0) >= self.rates.view(-1, 1, 1, 1)
        return x * keep / (1.0 - self.rates).view(-1, 1, 1, 1)
