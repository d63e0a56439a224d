"""The blocks of a study file, as frozen models: what each key may hold, and what it means.

A field's description is the comment that `autopeft init` writes behind the key. What the file
format knows but this release cannot do is refused by name, never ignored.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from autopeft.space.spellings import RANKED_SITES
from autopeft.space.training import OPTIONS
from autopeft.study.faults import refusal
from autopeft.study.metrics import CAUSAL_LM, CLASSIFICATION, REGRESSION
from autopeft.study.names import NAME_PATTERN
from autopeft.study.readers import (
    Reader,
    auto_or,
    collected,
    flag,
    nullable,
    number,
    one_of,
    string,
    whole,
)

SITE_ROLES = ("query", "key", "value", "output", "up", "gate", "down", "attention", "ffn")


class Block(BaseModel):
    """The base of all blocks: immutable, and an unknown key is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_with(reader: Reader) -> BeforeValidator:
    """The annotation that makes a field be read by this reader alone."""
    return BeforeValidator(reader)


Text = Annotated[str, read_with(string())]
MaybeText = Annotated[str | None, read_with(nullable(string()))]
Seed = Annotated[int, read_with(whole(0, 2**32 - 1))]
LearningRate = Annotated[float, read_with(number(above=0.0))]
WarmupRatio = Annotated[float, read_with(number(minimum=0.0, below=1.0))]
WeightDecay = Annotated[float, read_with(number(minimum=0.0))]

_OPTIONS = {each.name: number(minimum=each.minimum, maximum=each.maximum) for each in OPTIONS}
FfnMasking = Annotated[float, read_with(_OPTIONS["ffn_masking"])]
FfnDropping = Annotated[float, read_with(_OPTIONS["ffn_dropping"])]
DensityWeight = Annotated[float, read_with(_OPTIONS["density_weight"])]
DensityEpsilon = Annotated[float, read_with(_OPTIONS["density_epsilon"])]


read_task = one_of(
    *(CLASSIFICATION, REGRESSION, CAUSAL_LM),
    aliases={"SEQ_CLS": CLASSIFICATION, "CAUSAL_LM": CAUSAL_LM},
)
"""Reads a task, also in peft's spelling."""


class StudyBlock(Block):
    """What the study is called, and the seed of everything random in it."""

    name: Annotated[
        str,
        read_with(string("letters, digits, '.', '_' and '-', 100 at most", pattern=NAME_PATTERN)),
    ] = Field(default="demo", description="its name in the database and of its output folder")
    seed: Seed = Field(
        default=0, description="same seed, same machine, same versions: the same search"
    )


class ModelBlock(Block):
    """The backbone and the task it is adapted to."""

    name_or_path: Text = Field(description="hub id, folder, or builtin:minilm")
    revision: MaybeText = Field(default=None, description="branch, tag or commit on the hub")
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        read_with(
            one_of(
                *("auto", "float32", "bfloat16", "float16"),
                aliases={"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
            )
        ),
    ] = Field(default="auto", description="auto, float32, bfloat16, float16")
    quantization: Annotated[
        Literal["none", "int8", "nf4"],
        read_with(
            one_of("none", "int8", "nf4", later=("fp4",), aliases={"8bit": "int8", "4bit": "nf4"})
        ),
    ] = Field(default="none", description="none, int8, nf4 (needs autopeft[quant])")
    attn_implementation: Annotated[
        Literal["auto", "eager", "sdpa"],
        read_with(
            one_of(
                *("auto", "eager", "sdpa"),
                later=("flash_attention_2", "flash_attention_3", "flex_attention"),
            )
        ),
    ] = Field(default="auto", description="auto, eager, sdpa")
    task: Annotated[
        Literal["sequence-classification", "regression", "causal-lm"], read_with(read_task)
    ] = Field(
        default=CLASSIFICATION, description="sequence-classification, regression or causal-lm"
    )
    sites: dict[str, str] | None = Field(
        default=None, description="{role: regex}, for unknown architectures"
    )
    allow_pickle: Annotated[bool, read_with(flag)] = Field(
        default=False, description="read .bin weights, which can run code when they are read"
    )

    @field_validator("sites", mode="before")
    @classmethod
    def _sites(cls, value: Any) -> dict[str, str] | None:
        if value is None:
            return None
        if value == "importance":
            hint = f"a space chooses by importance: `{RANKED_SITES}` of a method"
            raise refusal(value, "{role: regex}", hint)
        if not isinstance(value, dict) or not value:
            raise refusal(value, "{role: regex}, at least one")
        role = one_of(*SITE_ROLES)
        names = [(str(name), name, role) for name in value]
        patterns = [(str(name), pattern, _regex) for name, pattern in value.items()]
        collected([*names, *patterns])
        return dict(value)


