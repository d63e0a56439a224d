"""Reads `layers:` of a method or of the space itself."""

from collections.abc import Mapping
from typing import Any

from autopeft.space.faults import Faults
from autopeft.space.placement import MODES, LayerChoice


def read_layers(raw: Any, key: str, faults: Faults, *, of_space: bool = False) -> LayerChoice:
    """The layers that `raw` writes; where a fault was noted, all layers.

    Args:
        raw: What the file holds.
        key: Its dotted key.
        faults: Where faults are noted.
        of_space: Whether these are the space's own, which share nothing.
    """
    modes = tuple(mode for mode in MODES if not (of_space and mode == "shared"))
    everywhere = LayerChoice("all")
    if isinstance(raw, list):
        return _listed_layers(raw, key, faults) or everywhere
    if isinstance(raw, str):
        hint = f"write {{mode: {raw}}}" if raw in modes else ""
        faults.add(key, raw, "{mode: ...} or a list of layers", hint)
        return everywhere
    if not isinstance(raw, Mapping) or "mode" not in raw:
        faults.add(key, raw, f"{{mode: ...}} with {', '.join(modes)}; or a list of layers")
        return everywhere
    for name in raw:
        if name != "mode":
            faults.unknown(f"{key}.{name}", name, ("mode",))
    for mode in modes:
        if raw["mode"] == mode:
            return LayerChoice(mode)
    if raw["mode"] == "importance":
        hint = "layers chosen by importance are not available in this release"
        faults.add(f"{key}.mode", "importance", ", ".join(modes), hint)
    else:
        faults.unknown(f"{key}.mode", raw["mode"], modes)
    return everywhere


def _listed_layers(raw: list[Any], key: str, faults: Faults) -> LayerChoice | None:
    legal = [layer for layer in raw if type(layer) is int and layer >= 0]
    if not raw or len(legal) < len(raw):
        wrong = next((layer for layer in raw if type(layer) is not int or layer < 0), raw)
        faults.add(key, wrong, "layers as whole numbers from 0")
    elif len(set(legal)) < len(legal):
        faults.add(key, raw, "each layer once")
    else:
        return LayerChoice("fixed", tuple(sorted(legal)))
    return None
