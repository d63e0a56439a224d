"""Where a study's space, methods and named baselines come from: papers and code."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from autopeft.study.definition import StudyDefinition

if TYPE_CHECKING:
    from autopeft.configuration import Configuration
    from autopeft.space.space import BoundSpace

CHANGED = {
    "speft": "the map's gradient, over all of its examples",
    "tr-pts": "without its choice of tokens",
    "smt": "as many weights as LoRA's, where the paper has 890 blocks; the map's blocks (32 x 32, "
    "not 256 x 256), by its gradient without a warm-up of full fine-tuning",
    "s2ft": "FFN channels as released for LLaMA-3, the same share in each layer, not one draw "
    "over all",
    "s2ft-heads": "the same share in each layer, not one draw over all; at least one head",
    "gift-sw": "128 of 4,096 columns as a share, by the L2 norm of what enters, not its maximum",
    "sct": "channels by what the sub-layer's last map writes (weights times its input's norm), "
    "over all examples and not class by class",
    "diablo": "blocks are squares: a wide map's lie side by side; without dropout",
    "autopeft-unipelt": "without UniPELT's gates",
    "spafit": "without the biases of keys and norms",
}
"""By preset, what is not the paper's."""


def preset_sources() -> dict[str, str]:
    """Names that `search.baselines` takes, as they are written: sources, and what differs here."""
    from autopeft.methods import registry
    from autopeft.searchers.presets import RECIPES

    shown = {"rank": "-r<rank>", "score": "-<score>", "": ""}
    found = {"lora-r<rank>": registry["lora"].source.partition(";")[0]}
    for name, recipe in RECIPES.items():
        changed = f"; here: {CHANGED[name]}" if name in CHANGED else ""
        found[f"{name}{shown[recipe.argument]}"] = recipe.source + changed
    return found


def baseline_sources(definition: StudyDefinition) -> dict[str, str]:
    """By name, those of the study's own baselines; one that is written out has none."""
    known = {
        name.partition("-r<")[0].partition("-<")[0]: s for name, s in preset_sources().items()
    }
    found = {}
    for name in definition.search.baselines:
        if isinstance(name, str):
            fits = [each for each in known if name == each or name.startswith(f"{each}-")]
            found[name] = known[max(fits, key=len)]
    return found


def method_sources(space: "BoundSpace", beside: "Iterable[Configuration]") -> dict[str, str]:
    """By name, those of the methods that a study's trials may have.

    Args:
        space: What is searched.
        beside: What is trained beside it: baselines, and what is enqueued.
    """
    from autopeft.methods import registry

    names = {method.name for method in space.layout.methods}
    names |= {name for each in beside for name in each.methods}
    return {name: registry[name].source for name in sorted(names)}


def space_source(space: str | Mapping[str, Any]) -> dict[str, str]:
    """What a study's space says it is for and from: `description` and `source`, "" for neither."""
    from autopeft.api.problem import registered
    from autopeft.space.library import load_space

    found = load_space(space, **registered())
    return {"description": found.description, "source": found.source}