def _regex(value: Any) -> str:
    allowed = "a regular expression over module names"
    if not isinstance(value, str) or not value:
        raise refusal(value, allowed)
    try:
        re.compile(value)
    except re.error as error:
        raise refusal(value, allowed, str(error)) from error
    return value


class TrainingBlock(Block):
    """How long and how every trial trains.

    `max_steps`, where given, is the full budget in optimizer steps and `epochs` is not looked at.
    `learning_rate`, `weight_decay`, `warmup_ratio`, the options of the FFN and those of density
    hold where the space does not search them.
    """

    epochs: Annotated[int, read_with(whole(1, hint="max_steps takes less than an epoch"))] = Field(
        default=3, description="passes over the training rows of a full trial"
    )
    max_steps: Annotated[int | None, read_with(nullable(whole(1)))] = Field(
        default=None, description="optimizer steps of a full trial, in place of epochs"
    )
    batch_size: Annotated[int, read_with(whole(1))] = Field(
        default=32, description="rows per optimizer step"
    )
    micro_batch_size: int | Literal["auto"] = Field(
        default="auto", description="rows at once in memory: auto, or a number <= batch_size"
    )
    learning_rate: LearningRate = Field(
        default=2.0e-4, description="where the space does not search it"
    )
    lr_scheduler: Annotated[
        Literal["linear", "cosine", "constant"],
        read_with(one_of("linear", "cosine", "constant", later=("polynomial", "inverse_sqrt"))),
    ] = Field(default="linear", description="after the warm-up: linear, cosine, constant")
    warmup_ratio: WarmupRatio = Field(
        default=0.06, description="share of the steps, where the space does not search it"
    )
    weight_decay: WeightDecay = Field(
        default=0.0, description="where the space does not search it"
    )
    max_grad_norm: Annotated[float, read_with(number(above=0.0))] = Field(
        default=1.0, description="gradients of a trial are clipped to this norm"
    )
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        read_with(
            one_of(
                *("auto", "fp32", "bf16"),
                later=("fp16",),
                aliases={"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"},
            )
        ),
    ] = Field(default="auto", description="auto, fp32, bf16")
    gradient_checkpointing: Annotated[
        Literal["auto"] | bool, read_with(one_of("auto", True, False))
    ] = Field(default="auto", description="auto (where memory asks for it), true, false")
    backbone_dropout: Annotated[bool, read_with(flag)] = Field(
        default=False, description="the backbone's own dropout; true keeps no activations"
    )
    ffn_masking: FfnMasking = Field(
        default=0.0, description="rate at which neurons of FFNs are masked; 0 = off"
    )
    ffn_dropping: FfnDropping = Field(
        default=0.0, description="rate at which FFNs are left out of a step; 0 = off"
    )
    density_weight: DensityWeight = Field(
        default=0.0, description="of the penalty on dense FFN activations; 0 = off"
    )
    density_epsilon: DensityEpsilon = Field(
        default=1e-7, description="the square of an activation that is half dense"
    )

    @field_validator("micro_batch_size", mode="before")
    @classmethod
    def _micro(cls, value: Any, info: ValidationInfo) -> int | Literal["auto"]:
        most = info.data.get("batch_size")
        micro: int | Literal["auto"] = auto_or(whole(1, most, hint="auto is allowed"))(value)
        return micro
