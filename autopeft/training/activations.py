"""Frozen activations, kept: what the trunk gives at branch points is computed once.

Without dropout, the hidden states of a frozen backbone at the input of a layer depend on the
example alone, so epochs, packs, rungs and evaluations can share them. They are computed in fixed
*blocks* of examples, in the same company whoever asks first, so that what is kept does not depend
on the order of the trials; against a pass without the cache they agree to rounding.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from autopeft.backbone.devices import on_device
from autopeft.training import machine
from autopeft.training.batches import Batch, PaddedExamples

logger = logging.getLogger(__name__)

Home = Literal["memory", "disk"]
TOKENS, BLOCKS = ".activations", ".blocks"


class Trunk(Protocol):
    """What a cache needs of a running pack."""

    @property
    def branch_points(self) -> Sequence[int]:
        """Each lane's first layer."""

    def trunk(
        self, batch: Batch, wanted: Collection[int], known: Mapping[int, Tensor]
    ) -> dict[int, Tensor]:
        """See `Pack.trunk`."""


@dataclass(frozen=True)
class CacheBudget:
    """How much may be kept.

    Attributes:
        memory_bytes: On the device.
        disk_bytes: In memory-mapped files, once memory is full.
        folder: Where those files go; None for none.
    """

    memory_bytes: int = 0
    disk_bytes: int = 0
    folder: Path | None = None


def planned_homes(
    n_layers: int, layer_bytes: Sequence[int], budget: CacheBudget
) -> list[dict[int, Home]]:
    """Which layers' inputs may be kept, and where: the deepest first, since they save most.

    A function of sizes and budget alone, so that the same study keeps the same layers.

    Args:
        n_layers: Layers of the backbone; `n_layers` itself stands for the last one's output.
        layer_bytes: Of one layer's activations, for each set of examples.
        budget: Shared by all sets.

    Returns:
        For each set of examples, the home of every layer that may be kept.
    """
    homes: list[dict[int, Home]] = [{} for _ in layer_bytes]
    memory, disk = budget.memory_bytes, budget.disk_bytes if budget.folder else 0
    for layer in range(n_layers, 0, -1):
        for own, size in zip(homes, layer_bytes, strict=True):
            if size <= memory:
                own[layer], memory = "memory", memory - size
            elif size <= disk:
                own[layer], disk = "disk", disk - size
    return homes


