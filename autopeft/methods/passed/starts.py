"""LoRA whose factors start from a decomposition of the weight W that they adapt.

PiSSA and OLoRA take what they start from out of it, y = (W - s B0 A0) x + s B A x, so that a copy
of the weight holds the rest; `A0` and `B0` are kept beside what trains, and say what the rest is
whatever a decomposition gives on another machine or, where it is a random one, by another seed.
MiCA leaves the weight alone, starts from A = 0 and trains A alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from autopeft.errors import Fault
from autopeft.methods.passed.types import NAME, PeftType
from autopeft.space.schema import Scalar

START: Final = "init_lora_weights"
"""LoRA's parameter that says what its factors start from."""


def start_of(kind: PeftType, settings: Mapping[str, Scalar]) -> str:
    """What LoRA starts from, if that is in the weight: `pissa`, `olora`, `mica`; else ""."""
    told = str(settings.get(START, "")).partition("_")[0] if kind.name == "LORA" else ""
    return told if told in ("pissa", "olora", "mica") else ""


def takes_out(kind: PeftType, settings: Mapping[str, Scalar]) -> bool:
    """Whether what it starts from is taken out of the weight."""
    return start_of(kind, settings) in ("pissa", "olora")


def start_faults(
    name: str, kind: PeftType, settings: Mapping[str, Scalar], shapes: Sequence["Map"]
) -> list[Fault]:
    """Why such a LoRA cannot start there; [] where it can.

    Args:
        name: The method's.
        kind: Its type.
        settings: Its parameters, `lora_alpha` among them.
        shapes: The maps that it adapts.
    """
    start, rank = start_of(kind, settings), int(settings.get("r", 0))
    if not start:
        return []
    faults, told = [], str(settings[START])
    least = min(min(shape.d_in, shape.d_out) for shape in shapes)
    if rank > least:
        hint = f"{told} starts from as many directions of the weight"
        faults.append(Fault("configuration", f"{name}.r", str(rank), f"1 to {least}", hint))
    if start == "pissa" and float(settings["lora_alpha"]) <= 0:
        key, given = f"{name}.lora_alpha", str(settings["lora_alpha"])
        hint = "pissa divides singular values by the scale, and takes their roots"
        faults.append(Fault("configuration", key, given, "a whole number > 0", hint))
    if start == "olora" and any(shape.transposed for shape in shapes):
        hint = "peft's OLoRA takes transformers' Conv1D weights, [in, out], for [out, in]"
        allowed = "true, pissa, or maps that are no Conv1D"
        faults.append(Fault("configuration", f"{name}.{START}", told, allowed, hint))
    return faults


@dataclass(frozen=True)
class Map:
    """What has to be known of a linear map that LoRA adapts.

    Attributes:
        d_in: Width of its input.
        d_out: Width of its output.
        transposed: Whether it keeps its weight as [in, out].
    """

    d_in: int
    d_out: int
    transposed: bool


@dataclass(frozen=True)
class FirstFactors:
    """What was taken out of a weight.

    Attributes:
        NAMES: What they are saved as.
        A: [r, d_in].
        B: [d_out, r].
    """

    NAMES: ClassVar[tuple[str, ...]] = ("first_A", "first_B")

    A: Tensor
    B: Tensor

    @classmethod
    def of(cls, layer: Any) -> "FirstFactors":
        """Those of `peft`'s layer that has just been built."""
        factors = (layer.lora_A[NAME].weight, layer.lora_B[NAME].weight)
        return cls(*(factor.detach().clone() for factor in factors))

    def leave(self, layer: Any, weight: Tensor) -> None:
        """Have `peft`'s layer hold what they leave of the backbone's weight, in its dtype.

        As `peft` computes it, W - (s B0) A0 in float32: the same numbers where the weight is
        float32. Of another weight, `peft` subtracts factors before it rounds them to its dtype.
        """
        A, B = (factor.to(weight.device, torch.float32) for factor in (self.A, self.B))
        taken = layer.scaling[NAME] * B @ A
        rest = weight.detach().float() - (taken.T if layer.fan_in_fan_out else taken)
        layer.get_base_layer().weight.data = rest.to(weight.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """By the names that they are saved under."""
        return dict(zip(self.NAMES, (self.A, self.B), strict=True))


def without_start(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Settings of the same LoRA that starts from nothing."""
    return {name: value for name, value in settings.items() if name != START}


def apart_settings(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Settings of the LoRA on the whole weight that is the same map, see `apart_tensors`.

    Of twice the rank and the same scale, as `peft`'s `path_initial_model_for_weight_conversion`.

    Args:
        settings: `r` and `lora_alpha` among them.
    """
    growth = 2**0.5 if settings.get("use_rslora") else 2
    whole = {"r": 2 * int(settings["r"]), "lora_alpha": int(settings["lora_alpha"]) * growth}
    return without_start(settings) | whole


def apart_tensors(trained: Mapping[str, Tensor], first: FirstFactors) -> dict[str, Tensor]:
    """Factors of what was learnt: s (B A - B0 A0) = s [B, -B0] [A; A0].

    Args:
        trained: What `peft` saves of one layer: A [r, d_in] and B [d_out, r], by names that say
            so, and what else there is.
        first: What was taken out of its weight.
    """
    whole = dict(trained)
    for name, tensor in trained.items():
        if name.endswith("lora_A.weight"):
            whole[name] = torch.cat([tensor, first.A.to(tensor)])
        elif name.endswith("lora_B.weight"):
            whole[name] = torch.cat([tensor, -first.B.to(tensor)], dim=1)
    return whole
