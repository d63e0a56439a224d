"""What packing saves: packs of lanes against solo runs, and against HF Trainer with peft.

Every line of the table is a ratio of seconds within one run: the median over the repeats, its
range, and the ratio of CPU seconds beside it, which says more where others use the machine. Parts
of all sides take turns. With --record, finished measurements are kept, and the same command goes
on where it was stopped. --tiny runs the same code on tiny shapes, to see that it runs.

Scenarios: trials16, solo_packed, solo_lora (for a CPU), gpu_mixed, gpu_decoder.
"""

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from autopeft.training.data.examples import TaskData
from autopeft.training.precision import forbid_tf32
from benchmarks.speed import rows
from benchmarks.speed.bench import Bench, Plan
from benchmarks.speed.decoders import gpu_decoder
from benchmarks.speed.encoders import gpu_mixed, solo_lora, solo_packed, trials16
from benchmarks.speed.lines import Repeat, Result, evaluate, table
from benchmarks.speed.measuring import Records, measure
from benchmarks.speed.profiling import mixed_profile, profiles
from benchmarks.speed.shapes import SHAPES, Subject, default_name, load_subject

ROOT = Path(__file__).resolve().parents[2]
GPU_SCENARIOS = ("gpu_mixed", "gpu_decoder")
SCENARIOS = ("trials16", "solo_packed", "solo_lora", *GPU_SCENARIOS)
NO_GPU = "no CUDA device here (--tiny runs the same code on a CPU)"
NO_TREC = (
    "it needs TREC-6 (--data FOLDER) and a model with a tokenizer; --data synthetic takes random "
    "tokens of TREC-6's lengths"
)
CLASSES = 6


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    epochs: int = 3
    trials: int = 16
    factor_trials: int = 4
    mixes: tuple[int, ...] = (2, 4, 8)
    gpu_lanes: int = 32
    decoder_lanes: int = 8
    references: int = 3
    steps: int = 30
    uncounted: int = 10
    batch: int = 16
    tokens: int = 64
    decoder_tokens: int = 256
    train_rows: int = rows.TRAIN_ROWS
    validation_rows: int = 545


TINY = Sizes(
    epochs=1,
    trials=4,
    factor_trials=2,
    mixes=(2,),
    gpu_lanes=2,
    decoder_lanes=2,
    references=2,
    steps=3,
    uncounted=1,
    batch=4,
    tokens=8,
    decoder_tokens=12,
    train_rows=40,
    validation_rows=16,
)


class CannotMeasureError(Exception):
    """A scenario has nothing to run on here; the message says what is missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; a scenario that cannot run here is skipped with the reason."""
    options = _parser().parse_args(arguments)
    forbid_tf32()  # on both sides: it is off in the product, and by default in torch
    results: list[Result] = []
    print(_machine(options))
    for scenario in options.scenario:
        for name in _backbones(scenario, options):
            results += _scenario(scenario, name, options)
    if options.json:
        plain = {"machine": _about(options), "results": [r.to_dict() for r in results]}
        options.json.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    return 0


def _scenario(scenario: str, name: str, options: argparse.Namespace) -> list[Result]:
    print(f"\n{scenario} on {name}", flush=True)
    sizes = TINY if options.tiny else Sizes()
    try:
        bench, data = _bench(scenario, name, options, sizes)
    except CannotMeasureError as reason:
        print(f"skipped: {reason}")
        return [Result(scenario, "everything", skipped=str(reason))]
    bench.warm_up()
    if options.profile:
        own = partial(mixed_profile, bench, lanes=sizes.gpu_lanes, batch=sizes.batch)
        for text in [own()] if scenario == "gpu_mixed" else profiles(bench):
            print(f"\n{text}", flush=True)
        return []
    about = {**_about(options), "backbone": name, "data": data}
    records = Records(options.record, about)
    plan = _plan(scenario, bench, sizes, options.pack)
    plan = plan.of_bars() if options.bars else plan
    measure(scenario, plan.arms, options.repeats, records)
    repeats = [Repeat(scenario, plan.arms, n, records) for n in range(options.repeats)]
    results = [evaluate(scenario, line, repeats) for line in plan.lines]
    results += [Result(scenario, what, skipped=why) for what, why in plan.skipped.items()]
    print("\n".join((f"data: {data}", *plan.notes, "", table(results))), flush=True)
    return results


