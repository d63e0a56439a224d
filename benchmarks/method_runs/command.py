"""The command line of `benchmarks/methods.py`."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from benchmarks.importance_runs import table
from benchmarks.importance_runs.command import BESIDE, STAGES, TABLES
from benchmarks.importance_runs.grounds import TASKS, Ground, load_ground
from benchmarks.method_runs import tiny
from benchmarks.method_runs.arms import LORA, MIDDLE, RANKS, arms
from benchmarks.method_runs.recording import (
    NAME,
    Plan,
    record_probes,
    record_rates,
    record_trials,
)
from benchmarks.quality.errors import NotHereError

SEEDS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; 0 where it did what it should, 77 where something is not here."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except NotHereError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return 77


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="methods.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser(
        "record",
        help="train what the table lacks",
        description="Resumable, pack by pack: what the table holds is not trained again.",
    )
    recording.add_argument(
        "--data", type=Path, default=os.environ.get("AUTOPEFT_BENCH_DATA"), help="data folder"
    )
    recording.add_argument("--work", type=Path, default=Path("autopeft-runs/methods"))
    recording.add_argument("--tables", type=Path, default=TABLES)
    recording.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    recording.add_argument("--arms", nargs="+", choices=sorted(arms()), default=list(arms()))
    recording.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    recording.add_argument("--ranks", nargs="+", type=int, choices=RANKS, default=list(RANKS))
    recording.add_argument("--seeds", type=int, default=SEEDS)
    recording.add_argument("--pack", type=int, default=8, help="trials trained together")
    recording.add_argument(
        "--tiny",
        action="store_true",
        help="made-up sentences, 12 steps, the middle budget, one seed: takes minutes; "
        "needs no data, and --tables of its own",
    )
    recording.set_defaults(run=_record)
    reporting = commands.add_parser("report", help="tables from what was recorded")
    reporting.add_argument("--tables", type=Path, default=TABLES)
    reporting.add_argument("--picture", type=Path, help="also draw the fronts: html, svg or png")
    reporting.set_defaults(run=_report)
    return parser


def _record(arguments: argparse.Namespace) -> int:
    plan = _tiny_plan(arguments) if arguments.tiny else _plan(arguments)
    steps = {"rates": record_rates, "trials": record_trials, "probes": record_probes}
    for stage in STAGES:
        if stage in arguments.stages:
            steps[stage](plan)
    print(arguments.tables / NAME)
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    if arguments.data is None and not BESIDE.is_dir():
        raise NotHereError("no data folder: give --data, or set AUTOPEFT_BENCH_DATA")
    data = Path(arguments.data or BESIDE)

    @lru_cache(maxsize=1)
    def ground(name: str) -> Ground:
        return load_ground(name, data=data, work=arguments.work.resolve())

    return Plan(
        arms=_with_lora(arguments.arms),
        tasks=arguments.tasks,
        replicates=range(arguments.seeds),
        tables=arguments.tables,
        ground=ground,
        ranks=arguments.ranks,
        pack=arguments.pack,
    )


def _tiny_plan(arguments: argparse.Namespace) -> Plan:
    if arguments.tables == TABLES:
        raise NotHereError("--tiny needs --tables of its own: what it records says nothing")

    @lru_cache(maxsize=1)
    def ground(name: str) -> Ground:
        return tiny.load_tiny(name, arguments.work.resolve())

    return Plan(
        arms=_with_lora(arguments.arms),
        tasks=[tiny.NAME],
        replicates=range(1),
        tables=arguments.tables,
        ground=ground,
        ranks=[MIDDLE],
        tuning=tiny.NAME,
        pack=arguments.pack,
    )


def _with_lora(names: Sequence[str]) -> list[str]:
    """LoRA first: all others are compared with it."""
    return list(dict.fromkeys([LORA, *names]))


def _report(arguments: argparse.Namespace) -> int:
    from benchmarks.method_runs.report import report

    every = table.load(arguments.tables, NAME)
    if not (every["stage"] == table.TRIAL).any():
        raise NotHereError(f"no trials in {arguments.tables}: run record")
    print(report(every))
    if arguments.picture is not None:
        from benchmarks.method_runs.picture import draw

        draw(every, arguments.picture)
    return 0
