"""The solo probe: what one configuration costs by itself, measured before it is trained.

Seconds and bytes within a pack are those of all its lanes, so costs that are objectives or capped
come from a few steps of the configuration alone, on the study's device and data, with nothing
kept of the frozen layers. Nothing of it is trained further.

- `train_seconds`: optimizer steps of the full budget times the median step on a batch of middling
  length, and what a sparsity rule's own passes take of a mean step. Evaluation, loading and
  waiting are left out.
- `peak_memory_bytes`: the backbone's weights and buffers, and what training adds to the tensors on
  the device at its peak, on the longest batch. Left out: what libraries take for themselves, and
  the evaluation.
- `latency_seconds`: the median forward pass of one example of `data.max_length` tokens, with the
  methods as they are trained (LoRA not merged), up to what the metrics read.
"""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch

from autopeft.backbone.memory import backbone_bytes
from autopeft.configuration import Configuration
from autopeft.execution.peak_memory import added_peak
from autopeft.execution.steady import (
    longest_batch,
    middling_batch,
    steady_trainer,
    timed_steps,
    wait_for,
)
from autopeft.training.batches import PaddedExamples
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import PackRun, Trainer

WARM_STEPS = 3
"""Steps before the first timed one: on a GPU the first runs eagerly, the second is captured."""

TIMED_STEPS = 5
MEMORY_STEPS = 2
"""Steps to the peak on a CPU: the second finds the optimizer's moments in place."""

WARM_FORWARDS, FORWARDS = 3, 15


class SoloProbe:
    """Measures configurations of one study.

    Args:
        trainer: The study's, in the precision that it trains with.
        data: The study's.
        metrics: Which to measure, of the measured ones of `METRICS`; others are left out.
        max_length: Tokens of the example whose forward pass is timed.
    """

    def __init__(
        self, trainer: Trainer, data: TaskData, *, metrics: Sequence[str], max_length: int
    ) -> None:
        self._trainer, self._data = trainer, data
        self._metrics, self._max_length = tuple(metrics), max_length
        self._measures = {
            "train_seconds": self._train_seconds,
            "peak_memory_bytes": self._peak_memory,
            "latency_seconds": self._latency,
        }

    @property
    def device(self) -> torch.device:
        """Where it measures."""
        return self._trainer.device

    def measure(self, configuration: Configuration) -> dict[str, Any]:
        """The metrics by name, how they came about, and `seconds`: what it took in all.

        Plain JSON, as it is stored under "probe" in a trial's profile.

        Raises:
            TrialError: Out of memory (cause `out-of-memory`).
        """
        began = time.perf_counter()
        found: dict[str, Any] = {}
        for metric in self._metrics:
            found |= self._measures[metric](configuration)
        return found | {"seconds": round(time.perf_counter() - began, 4)}

    def _train_seconds(self, configuration: Configuration) -> Mapping[str, Any]:
        run = self._started(self._middling, configuration)
        run.train(WARM_STEPS)
        steps = timed_steps(run, TIMED_STEPS, self.device)
        scoring = run.scoring_seconds_per_step()
        total = self._trainer.settings.total_steps
        found = {
            "train_seconds": total * (median(steps) + scoring),
            "step_seconds": [round(seconds, 6) for seconds in steps],
        }
        return found | ({"scoring_seconds_per_step": scoring} if scoring else {})

    def _peak_memory(self, configuration: Configuration) -> Mapping[str, Any]:
        trainer = self._longest  # made outside: it stays from probe to probe
        steps = WARM_STEPS if self.device.type == "cuda" else MEMORY_STEPS
        with added_peak(self.device) as bytes_added:
            self._started(trainer, configuration).train(steps)
            wait_for(self.device)
            added = bytes_added()
        return {"peak_memory_bytes": backbone_bytes(self._trainer.backbone) + added}

    def _latency(self, configuration: Configuration) -> Mapping[str, Any]:
        run, taken = self._started(self._middling, configuration), []
        for _ in range(WARM_FORWARDS + FORWARDS):
            began = time.perf_counter()
            run.scores(self._one_example)
            wait_for(self.device)
            taken.append(time.perf_counter() - began)
        return {"latency_seconds": median(taken[WARM_FORWARDS:])}

    def _started(self, trainer: Trainer, configuration: Configuration) -> PackRun:
        return trainer.start([Lane(0, configuration)])

    # -- what is run on -----------------------------------------------------------------------

    @cached_property
    def _middling(self) -> Trainer:
        return self._on(middling_batch(self._trainer), WARM_STEPS + TIMED_STEPS)

    @cached_property
    def _longest(self) -> Trainer:
        return self._on(longest_batch(self._trainer), WARM_STEPS)

    def _on(self, rows: np.ndarray, steps: int) -> Trainer:
        precision = self._trainer.settings.precision
        return steady_trainer(self._trainer, self._data, rows, precision=precision, steps=steps)

    @cached_property
    def _one_example(self) -> PaddedExamples:
        return self._trainer.padded(lengthened(self._data.train, self._max_length))


def lengthened(examples: Examples, length: int) -> Examples:
    """The longest example, alone, repeated or cut to a length in tokens."""
    number = int(np.argmax([len(ids) for ids in examples.token_ids]))
    one = examples.rows(np.array([number]))

    def stretched(arrays: tuple[np.ndarray, ...] | None) -> tuple[np.ndarray, ...] | None:
        return None if arrays is None else tuple(np.resize(each, length) for each in arrays)

    targets = stretched(one.targets)
    if targets is not None:
        targets[0][-1] = True  # a pass without any token to predict is none
    return replace(
        one,
        token_ids=tuple(np.resize(each, length) for each in one.token_ids),
        token_types=stretched(one.token_types),
        targets=targets,
    )


def machine_name(device: torch.device) -> str:
    """What seconds are of: the GPU's name, or the processor and its threads."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    kind = platform.processor() or platform.machine()
    return f"{kind}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