def _plan(scenario: str, bench: Bench, sizes: Sizes, pack: int) -> Plan:
    timed = partial(
        partial, references=sizes.references, steps=sizes.steps, uncounted=sizes.uncounted
    )
    plans: dict[str, Callable[[Bench], Plan]] = {
        "trials16": partial(
            trials16, epochs=sizes.epochs, pack=pack, n=sizes.trials, few=sizes.factor_trials
        ),
        "solo_packed": partial(solo_packed, epochs=sizes.epochs, mixes=sizes.mixes),
        "solo_lora": partial(solo_lora, epochs=sizes.epochs),
        "gpu_mixed": timed(gpu_mixed, lanes=sizes.gpu_lanes, batch=sizes.batch),
        "gpu_decoder": timed(
            gpu_decoder, lanes=sizes.decoder_lanes, batch=2, tokens=sizes.decoder_tokens
        ),
    }
    return plans[scenario](bench)


def _bench(
    scenario: str, name: str, options: argparse.Namespace, sizes: Sizes
) -> tuple[Bench, str]:
    """The model and its data, with words for the data.

    Raises:
        CannotMeasureError: There is no GPU, or no data.
    """
    on_gpu, decoder = scenario in GPU_SCENARIOS, scenario == "gpu_decoder"
    if on_gpu and not options.tiny and not options.device.startswith("cuda"):
        raise CannotMeasureError(NO_GPU)
    folder = rows.data_folder(options.data)
    real = not (on_gpu or options.tiny or name in SHAPES or folder is None)
    synthetic = options.tiny or options.data == rows.SYNTHETIC
    if scenario == "trials16" and not (real or synthetic):
        raise CannotMeasureError(NO_TREC)
    subject = load_subject(
        name,
        n_classes=0 if decoder else CLASSES,
        device=options.device,
        dtype=torch.bfloat16 if decoder else torch.float32,
    )
    if real and folder is not None:
        return Bench(subject, rows.trec6(folder, subject.backbone.tokenizer)), "TREC-6"
    fixed = sizes.decoder_tokens if decoder else sizes.tokens
    lengths = rows.Lengths(fixed, 0, fixed, fixed) if on_gpu else rows.TREC_LIKE
    return Bench(subject, _random(subject, lengths, sizes)), f"random, {lengths}"


def _random(subject: Subject, lengths: rows.Lengths, sizes: Sizes) -> TaskData:
    return rows.random_rows(
        lengths,
        n_train=sizes.train_rows,
        n_validation=sizes.validation_rows,
        n_classes=subject.n_classes,
        vocabulary=subject.backbone.config.vocab_size,
    )


def _backbones(scenario: str, options: argparse.Namespace) -> list[str]:
    if options.backbone:
        return [options.backbone]
    if options.tiny:
        return ["tiny-llama" if scenario == "gpu_decoder" else "tiny-bert"]
    if scenario == "gpu_mixed":
        return ["minilm", "bert-base"]
    return ["llama-1b"] if scenario == "gpu_decoder" else [default_name()]


def _about(options: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for a recorded measurement to count."""
    return {
        "device": _device_name(options.device),
        "threads": torch.get_num_threads(),
        "versions": {p.__name__: p.__version__ for p in (torch, transformers, peft)},
        "code": _code(),
        "tiny": options.tiny,
        "pack": options.pack,
    }


def _code() -> str:
    """A hash of the sources: other code's measurements do not count."""
    digest = hashlib.sha256()
    for folder in ("autopeft", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _machine(options: argparse.Namespace) -> str:
    about = _about(options)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{about['device']}, {about['threads']} threads, {versions}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="packing.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    add("--backbone", help=f"a folder, builtin:minilm, or a shape: {', '.join(SHAPES)}")
    add("--data", help=f"folder of csv data (or ${rows.VARIABLE}), or `synthetic`")
    add("--repeats", type=int, default=3)
    add("--pack", type=int, default=8, help="lanes of a pack in trials16")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--record", type=Path, help="JSON lines file of finished measurements, to go on from")
    add("--json", type=Path, help="write all results there")
    add("--bars", action="store_true", help="only lines with a bar, and what they need")
    add("--tiny", action="store_true", help="tiny shapes and few steps")
    add("--profile", action="store_true", help="where our steps lose time, instead of ratios")
    return parser
