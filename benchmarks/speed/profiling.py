"""Where our steps lose time, solo and packed: by part of the step, and by kernel.

Parts are timed by wrapping the functions that do them, in CPU seconds of all threads, which others
on the machine do not disturb; on a GPU, where calls return before their work is done, the kernels
of the profiler are what counts.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from autopeft.configuration import Configuration
from autopeft.training.batches import PaddedExamples
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.wiring import Placed
from benchmarks.speed import trials
from benchmarks.speed.bench import Bench
from benchmarks.speed.lanes import Ours, lane_turns, trainer_of
from benchmarks.speed.measuring import Measured, finished
from benchmarks.speed.reference import Recipe, run_reference

PARTS: Mapping[str, tuple[Any, str]] = {
    "batch": (PaddedExamples, "batch"),
    "forward": (Pack, "forward"),
    "forward: operators": (Placed, "delta"),
    "backward": (torch.autograd, "backward"),
    "optimizer": (LaneAdamW, "step"),
}
STEPS, UNCOUNTED = 10, 2
KERNELS = 14


def profiles(bench: Bench) -> Iterator[str]:
    """One table each: a LoRA trial of both sides, and packs."""
    anatomy = bench.anatomy
    everywhere = trials.lora(anatomy, range(len(anatomy.layers)))
    packs: dict[str, Sequence[Configuration]] = {
        "solo LoRA, all layers": [everywhere],
        "solo LoRA, top third": [trials.lora(anatomy, trials.top_third(anatomy))],
        "pack of 8 LoRA, top third": trials.eight(trials.top_third(anatomy)),
        "pack of 8 of the 16 trials": trials.sixteen(anatomy)[::2],
    }

    def reference() -> Measured:
        recipe = Recipe(max_steps=STEPS, uncounted_steps=UNCOUNTED, evaluate=False)
        return run_reference(bench.subject, bench.data, everywhere, recipe)

    yield _one("HF Trainer + peft, LoRA, all layers", reference, lanes=1)
    for name, configurations in packs.items():
        lanes = [Lane(*item) for item in enumerate(configurations)]
        yield _one(name, _packed(bench, lanes), lanes=len(lanes))


def mixed_profile(bench: Bench, *, lanes: int, batch: int) -> str:
    """The table of `gpu_mixed`'s pack, in autocast to bfloat16, captured where that can be."""
    mix = [Lane(*item) for item in enumerate(trials.random_mix(bench.anatomy, lanes, seed=0))]
    ours = Ours(batch_size=batch, micro_batch_size=batch, precision="bf16")
    return _one(f"pack of {lanes} mixed lanes, bf16", _packed(bench, mix, ours), lanes=lanes)


def _packed(
    bench: Bench, lanes: Sequence[Lane], ours: Ours | None = None
) -> Callable[[], Measured]:
    ours = replace(ours or Ours(), max_steps=STEPS, uncounted_steps=UNCOUNTED, evaluate=False)
    trainer = trainer_of(bench.subject, bench.data, ours)
    return lambda: finished(lane_turns(bench.subject, trainer, lanes, ours))


def _one(name: str, run: Callable[[], Measured], *, lanes: int) -> str:
    with _timed() as (spent, calls):
        measured = run()
    wall, cpu = (1e3 * seconds / (STEPS - UNCOUNTED) for seconds in measured.train)
    lines = [f"{name}: {wall:.0f} ms a step, {cpu:.0f} ms of CPU, {cpu / lanes:.0f} a lane"]
    for part, seconds in spent.items():
        each = f"{1e3 * seconds / STEPS:8.2f} ms  {calls[part] / STEPS:6.1f} calls"
        lines.append(f"  {part:20} {each}")
    with profile(activities=_activities()) as found:
        run()
    return "\n".join([*lines, *_kernels(found)])


def _activities() -> list[ProfilerActivity]:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    return activities


def _kernels(found: Any) -> list[str]:
    """The kernels that take most, by their own time, per step."""

    def own(event: Any) -> float:
        return float(event.self_device_time_total or event.self_cpu_time_total)

    events = sorted(found.key_averages(), key=own, reverse=True)
    total = sum(own(event) for event in events)
    return [
        f"  {event.key[:44]:44} {own(event) / STEPS / 1e3:8.2f} ms  {own(event) / total:4.0%}  "
        f"{event.count / STEPS:7.1f} calls"
        for event in events[:KERNELS]
    ]


@contextmanager
def _timed() -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Seconds and calls of every part while inside."""
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            wrapped = _wrapped(part, getattr(owner, name), spent, calls)
            stack.enter_context(mock.patch.object(owner, name, wrapped))
        yield spent, calls


def _wrapped(
    part: str, function: Callable[..., Any], spent: Counter[str], calls: Counter[str]
) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **options)
        finally:
            spent[part] += time.process_time() - began  # type: ignore[assignment]
            calls[part] += 1

    return timed
