"""What methods inherit: the answers of one that sits on linear maps, chooses and folds nothing."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence

from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.backbone.importance import ImportanceMap
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import DenseMap, Reached
from autopeft.methods.lane_operator import LaneOperator, Place, Stack
from autopeft.space.schema import MethodSchema, Scalar

MOST_SHOWN = 12
"""Legal values that an error shows from either end."""


def linear_places(group: Group, anatomy: Anatomy) -> list[Place]:
    """The places of a method that sits on linear maps."""
    return [
        Place(layer, role, site.in_features, site.out_features, anatomy.head_dim)
        for layer in group.layers
        for role in group.sites
        for site in [anatomy.site(layer, role)]
    ]


def sublayer_places(group: Group, anatomy: Anatomy) -> list[Place]:
    """The places of a method that sits on sub-layers (residual width in and out)."""
    return [
        Place(layer, sublayer, anatomy.hidden_size, anatomy.hidden_size)
        for layer in group.layers
        for sublayer in group.sites
    ]


def layer_places(group: Group, anatomy: Anatomy) -> list[Place]:
    """The places of a method that implies its place, one per layer (residual width)."""
    width = anatomy.hidden_size
    return [Place(layer, group.method, width, width) for layer in group.layers]


class Unchosen:
    """What a method inherits that chooses nothing, and so keeps no fixed tensors.

    Attributes:
        operator_type: Makes its operator; of one whose groups decide that, `operator` does.
    """

    modalities: tuple[str, ...] = ("text", "image")
    schema: MethodSchema
    operator_type: Callable[[Stack], LaneOperator]
    alone = False
    reads_batch = False
    reached: Reached = ""
    stands_for: tuple[str, ...] = ()
    reads_output = False
    peft_type = ""
    peft_fill: float | None = None

    def legal(self, name: str, place: Place) -> Sequence[Scalar] | None:
        """No place has a say."""
        return None

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Values that a linear map's widths do not allow, with those that they do.

        One for all places of the same widths.
        """
        places = linear_places(group, anatomy) if self.schema.sites == LINEAR_ROLES else []
        alike: dict[tuple[str, Scalar, str, str], list[Place]] = {}
        for place in places:
            for name, value in group.settings:
                allowed = self.legal(name, place)
                if allowed is not None and value not in allowed:
                    widths = f"{place.d_in} x {place.d_out}"
                    alike.setdefault((name, value, widths, _shown(allowed)), []).append(place)
        return [
            Fault(
                "configuration",
                f"{self.schema.name}.{name}",
                f"{value} at {_named(faulty)}, {widths}",
                shown,
            )
            for (name, value, widths, shown), faulty in alike.items()
        ]

    def frozen_work(self, group: Group, place: Place) -> int:
        """None."""
        return 0

    def tokens(self, group: Group) -> int:
        """None."""
        return 0

    def keys(self, group: Group) -> int:
        """None."""
        return 0

    def merged(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> DenseMap | None:
        """W + A B where it becomes LoRA; else None: no linear map can stand for it."""
        if self.peft_type != "LORA":
            return None
        a, b = self.lora_factors(group, place, tensors, frozen)
        return DenseMap(frozen.weight + a @ b, frozen.bias)

    def lora_factors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> tuple[Tensor, Tensor]:
        """There are none."""
        raise TypeError(f"{self.schema.name} does not become LoRA")

    def peft_lacks(self, group: Group, anatomy: Anatomy) -> str:
        """Nothing."""
        return ""

    def peft_settings(self, group: Group) -> Mapping[str, Scalar]:
        """None: `peft` does not hold it, or `autopeft.export` knows how."""
        return {}

    def from_peft(self, config: Mapping[str, object]) -> Mapping[str, Scalar] | None:
        """None does."""
        return None

    def peft_module_settings(
        self, modules: Mapping[str, tuple[Group, Place]]
    ) -> Mapping[str, object]:
        """None."""
        return {}

    def peft_trains(self, group: Group) -> str:
        """Nothing."""
        return ""

    def peft_tensors(
        self, group: Group, place: Place, tensors: Mapping[str, Tensor], frozen: DenseMap
    ) -> Mapping[str, Tensor]:
        """None, likewise."""
        return {}

    def owners(self, group: Group, place: Place) -> Mapping[str, tuple[int, str]]:
        """None: every place has tensors of its own."""
        return {}

    def consistency(self, group: Group) -> float:
        """None: one pass is all."""
        return 0.0

    def fixed_count(self, group: Group, place: Place) -> int:
        """None."""
        return 0

    def scored_index(self, group: Group, place: Place, importance: ImportanceMap) -> Tensor | None:
        """None: nothing is chosen."""
        return None

    def stack_key(self, group: Group) -> Hashable:
        """Nothing: all of a place stack."""
        return ()

    def operator(self, stack: Stack) -> LaneOperator:
        """The one of its type."""
        return self.operator_type(stack)


def _named(places: Sequence[Place]) -> str:
    """Where places are: `layer 0, query`, or `layers 0, 1, 2, query, value`."""
    layers = list(dict.fromkeys(place.layer for place in places))
    sites = list(dict.fromkeys(place.site for place in places))
    counted = "layer" if len(layers) == 1 else "layers"
    return f"{counted} {', '.join(map(str, layers))}, {', '.join(sites)}"


def _shown(allowed: Sequence[Scalar]) -> str:
    """Legal values for an error: a range by its ends, of many the first and the last."""
    if isinstance(allowed, range):
        return f"{allowed[0]} to {allowed[-1]}" if allowed else "no value: choose other sites"
    words = [str(value) for value in allowed]
    if len(words) > 2 * MOST_SHOWN:
        words[MOST_SHOWN:-MOST_SHOWN] = ["..."]
    return ", ".join(words) or "no value: choose other sites"


class Unfolded(Unchosen):
    """What a method without training re-parametrisations and fixed tensors inherits."""

    def folded_group(self, group: Group) -> Group:
        """The group itself."""
        return group

    def folded_tensors(self, group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors themselves."""
        return dict(tensors)


class OnLinearMaps(Unfolded, ABC):
    """What a method inherits that sits on any linear map and stores all that it trains."""

    def carried_by(self, anatomy: Anatomy) -> str:
        """Any backbone with linear sites carries it."""
        return "" if anatomy.roles else "it has no linear sites"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer and role."""
        return linear_places(group, anatomy)

    @abstractmethod
    def count(self, group: Group, place: Place) -> int:
        """Trainable scalars at one place, closed form."""

    def training_count(self, group: Group, place: Place) -> int:
        """The same as is stored."""
        return self.count(group, place)


def divisors(*widths: int) -> tuple[int, ...]:
    """The common divisors of some widths, ascending."""
    common = math.gcd(*widths)
    return tuple(each for each in range(1, common + 1) if common % each == 0)
