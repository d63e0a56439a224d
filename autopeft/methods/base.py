"""What a method is: a schema, a closed-form count, initial tensors, and an operator with lanes.

Notation, here and in every method file: `n` lanes in the stream, `k <= n` of them members of an
operator, `B` rows (examples) per lane, `T` tokens. An operator sees its input as [n, B, T, d_in]
and its output as [n, B, T, d_out]. Each stacked tensor is [k, ...]; a solo run is n = k = 1.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.frozen_maps import FrozenMap, Svd, decomposed
from autopeft.backbone.importance import ImportanceMap
from autopeft.backbone.norms import FrozenNorm
from autopeft.configuration import Group
from autopeft.errors import BackboneError, Fault
from autopeft.space.method_names import listed
from autopeft.space.schema import MethodSchema, Scalar

Draw = Callable[[str], torch.Generator]
"""Gives the CPU generator of one named initial tensor; a function of study and replicate."""


def _no_map(layer: int, role: str) -> FrozenMap:
    raise RuntimeError(f"there is no backbone to give the map of layer {layer}, {role}")


def _no_tokens(count: int, layer: int, generator: torch.Generator) -> Tensor:
    raise RuntimeError(f"there is no backbone to give {count} tokens at layer {layer}")


@dataclass(frozen=True)
class Start:
    """What initial tensors may be made of.

    Attributes:
        draw: Gives the generator of one named tensor.
        weight: Gives a linear site's frozen weight by layer and role, [d_in, d_out], float32 on
            the CPU.
        importance: The importance map, or None where it is not measured.
        saved: The place's fixed tensors (indices) as an earlier run chose them, by name, perhaps
            among others; {} for a fresh start. Where a name is there, it is used and nothing is
            chosen anew.
        frozen: Gives a linear site's frozen map by layer and role.
        tokens: Gives hidden states at a layer's input, of so many random tokens of the
            vocabulary: [count, d], float32 on the CPU.
    """

    draw: Draw
    weight: Callable[[int, str], Tensor]
    importance: ImportanceMap | None = None
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    frozen: Callable[[int, str], FrozenMap] = _no_map
    tokens: Callable[[int, int, torch.Generator], Tensor] = _no_tokens


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


@dataclass(frozen=True)
class Kept:
    """What autograd keeps of an operator, for the memory model.

    Attributes:
        inner: Scalars per token of its own inner tensors.
        reads: Whether the whole input is kept beside them.
        of_output: Whether the site's output is what counts as its input there.
        weights: Scalars per lane that exist while it runs, whatever the number of tokens.
        shared: Scalars that exist as long as the backbone, once for all lanes at the place: the
            decomposition of its weight.
    """

    inner: int = 0
    reads: bool = True
    of_output: bool = False
    weights: int = 0
    shared: int = 0


@dataclass(frozen=True)
class DenseMap:
    """A linear map y = x W + b, such as a merged adapter becomes; or a norm's scale and shift.

    Attributes:
        weight: W [d_in, d_out]; of a norm, its scale [d].
        bias: b [d_out], or None.
        known_svd: Gives the weight's SVD where it is kept.
    """

    weight: Tensor
    bias: Tensor | None = None
    known_svd: Callable[[], Svd] | None = None

    def svd(self) -> Svd:
        """The weight's SVD, where the weight lies and in its type."""
        found = decomposed(self.weight) if self.known_svd is None else self.known_svd()
        return found.to(self.weight.device, self.weight.dtype)


