"""LoRA adapters that were trained before, as `peft` saves them: the experts of XLORA.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. What is read is plain LoRA on
linear maps of layers: its factors by map, and what it multiplies them by. `peft` would read more
and say nothing of it, or fail while it trains; that is refused here, from the two files alone.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from autopeft.backbone.anatomy import Anatomy
from autopeft.methods.passed.parameters import config_class, default_of, folders_of

CONFIG: Final = "adapter_config.json"
TENSORS: Final = "adapter_model.safetensors"
DOWN, UP, SHIFT = "lora_A.weight", "lora_B.weight", "lora_B.bias"
"""A map's tensors: [r, d_in], [d_out, r] and, seldom, [d_out]."""

LORA: Final = "lora"
"""What a map's `Scaling` is called beside its factors."""

_READ = frozenset(
    {
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout",
        "lora_bias", "target_modules", "exclude_modules", "layers_to_transform",
        "layers_pattern", "fan_in_fan_out", "init_lora_weights", "peft_type", "peft_version",
        "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    }
)  # fmt: skip
"""Keys of a configuration that are read, or whose tensors tell the same, or that say nothing."""

_SUBTRACTED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts with which `peft` trains beside other weights than the backbone's."""


@dataclass(frozen=True)
class Scaling:
    """What a map's product of factors is multiplied by, and its dropout.

    Attributes:
        alpha: LoRA's.
        power: The rank's, below it: 1, or 1/2 of rank-stabilised LoRA.
        dropout: In training.
    """

    alpha: float
    power: float
    dropout: float

    def tensor(self) -> Tensor:
        """float32 [3]."""
        return torch.tensor([self.alpha, self.power, self.dropout])

    @classmethod
    def of(cls, tensor: Tensor) -> "Scaling":
        """The inverse, exact for numbers of up to six digits."""
        return cls(*(float(f"{value:.6g}") for value in tensor.tolist()))


@dataclass(frozen=True)
class Expert:
    """A trained LoRA adapter.

    Attributes:
        tensors: Factors by `map.lora_A.weight` and so on, maps by their names in the base model.
        scalings: By map.
    """

    tensors: Mapping[str, Tensor]
    scalings: Mapping[str, Scaling]

    def save(self, folder: Path) -> None:
        """Write it for `peft` to read: each map by its full name, with its own rank."""
        first = next(iter(self.scalings.values()))
        ranks = {f"model.{name}": len(self.tensors[f"{name}.{DOWN}"]) for name in self.scalings}
        config = config_class("LORA")(
            r=1,
            rank_pattern=ranks,
            alpha_pattern={f"model.{name}": own.alpha for name, own in self.scalings.items()},
            target_modules=sorted(ranks),
            use_rslora=first.power != 1,
            lora_dropout=first.dropout,
            lora_bias=any(name.endswith(SHIFT) for name in self.tensors),
        )
        config.save_pretrained(folder)
        held = {f"base_model.model.model.{name}": t for name, t in self.tensors.items()}
        save_file({name: t.detach().cpu().contiguous() for name, t in held.items()},
                  folder / TENSORS)  # fmt: skip


@dataclass(frozen=True)
class ExpertFile:
    """What the two files of a folder tell without their tensors' values.

    Attributes:
        folder: Where they are.
        shapes: Of all tensors, by name within the base model.
        scalings: By map.
        fault: Why it is no expert, as (what was given, what is allowed, what to do); or ().
    """

    folder: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    fault: tuple[str, str, str] | tuple[()] = ()

    def load(self) -> Expert:
        """Its tensors too."""
        stored = load_file(Path(self.folder) / TENSORS)
        return Expert({_inner(name): tensor for name, tensor in stored.items()}, self.scalings)

    def misplaced(self, anatomy: Anatomy) -> str:
        """Which of its maps a backbone has not, or not of that shape; "" where it has all."""
        known: dict[str, tuple[int, int]] = {}
        for layer in anatomy.layers:
            for site in layer.sites.values():
                end = site.start + site.out_features
                known[site.module] = site.in_features, max(end, known.get(site.module, (0, 0))[1])
        for name in self.scalings:
            own = self.shapes[f"{name}.{DOWN}"][1], self.shapes[f"{name}.{UP}"][0]
            if name not in known:
                return f"{name}, which is no linear map of a layer of this backbone"
            if own != known[name]:
                here = " x ".join(map(str, known[name]))
                return f"{name} of {own[0]} x {own[1]}, which is {here} here"
        return ""

    def scalars(self, within: str = "") -> int:
        """Those of its factors, or of those within a module."""
        return sum(math.prod(shape) for name, shape in self._within(within).items())

    def maps(self, within: str = "") -> list[str]:
        """Names of its maps, or of those within a module."""
        return [name for name in self.scalings if name.startswith(_start(within))]

    def _within(self, module: str) -> dict[str, tuple[int, ...]]:
        return {n: shape for n, shape in self.shapes.items() if n.startswith(_start(module))}


def _start(module: str) -> str:
    return f"{module}." if module else ""


def expert_files(text: str) -> tuple[ExpertFile, ...]:
    """The folders that a text lists, looked at; files that have changed are read again."""
    return tuple(_looked_at(folder, _stamp(Path(folder))) for folder in folders_of(text))


def _stamp(folder: Path) -> tuple[tuple[int, int], ...]:
    """What changes when a file does."""
    found = []
    for path in (folder / CONFIG, folder / TENSORS):
        try:
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((0, 0))
    return tuple(found)


@lru_cache(1_000)
def _looked_at(folder: str, stamp: tuple[tuple[int, int], ...]) -> ExpertFile:
    path = Path(folder)
    trained = "a folder with an adapter of HF peft's type LORA"
    if not path.is_absolute():
        hint = f"write the whole path, such as {path.resolve()}"
        return ExpertFile(folder, fault=(folder, "paths that mean the same everywhere", hint))
    if not (path / CONFIG).is_file() or not (path / TENSORS).is_file():
        lacking = CONFIG if not (path / CONFIG).is_file() else TENSORS
        hint = "train it first, and save it with save_pretrained"
        return ExpertFile(folder, fault=(f"{folder}, without {lacking}", trained, hint))
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        with safe_open(path / TENSORS, framework="pt") as opened:
            names = list(opened.keys())
            shapes = {n: tuple(opened.get_slice(n).get_shape()) for n in names}
    except (OSError, ValueError, SafetensorError) as error:
        return ExpertFile(folder, fault=(f"{folder}, unreadable: {error}", trained, ""))
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else "nothing"
        return ExpertFile(folder, fault=(f"{folder}, of type {kind}", trained, ""))
    inner = {_inner(name): shape for name, shape in shapes.items()}
    fault = _setting_fault(folder, config) or _tensor_fault(folder, inner)
    if fault:
        return ExpertFile(folder, fault=fault)
    maps = sorted(name.removesuffix(f".{DOWN}") for name in inner if name.endswith(f".{DOWN}"))
    return ExpertFile(folder, inner, {name: _scaling(name, config) for name in maps})


def _inner(name: str) -> str:
    """A saved tensor's name within the base model, as XLORA finds it; itself where it has none.

    `peft` drops what stands before the last `model.` of the first ones in a row, and would go on
    for ever with a name that has none.
    """
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if part == "model" and parts[index + 1] != "model":
            return ".".join(parts[index + 1 :])
    return name


def _setting_fault(folder: str, config: Mapping[str, Any]) -> tuple[str, str, str] | tuple[()]:
    """What else than plain LoRA a configuration says."""
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_SUBTRACTED):
        given = f"{folder}, with init_lora_weights: {start}"
        hint = "convert it with path_initial_model_for_weight_conversion"
        return given, "an adapter of the backbone's own weights", hint
    known = {each.name: default_of(each) for each in _fields()}
    for key, value in config.items():
        if key not in _READ and value and value != known.get(key):
            return f"{folder}, with {key}: {value}"[:200], "plain LoRA, which peft can mix", ""
    return ()


