"""Which matrices a configuration trains and for how much, for rules that act before training."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, wraps

from autopeft.backbone.anatomy import EXIT, Anatomy
from autopeft.backbone.importance import ImportanceMap, Key
from autopeft.configuration import Configuration, Group
from autopeft.methods import registry
from autopeft.methods.lane_operator import Place

REMEMBERED = 1024
"""Configurations of which is kept what they come to: some hundred groups each at most."""

SPARSE = "sparse"

Resolve = Callable[[Configuration, Anatomy], Configuration]


@dataclass(frozen=True)
class Part:
    """One place of one group.

    Attributes:
        group: The group, at this place alone.
        params: What it trains there.
    """

    group: Group
    params: int


@dataclass(frozen=True)
class Parts:
    """A configuration taken apart.

    Attributes:
        matrices: What is trained at every linear map that the rule may change.
        others: Groups that stay as they are.
    """

    matrices: Mapping[Key, tuple[Part, ...]]
    others: tuple[Group, ...]

    def params(self, key: Key) -> int:
        """What is trained at a matrix."""
        return sum(part.params for part in self.matrices[key])

    @property
    def total(self) -> int:
        """What is trained at all of them."""
        return sum(map(self.params, self.matrices))


def parts_of(configuration: Configuration, anatomy: Anatomy, sites: Collection[str]) -> Parts:
    """A configuration's places by the matrix that they belong to.

    A sub-layer's adapter belongs to the sub-layer's last map. A map that trains sparse weights
    already stays as it is, with all that sits there.

    Args:
        configuration: Its groups.
        anatomy: The backbone.
        sites: Linear roles and sub-layers that a rule may change.
    """
    taken = {
        (layer, site)
        for group in configuration.groups
        if group.method == SPARSE
        for layer in group.layers
        for site in group.sites
    }
    matrices: dict[Key, list[Part]] = defaultdict(list)
    others = []
    for group in configuration.groups:
        method = registry[group.method]
        for place in method.places(group, anatomy):
            key = place.layer, EXIT.get(place.site, place.site)
            named = (place.site,) if group.sites else ()
            alone = Group.of(group.method, (place.layer,), named, **dict(group.settings))
            if group.method == SPARSE or place.site not in sites or key in taken:
                others.append(alone)
            else:
                matrices[key].append(Part(alone, method.count(group, place)))
    return Parts({key: tuple(parts) for key, parts in matrices.items()}, tuple(others))


def place_of(key: Key, anatomy: Anatomy) -> Place:
    """The linear map at a layer and role."""
    site = anatomy.site(*key)
    return Place(*key, site.in_features, site.out_features, anatomy.head_dim)


@dataclass(frozen=True)
class _Asked:
    """A map (itself, not its content) is of one backbone, and anatomies cannot be hashed."""

    configuration: Configuration
    importance: ImportanceMap
    anatomy: Anatomy = field(compare=False)


def remembered(resolve: Resolve) -> Resolve:
    """The same function, which answers from memory where there is an importance map."""

    @lru_cache(maxsize=REMEMBERED)
    def answer(asked: _Asked) -> Configuration:
        return resolve(asked.configuration, asked.anatomy)

    @wraps(resolve)
    def ask(configuration: Configuration, anatomy: Anatomy) -> Configuration:
        if anatomy.importance is None:
            return resolve(configuration, anatomy)
        return answer(_Asked(configuration, anatomy.importance, anatomy))

    return ask
