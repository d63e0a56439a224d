"""XLORA as a method: a router over LoRA adapters that were trained before (arXiv 2402.07148).

A text runs twice: first with every adapter weighed alike (`scaling_pass_value`, 0 unless told),
without gradients; what the last layer gives then goes through the router, whose weights of each
token scale the adapters in the second run. The adapters sit where their files say. They are saved
with the router, so that what was trained needs the files no more.
"""

from dataclasses import dataclass
from typing import Final

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import Kept, Reached
from autopeft.methods.lane_operator import Place
from autopeft.methods.passed.counts import PassedPlace, layer_shapes
from autopeft.methods.passed.expert_files import ExpertFile, expert_files
from autopeft.methods.passed.method import Passed
from autopeft.space.schema import Scalar

KNOWN: Final = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
    "cohere", "granite",
)  # fmt: skip
"""Decoders whose layers `peft` finds under `model.`, where it looks for an adapter's tensors."""


@dataclass(frozen=True)
class ExpertsPlace(PassedPlace):
    """A layer.

    Attributes:
        weights: Of its linear maps.
    """

    weights: int = 0


class PassedExperts(Passed):
    """The type that trains a router over adapters."""

    whole = "its router reads the whole model, with its own adapters alone in it"
    unheld = "peft saves neither its router nor its adapters: the file that it writes is empty"
    modalities: tuple[str, ...] = ("text",)
    identity = "no: it starts from its adapters, mixed by a router as peft draws it"
    reached: Reached = "attention"

    def carried_by(self, anatomy: Anatomy) -> str:
        """`peft` reads adapters of models whose layers lie under `model.`."""
        if anatomy.architecture in KNOWN:
            return ""
        return f"peft finds the layers of {', '.join(KNOWN)} alone: write `moelora`"

    def places(self, group: Group, anatomy: Anatomy) -> list[Place]:
        """One per layer."""
        width = anatomy.hidden_size
        shapes = layer_shapes(self.name, group.layers, anatomy)
        return [
            ExpertsPlace(
                layer, self.name, width, width, anatomy.head_dim, modules=shapes, index=index,
                weights=sum(
                    site.in_features * site.out_features
                    for site in anatomy.layers[layer].sites.values()
                ),
            )
            for index, layer in enumerate(group.layers)
        ]  # fmt: skip

    # -- what may be built --------------------------------------------------------------------

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """Layers left out, numbers that mean nothing, and files that are no experts here."""
        everywhere = tuple(range(len(anatomy.layers)))
        if group.layers != everywhere:
            given, hint = ", ".join(map(str, group.layers)), "write `layers: {mode: all}`"
            allowed = "all layers: each adapter sits where its file says"
            return [Fault("configuration", f"{self.name}.layers", given, allowed, hint)]
        files = _files(group)
        faults = [fault for each in files for fault in self._file_faults(each, anatomy)]
        if len(files) < 2:
            given = f"{len(files)} of them"
            allowed = "two folders or more, such as `/adapters/law, /adapters/code`"
            hint = "a router chooses among several"
            return [*faults, Fault("configuration", f"{self.name}.adapters", given, allowed, hint)]
        return faults + self._setting_faults(group, len(files))

    def _file_faults(self, file: ExpertFile, anatomy: Anatomy) -> list[Fault]:
        told = file.fault
        if not told and (where := file.misplaced(anatomy)):
            allowed, hint = "adapters of this backbone", "use one that was trained on it"
            told = f"{file.folder}, with {where}", allowed, hint
        return [Fault("configuration", f"{self.name}.adapters", *told)] if told else []

    def _setting_faults(self, group: Group, experts: int) -> list[Fault]:
        own = self.complete(group)
        top = int(own.get("top_k_lora", experts))
        deep, drop = int(own["xlora_depth"]), float(own["xlora_dropout_p"])
        told: list[tuple[str, Scalar, bool, str]] = [
            ("xlora_depth", deep, deep >= 1, "1 and above"),
            ("xlora_size", own["xlora_size"], int(own["xlora_size"]) >= 1, "1 and above"),
            ("xlora_dropout_p", drop, 0 <= drop < 1, "from 0 to below 1"),
            ("softmax_temperature", own["softmax_temperature"],
             float(own["softmax_temperature"]) > 0, "above 0"),
            ("top_k_lora", top, 1 <= top <= experts, f"1 to {experts}, the adapters"),
        ]  # fmt: skip
        faults = [
            Fault("configuration", f"{self.name}.{name}", str(value), allowed)
            for name, value, legal, allowed in told
            if not legal
        ]
        if top == 1 and own["enable_softmax_topk"] and not own["use_trainable_adapters"]:
            given, allowed = "1 with enable_softmax_topk", "2 and above with it"
            hint = "a softmax of one is 1, and the router would get no gradient"
            faults.append(Fault("configuration", f"{self.name}.top_k_lora", given, allowed, hint))
        return faults

    # -- counts -------------------------------------------------------------------------------

    def count(self, group: Group, place: Place) -> int:
        """(d + 1) m once at depth 1, m the adapters, or that times their maps if layerwise."""
        own = self._adapters(group, place) if group.get("use_trainable_adapters") else 0
        return own + (self._router(group, place) if _is_first(place) else 0)

    def _router(self, group: Group, place: Place) -> int:
        own, files = self.complete(group), _files(group)
        maps = {name for file in files for name in file.maps()}
        outputs = len(files) * (len(maps) if own["layerwise_scalings"] else 1)
        depth, size = int(own["xlora_depth"]), int(own["xlora_size"])
        if depth == 1:
            return (place.d_in + 1) * outputs
        between = (depth - 2) * (size + 1) * size
        return (place.d_in + 1) * size + between + (size + 1) * outputs

    def _adapters(self, group: Group, place: Place) -> int:
        return sum(file.scalars(_module(place)) for file in _files(group))

    def fixed_count(self, group: Group, place: Place) -> int:
        """The adapters, where they stay as they are, and three numbers for each of their maps."""
        held = 0 if group.get("use_trainable_adapters") else self._adapters(group, place)
        return held + 3 * sum(len(file.maps(_module(place))) for file in _files(group))

    def frozen_work(self, group: Group, place: Place) -> int:
        """The adapters' factors; for the first run, forward alone, half of a layer's weights."""
        weights = place.weights if isinstance(place, ExpertsPlace) else 0
        return self._adapters(group, place) + weights // 2

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """Of each adapter's map its input, scaled, and what the factors make of it."""
        inner = 0
        for file in _files(group):
            for name in file.maps(_module(place)):
                rank, d_in = file.shapes[f"{name}.lora_A.weight"]
                inner += d_in + rank + 2 * file.shapes[f"{name}.lora_B.weight"][0]
        return Kept(inner, exact=inner)


def _files(group: Group) -> tuple[ExpertFile, ...]:
    return expert_files(str(group["adapters"]))


def _is_first(place: Place) -> bool:
    return isinstance(place, PassedPlace) and place.index == 0


def _module(place: Place) -> str:
    if not isinstance(place, PassedPlace):
        raise TypeError("not a place of peft's own types")
    return place.modules[place.index].target.name
