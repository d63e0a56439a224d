"""What of a configuration HF `peft` can hold, and LoRA as it writes it, exactly or not at all.

The safe form: a list of full module names within the base model (they are matched as suffixes, so
`layer.1.x` does not catch `layer.11.x`), with `rank_pattern` and `alpha_pattern` whose keys are
regular expressions (dots escaped), and alpha always written.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from autopeft.backbone.anatomy import Anatomy, Site
from autopeft.backbone.heads import HeadRecipe
from autopeft.configuration import Configuration, Group
from autopeft.errors import ExportError, Fault
from autopeft.export import peft_forms
from autopeft.export.peft_folding import folding_faults, folds
from autopeft.export.peft_options import plain_config, shared_options
from autopeft.export.peft_passed import ONCE_TRAINED, passed_config, passed_faults, passes_on
from autopeft.export.peft_prefix import is_prefix, prefix_config, prefix_faults
from autopeft.export.peft_prompt import is_prompt, prompt_config, prompt_faults
from autopeft.methods import registry
from autopeft.methods.lora import scaling
from autopeft.space.training import OPTIONS


@dataclass(frozen=True)
class LoraSite:
    """LoRA at one site.

    Attributes:
        site: Where.
        rank: Its rank.
        alpha: As in plain LoRA, whatever the group says: updates are scaled by alpha / rank.
    """

    site: Site
    rank: int
    alpha: float


def peft_faults(configuration: Configuration, anatomy: Anatomy) -> list[Fault]:
    """Why HF peft cannot hold what a configuration trains, once it is trained; all faults.

    Args:
        configuration: Under its sparsity rule, see `counting.resolved`.
        anatomy: The backbone.
    """
    if passes_on(configuration):
        return passed_faults(configuration)
    faults = [
        Fault("export", method, "not carried by HF peft", "lora", "use --format yaml")
        for method in configuration.methods
        if not registry[method].peft_type
    ]
    types = {registry[method].peft_type for method in configuration.methods} - {""}
    if len(types) > 1:
        hint = f"an adapter of HF peft has one type; {ONCE_TRAINED}"
        first, *others = [name for name in configuration.methods if registry[name].peft_type]
        given, allowed = f"beside {first}", "one of the two alone"
        faults += [Fault("export", other, given, allowed, hint) for other in others]
    if "SHIRA" in types and any(s.transposed for at in anatomy.layers for s in at.sites.values()):
        given, allowed = "on transformers' Conv1D maps", "backbones with torch's Linear"
        faults.append(Fault("export", "sparse", given, allowed, "use --format yaml"))
    rates = sorted({float(g["dropout"]) for g in configuration.groups if g.method == "lora"})
    if len(rates) > 1:
        given = ", ".join(f"{rate:g}" for rate in rates)
        faults.append(Fault("export", "lora.dropout", given, "one dropout for all of HF peft's"))
    low_rank = (g for g in configuration.groups if registry[g.method].peft_type == "LORA")
    kinds = {bool(group.get("dora")) for group in low_rank}
    if len(kinds) > 1:
        given = "DoRA beside LoRA without it"
        faults.append(Fault("export", "lora.dora", given, "one of the two for all of HF peft's"))
    if not faults and peft_forms.has_form(configuration):
        return peft_forms.form_faults(configuration, anatomy)
    if types == {"LORA"}:
        faults += folding_faults(configuration, anatomy)
    return faults + prompt_faults(configuration, anatomy) + prefix_faults(configuration, anatomy)


def lora_sites(configuration: Configuration, anatomy: Anatomy) -> list[LoraSite]:
    """Every site of a LoRA-only configuration; `peft_faults` has found none."""
    return [
        LoraSite(anatomy.site(layer, role), int(group["rank"]), _plain_alpha(group))
        for group in configuration.groups
        for layer in group.layers
        for role in group.sites
    ]


def _plain_alpha(group: Group) -> float:
    """The alpha that gives rank-stabilised LoRA's scale where that is alpha / rank."""
    return (
        scaling(group) * int(group["rank"])
        if group.get("rank_stabilised")
        else float(group["alpha"])
    )


def uses_dora(configuration: Configuration) -> bool:
    """Whether its LoRA is DoRA; `peft_faults` has found all of it alike."""
    return any(group.get("dora") for group in configuration.groups)


