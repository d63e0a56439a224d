"""What a method is: a schema, a closed-form count, initial tensors, and an operator with lanes."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.frozen_maps import FrozenMap, Svd, decomposed
from autopeft.backbone.importance import ImportanceMap
from autopeft.configuration import Group
from autopeft.errors import BackboneError, Fault
from autopeft.methods.lane_operator import LaneOperator, Place, Stack
from autopeft.space.method_names import listed
from autopeft.space.schema import MethodSchema, Scalar

Reached: TypeAlias = Literal["", "attention", "norms", "nothing"]

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
class Compared:
    """Tokens of a row that an operator compares with one another, in float32.

    Attributes:
        tokens: Of a row, at most.
        each: Scalars that are kept of each.
        pair: Scalars that are kept of each pair of them, and of each with itself.
        running: Scalars of each pair more while they are compared.
    """

    tokens: int
    each: int
    pair: float
    running: float

    def kept(self, tokens: int) -> float:
        """Scalars that are kept of a row of so many tokens."""
        number = min(self.tokens, tokens)
        return number * (self.each + number * self.pair)

    def passing(self, tokens: int) -> float:
        """Scalars more while the tokens of such a row are compared."""
        return self.running * min(self.tokens, tokens) ** 2


@dataclass(frozen=True)
class Kept:
    """What autograd keeps of an operator, for the memory model.

    Attributes:
        inner: Scalars per token of its own inner tensors.
        reads: Whether the whole input is kept beside them.
        of_output: Whether the site's output is what counts as its input there.
        weights: Scalars per lane that exist while it runs, whatever the number of tokens.
        lasting: The same, of those that it keeps; float32.
        running: Scalars per token that come and go while it runs, float32.
        compared: Tokens that it compares with one another.
        shared: Scalars that exist as long as the backbone, once for all lanes at the place: the
            decomposition of its weight.
        exact: Scalars per token more that stay float32 under autocast, which casts factors of
            matrix products alone: those that are scaled number by number, say.
        reads_exactly: Whether the input stays float32 under autocast too.
        products_only: As the operator's: its input and output come in any type; others are given
            copies in float32 where they come in another.
    """

    inner: int = 0
    reads: bool = True
    of_output: bool = False
    weights: int = 0
    lasting: int = 0
    running: int = 0
    compared: Compared | None = None
    shared: int = 0
    exact: int = 0
    reads_exactly: bool = False
    products_only: bool = False


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
        reads_batch: Whether what it gives a token depends on all tokens that run with it: a last
            layer of which one token is read has to run on all of them.
        reached: What of a layer gradients come through on their way to a method that has no sites:
            "attention" (all of it), "norms" (what follows the attention), "nothing" (it stands
            behind the layer); "" where it has sites, which tell.
        stands_for: The linear maps in whose place it trains, where it has no sites: how much of
            what matters it covers is told by theirs.
        reads_output: Whether it changes what those before it in the alphabet have made at the same
            place, so that factors side by side are not what was trained.
        modalities: Kinds of backbones that it is for, see `Anatomy.modality`.
    """

    modalities: tuple[str, ...]
    schema: MethodSchema
    alone: bool
    reads_batch: bool
    reached: Reached
    stands_for: tuple[str, ...]
    reads_output: bool
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
            frozen: The site's map, in the type of the result; of a sub-layer, its last.

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

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """A group's settings that train what a configuration of `peft_type` does.

        Args:
            config: All arguments of `peft`'s configuration.

        Returns:
            None where it trains something else.
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
