"""Each configuration's nearest HF `peft` configuration.

LoRA is LoRA. What `peft` lacks at a chosen place becomes LoRA of the same parameter count there,
which costs as many multiplications and fewer kernels:

    serial_adapter and parallel_adapter of size m on `ffn` (on `attention`)
        LoRA on `down` (on `output`) of the same layers, r = (2 d m + m + d) / (in + out)
    prefix of length P
        LoRA of rank P on `value` of the same layers

Ranks that meet on one map are added, as `peft` has one LoRA per map.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.counting import placed_groups, trainable_params
from autopeft.methods import registry
from autopeft.methods.lane_operator import Place

STAND_INS = {"ffn": "down", "attention": "output", "prefix": "value"}


def ranks(configuration: Configuration, anatomy: Anatomy) -> dict[str, int]:
    """LoRA rank by module name within the base model."""
    found: Counter[str] = Counter()
    for group, place in placed_groups(configuration, anatomy):
        role = STAND_INS.get(place.site, place.site)
        site = anatomy.site(place.layer, role)
        found[site.module] += _rank(group, place, site.in_features + site.out_features)
    return dict(found)


def _rank(group: Group, place: Place, width: int) -> int:
    if group.method == "lora":
        return int(group["rank"])
    return max(1, round(registry[group.method].count(group, place) / width))


def lora_config(
    configuration: Configuration, anatomy: Anatomy, *, prefix: str, causal: bool = False
) -> Any:
    """The `peft` configuration.

    Args:
        configuration: What autopeft trains.
        anatomy: The backbone.
        prefix: Where the base model lies in the task model (`bert`).
        causal: Whether that is a language model.
    """
    from peft import LoraConfig, TaskType

    by_module = {f"{prefix}.{name}": rank for name, rank in ranks(configuration, anatomy).items()}
    lora = [group for group in configuration.groups if group.method == "lora"]
    over_rank = float(lora[0]["alpha"]) / int(lora[0]["rank"]) if lora else 2.0
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM if causal else TaskType.SEQ_CLS,
        r=1,
        target_modules=list(by_module),
        rank_pattern=by_module,
        alpha_pattern={name: over_rank * rank for name, rank in by_module.items()},
        lora_dropout=max((float(group["dropout"]) for group in lora), default=0.0),
    )


def described(configurations: Sequence[Configuration], anatomy: Anatomy) -> list[str]:
    """One line for each configuration that has a stand-in: what stands for what."""
    lines = []
    for number, configuration in enumerate(configurations):
        if configuration.methods == ("lora",):
            continue
        own = trainable_params(configuration, anatomy)
        stand_ins = ranks(configuration, anatomy)
        count = sum(
            rank * (site.in_features + site.out_features)
            for layer in anatomy.layers
            for site in layer.sites.values()
            if (rank := stand_ins.get(site.module, 0))
        )
        kinds = "+".join(configuration.methods)
        lines.append(f"trial {number}: {kinds}, {own:,} parameters -> peft LoRA, {count:,}")
    return lines
