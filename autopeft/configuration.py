"""A configuration: one point of a search space, in one canonical form.

Two configurations that train the same thing are equal and have equal hashes: groups are sorted and
merged, empty ones dropped, numbers normalised. Everything that names a trial's identity goes
through `Configuration.hash`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autopeft.errors import Fault, SpaceError
from autopeft.space.schema import Scalar
from autopeft.space.training import REQUIRED, option_defaults, said

TRAINING_KEYS = tuple(each.name for each in REQUIRED)
"""The training hyper-parameters that every configuration has; all others are the study's, but for
`TRAINING_OPTIONS`."""

TRAINING_OPTIONS: Mapping[str, float] = option_defaults()
"""Training hyper-parameters that a configuration names where they are on; their values if not."""

NO_SPARSITY: Mapping[str, Scalar] = {"rule": "none"}


def _normal(value: Scalar) -> Scalar:
    """One spelling per value: floats to 12 significant digits, whole ones as integers."""
    if not isinstance(value, float):
        return value
    rounded = float(f"{value:.12g}")
    return int(rounded) if rounded.is_integer() else rounded


def _items(settings: Mapping[str, Scalar]) -> tuple[tuple[str, Scalar], ...]:
    return tuple(sorted((name, _normal(value)) for name, value in settings.items()))


@dataclass(frozen=True)
class Group:
    """One method with one set of settings at one placement.

    Attributes:
        method: A registered method's name.
        layers: Layer indices, sorted, from 0.
        sites: Roles, sorted; () where the method implies its place.
        settings: The method's parameters as sorted (name, value) pairs.
    """

    method: str
    layers: tuple[int, ...]
    sites: tuple[str, ...] = ()
    settings: tuple[tuple[str, Scalar], ...] = ()

    @classmethod
    def of(
        cls, method: str, layers: Iterable[int], sites: Iterable[str] = (), **settings: Scalar
    ) -> "Group":
        """A group in canonical form."""
        return cls(method, tuple(sorted(set(layers))), tuple(sorted(set(sites))), _items(settings))

    def __getitem__(self, name: str) -> Scalar:
        return dict(self.settings)[name]

    def get(self, name: str, default: Scalar | None = None) -> Scalar | None:
        """The setting called `name`, or the default."""
        return dict(self.settings).get(name, default)

    def to_dict(self) -> dict[str, Any]:
        """The group as an entry of the configuration's YAML."""
        plain: dict[str, Any] = {"layers": list(self.layers)}
        if self.sites:
            plain["sites"] = list(self.sites)
        return plain | dict(self.settings)


@dataclass(frozen=True)
class Configuration:
    """Methods with sizes and placements, sparsity, and the training values of one trial.

    Build it with `Configuration.of` or `from_dict`; both give the canonical form. Instances are
    immutable, hashable and compare by value.

    Attributes:
        groups: The method groups, sorted; groups that differ in layers alone are merged.
        sparsity: The sparsity rule and its parameters as sorted pairs.
        training: `TRAINING_KEYS`, and of `TRAINING_OPTIONS` those that are on, with their values
            as sorted pairs.
    """

    groups: tuple[Group, ...]
    sparsity: tuple[tuple[str, Scalar], ...] = (("rule", "none"),)
    training: tuple[tuple[str, Scalar], ...] = field(default=())

    @classmethod
    def of(
        cls,
        groups: Iterable[Group],
        *,
        training: Mapping[str, Scalar],
        sparsity: Mapping[str, Scalar] = NO_SPARSITY,
    ) -> "Configuration":
        """The canonical configuration of these groups and values.

        Raises:
            SpaceError: A method sits twice on one layer and site, or a training key is unknown
                or missing.
        """
        if set(training) - set(TRAINING_OPTIONS) != set(TRAINING_KEYS):
            raise SpaceError(
                Fault(
                    "configuration",
                    "training",
                    ", ".join(sorted(training)) or "nothing",
                    ", ".join(TRAINING_KEYS),
                )
            )
        return cls(_merged(groups), _items(sparsity), _items(said(training)))

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of SHA-256 over the canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in use, sorted."""
        return tuple(sorted({group.method for group in self.groups}))

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer that some method occupies, sorted."""
        return tuple(sorted({layer for group in self.groups for layer in group.layers}))

    def without_rule(self) -> "Configuration":
        """The same groups and training values, and no sparsity rule."""
        return replace(self, sparsity=_items(NO_SPARSITY))

    def training_value(self, key: str) -> float:
        """One of `TRAINING_KEYS` or `TRAINING_OPTIONS`."""
        return float({**TRAINING_OPTIONS, **dict(self.training)}[key])

    def to_dict(self) -> dict[str, Any]:
        """The plain form: `{method: [group, ...], "sparsity": {...}, "training": {...}}`."""
        plain: dict[str, Any] = {}
        for group in self.groups:
            plain.setdefault(group.method, []).append(group.to_dict())
        return plain | {"sparsity": dict(self.sparsity), "training": dict(self.training)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Configuration":
        """The inverse of `to_dict`; the form is trusted, see `autopeft.methods` for checks."""
        groups = [
            Group.of(
                method,
                entry["layers"],
                entry.get("sites", ()),
                **{key: value for key, value in entry.items() if key not in ("layers", "sites")},
            )
            for method, entries in plain.items()
            if method not in ("sparsity", "training")
            for entry in entries
        ]
        return cls.of(
            groups, training=plain["training"], sparsity=plain.get("sparsity", NO_SPARSITY)
        )


Settings = tuple[tuple[str, Scalar], ...]


def _merged(groups: Iterable[Group]) -> tuple[Group, ...]:
    """Groups of one method with equal settings become one where their sites agree.

    Each (method, settings) is spread over its layers; layers with equal sites form a group again.
    Groups without layers vanish; a method twice at one place raises.
    """
    sites_of: dict[tuple[str, Settings], dict[int, set[str]]] = {}
    seen: set[tuple[str, str, int]] = set()
    for group in groups:
        by_layer = sites_of.setdefault((group.method, group.settings), {})
        for layer in group.layers:
            for site in group.sites or ("",):
                if (group.method, site, layer) in seen:
                    place = f"layer {layer}, {site}" if site else f"layer {layer}"
                    raise SpaceError(
                        Fault("configuration", group.method, f"two groups at {place}", "one group")
                    )
                seen.add((group.method, site, layer))
            by_layer.setdefault(layer, set()).update(group.sites)
    merged = [
        Group.of(method, layers, sites, **dict(settings))
        for (method, settings), by_layer in sites_of.items()
        for sites, layers in _by_sites(by_layer).items()
    ]
    return tuple(sorted(merged, key=lambda g: (g.method, g.layers, g.sites, str(g.settings))))


def _by_sites(by_layer: Mapping[int, set[str]]) -> dict[tuple[str, ...], list[int]]:
    grouped: dict[tuple[str, ...], list[int]] = {}
    for layer, sites in by_layer.items():
        grouped.setdefault(tuple(sorted(sites)), []).append(layer)
    return grouped
