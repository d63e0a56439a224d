"""The scenarios on encoders, on a CPU and on a GPU."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from autopeft.configuration import Configuration
from autopeft.counting import first_layer
from autopeft.training.batches import training_order
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.seeds import Seeds
from benchmarks.speed import trials
from benchmarks.speed.bench import Bench, Plan
from benchmarks.speed.lanes import CACHE_BYTES, Ours, trainer_of
from benchmarks.speed.lines import Fact, Line, Repeat, Work
from benchmarks.speed.measuring import Arm
from benchmarks.speed.nearest import described
from benchmarks.speed.reference import Recipe
from benchmarks.speed.roofline import bf16_is_slow

SAME_CURVE = 1e-3
"""Loss curves this close over a whole trial in float32 are one trajectory."""


def trials16(bench: Bench, *, epochs: int, pack: int, n: int, few: int) -> Plan:
    """Trials one by one with the reference, and in packs; each factor on a few of them.

    Args:
        bench: What they are trained on.
        epochs: Of a trial.
        pack: Lanes of a pack.
        n: Trials, the first of the sixteen.
        few: Trials that the factors are measured on.
    """
    every = dict(enumerate(trials.sixteen(bench.anatomy)[:n]))
    chosen = _spread(every, few, bench)
    some = frozenset(chosen)
    recipe, ours = Recipe(epochs=epochs), Ours(epochs=epochs)
    cached = replace(ours, cache_bytes=CACHE_BYTES)
    size = len(chosen)
    arms = [
        bench.reference("hf", every, recipe),
        bench.packed("packs", every, cached, size=pack),
        bench.reference("hf, no dropout", chosen, replace(recipe, dropout=False)),
        bench.reference(
            "hf, no dropout, by length", chosen, replace(recipe, dropout=False, by_length=True)
        ),
        bench.packed("solo, no buckets", chosen, replace(ours, bucketing=False), size=1),
        bench.packed("solo", chosen, ours, size=1),
        bench.packed("pack, no trunk", chosen, replace(ours, trunk=False), size=size),
        bench.packed("pack", chosen, ours, size=size),
        bench.packed("pack, cache", chosen, cached, size=size),
    ]
    still = Work("hf, no dropout")
    lines: list[Line | Fact] = [
        Line("all: HF one by one / our packs", Work("hf"), Work("packs"), bar=2.5),
        Line("model dropout off (HF)", Work("hf", some), still),
        Line(
            "padding: grouped by length (HF)",
            Work("hf, no dropout"),
            Work("hf, no dropout, by length"),
        ),
        Line("our loop, solo, HF's padding", Work("hf, no dropout"), Work("solo, no buckets")),
        Line("padding: our length buckets, solo", Work("solo, no buckets"), Work("solo")),
        Line("packing, trunk not shared", Work("solo"), Work("pack, no trunk"), "train"),
        Line("trunk shared", Work("pack, no trunk"), Work("pack"), "train"),
        Line("cache of the trunk: off / on, cold", Work("pack"), Work("pack, cache")),
        Line("evaluation: HF / packed", still, Work("pack"), "evaluation"),
        Line("evaluation: solo / packed", Work("solo"), Work("pack"), "evaluation"),
    ]
    skipped = {}
    if slow := bf16_is_slow(bench.subject.device):
        skipped["precision: fp32 / bf16"] = slow
    else:
        bf16 = replace(ours, precision="bf16")
        arms.append(bench.packed("pack, bf16", chosen, bf16, size=size))
        lines.append(Line("precision: fp32 / bf16", Work("pack"), Work("pack, bf16")))
    notes = (
        f"factors on trials {sorted(chosen)}; packs of {pack}",
        *(f"nearest peft: {line}" for line in described(list(every.values()), bench.anatomy)),
    )
    return Plan(tuple(arms), tuple(lines), skipped, notes)


def _spread(
    configurations: Mapping[int, Configuration], n: int, bench: Bench
) -> dict[int, Configuration]:
    """n trials spread evenly over the order of branch points."""
    order = sorted(
        configurations, key=lambda k: (first_layer(configurations[k], bench.anatomy), k)
    )
    n = min(n, len(order))
    picked = sorted(order[int((index + 0.5) * len(order) / n)] for index in range(n))
    return {number: configurations[number] for number in picked}


def solo_packed(bench: Bench, *, epochs: int, mixes: Sequence[int]) -> Plan:
    """Packs against our own solo runs: random mixes, nothing to share, and the top third.

    Where little is to be gained, a solo run's steps and the pack's take turns: minutes apart, the
    machines that this runs on differ by more than what is measured.
    """
    arms: list[Arm] = []
    lines: list[Line | Fact] = []
    once = Ours(epochs=1, by_step=True)

    def abreast(name: str, lanes: Mapping[int, Configuration]) -> list[Arm]:
        return [
            bench.packed(f"{name} {how}", lanes, once, size=size, abreast=name)
            for how, size in (("solo", 1), ("packed", len(lanes)))
        ]

    for seed, size in enumerate(mixes):
        mix = dict(enumerate(trials.random_mix(bench.anatomy, size, seed)))
        arms += abreast(f"mix {seed}", mix)
        solo, packed = (Work(arm.name) for arm in arms[-2:])
        lines.append(Line(f"random mix {seed} of {size} lanes", solo, packed, bar=0.95))
    whole = dict(enumerate(trials.eight(range(len(bench.anatomy.layers)))))
    arms += abreast("all layers", whole)
    nothing = "8 lanes in all layers, no trunk to share: solo / packed"
    lines.append(Line(nothing, Work("all layers solo"), Work("all layers packed"), bar=0.95))
    eight = dict(enumerate(trials.eight(trials.top_third(bench.anatomy))))
    off, on = Ours(epochs=epochs), Ours(epochs=epochs, cache_bytes=CACHE_BYTES)
    arms += [
        bench.packed("top solo", eight, off, size=1),
        bench.packed("top packed", eight, on, size=8),
        bench.packed("top solo, warm", eight, on, size=1, warm=True),
        bench.packed("top packed, warm", eight, on, size=8, warm=True),
    ]
    cold = f"8 lanes in the top third, {epochs} epochs: solo without cache / packed"
    warm = f"8 lanes in the top third, {epochs} epochs: solo / packed, both with a warm cache"
    lines += [
        Line(cold, Work("top solo"), Work("top packed"), bar=1.7),
        Line(warm, Work("top solo, warm"), Work("top packed, warm"), bar=0.95),
    ]
    return Plan(tuple(arms), tuple(lines))


def solo_lora(bench: Bench, *, epochs: int) -> Plan:
    """One LoRA trial against the reference, with HF's defaults and step for step the same."""
    anatomy = bench.anatomy
    ours = Ours(epochs=epochs, cache_bytes=CACHE_BYTES)
    arms: list[Arm] = []
    lines: list[Line | Fact] = []
    for place, layers, bar in (
        ("all layers", range(len(anatomy.layers)), 1.25),
        ("top third", trials.top_third(anatomy), 1.7),
    ):
        one = {0: trials.lora(anatomy, layers)}
        same = same_recipe(bench, one[0], ours)
        hf, own, twin = f"hf, {place}", f"ours, {place}", f"hf, {place}, same steps"
        arms += [
            bench.reference(hf, one, Recipe(epochs=epochs)),
            bench.packed(own, one, ours, size=1),
            bench.reference(twin, one, same),
        ]
        lines += [
            Line(f"{place}: HF's defaults / ours", Work(hf), Work(own), bar=bar),
            Line(f"{place}: HF, no dropout, our batches / ours", Work(twin), Work(own), bar=0.95),
            Fact(f"{place}: loss curves apart by", _apart(twin, own), SAME_CURVE, " nats"),
        ]
    return Plan(tuple(arms), tuple(lines))


