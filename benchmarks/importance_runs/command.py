"""The command line of `benchmarks/importance.py`."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from benchmarks.importance_runs import table
from benchmarks.importance_runs.arms import ARMS, RANKS
from benchmarks.importance_runs.grounds import TASKS, Ground, load_ground
from benchmarks.quality.errors import NotHereError

TABLES = Path(__file__).resolve().parents[1] / "tables"

SEEDS = 3

STAGES = ("rates", "trials", "probes")

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
"""Where data lie beside the project, on some machines."""


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
    parser = argparse.ArgumentParser(prog="importance.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser(
        "record",
        help="train what the table lacks",
        description="Resumable, pack by pack. Several processes may record at once, each with "
        "tasks of its own, once the rates are there.",
    )
    recording.add_argument(
        "--data", type=Path, default=os.environ.get("AUTOPEFT_BENCH_DATA"), help="data folder"
    )
    recording.add_argument("--work", type=Path, default=Path("autopeft-runs/importance"))
    recording.add_argument("--tables", type=Path, default=TABLES)
    recording.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    recording.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=list(ARMS))
    recording.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    recording.add_argument("--ranks", nargs="+", type=int, choices=RANKS, default=list(RANKS))
    recording.add_argument("--seeds", type=int, default=SEEDS)
    recording.add_argument("--pack", type=int, default=8, help="trials trained together")
    recording.set_defaults(run=_record)
    reporting = commands.add_parser("report", help="tables from what was recorded")
    reporting.add_argument("--tables", type=Path, default=TABLES)
    reporting.set_defaults(run=_report)
    return parser


def _record(arguments: argparse.Namespace) -> int:
    from benchmarks.importance_runs.probing import record_probes
    from benchmarks.importance_runs.recording import Plan, record_rates, record_trials

    if arguments.data is None and not BESIDE.is_dir():
        raise NotHereError("no data folder: give --data, or set AUTOPEFT_BENCH_DATA")
    data = Path(arguments.data or BESIDE)

    @lru_cache(maxsize=1)
    def ground(name: str) -> Ground:
        return load_ground(name, data=data, work=arguments.work.resolve())

    plan = Plan(
        arms=arguments.arms,
        tasks=arguments.tasks,
        ranks=arguments.ranks,
        replicates=range(arguments.seeds),
        tables=arguments.tables,
        ground=ground,
        pack=arguments.pack,
    )
    steps = {"rates": record_rates, "trials": record_trials, "probes": record_probes}
    for stage in STAGES:
        if stage in arguments.stages:
            steps[stage](plan)
    print(arguments.tables / table.NAME)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from benchmarks.importance_runs.report import report

    every = table.load(arguments.tables)
    if not (every["stage"] == table.TRIAL).any():
        raise NotHereError(f"no trials in {arguments.tables}: run record")
    print(report(every))
    return 0
