"""What other trainers of causal language models can carry: LoRA, its data and its schedule.

axolotl and LLaMA-Factory read YAML and build `peft`'s LoRA from it. Here is what the two share:
the LoRA of a configuration by module names, rows as they read them, and every reason why they
cannot train the same; a setting that a trainer has no key for is a fault, never left out.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.files import public_name
from autopeft.configuration import Configuration
from autopeft.errors import Fault
from autopeft.export.configuration_file import ConfigurationFile
from autopeft.export.peft_config import LoraSite, lora_sites, option_faults, uses_dora
from autopeft.study.data_block import DataBlock
from autopeft.study.metrics import CAUSAL_LM
from autopeft.study.template import parse_template

CARRIED = ("lora",)
"""The methods that axolotl and LLaMA-Factory train."""

FILE_TYPES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}

BITS = {"int8": 8, "nf4": 4}

Plain: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class PlainLora:
    """LoRA as `peft` builds it.

    Attributes:
        rank: Most sites'.
        alpha: Most sites'.
        ranks: Of the modules with another.
        alphas: Likewise.
        modules: Names within the base model, sorted.
        dropout: One for all.
        dora: Whether it is DoRA.
    """

    rank: int
    alpha: int
    ranks: Mapping[str, int]
    alphas: Mapping[str, int]
    modules: tuple[str, ...]
    dropout: float
    dora: bool

    @property
    def uniform(self) -> bool:
        """Whether all sites have one rank and one alpha."""
        return not self.ranks and not self.alphas


def plain_lora(configuration: Configuration, anatomy: Anatomy) -> PlainLora:
    """The LoRA of a configuration in which `lora_faults` has found none."""
    sites = lora_sites(configuration, anatomy)
    rank = Counter(site.rank for site in sites).most_common(1)[0][0]
    alpha = Counter(site.alpha for site in sites).most_common(1)[0][0]
    return PlainLora(
        rank=rank,
        alpha=int(alpha),
        ranks={each.site.module: each.rank for each in sites if each.rank != rank},
        alphas={each.site.module: int(each.alpha) for each in sites if each.alpha != alpha},
        modules=tuple(sorted(each.site.module for each in sites)),
        dropout=float(configuration.groups[0]["dropout"]),
        dora=uses_dora(configuration),
    )


def uniform_rank(sites: list[LoraSite]) -> int:
    """The one rank for all sites whose parameters come nearest."""
    widths = [each.site.in_features + each.site.out_features for each in sites]
    held = sum(each.rank * width for each, width in zip(sites, widths, strict=True))
    return max(1, round(held / sum(widths)))


# -- why not --------------------------------------------------------------------------------------


def lora_faults(configuration: Configuration, anatomy: Anatomy, tool: str) -> list[Fault]:
    """Why a trainer cannot build a configuration's adapter."""
    hint = "use --format yaml"
    others = [method for method in configuration.methods if method not in CARRIED]
    faults = [Fault("export", each, f"not carried by {tool}", "lora", hint) for each in others]
    rule = str(dict(configuration.sparsity)["rule"])
    if rule != "none":
        faults.append(Fault("export", "sparsity.rule", rule, "none", hint))
    faults += option_faults(configuration, hint)
    if others or faults:
        return faults
    for name in ("dropout", "dora"):
        found = sorted({str(group.get(name, False)) for group in configuration.groups})
        if len(found) > 1:
            faults.append(Fault("export", f"lora.{name}", ", ".join(found), "one for all sites"))
    sites = lora_sites(configuration, anatomy)
    fused = sorted({each.site.module for each in sites if each.site.fused})
    if fused:
        given = f"{fused[0]}, which holds several sites in one map"
        faults.append(Fault("export", "lora.sites", given, "whole maps", hint))
    broken = sorted({each.alpha for each in sites if each.alpha != int(each.alpha)})
    if broken:
        given = ", ".join(f"{alpha:g}" for alpha in broken)
        faults.append(Fault("export", "lora.alpha", given, f"whole numbers in {tool}", hint))
    return faults


def study_faults(file: ConfigurationFile, tool: str) -> list[Fault]:
    """Why a trainer cannot read the same rows, or train on them alike."""
    data, training = file.data, file.training
    if file.model.task != CAUSAL_LM:
        return [Fault("export", "model.task", file.model.task, f"{CAUSAL_LM} for {tool}")]
    hint = "write the rows into a file of their own and name it"
    faults = [
        Fault("export", f"data.limit.{name}", f"{rows} rows, drawn by autopeft", "null", hint)
        for name, rows in (("train", data.limit.train), ("validation", data.limit.validation))
        if rows is not None
    ]
    local = Path(data.source).is_absolute()  # a study keeps paths absolute
    if data.source.startswith("builtin:") or (local and not file_type(data.source)):
        allowed = f"a hub id, or a file ({', '.join(FILE_TYPES)})"
        faults.append(Fault("export", "data.source", data.source, allowed, hint))
    micro = training.micro_batch_size
    if micro != "auto" and training.batch_size % micro:
        given, allowed = str(micro), f"a divisor of batch_size, {training.batch_size}"
        faults.append(Fault("export", "training.micro_batch_size", given, allowed))
    return faults


def one_column(written: str | None) -> str:
    """The column that a prompt or a completion is, or "" for a text around columns."""
    return str(written) if written and "{" not in written else ""


def template_of_one(written: str) -> tuple[str, str] | None:
    """A text around one column: that column and the text with `{}` in its place; else None."""
    template = parse_template(written)
    if len(template.columns) != 1:
        return None
    return template.columns[0], template.fill({template.columns[0]: "\0"})


# -- what both say alike --------------------------------------------------------------------------


def file_type(source: str) -> str:
    """What a local file is to `datasets`, or "" for a hub id."""
    return FILE_TYPES.get(Path(source).suffix.lower(), "")


def rows_at_once(file: ConfigurationFile) -> tuple[int, int]:
    """Rows in memory, and passes for an optimizer step."""
    training = file.training
    micro = training.micro_batch_size
    own = training.batch_size if micro == "auto" else int(micro)
    return own, training.batch_size // own


def scheduler(file: ConfigurationFile) -> str:
    """transformers' name of the schedule; after the warm-up ours is constant too."""
    name = file.training.lr_scheduler
    return "constant_with_warmup" if name == "constant" else name


def half(file: ConfigurationFile) -> bool:
    """Whether matrix products are bfloat16."""
    return file.training.precision == "bf16"


def base_model(file: ConfigurationFile) -> str:
    """The backbone's name on the hub, or its folder."""
    return public_name(file.model.name_or_path)


def held_out(data: DataBlock) -> tuple[str | None, float | None]:
    """The validation split's name, or its share of train."""
    own = data.splits.validation
    return (own, None) if isinstance(own, str) else (None, own)


def head(tool: str, version: str, command: str, notes: list[str]) -> str:
    """The comment that a file begins with."""
    lines = [f"Found by autopeft, for {tool} {version} or newer:", "", f"  {command}", "", *notes]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def shared_notes(file: ConfigurationFile) -> list[str]:
    """What is the same and yet not: said beside, since no key could change it."""
    notes = ["The tool draws initial weights and the order of rows by its own generator."]
    if not file.training.backbone_dropout:
        notes.append("Where the backbone has dropout of its own, it is off here and on there.")
    if held_out(file.data)[1] is not None:
        notes.append("It draws the validation share by its own generator too: other rows.")
    if file.data.choices is not None:
        notes.append("Candidate answers (data.choices) were compared here; it measures the loss.")
    return notes
