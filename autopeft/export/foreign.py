"""Today's configuration, as other tools wrote it: an `adapter_config.json`, or axolotl's YAML.

LoRA is read here, and every other type of `peft` in `foreign_types`. Which modules a file names
is asked of `peft` itself, module by module, so that suffixes, regular expressions, layers and
patterns mean what they mean there. What the file sets and autopeft cannot train is a fault; what
has nothing to do with the adapter is named, not taken over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from autopeft.backbone.anatomy import Site
from autopeft.backbone.skeleton import Skeleton
from autopeft.configuration import TRAINING_KEYS, Configuration, Group
from autopeft.errors import Fault, InputError
from autopeft.export.foreign_types import ForeignType, read_type, type_baseline, unmatched
from autopeft.space.document import read_yaml

HEADS = ("classifier", "score", "pooler", "pre_classifier")
"""Modules that `modules_to_save` may name: a head trains here in any case. A language model's
stays frozen here, and `dense` and `out_proj` are names of maps within layers too."""

_NUMBERS = (
    "r", "lora_r", "lora_alpha", "lora_dropout", "micro_batch_size", "gradient_accumulation_steps",
)  # fmt: skip
"""Keys of either file that are computed with."""

_CARRIED = frozenset(
    {
        *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
        *("rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"),
        *("use_rslora", "use_dora", "modules_to_save", "fan_in_fan_out"),
    }
)
"""What of `peft`'s LoRA configuration becomes a configuration here."""

_ABOUT = frozenset(
    {
        *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
        *("auto_mapping", "peft_version", "runtime_config", "bias", "init_lora_weights"),
        *("loftq_config", "megatron_core", "ensure_weight_tying", "corda_config"),
    }
)
"""What changes nothing at these values, or is looked at by itself."""

_PASSED = ("lora_bias", "use_qalora")
"""Set, `lora` does not train the same, but `peft:LORA` does."""

_AXOLOTL_LORA = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_exclude_modules": "exclude_modules",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_layers_pattern": "layers_pattern",
    "peft_use_rslora": "use_rslora",
    "peft_use_dora": "use_dora",
    "lora_modules_to_save": "modules_to_save",
}

_AXOLOTL_REFUSED = (
    *("lora_model_dir", "lora_target_parameters", "loraplus_lr_ratio", "relora"),
    *("peft_init_lora_weights", "peft_layer_replication", "peft_trainable_token_indices"),
)
"""Set, these train something else than LoRA from its usual start."""

_AXOLOTL_TRAINING = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "warmup_ratio": "warmup_ratio",
    "num_epochs": "epochs",
    "max_steps": "max_steps",
    "lr_scheduler": "lr_scheduler",
    "max_grad_norm": "max_grad_norm",
}

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant_with_warmup": "constant"}
_SCHEDULES |= {"constant": "constant"}


@dataclass(frozen=True)
class Foreign:
    """What a file says.

    Attributes:
        where: The file.
        lora: Arguments of `peft`'s LoRA configuration; {} where it is no plain LoRA.
        model: The base model it names, or "".
        data: The data set it names, or "".
        training: Values of a study's `training` block.
        left: Keys that were not taken over.
        other: What it says of an adapter that is no plain LoRA.
    """

    where: str
    lora: Mapping[str, Any]
    model: str = ""
    data: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    other: ForeignType | None = None

    @property
    def kind(self) -> str:
        """`peft`'s name of the adapter's type."""
        return "LORA" if self.other is None else self.other.kind.name


def read_foreign(path: Path) -> Foreign:
    """What an `adapter_config.json` or an axolotl YAML says; InputError with all faults."""
    if path.suffix.lower() != ".json":
        return _axolotl(read_yaml(path), str(path))
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        given = getattr(error, "strerror", None) or str(error)
        raise InputError(Fault(str(path), "", given, "an adapter_config.json")) from error
    if not isinstance(plain, dict):
        raise InputError(Fault(str(path), "", "no mapping", "an adapter_config.json"))
    return _peft(plain, str(path))