def same_recipe(bench: Bench, configuration: Configuration, ours: Ours) -> Recipe:
    """The reference with our initial weights and batches, and no dropout."""
    trainer = trainer_of(bench.subject, bench.data, ours)
    start = trainer.start([Lane(0, configuration)]).states()[0]
    order = training_order(
        trainer.train.lengths,
        batch_size=ours.batch_size,
        total_steps=trainer.settings.total_steps,
        seeds=Seeds(0, 0),
    )
    return Recipe(epochs=1, batch_size=ours.batch_size, dropout=False, order=order, start=start)


def _apart(twin: str, own: str) -> Callable[[Repeat], float]:
    def value(repeat: Repeat) -> float:
        (theirs,), (curve,) = (
            [record.measured.details for record in repeat.of(Work(arm))] for arm in (twin, own)
        )
        return curve_distance(theirs["losses"], curve["curves"]["0"])

    return value


def curve_distance(losses: Sequence[float], curve: Iterable[tuple[int, float]]) -> float:
    """The largest distance of a curve's points from the mean loss of the same steps."""
    apart, begin = 0.0, 0
    for step, value in curve:
        apart = max(apart, abs(float(np.mean(losses[begin:step])) - value))
        begin = step
    return apart


def gpu_mixed(
    bench: Bench, *, lanes: int, references: int, steps: int, uncounted: int, batch: int
) -> Plan:
    """Many mixed lanes in one pack against the reference one by one; samples per second.

    The reference's are of some of the trials, spread over the order of branch points. Like is held
    against like: float32, autocast to bfloat16, and frozen weights in bfloat16, where the
    reference is fastest without autocast. Factors are measured in autocast.
    """
    mix = dict(enumerate(trials.random_mix(bench.anatomy, lanes, seed=0)))
    few = _spread(mix, references, bench)
    hf = Recipe(batch_size=batch, max_steps=steps, uncounted_steps=uncounted, evaluate=False)
    ours = Ours(
        batch_size=batch,
        micro_batch_size=batch,
        max_steps=steps,
        uncounted_steps=uncounted,
        evaluate=False,
    )
    hf16, ours16 = replace(hf, bf16=True), replace(ours, precision="bf16")
    held = bench.frozen_in(torch.bfloat16)
    arms = [
        bench.reference("hf, fp32", few, hf),
        bench.packed("pack, fp32", mix, ours, size=lanes),
        bench.reference("hf", few, hf16),
        bench.packed("pack", mix, ours16, size=lanes),
        held.reference("hf, held in bf16", few, hf),
        held.packed("pack, held in bf16", mix, ours16, size=lanes),
        bench.reference("hf, no dropout", few, replace(hf16, dropout=False)),
        bench.packed("solo, no graphs", few, replace(ours16, graphs=False), size=1),
        bench.packed("solo", few, ours16, size=1),
        bench.packed("pack, no trunk", mix, replace(ours16, trunk=False), size=lanes),
        bench.packed("pack, no graphs", mix, replace(ours16, graphs=False), size=lanes),
        bench.packed("pack, compiled", mix, replace(ours16, compiled=True), size=lanes),
        bench.packed(
            "pack, compiled, no graphs",
            mix,
            replace(ours16, compiled=True, graphs=False),
            size=lanes,
        ),
    ]
    name, against = bench.subject.name, f"HF one by one / one pack of {lanes}"
    factors = (
        (f"fp32: {against}", "hf, fp32", "pack, fp32", 13.0),
        (f"autocast to bf16: {against}", "hf", "pack", 13.0),
        (f"held in bf16: {against}", "hf, held in bf16", "pack, held in bf16", 13.0),
        ("model dropout off (HF)", "hf", "hf, no dropout", None),
        ("our loop, solo, without graphs", "hf, no dropout", "solo, no graphs", None),
        ("graphs, solo", "solo, no graphs", "solo", None),
        ("packing, trunk not shared", "solo", "pack, no trunk", None),
        ("trunk shared", "pack, no trunk", "pack", None),
        ("frozen weights held in fp32 / bf16", "pack", "pack, held in bf16", None),
        ("the pack: without graphs / with", "pack, no graphs", "pack", None),
        ("operators: as they are / compiled", "pack", "pack, compiled", None),
        (
            "the same, both without graphs",
            "pack, no graphs",
            "pack, compiled, no graphs",
            None,
        ),
        ("precision: fp32 / bf16", "pack, fp32", "pack", None),
    )
    lines = [
        Line(f"{name}, {text}", Work(before), Work(after), "train", per_sample=True, bar=bar)
        for text, before, after, bar in factors
    ]
    notes = (
        f"one by one: trials {sorted(few)} of {lanes}",
        *(f"nearest peft: {line}" for line in described(list(few.values()), bench.anatomy)),
    )
    return Plan(tuple(arms), tuple(lines), notes=notes)
