"""The scenario on a decoder: LoRA lanes on a Llama-shaped model, with the roofline.

The second half of every row is the answer that the loss is taken over, on both sides.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from autopeft.training.lanes.pack import Lane
from benchmarks.speed import trials
from benchmarks.speed.bench import Bench, Plan
from benchmarks.speed.lanes import Ours
from benchmarks.speed.lines import Fact, Line, Repeat, Work
from benchmarks.speed.reference import Recipe
from benchmarks.speed.roofline import matmul_peak, pack_flops


def gpu_decoder(
    bench: Bench,
    *,
    lanes: int,
    references: int,
    steps: int,
    uncounted: int,
    batch: int,
    tokens: int,
) -> Plan:
    """LoRA lanes in all layers, the first few one by one, and all in one pack; in bfloat16."""
    anatomy = bench.anatomy
    every = {
        number: trials.lora(anatomy, range(len(anatomy.layers)), rate=1e-4 * (number + 1))
        for number in range(lanes)
    }
    few = {number: every[number] for number in range(references)}
    recipe = Recipe(
        batch_size=batch, max_steps=steps, uncounted_steps=uncounted, bf16=True, evaluate=False
    )
    ours = Ours(
        batch_size=batch,
        micro_batch_size=batch,
        precision="bf16",
        max_steps=steps,
        uncounted_steps=uncounted,
        evaluate=False,
    )
    arms = (
        bench.reference("hf", few, recipe),
        bench.packed("solo", few, ours, size=1),
        bench.packed("pack", every, ours, size=lanes),
        bench.packed("pack, no trunk", every, replace(ours, trunk=False), size=lanes),
    )
    pack = [Lane(number, configuration) for number, configuration in every.items()]
    head = bench.subject.backbone.lm_head
    flops = pack_flops(pack, anatomy, batch, tokens) / (batch * lanes)
    flops += 0.0 if head is None else 4.0 * head.weight.numel() * (tokens - tokens // 2)
    peak = cache(lambda: matmul_peak(bench.subject.device, torch.bfloat16))
    name = f"{bench.subject.name}, {lanes} LoRA lanes, {batch} x {tokens}"
    one_by_one = f"{name}: HF one by one / one pack"
    lines = (
        Line(one_by_one, Work("hf"), Work("pack"), "train", per_sample=True, bar=1.5),
        Line(
            "our solo runs / one pack",
            Work("solo"),
            Work("pack"),
            "train",
            per_sample=True,
            bar=1.5,
        ),
        Line("trunk shared", Work("pack, no trunk"), Work("pack"), "train", per_sample=True),
        Fact("achieved in the pack", _achieved("pack", flops), unit=" TFLOP/s"),
        Fact("achieved solo", _achieved("solo", flops), unit=" TFLOP/s"),
        Fact("possible: fastest bf16 matmul", lambda _: peak() / 1e12, unit=" TFLOP/s"),
        Fact(
            "roofline of the pack", lambda r: _achieved("pack", flops)(r) * 1e12 / peak(), unit=""
        ),
    )
    return Plan(arms, lines)


def _achieved(arm: str, flops: float) -> Callable[[Repeat], float]:
    """TFLOP/s of an arm whose lane rows take `flops` each."""

    def value(repeat: Repeat) -> float:
        records = repeat.of(Work(arm))
        wall = sum(record.measured.span("train")[0] for record in records)
        rows = sum(record.measured.samples for record in records)
        return flops * rows / wall / 1e12

    return value