def peft_config(
    configuration: Configuration, anatomy: Anatomy, head: HeadRecipe, *, base_model: str
) -> dict[str, Any]:
    """The content of an `adapter_config.json` that trains the same configuration with `peft`.

    Raises:
        ExportError: HF peft cannot carry it: other methods than LoRA, a sparsity rule, several
            dropouts, or only part of a fused map.
    """
    faults = peft_faults(configuration, anatomy) + _untrained_faults(configuration)
    if faults:
        raise ExportError(faults)
    if is_prompt(configuration):
        return plain_config(prompt_config(configuration, head, shared_options(head, base_model)))
    if is_prefix(configuration):
        options = shared_options(head, base_model)
        return plain_config(prefix_config(configuration, anatomy, head, options))
    if passes_on(configuration):
        return passed_config(configuration, anatomy, head, base_model=base_model)
    if peft_forms.has_form(configuration):
        if faults := peft_forms.untrained_faults(configuration, anatomy):
            raise ExportError(faults)
        return formed_config(configuration, anatomy, head, base_model=base_model)
    sites = lora_sites(configuration, anatomy)
    fused = sorted({lora.site.module for lora in sites if lora.site.fused})
    if fused:
        raise ExportError(
            Fault(
                "export",
                "lora.sites",
                f"{fused[0]}, which holds several sites in one map",
                "whole maps",
                "train it with autopeft train: the trained adapter is exact in peft",
            )
        )
    modules = [(lora.site.module, lora.rank, lora.alpha) for lora in sites]
    dropout = float(configuration.groups[0]["dropout"])
    dora = uses_dora(configuration)
    return lora_config(modules, head, dropout=dropout, base_model=base_model, dora=dora)


def formed_config(
    configuration: Configuration, anatomy: Anatomy, head: HeadRecipe, *, base_model: str
) -> dict[str, Any]:
    """The same for a method whose own file says how; see `peft_forms`; ExportError likewise."""
    if faults := peft_forms.form_faults(configuration, anatomy):
        raise ExportError(faults)
    options = shared_options(head, base_model)
    return plain_config(peft_forms.form_config(configuration, anatomy, options))


def _untrained_faults(configuration: Configuration) -> list[Fault]:
    """What `adapter_config.json` cannot tell peft to train, though it may hold it once trained."""
    hint = "train it with autopeft train, which writes an exact peft adapter where there is one"
    faults = []
    if "sparse" in configuration.methods:
        given = "weights chosen one by one, which SHiRA's configuration does not name"
        faults.append(Fault("export", "sparse", given, "lora", hint))
    given = "trained in another way than LoRA, which it is once it is trained"
    faults += [Fault("export", m, given, "lora", hint) for m in configuration.methods if folds(m)]
    rule = str(dict(configuration.sparsity)["rule"])
    if rule != "none":
        faults.append(Fault("export", "sparsity.rule", rule, "none", hint))
    return faults + option_faults(configuration, hint)


def option_faults(configuration: Configuration, hint: str) -> list[Fault]:
    """Training options that are on, which no other trainer has."""
    named = dict(configuration.training)
    return [
        Fault("export", f"training.{each.name}", f"{named[each.name]:g}", "nothing", hint)
        for each in OPTIONS
        if each.name in named
    ]


def lora_config(
    modules: list[tuple[str, int, float]],
    head: HeadRecipe,
    *,
    dropout: float,
    base_model: str,
    dora: bool = False,
) -> dict[str, Any]:
    """`LoraConfig` of (module, rank, alpha) triples, as JSON can carry it."""
    from peft import LoraConfig

    rank = Counter(rank for _, rank, _ in modules).most_common(1)[0][0]
    alpha = Counter(alpha for _, _, alpha in modules).most_common(1)[0][0]
    config = LoraConfig(
        r=rank,
        lora_alpha=_whole(alpha),
        lora_dropout=dropout,
        use_dora=dora,
        target_modules=sorted(name for name, _, _ in modules),
        rank_pattern={re.escape(name): own for name, own, _ in modules if own != rank},
        alpha_pattern={re.escape(name): _whole(own) for name, _, own in modules if own != alpha},
        **shared_options(head, base_model),
    )
    return plain_config(config)


def _whole(alpha: float) -> int | float:
    return int(alpha) if alpha == int(alpha) else alpha