def _fields() -> Sequence[Any]:
    return tuple(config_class("LORA").__dataclass_fields__.values())


def _tensor_fault(
    folder: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, str, str] | tuple[()]:
    """What else than pairs of factors is saved."""
    allowed = "factors of linear maps, and nothing else"
    for name, shape in shapes.items():
        ends = [end for end in (DOWN, UP, SHIFT) if name.endswith(f".{end}")]
        if not ends:
            hint = "an expert has no head and no other modules of its own: peft takes none"
            return f"{folder}, which holds {name}", allowed, hint
        at = name.removesuffix(f".{ends[0]}")
        pair = shapes.get(f"{at}.{DOWN}", ()), shapes.get(f"{at}.{UP}", ())
        ranks = (*pair[0][:1], *pair[1][1:])
        if len(shape) != (1 if ends[0] == SHIFT else 2) or len(ranks) != 2 or len(set(ranks)) > 1:
            return f"{folder}, with {name} of {list(shape)}", "pairs of one rank", ""
    return () if shapes else (f"{folder}, which holds no tensor", allowed, "")


def _scaling(name: str, config: Mapping[str, Any]) -> Scaling:
    """A map's, by the first pattern that matches its name, as `peft` matches them."""
    from peft.utils.other import get_pattern_key

    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    full = f"model.{name}"
    alpha = patterns.get(get_pattern_key(tuple(patterns), full), config.get("lora_alpha", 8))
    power = 0.5 if config.get("use_rslora") else 1.0
    return Scaling(float(alpha), power, float(config.get("lora_dropout") or 0.0))
