"""What a search space has to know about methods and backbones, as plain data.

Methods and backbones live above the space (they know it, it does not know them), so they describe
themselves here: a method by its parameters and legal sites, a backbone by its dimensions.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

Scalar: TypeAlias = bool | int | float | str

Pair: TypeAlias = tuple[int, str]
"""A layer and one of its sites."""

POSITIVE: Final = "> 0"
"""In a `when`: any number above 0."""


@dataclass(frozen=True)
class ParameterSchema:
    """One parameter of a method.

    Attributes:
        name: As in YAML (`rank`, `dropout`, ...).
        kind: The type of a legal value; of "bool|str", true, false and some names.
        default: The value where a space or configuration gives none; None = must be given.
        minimum: Smallest legal number (inclusive), for `int` and `float`.
        maximum: Largest legal number (inclusive), or None.
        choices: Legal texts, where not any will do.
        numbered: Beginnings of further legal texts, of which a whole number is the rest.
        refused: Texts (`true` and `false` among them, numbered ones as `name_N`) that others take
            and that are not legal here, with why.
        when: Makes the parameter meaningless (dropped from the canonical form) unless the named
            sibling parameter has the given value, such as ("reparametrise", True), or is a number
            above 0, ("density_weight", POSITIVE).
        measured: Values of a `str` parameter that mean something only with an importance map.
        tacit: Whether a configuration leaves it out at its default, so that those from before the
            parameter existed are still the same; nothing may depend on that value by `when`.
        optional: Whether it may be left out although no value stands for that.
    """

    name: str
    kind: Literal["int", "float", "bool", "str", "bool|str"]
    default: Scalar | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    numbered: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)
    when: tuple[str, Scalar] | None = None
    measured: tuple[str, ...] = ()
    tacit: bool = False
    optional: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Its legal values as a file writes them; () for a number or any text."""
        flags = ("true", "false") if self.kind.startswith("bool") else ()
        named = (*flags, *self.choices, *(f"{start}N" for start in self.numbered))
        return tuple(word for word in named if word not in self.refused)

    def admits(self, value: object) -> bool:
        """Whether a value that is no number is legal."""
        if isinstance(value, bool):
            return self.kind.startswith("bool") and not self.why_not(value)
        if not (isinstance(value, str) and self.kind.endswith("str")) or self.why_not(value):
            return False
        listed = bool(self.choices or self.numbered)
        return not listed or value in self.choices or self._is_numbered(value)

    def _is_numbered(self, text: str) -> bool:
        return any(re.fullmatch(f"{re.escape(s)}(0|[1-9][0-9]*)", text) for s in self.numbered)

    def why_not(self, value: object) -> str:
        """Why a value that others take is not legal; "" where nothing is known of it."""
        word = str(value).lower() if isinstance(value, bool) else value
        if not isinstance(word, str):
            return ""
        return self.refused.get(word) or self.refused.get(re.sub("[0-9]+$", "N", word), "")

    def is_said(self, value: object) -> bool:
        """Whether a configuration names this value."""
        return not (self.tacit and value == self.default)

    def means(self, sibling: object) -> bool:
        """Whether it means something where the sibling that `when` names has this value."""
        if self.when is None:
            return True
        if self.when[1] == POSITIVE:
            return isinstance(sibling, int | float) and sibling > 0
        return sibling == self.when[1]


def by_scores(parameters: Iterable[ParameterSchema], given: Mapping[str, Scalar]) -> bool:
    """Whether some of these parameters has a value that means something only with a map.

    Args:
        parameters: Of a method or a rule.
        given: Their values by name; what is left out has its default.
    """
    return any(given.get(each.name, each.default) in each.measured for each in parameters)


@dataclass(frozen=True)
class MethodSchema:
    """How a method may be written in a space or a configuration.

    Attributes:
        name: The method's registered name.
        size: The parameter that is its size; in a space, a size of 0 means "absent". "" where
            nothing of it scales: it is there or not.
        parameters: All its parameters, the size first.
        sites: Roles on which it may sit and which a configuration names; () where the place is
            implied by the method (`prefix`).
        default_sites: The sites where none are given.
        refused: Names that others give it and it does not take, with what to do instead.
    """

    name: str
    size: str
    parameters: tuple[ParameterSchema, ...]
    sites: tuple[str, ...] = ()
    default_sites: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)

    def parameter(self, name: str) -> ParameterSchema:
        """The parameter called `name`; KeyError where there is none."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)


@dataclass(frozen=True)
class RuleSchema:
    """How a sparsity rule may be written in a space or a configuration.

    Attributes:
        name: The rule's registered name.
        parameters: All its parameters; each has a default.
        methods: It needs one of these methods in the configuration, else it means nothing and
            the configuration's rule is `none`; () where any method will do.
        measured: Whether it needs an importance map.
    """

    name: str
    parameters: tuple[ParameterSchema, ...] = ()
    methods: tuple[str, ...] = ()
    measured: bool = False


@dataclass(frozen=True)
class Ranking:
    """What matters most for a study's data by one score, the most important first.

    Attributes:
        layers: All layers.
        sites: All (layer, site) pairs, sub-layers among them.
    """

    layers: tuple[int, ...]
    sites: tuple[Pair, ...]


@dataclass(frozen=True)
class Shape:
    """The dimensions of one backbone, as a space sees them.

    Attributes:
        n_layers: Layers that can be adapted, counted from 0.
        dimensions: Named widths that sizes may refer to: `hidden_size`, `intermediate_size`.
        roles: Sites that the backbone has: linear roles and sub-layers.
        methods: Methods that the backbone can carry.
        rankings: By score; {} where the importance of layers and sites is not measured.
    """

    n_layers: int
    dimensions: Mapping[str, int]
    roles: frozenset[str]
    methods: frozenset[str]
    rankings: Mapping[str, Ranking] = field(default_factory=dict)

    def ranking(self, score: str) -> Ranking:
        """The ranking by a score; KeyError where others are measured, but not this one.

        Where nothing is measured, a stand-in with the top layers first: of the right sizes, and
        good for checks alone. A search binds its space to a measured backbone.
        """
        if self.rankings:
            return self.rankings[score]
        layers = tuple(reversed(range(self.n_layers)))
        return Ranking(
            layers, tuple((layer, role) for layer in layers for role in sorted(self.roles))
        )