class ActivationCache:
    """The trunk's activations of one set of examples, by layer.

    Not thread-safe. Real tokens are kept, padding is not: it comes back as zeros, which nothing
    attends to.

    Args:
        examples: n of them.
        blocks: Example numbers that are computed together; each example in exactly one block.
        homes: Where each layer may be kept, see `planned_homes`.
        width: d.
        folder: For layers at home on disk.
        key: Everything that the activations depend on beside the examples' numbers: backbone,
            data, blocks, precision, versions.
    """

    def __init__(
        self,
        examples: PaddedExamples,
        blocks: Sequence[np.ndarray],
        *,
        homes: Mapping[int, Home],
        width: int,
        folder: Path | None = None,
        key: str = "",
    ) -> None:
        self._width = width
        self._examples, self._blocks, self._homes = examples, blocks, dict(homes)
        self._folder, self._key = folder, key
        self._block_of = np.empty(len(examples), dtype=np.int64)
        for number, rows in enumerate(blocks):
            self._block_of[rows] = number
        self._starts = np.concatenate([[0], np.cumsum(examples.lengths)])
        self._layers: dict[int, _Layer] = {}

    def known(self, pack: Trunk, rows: np.ndarray, width: int | None = None) -> dict[int, Tensor]:
        """The trunk's inputs of the pack's branch points, computed where they are not kept yet.

        Args:
            pack: Running.
            rows: Example numbers of a batch, [B].
            width: T, by default as `PaddedExamples.width` has it.

        Returns:
            By layer, [B, T, d]. Branch points that are not kept are absent.
        """
        layers = [layer for layer in set(pack.branch_points) if layer in self._homes]
        if not layers:
            return {}
        for block in np.unique(self._block_of[rows]):
            self._fill(pack, layers, int(block))
        width = self._examples.width(rows) if width is None else width
        return {
            layer: self._padded(layer, rows, width) for layer in layers if layer in self._homes
        }

    def _fill(self, pack: Trunk, layers: Sequence[int], block: int) -> None:
        wanted = [layer for layer in layers if not self._has(layer, block)]
        if not wanted:
            return
        rows = self._blocks[block]
        batch = self._examples.batch(rows)
        width = batch.mask.shape[1]
        below = [k for k in self._layers if k < max(wanted) and self._has(k, block)]
        known = {layer: self._padded(layer, rows, width) for layer in below}
        given = pack.trunk(batch, wanted, known)
        for layer in wanted:
            self._keep(layer, block, given[layer])

    def _has(self, layer: int, block: int) -> bool:
        if layer not in self._layers and self._homes.get(layer) == "disk":
            self._find(layer)
        return layer in self._layers and bool(self._layers[layer].filled[block])

    def _find(self, layer: int) -> None:
        """Take up what an earlier process left on disk, if anything."""
        note, tokens = self._file(layer, ".json"), self._file(layer, TOKENS)
        if not (note.exists() and tokens.exists()):
            return
        facts = json.loads(note.read_text())
        if facts["boot"] == machine.boot():  # a crashed system may have lost what was not synced
            self._layers[layer] = self._map(layer, facts["width"], getattr(torch, facts["dtype"]))

    def _keep(self, layer: int, block: int, hidden: Tensor) -> None:
        if layer not in self._layers and not self._open(layer, hidden):
            return
        kept = self._layers[layer]
        rows, width = self._blocks[block], hidden.shape[1]
        lengths = self._examples.lengths[rows]
        source = _runs(np.arange(len(rows)) * width, lengths)
        target = _runs(self._starts[rows], lengths)
        real = hidden.flatten(0, 1).index_select(0, on_device(source, hidden.device))
        device = kept.tokens.device
        kept.tokens.index_copy_(0, on_device(target, device), real.to(device))
        kept.filled[block] = 1  # after the tokens: a killed process leaves no half of a block

    def _open(self, layer: int, like: Tensor) -> bool:
        """Make room for a layer; where there is none, the layer is not kept."""
        home, width = self._homes[layer], like.shape[-1]
        try:
            self._layers[layer] = (
                self._in_memory(width, like)
                if home == "memory"
                else self._create(layer, width, like.dtype)
            )
        except (OSError, RuntimeError) as error:  # out of memory is a RuntimeError
            logger.warning("layer %d's activations are not kept on %s: %s", layer, home, error)
            del self._homes[layer]
            return False
        return True

    def _in_memory(self, width: int, like: Tensor) -> "_Layer":
        return _Layer(
            torch.zeros(self._n_tokens, width, dtype=like.dtype, device=like.device),
            torch.zeros(len(self._blocks), dtype=torch.uint8),
        )

    @property
    def memory_room(self) -> int:
        """Bytes of memory that are still to be filled, at 4 bytes a value."""
        waiting = [
            layer
            for layer, home in self._homes.items()
            if home == "memory" and layer not in self._layers
        ]
        return len(waiting) * self._n_tokens * self._width * 4

    def _create(self, layer: int, width: int, dtype: torch.dtype) -> "_Layer":
        """Memory-mapped files; their note is written last, so that they are whole or absent."""
        folder = self._file(layer, "").parent
        folder.mkdir(parents=True, exist_ok=True)
        needed = self._n_tokens * width * dtype.itemsize
        if shutil.disk_usage(folder).free < 2 * needed:
            raise OSError(f"{needed} bytes would fill more than half of what is free")
        for suffix in (".json", TOKENS, BLOCKS):
            self._file(layer, suffix).unlink(missing_ok=True)
        _reserve(self._file(layer, TOKENS), needed)
        _reserve(self._file(layer, BLOCKS), len(self._blocks))
        kept = self._map(layer, width, dtype)
        partial = self._file(layer, ".partial")
        facts = {"width": width, "dtype": str(dtype).split(".")[-1], "boot": machine.boot()}
        partial.write_text(json.dumps(facts))
        partial.replace(self._file(layer, ".json"))
        return kept

    def _map(self, layer: int, width: int, dtype: torch.dtype) -> "_Layer":
        def mapped(suffix: str, size: int, dtype: torch.dtype) -> Tensor:
            return torch.from_file(
                str(self._file(layer, suffix)), shared=True, size=size, dtype=dtype
            )

        tokens = mapped(TOKENS, self._n_tokens * width, dtype)
        filled = mapped(BLOCKS, len(self._blocks), torch.uint8)
        return _Layer(tokens.view(self._n_tokens, width), filled)

    def _file(self, layer: int, suffix: str) -> Path:
        if self._folder is None:
            raise OSError("no folder was given")
        text = f"{self._key}/{layer}/{self._n_tokens}/{len(self._blocks)}"
        return self._folder / (hashlib.sha256(text.encode()).hexdigest()[:32] + suffix)

    @property
    def _n_tokens(self) -> int:
        """Real tokens, and one for padding."""
        return int(self._starts[-1]) + 1

    def _padded(self, layer: int, rows: np.ndarray, width: int) -> Tensor:
        """[B, width, d], zeros behind each row's end."""
        tokens = self._layers[layer].tokens
        steps = np.arange(width)
        index = self._starts[rows][:, None] + steps
        index[steps >= self._examples.lengths[rows][:, None]] = len(tokens) - 1
        flat = tokens.index_select(0, on_device(index.ravel(), tokens.device))
        return on_device(flat.view(len(rows), width, -1), self._examples.device)


@dataclass(frozen=True)
class _Layer:
    """Kept inputs of one layer.

    Attributes:
        tokens: [n_tokens + 1, d], the real tokens of all examples; the last row is zero.
        filled: uint8 [n_blocks], 1 where a block's tokens are there.
    """

    tokens: Tensor
    filled: Tensor


def _reserve(file: Path, size: int) -> None:
    """Take the disk's blocks now: a write to a mapped file on a full disk kills the process."""
    with file.open("wb") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, size)


def _runs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of every run, one after the other, int64."""
    ends = np.cumsum(lengths)
    runs: np.ndarray = np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)
    return runs