def _peft(plain: Mapping[str, Any], where: str) -> Foreign:
    model = str(plain.get("base_model_name_or_path") or "")
    start = plain.get("init_lora_weights", True)
    usual_start = start in (True, None, "default", "kaiming")
    if plain.get("peft_type") != "LORA" or not usual_start or any(map(plain.get, _PASSED)):
        return Foreign(where, {}, model=model, other=read_type(plain, where))
    faults = _number_faults(plain, where)
    if plain.get("bias", "none") != "none":
        hint = "bitfit trains biases, beside lora"
        faults.append(Fault(where, "bias", str(plain["bias"]), "none", hint))
    usual = _defaults()
    for key, value in plain.items():
        if key not in _CARRIED | _ABOUT and value and value != usual.get(key):
            faults.append(Fault(where, key, str(value)[:60], "nothing: autopeft has no such key"))
    if faults:
        raise InputError(faults)
    lora = {key: plain[key] for key in _CARRIED if plain.get(key) is not None}
    return Foreign(where, lora, model=model)


def _defaults() -> Mapping[str, Any]:
    """What `peft` itself writes of a LoRA that sets nothing."""
    from peft import LoraConfig

    plain: dict[str, Any] = LoraConfig().to_dict()
    return plain


def _number_faults(plain: Mapping[str, Any], where: str) -> list[Fault]:
    return [
        Fault(where, key, str(plain[key])[:60], "a number")
        for key in _NUMBERS
        if plain.get(key) is not None and not isinstance(plain[key], int | float)
    ]


def _axolotl(plain: Mapping[str, Any], where: str) -> Foreign:
    faults = _number_faults(plain, where)
    kind = plain.get("adapter")
    if kind not in ("lora", "qlora", "llama-adapter"):
        allowed = "lora, qlora, llama-adapter"
        faults.append(Fault(where, "adapter", str(kind or "nothing"), allowed))
    prompts = plain.get("peft_adapter")
    if kind == "llama-adapter" and not (
        isinstance(prompts, Mapping) and {*map(type, map(prompts.get, ("len", "layers")))} == {int}
    ):
        given = str(prompts or "nothing")[:60]
        faults.append(Fault(where, "peft_adapter", given, "{len: 10, layers: 30}"))
    faults += [
        Fault(where, key, str(plain[key])[:60], "nothing: autopeft has no such key")
        for key in _AXOLOTL_REFUSED
        if plain.get(key)
    ]
    schedule = plain.get("lr_scheduler")
    if schedule is not None and schedule not in _SCHEDULES:
        faults.append(Fault(where, "lr_scheduler", str(schedule), ", ".join(_SCHEDULES)))
    if faults:
        raise InputError(faults)
    lora = {
        ours: plain[theirs]
        for theirs, ours in _AXOLOTL_LORA.items()
        if plain.get(theirs) is not None
    }
    if plain.get("lora_target_linear"):
        lora["target_modules"] = "all-linear"
    training = {
        ours: plain[theirs]
        for theirs, ours in _AXOLOTL_TRAINING.items()
        if plain.get(theirs) is not None
    }
    if schedule is not None:
        training["lr_scheduler"] = _SCHEDULES[schedule]
    if "micro_batch_size" in plain:
        passes = int(plain.get("gradient_accumulation_steps") or 1)
        training["batch_size"] = int(plain["micro_batch_size"]) * passes
    other = None
    if kind == "llama-adapter" and isinstance(prompts, Mapping):
        config = {"adapter_len": prompts["len"], "adapter_layers": prompts["layers"]}
        other = read_type({"peft_type": "ADAPTION_PROMPT", **config}, where)
        lora = {}
    taken = {*_AXOLOTL_LORA, *_AXOLOTL_TRAINING, "adapter", "base_model", "lora_target_linear"}
    taken |= {"peft_adapter"} if other else set()
    taken |= {"micro_batch_size", "gradient_accumulation_steps"}
    rows = plain.get("datasets")
    one = rows[0] if isinstance(rows, list) and len(rows) == 1 else {}
    data = str(one.get("path", "")) if isinstance(one, Mapping) else ""
    return Foreign(
        where,
        lora,
        model=str(plain.get("base_model") or ""),
        data=data,
        training=training,
        other=other,
        left=tuple(key for key, value in plain.items() if key not in taken and value is not None),
    )


# -- the configuration ----------------------------------------------------------------------------


