"""What sparsity rules cost and save while training: seconds per step, peak memory.

    python -m benchmarks.sparsity_cost [DATA] [--backbone minilm] [--lanes 1 4] [--rounds 5]

Rules take turns, a round of steps each, on the same batches, by themselves and several to a pack;
seconds are medians over the rounds (CPU seconds beside them, which say more where others use the
machine), scoring included. The peak is of the tensors that training adds to the backbone, over
the steps of a round. LoRA r=8 on query, value, up and down of every layer; DATA is a folder with
TREC-6, by default rows of random tokens.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from autopeft.configuration import Configuration, Group
from autopeft.execution.peak_memory import added_peak
from autopeft.execution.steady import wait_for
from autopeft.training.data.examples import TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.settings import LoopSettings
from benchmarks.speed.rows import Lengths, random_rows, trec6
from benchmarks.speed.shapes import SHAPES, load_subject

RULES: Mapping[str, Mapping[str, Any]] = {
    "none": {"rule": "none"},
    "ist": {"rule": "ist"},
    "rst": {"rule": "rst"},
    "lisa": {"rule": "lisa"},
    "id3": {"rule": "id3"},
    "id3_random": {"rule": "id3_random"},
    "adalora": {"rule": "adalora"},
    "adalora_random": {"rule": "adalora_random"},
}
CLASSES, TOKENS = 6, 32
ROUND = 10
"""Steps of a round: IST's interval, so that each holds one scoring."""


@dataclass
class Arm:
    """One rule at one size of pack.

    Attributes:
        run: In training.
        seconds: Per step, of every round.
        cpu_seconds: The same of the process.
    """

    run: PackRun
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def round(self, device: torch.device) -> None:
        """Take a round of steps."""
        began, cpu = time.perf_counter(), time.process_time()
        self.run.train(self.run.step + ROUND)
        wait_for(device)
        self.seconds.append((time.perf_counter() - began) / ROUND)
        self.cpu_seconds.append((time.process_time() - cpu) / ROUND)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table per size of pack."""
    options = _parser().parse_args(arguments)
    subject = load_subject(
        options.backbone, n_classes=CLASSES, device=options.device, dtype=torch.float32
    )
    data = _data(options, subject.backbone)
    trainer = _trainer(subject.backbone, data, options.batch, options.rounds)
    threads = torch.get_num_threads()
    print(f"{options.backbone}, {options.device}, {threads} threads, batch {options.batch}")
    for lanes in options.lanes:
        print(f"\n{lanes} lane{'s' * (lanes > 1)}\n")
        for line in _table(trainer, lanes, options.rounds):
            print(line, flush=True)
    return 0


def _table(trainer: Trainer, lanes: int, rounds: int) -> list[str]:
    arms = {name: Arm(trainer.start(_lanes(trainer, rule, lanes))) for name, rule in RULES.items()}
    for _ in range(rounds + 1):
        for arm in arms.values():
            arm.round(trainer.device)
    lines = [
        "| rule | ms/step | ratio | CPU ms/step | ratio | of it scoring | peak MiB | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    peaks = {name: _peak(trainer, rule, lanes) for name, rule in RULES.items()}
    base = arms["none"]
    for name, arm in arms.items():
        wall, cpu = (
            ratios(arm, base, lambda own: own.seconds),
            ratios(arm, base, lambda own: own.cpu_seconds),
        )
        scoring = arm.run.profile.scoring_seconds / arm.run.profile.train_seconds
        lines.append(
            f"| {name} | {1e3 * median(arm.seconds[1:]):.1f} | {wall:.2f} "
            f"| {1e3 * median(arm.cpu_seconds[1:]):.1f} | {cpu:.2f} | {scoring:.0%} "
            f"| {peaks[name] / 2**20:.1f} | {peaks[name] / peaks['none']:.2f} |"
        )
    return lines


def ratios(arm: Arm, base: Arm, seconds: Callable[[Arm], list[float]]) -> float:
    """The median, over the rounds but the first, of an arm's seconds over the base's."""
    pairs = zip(seconds(arm)[1:], seconds(base)[1:], strict=True)
    return median(own / other for own, other in pairs)


def _peak(trainer: Trainer, rule: Mapping[str, Any], lanes: int) -> int:
    with added_peak(trainer.device) as added:
        trainer.start(_lanes(trainer, rule, lanes)).train(ROUND + 1)
        return added()


def _lanes(trainer: Trainer, rule: Mapping[str, Any], lanes: int) -> list[Lane]:
    layers = range(len(trainer.backbone.anatomy.layers))
    lora = {"rank": 8, "alpha": 16.0, "dropout": 0.0}
    group = Group.of("lora", layers, ["query", "value", "up", "down"], **lora)
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}
    configuration = Configuration.of([group], training=training, sparsity=rule)
    return [Lane(number, configuration) for number in range(lanes)]


def _trainer(backbone: Any, data: TaskData, batch: int, rounds: int) -> Trainer:
    settings = LoopSettings(
        task="sequence-classification",
        metrics=("accuracy",),
        total_steps=ROUND * (rounds + 1),
        batch_size=batch,
        micro_batch_size=batch,
    )
    return Trainer(backbone, data, settings, study_seed=0)


def _data(options: argparse.Namespace, backbone: Any) -> TaskData:
    if options.data is not None and backbone.tokenizer is None:
        sys.exit(f"{options.backbone} has no tokenizer for DATA: builtin:minilm or a folder has")
    if options.data is not None:
        return trec6(options.data, backbone.tokenizer)
    return random_rows(
        Lengths(TOKENS, 0, TOKENS, TOKENS),
        n_train=options.batch * ROUND,
        n_validation=options.batch,
        n_classes=CLASSES,
        vocabulary=backbone.config.vocab_size,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsity_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="?", type=Path, help="a folder with TREC-6")
    parser.add_argument(
        "--backbone", default="minilm", help=f"builtin:minilm, a folder, or {', '.join(SHAPES)}"
    )
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4], help="of each pack")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


if __name__ == "__main__":
    sys.exit(main())
