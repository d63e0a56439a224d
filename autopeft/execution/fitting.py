"""How much memory a device has to give, and what of it a pack of a study may take."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import torch

from autopeft.backbone.loading import Backbone
from autopeft.backbone.memory import backbone_bytes
from autopeft.configuration import Configuration
from autopeft.study.blocks import TrainingBlock
from autopeft.training import machine
from autopeft.training.lanes.heads import reads_first_token
from autopeft.training.lanes.scaled_products import whole_vectors
from autopeft.training.loop import Trainer
from autopeft.training.memory import (
    GLIBC_OVERHEAD,
    MARGIN,
    RESIDENT_OVERHEAD,
    MemoryEstimate,
    estimate,
    largest_pack,
)
from autopeft.training.settings import LoopSettings
from autopeft.training.step_shape import Overhead, StepShape, Weights, evaluation_tokens
from autopeft.training.tasks.token_loss import CHUNK_ELEMENTS

MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device now; None where it does not tell (mps)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device.type != "cpu":
        return None
    bounds = [bound for bound in (_available(), machine.left_in_container()) if bound is not None]
    return min(bounds) if bounds else _half_of_physical()


def _available() -> int | None:
    """What Linux says could be had without swapping."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _half_of_physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return None


def step_overhead(device: torch.device, *, in_process: bool = False) -> Overhead:
    """What a device's memory holds beside the tensors of a pack.

    Args:
        device: Where it trains.
        in_process: Whether it trains in this process, whose heap is as glibc has it, and not in a
            runner's (see `heap`).
    """
    if device.type != "cpu":
        return Overhead()
    return GLIBC_OVERHEAD if in_process else RESIDENT_OVERHEAD


def step_shape(trainer: Trainer, *, in_process: bool = False) -> StepShape:
    """The largest step of a study; see `step_overhead`."""
    settings, longest = trainer.settings, int(trainer.train.lengths.max())
    return StepShape(
        rows=settings.micro_batch_size,
        tokens=longest,
        evaluated=len(trainer.validation),
        evaluation_tokens=evaluation_tokens(trainer.device.type),
        compute=settings.precision,
        checkpointing=settings.gradient_checkpointing,
        logits=0 if trainer.backbone.lm_head is None else CHUNK_ELEMENTS,
        overhead=step_overhead(trainer.device, in_process=in_process),
        lanes_per_pass=trainer.lanes_per_pass,
        key_vectors=whole_vectors(1, trainer.device.type),
        first_token=reads_first_token(
            trainer.backbone.anatomy,
            trainer.recipe,
            attention=str(trainer.backbone.config._attn_implementation),
        ),
    )


def backbone_weights(backbone: Backbone) -> Weights:
    """How a loaded backbone lies in memory."""
    dtype: torch.dtype = backbone.model.dtype  # type: ignore[assignment]
    return Weights(dtype.itemsize, backbone.quantization, backbone_bytes(backbone))


def pack_estimate(
    lanes: list[Configuration], trainer: Trainer, *, in_process: bool = False
) -> MemoryEstimate:
    """Memory of a pack of these lanes in a study's largest step; see `step_overhead`."""
    return estimate(
        lanes,
        trainer.backbone.anatomy,
        head_params=trainer.recipe.n_parameters,
        shape=step_shape(trainer, in_process=in_process),
        weights=backbone_weights(trainer.backbone),
    )


def fitted_settings(
    trainer: Trainer,
    configuration: Configuration,
    training: TrainingBlock,
    *,
    lanes: int,
    in_process: bool = False,
) -> LoopSettings:
    """Settings with which a pack fits into memory; neither change changes what is computed.

    What `training` leaves to `auto` gives way: layers are recomputed first, then fewer rows run
    at once, by halves. Where even that does not suffice, the pack will have to be smaller.

    Args:
        trainer: The study's, with every row at once and nothing recomputed.
        configuration: What every lane trains: the most demanding one of a space.
        training: The study's block.
        lanes: Of the pack.
        in_process: See `step_overhead`.
    """
    tried = copy.copy(trainer)

    def fits() -> bool:
        fitting = lanes_that_fit(configuration, tried, in_process=in_process)
        return fitting is None or fitting >= lanes

    if not fits() and training.gradient_checkpointing == "auto" and _recomputes(trainer):
        tried.settings = replace(tried.settings, gradient_checkpointing=True)
    while (
        training.micro_batch_size == "auto" and tried.settings.micro_batch_size > 1 and not fits()
    ):
        half = -(-tried.settings.micro_batch_size // 2)
        tried.settings = replace(tried.settings, micro_batch_size=half)
    return tried.settings


def _recomputes(trainer: Trainer) -> bool:
    return trainer.backbone.anatomy.packable


def lanes_that_fit(
    configuration: Configuration, trainer: Trainer, *, in_process: bool = False
) -> int | None:
    """Lanes of the largest pack beside the loaded backbone, `MARGIN` left free.

    0 where not even one is thought to fit; None where the device does not tell its memory. What
    the activation cache may still take is not free.

    Args:
        configuration: What every lane trains.
        trainer: The study's.
        in_process: See `step_overhead`.
    """
    free = free_bytes(trainer.device)
    if free is None:
        return None
    room = sum(cache.memory_room for cache in trainer.caches.values())
    return largest_pack(
        configuration,
        lambda lanes: pack_estimate(list(lanes), trainer, in_process=in_process).training,
        round(free * (1.0 - MARGIN)) - room,
    )