def baseline_of(foreign: Foreign, skeleton: Skeleton) -> dict[str, Any]:
    """The configuration in plain form, as `search.baselines` takes it.

    Args:
        foreign: What the file says.
        skeleton: The backbone that it is for.

    Raises:
        InputError: It names modules that are no sites here, or none that is; all faults at once.
    """
    own = {key: foreign.training[key] for key in TRAINING_KEYS if key in foreign.training}
    training = {"training": own} if own else {}
    if foreign.other is not None:
        return type_baseline(foreign.other, skeleton, foreign.where) | training
    matched, others = _matched(foreign, skeleton)
    faults = _module_faults(foreign, matched, others)
    if faults:
        raise InputError(faults)
    if any(site.fused for site, _ in matched):  # one LoRA for several sites, as ours are not
        own = {key: value for key, value in foreign.lora.items() if key != "modules_to_save"}
        other = read_type({"peft_type": "LORA", **own}, foreign.where)
        return type_baseline(other, skeleton, foreign.where) | training
    rest = dict.fromkeys(TRAINING_KEYS, 0.0)
    merged = Configuration.of(_groups(foreign, matched), training=rest)
    return {"lora": merged.to_dict()["lora"]} | training


def _matched(foreign: Foreign, skeleton: Skeleton) -> tuple[list[tuple[Site, str]], list[str]]:
    """The sites that `peft` would adapt with their names there, and its other linear modules."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    lora = dict(foreign.lora)
    everything = lora.get("target_modules") == "all-linear"
    config = LoraConfig(**{key: value for key, value in lora.items() if key != "modules_to_save"})
    inner = str(skeleton.model.base_model_prefix)
    whole = hasattr(skeleton.model, inner)  # with its head
    prefix = f"{inner}."
    sites: dict[str, list[Site]] = {}
    for layer in skeleton.anatomy.layers:
        for site in layer.sites.values():
            sites.setdefault(f"{prefix}{site.module}", []).append(site)
    found, others = [], []
    for name, module in skeleton.model.named_modules():
        key = name if whole else f"{prefix}{name}"
        if not (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
            continue
        if everything and whole and not name.startswith(prefix):
            continue  # a head, which "all-linear" leaves out
        if everything or check_target_module_exists(config, key):
            found += [(site, key) for site in sites.get(key, ())]
            others += [] if key in sites else [key]
    return found, others


def _module_faults(
    foreign: Foreign, matched: list[tuple[Site, str]], others: list[str]
) -> list[Fault]:
    where, faults = foreign.where, []
    if others:
        given = f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"
        allowed = "the linear maps of the backbone's layers (autopeft sites MODEL)"
        faults.append(Fault(where, "target_modules", given, allowed))
    if not matched:
        given = str(foreign.lora.get("target_modules"))
        allowed = "modules that the model has (autopeft sites MODEL)"
        faults.append(Fault(where, "target_modules", given, allowed))
    else:
        patterns = {key: foreign.lora.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
        names = [*(key for _, key in matched), *others]
        faults += unmatched(foreign.lora, patterns, names, where)
    saved = foreign.lora.get("modules_to_save") or ()
    faults += [
        Fault(where, "modules_to_save", str(name), "the task's head, which trains in any case")
        for name in saved
        if str(name).rpartition(".")[2] not in HEADS
    ]
    return faults


def _groups(foreign: Foreign, matched: list[tuple[Site, str]]) -> list[Group]:
    from peft.utils.other import get_pattern_key

    lora = foreign.lora
    ranks, alphas = lora.get("rank_pattern") or {}, lora.get("alpha_pattern") or {}
    tacit = {"rank_stabilised": "use_rslora", "dora": "use_dora"}
    flags = {ours: True for ours, theirs in tacit.items() if lora.get(theirs)}
    places: dict[tuple[int, float], list[Site]] = {}
    for site, key in matched:
        rank = ranks.get(get_pattern_key(ranks, key), lora.get("r", 8))
        alpha = alphas.get(get_pattern_key(alphas, key), lora.get("lora_alpha", 8))
        places.setdefault((int(rank), float(alpha)), []).append(site)
    dropout = float(lora.get("lora_dropout", 0.0))
    return [
        Group.of("lora", [s.layer], [s.role], rank=rank, alpha=alpha, dropout=dropout, **flags)
        for (rank, alpha), sites in places.items()
        for s in sites
    ]