class Uniform(Protocol):
    """Random numbers shared by all lanes (see `autopeft.lanes.seeds`)."""

    def __call__(self, name: str, shape: Sequence[int], *, per_row: bool = True) -> Tensor:
        """Uniform [0, 1) floats of the given shape, a pure function of name and step.

        Args:
            name: Names the draw.
            shape: [rows, ...]; any shape where not `per_row`.
            per_row: Whether every example of the batch has numbers of its own, so that a
                micro-batch sees those of its rows; else all of a step's micro-batches see the
                same numbers.
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


def _no_draws(name: str, shape: Sequence[int], *, per_row: bool = True) -> Tensor:
    raise RuntimeError(f"{name} drew random numbers of shape {tuple(shape)} outside training")


SILENT = Call(training=False, uniform=_no_draws)
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


class Method(Protocol):
    """One PEFT family; its file registers one instance.

    Attributes:
        schema: Parameters, legal values, sites.
        source: The paper or code that defines it.
        identity: "exact" where the configured model equals the backbone at initialisation, else
            why it does not.
        peft_type: The HF `peft` type that can hold it, or "" where none can.
        peft_fill: What stands in `peft`'s tensors for those outputs of a fused map that are not
            trained; None where it cannot hold a part of a map.
        alone: Whether it has no lane axis: its trials are packs of one, and it gives no operator.
        modalities: Kinds of backbones that it is for, see `Anatomy.modality`.
    """

    modalities: tuple[str, ...]
    schema: MethodSchema
    alone: bool
    source: str
    identity: str
    peft_type: str
    peft_fill: float | None

    def carried_by(self, anatomy: Anatomy) -> str:
        """Why the backbone cannot carry the method, or "" where it can."""

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """Every place that the group occupies."""

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """The values of a parameter that a place allows; None where the schema alone decides."""

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Why the group cannot be built there, all that its schema cannot say; [] where it can.

        Without an importance map, what only a map could tell is left out.
        """

    def count(self, group: Group, place: Place) -> int:
        """Trainable scalars that a deployed adapter stores at one place, closed form."""

    def training_count(self, group: Group, place: Place) -> int:
        """Scalars trained at one place, before re-parametrisations are folded."""

    def fixed_count(self, group: Group, place: Place) -> int:
        """Scalars that a deployed adapter stores beside the trained ones (indices)."""

    def frozen_work(self, group: Group, place: Place) -> int:
        """Multiply-adds of a token with what is not trained: frozen weights, factors of them.

        Those with trained scalars, one each, are not among them.
        """

    def tokens(self, group: Group) -> int:
        """Tokens that stand before every row's text where the group is."""

    def keys(self, group: Group) -> int:
        """Keys and values that stand before every row's own in the group's layers."""

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """What the operator keeps of every token for the backward pass."""

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """Initial tensors at the lane's own size, on the CPU: trained float32, indices int64.

        Raises:
            BackboneError: It needs scores that are not there.
        """

    def scored_index(self, group: Group, place: Place, importance: ImportanceMap) -> Tensor | None:
        """The tensor `index` of `initial`, where a map's scores alone decide it; else None."""

    def folded_group(self, group: Group) -> Group:
        """The group whose tensors are kept once training re-parametrisations are folded."""

    def folded_tensors(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One place's trained tensors in the form of `folded_group`."""

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap | None:
        """The one linear map that does what the frozen map and a lane's operator do together.

        Args:
            group: What was trained.
            place: Where.
            tensors: The lane's tensors there, unpadded and not folded, fixed ones too, and those
                that it holds elsewhere (see `owners`).
            frozen: The site's map, in the type of the result.

        Returns:
            None for a method that no linear map can stand for.
        """

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """A [d_in, r] and B [r, d_out] with x A B all that it adds, for `peft_type` LORA.

        Args:
            group: What was trained.
            place: Where.
            tensors: As for `merged`.
            frozen: As for `merged`.
        """

    def peft_lacks(self, group: Group, anatomy: Anatomy) -> str:
        """What of a group `peft_type` cannot hold; "" where it holds all."""

    def peft_settings(self, group: Group) -> Mapping[str, Scalar]:
        """Arguments of the configuration of `peft_type`, which has one value of each.

        See `autopeft.export.peft_forms`.
        """

    def peft_module_settings(
        self, modules: Mapping[str, tuple[Group, Place]]
    ) -> Mapping[str, object]:
        """Further arguments, which name modules.

        Args:
            modules: What is where, by the modules' full names.
        """

    def peft_trains(self, group: Group) -> str:
        """What `peft` would train otherwise by that configuration; "" where nothing."""

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """One place's tensors by their names within `peft`'s module; arguments as for `merged`."""

    def owners(self, group: Group, place: Place) -> Mapping[str, tuple[int, str]]:
        """Trained tensors that the group has once for several places: who holds them.

        By name, the layer and site of another of the group's places, for those that this place
        lacks; {} where it has all of its own. What decides it belongs to `stack_key`.
        """

    def consistency(self, group: Group) -> float:
        """What its lane's loss counts the divergence of two passes with other draws; 0: one pass.

        In training alone, and not in reported losses; see `autopeft.training.lanes.comparing`.
        """

    def stack_key(self, group: Group) -> Hashable:
        """What groups must share, beside the size class, to be stacked in one operator."""

    def operator(self, stack: Stack) -> LaneOperator:
        """The operator of these lanes at this place."""


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


class Registry:
    """Methods by name. A duplicate or unknown name raises with the known list.

    Beside those with files of their own there may be a family that is offered by name alone: its
    methods are made when somebody asks for them.
    """

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}
        self._offered: dict[str, Callable[[], Method]] = {}

    def register(self, method: Method) -> Method:
        """Add a method under its schema's name."""
        name = method.schema.name
        if name in self._methods:
            raise ValueError(
                f"method {name!r} is registered twice; known: {sorted(self._methods)}"
            )
        self._methods[name] = method
        return method

    def offer(self, name: str, make: Callable[[], Method]) -> None:
        """Offer a method that is made when it is first asked for."""
        self._offered[name] = lru_cache(1)(make)

    def __getitem__(self, name: str) -> Method:
        if name in self._offered:
            return self._offered[name]()
        if name not in self._methods:
            allowed = listed([*self._methods, *self._offered])
            raise BackboneError(Fault("configuration", name, "an unknown method", allowed))
        return self._methods[name]

    def names(self) -> tuple[str, ...]:
        """Names of the methods with files of their own, in the order of registration."""
        return tuple(self._methods)

    def offered(self) -> tuple[str, ...]:
        """Names of all others."""
        return tuple(self._offered)

    def schemas(self) -> Mapping[str, MethodSchema]:
        """All schemas by name; of what is offered, made when they are looked up."""
        return _Schemas(self)

    def carried_by(self, anatomy: Anatomy) -> frozenset[str]:
        """Names of the methods that a backbone can carry."""
        names = (*self._methods, *self._offered)
        return frozenset(name for name in names if not self[name].carried_by(anatomy))


class _Schemas(Mapping[str, MethodSchema]):
    """A registry's schemas."""

    def __init__(self, methods: Registry) -> None:
        self._of = methods

    def __getitem__(self, name: str) -> MethodSchema:
        if name not in self:
            raise KeyError(name)
        return self._of[name].schema

    def __contains__(self, name: object) -> bool:
        return name in self._of.names() or name in self._of.offered()

    def __iter__(self) -> Iterator[str]:
        yield from self._of.names()
        yield from self._of.offered()

    def __len__(self) -> int:
        return len(self._of.names()) + len(self._of.offered())


registry = Registry()
