"""Baselines: what a careful engineer would try by hand, run before the search."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import NO_SPARSITY, Configuration, Group
from autopeft.errors import Fault, InputError
from autopeft.searchers.own_baseline import own_baseline
from autopeft.searchers.presets import KNOWN as PRESETS
from autopeft.searchers.presets import Preset, preset

LEARNING_RATES = (3.0e-4, 1.0e-3, 3.0e-3)
"""Half a decade around the usual choice: a LoRA whose learning rate was tuned is the one to beat
(arXiv 2602.04998 finds its variants within 1-2 % of each other once it is)."""

KNOWN = ("lora-r8", "lora-r16", "lora-r32", "lora-r<rank>", *PRESETS)


def baselines(
    names: Sequence[str | Mapping[str, Any]], anatomy: Anatomy, *, training: Mapping[str, float]
) -> dict[str, Configuration]:
    """The configurations behind `search.baselines`, by name.

    `lora-r<rank>`: LoRA of that rank on query and value in all layers, alpha = 2 rank, no dropout,
    at each of `LEARNING_RATES`. Sparse fine-tuning as its papers set it up (`speft`, `s2ft`, ...):
    see `autopeft.searchers.presets`; at the same rates. A configuration that is written out is
    called `own`, and has its own rate where it gives one.

    Args:
        names: As in the study file: names, or configurations in plain form.
        anatomy: The backbone.
        training: Weight decay and warm-up of the study.

    Raises:
        InputError: Unknown names and faults of configurations, all at once.
    """
    found: dict[str, Configuration] = {}
    faults = []
    for index, name in enumerate(names):
        if not isinstance(name, str):
            key = f"search.baselines.{index}"
            own, faulty = own_baseline(
                name, anatomy, training=training, rates=LEARNING_RATES, key=key
            )
            faults += faulty
            called = f"own {index}" if index else "own"
            rates = [each.training_value("learning_rate") for each in own]
            found |= {f"{called} lr={r:g}": each for r, each in zip(rates, own, strict=True)}
            continue
        match = re.fullmatch(r"lora-r([1-9]\d{0,3})", name)
        made = _lora(int(match[1]), anatomy) if match is not None else preset(name, anatomy)
        if made is None:
            near = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            faults.append(
                Fault("study", f"search.baselines.{index}", name, ", ".join(KNOWN), hint)
            )
            continue
        for rate in LEARNING_RATES:
            found[f"{name} lr={rate:g}"] = Configuration.of(
                made.groups,
                training={**training, "learning_rate": rate},
                sparsity=made.sparsity,
            )
    if faults:
        raise InputError(faults)
    return found


def _lora(rank: int, anatomy: Anatomy) -> Preset:
    group = Group.of(
        "lora",
        range(len(anatomy.layers)),
        [role for role in ("query", "value") if role in anatomy.roles],
        rank=rank,
        alpha=2.0 * rank,
        dropout=0.0,
    )
    return Preset((group,), NO_SPARSITY)
