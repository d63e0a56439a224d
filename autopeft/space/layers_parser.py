"""Reads `layers:` of a method or of the space itself."""

from collections.abc import Mapping
from typing import Any

from autopeft.space.faults import Faults
from autopeft.space.layer_choice import DEFAULT_SCORE, MODES, SCORES, LayerChoice
from autopeft.space.leaves import read_leaf
from autopeft.space.schema import ParameterSchema

_KEEP = ParameterSchema("keep", "int", minimum=1)
_OF = ("layers", "sites")


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
    if raw["mode"] not in modes:
        faults.unknown(f"{key}.mode", raw["mode"], modes)
        return everywhere
    ranked = raw["mode"] == "importance"
    known = ("mode", "keep", "score", "of") if ranked else ("mode",)
    for name in raw:
        if name not in known:
            faults.unknown(f"{key}.{name}", name, known)
    if ranked:
        return _by_importance(raw, key, faults, of_space=of_space)
    return LayerChoice(raw["mode"])


def _by_importance(
    raw: Mapping[str, Any], key: str, faults: Faults, *, of_space: bool
) -> LayerChoice:
    keep = read_leaf(raw["keep"], _KEEP, f"{key}.keep", faults) if "keep" in raw else None
    score, of = raw.get("score", DEFAULT_SCORE), raw.get("of", "layers")
    if score not in SCORES:
        faults.unknown(f"{key}.score", score, SCORES)
        score = DEFAULT_SCORE
    if of not in _OF:
        faults.unknown(f"{key}.of", of, _OF)
    elif of == "sites" and of_space:
        hint = "give each method `layers: {mode: importance, of: sites}` of its own"
        faults.add(f"{key}.of", of, "layers, as methods share them whatever their sites", hint)
    return LayerChoice("importance", keep=keep, score=score, of_sites=of == "sites")


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
