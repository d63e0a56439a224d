"""Reads one method's block of a space."""

from collections.abc import Mapping
from typing import Any

from autopeft.space.binding import MethodSpace
from autopeft.space.faults import Faults
from autopeft.space.layer_choice import LayerChoice
from autopeft.space.layers_parser import read_layers
from autopeft.space.leaves import (
    Choice,
    Fixed,
    Leaf,
    can_matter,
    default_leaf,
    parents_first,
    read_leaf,
    refuse_unused,
)
from autopeft.space.schema import MethodSchema, ParameterSchema
from autopeft.space.spellings import PARAMETER_SPELLINGS, RANKED_SITES, SITE_SPELLINGS
from autopeft.space.training_parser import read_training

_PRESENT = ParameterSchema("present", "bool", default=True)
_SCALED = "alpha"
"""The parameter that may be given as a multiple of the size (`alpha_over_rank`)."""


class MethodParser:
    """Reads one method's block; notes faults under its key.

    Args:
        schema: The method's schema.
        key: Its dotted key (`methods.lora`).
        faults: Where faults are noted.
    """

    def __init__(self, schema: MethodSchema, key: str, faults: Faults) -> None:
        self.schema = schema
        self.key = key
        self.faults = faults
        self.ratio = f"{_SCALED}_over_{schema.size}" if schema.size else ""

    def parse(self, block: Mapping[str, Any]) -> MethodSpace | None:
        """The method, or None where it is fixed as not present or lacks its size."""
        self._check_keys(block)
        present = read_leaf(
            block.get("present", True), _PRESENT, f"{self.key}.present", self.faults
        )
        sites, subset = self._sites(block)
        layers = LayerChoice("shared")
        if "layers" in block:
            layers = read_layers(block["layers"], f"{self.key}.layers", self.faults)
            self._check_ranked_sites(layers, subset=subset)
        leaves = self._leaves(block)
        training = read_training(block.get("training", {}), f"{self.key}.training", self.faults)
        never = present == Fixed(False) or present == Choice((False,))
        sized = not self.schema.size or self.schema.size in leaves
        if never or not sized:
            return None
        return MethodSpace(
            schema=self.schema,
            switched=isinstance(present, Choice) and len(present.values) > 1,
            leaves=tuple(leaves.items()),
            per_size=_SCALED if self.ratio in block else "",
            sites=sites,
            subset=subset,
            layers=layers,
            training=training,
        )

    def _check_keys(self, block: Mapping[str, Any]) -> None:
        known = [parameter.name for parameter in self.schema.parameters]
        known += [self.ratio] if self.ratio and _SCALED in known else []
        known += ["sites"] if self.schema.sites else []
        known += ["layers", "present", "training"]
        spellings = {
            foreign: next((name for name in ours if name in known), "")
            for foreign, ours in PARAMETER_SPELLINGS.items()
        }
        for name in block:
            if name in self.schema.refused:
                hint = self.schema.refused[name]
                self.faults.add(f"{self.key}.{name}", block[name], "nothing", hint)
            elif name not in known:
                self.faults.unknown(f"{self.key}.{name}", name, known, spellings)
        if _SCALED in block and self.ratio in block:
            allowed = f"{_SCALED} or {self.ratio}, not both"
            self.faults.add(f"{self.key}.{self.ratio}", block[self.ratio], allowed)

    # -- parameters ---------------------------------------------------------------------------

    def _leaves(self, block: Mapping[str, Any]) -> dict[str, Leaf]:
        """The leaves of all parameters that can matter, parents before their dependents."""
        leaves: dict[str, Leaf] = {}
        for parameter in parents_first(self.schema.parameters):
            if not can_matter(parameter, leaves):
                if (name := parameter.name) in block:
                    refuse_unused(parameter, block[name], f"{self.key}.{name}", self.faults)
                continue
            leaf = self._leaf(parameter, block)
            if leaf is not None:
                leaves[parameter.name] = leaf
        return leaves

    def _leaf(self, parameter: ParameterSchema, block: Mapping[str, Any]) -> Leaf | None:
        name, key = parameter.name, f"{self.key}.{parameter.name}"
        if name == _SCALED and self.ratio in block:
            ratio = ParameterSchema(self.ratio, "float", minimum=1e-6)
            return read_leaf(block[self.ratio], ratio, f"{self.key}.{self.ratio}", self.faults)
        if name in block:
            is_size = name == self.schema.size
            return read_leaf(block[name], parameter, key, self.faults, is_size=is_size)
        if parameter.default is None:
            if parameter.optional:
                return None
            also = f" or {self.ratio}" if name == _SCALED else ""
            self.faults.add(key, "nothing", f"{name}{also}, which has no default")
            return None
        return default_leaf(parameter)

    # -- sites --------------------------------------------------------------------------------

    def _sites(self, block: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
        """The sites in the schema's order, and whether any subset of them may be chosen."""
        raw = block.get("sites")
        if "sites" not in block or not self.schema.sites:
            return self.schema.default_sites, False
        key = f"{self.key}.sites"
        listed, subset = raw, False
        if isinstance(raw, Mapping) and set(raw) == {"subset"}:
            listed, subset = raw["subset"], True
        if not isinstance(listed, list) or not listed:
            example = ", ".join(self.schema.default_sites)
            ranked = f"importance chooses among them: `{RANKED_SITES}`"
            hint = ranked if raw == "importance" else ""
            self.faults.add(key, raw, f"a list such as [{example}], or {{subset: [...]}}", hint)
            return self.schema.default_sites, False
        for index, site in enumerate(listed):
            if site not in self.schema.sites:
                self.faults.unknown(key, site, self.schema.sites, SITE_SPELLINGS)
            elif site in listed[:index]:
                self.faults.add(key, site, "each site once", "remove the second one")
        return tuple(site for site in self.schema.sites if site in listed), subset

    def _check_ranked_sites(self, layers: LayerChoice, *, subset: bool) -> None:
        """Ranked (layer, site) pairs need sites to rank, and no second choice among them."""
        if not layers.of_sites:
            return
        key = f"{self.key}.layers.of"
        if not self.schema.sites:
            self.faults.add(key, "sites", "layers", f"{self.schema.name} has its own place")
        elif subset:
            hint = "write the sites as a list: the most important of them are chosen"
            self.faults.add(key, "sites beside a subset of sites", "one choice of sites", hint)
