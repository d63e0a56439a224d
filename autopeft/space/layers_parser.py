"""Reads `layers:` of a method or of the space itself."""

import itertools
from collections.abc import Mapping
from typing import Any

from autopeft.space.faults import Faults
from autopeft.space.layer_choice import DEFAULT_SCORE, MODES, SCORES, LayerChoice
from autopeft.space.layer_groups import PATTERNS, Grouping, Weights
from autopeft.space.leaves import read_leaf
from autopeft.space.schema import ParameterSchema
from autopeft.space.spellings import RANKED_SITES

_KEEP = ParameterSchema("keep", "int", minimum=1)
_OF = ("layers", "sites")
_KEYS = {"importance": ("keep", "score", "of"), "groups": ("pattern", "groups")}
"""What a mode has beside its name."""

_PATTERNS_ALLOWED = (
    f"{', '.join(PATTERNS)}, relative sizes such as [1, 2, 3], or {{choice: [...]}}"
)


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
    known = ("mode", *_KEYS.get(raw["mode"], ()))
    for name in raw:
        if name not in known:
            faults.unknown(f"{key}.{name}", name, known)
    if raw["mode"] == "importance":
        return _by_importance(raw, key, faults, of_space=of_space)
    if raw["mode"] == "groups":
        return _grouped(raw, key, faults) or everywhere
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
        hint = f"give each method `{RANKED_SITES}` of its own"
        faults.add(f"{key}.of", of, "layers, as methods share them whatever their sites", hint)
    return LayerChoice("importance", keep=keep, score=score, of_sites=of == "sites")


def _grouped(raw: Mapping[str, Any], key: str, faults: Faults) -> LayerChoice | None:
    patterns = _patterns(raw.get("pattern"), f"{key}.pattern", faults)
    if not patterns:
        return None
    groups = _groups(raw.get("groups"), min(map(len, patterns)), f"{key}.groups", faults)
    return LayerChoice("groups", grouping=Grouping(patterns, groups)) if groups else None


def _patterns(raw: Any, key: str, faults: Faults) -> tuple[Weights, ...]:
    """The weights of all patterns that are listed; () where a fault was noted."""
    listed = _choices(raw)
    found: list[Weights] = []
    for each in listed:
        if isinstance(each, str) and each not in PATTERNS:
            faults.unknown(key, each, PATTERNS)
        elif isinstance(each, str):
            found.append(PATTERNS[each])
        elif _whole(each) and len(each) > 1:
            found.append(tuple(each))
        else:
            faults.add(key, each, _PATTERNS_ALLOWED)
    if len(set(found)) < len(found):
        faults.add(key, listed, "each pattern once")
    if not listed:
        faults.add(key, raw, _PATTERNS_ALLOWED)
    return tuple(found) if listed and len(set(found)) == len(listed) else ()


def _groups(raw: Any, n_groups: int, key: str, faults: Faults) -> tuple[tuple[int, ...], ...]:
    """The sets of groups that are listed, each sorted; () where a fault was noted."""
    allowed = f"a list of groups 1 to {n_groups}, {{choice: [[...], ...]}} or {{subset: [...]}}"
    listed = _choices(raw)
    if isinstance(raw, Mapping) and set(raw) == {"subset"}:
        listed = [raw["subset"]]
    sound = [each for each in listed if _whole(each) and max(each) <= n_groups]
    sets = [tuple(sorted(each)) for each in sound if len(set(each)) == len(each)]
    if not listed or len(set(sets)) < len(listed):
        faults.add(key, raw, f"{allowed}, each once")
        return ()
    if isinstance(raw, Mapping) and "subset" in raw:
        sizes = range(1, len(sets[0]) + 1)
        return tuple(own for size in sizes for own in itertools.combinations(sets[0], size))
    return tuple(sets)


def _choices(raw: Any) -> list[Any]:
    """What `{choice: [...]}` lists, or the one thing that is written without it."""
    if isinstance(raw, Mapping):
        listed = raw.get("choice") if set(raw) == {"choice"} else None
        return list(listed) if isinstance(listed, list) else []
    return [] if raw is None else [raw]


def _whole(value: Any) -> bool:
    """Whether it is a list of whole numbers from 1."""
    return isinstance(value, list) and bool(value) and all(type(n) is int and n > 0 for n in value)


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
