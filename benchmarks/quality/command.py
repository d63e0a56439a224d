"""The command line of `benchmarks/search_quality.py`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.errors import NotHereError
from benchmarks.quality.tasks import TASKS

TABLES = Path(__file__).resolve().parents[1] / "tables"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; 0 where it did what it should, 77 where something is not here."""
    parser = argparse.ArgumentParser(prog="search_quality.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="train real trials and write their table")
    recording.add_argument("--task", choices=sorted(TASKS), required=True)
    recording.add_argument(
        "--data", type=Path, default=os.environ.get("AUTOPEFT_BENCH_DATA"), help="data folder"
    )
    recording.add_argument("--work", type=Path, default=Path("autopeft-runs/tables"))
    recording.add_argument("--tables", type=Path, default=TABLES)
    rungs = commands.add_parser("rungs", help="replay rules for stopping on trained trials")
    rungs.add_argument(
        "--data", type=Path, default=os.environ.get("AUTOPEFT_BENCH_DATA"), help="data folder"
    )
    rungs.add_argument("--tables", type=Path, default=TABLES)
    rungs.add_argument("--orders", type=int, default=50, help="random orders of the cohorts")
    rungs.add_argument("--json", type=Path, help="where the figures go too")
    arguments = parser.parse_args(argv)
    run = {"record": _record, "rungs": _rungs}[arguments.command]
    try:
        return run(arguments)
    except NotHereError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return 77


def _record(arguments: argparse.Namespace) -> int:
    from benchmarks.quality.recording import record

    if arguments.data is None:
        raise NotHereError("no data folder: give --data, or set AUTOPEFT_BENCH_DATA")
    path = record(
        TASKS[arguments.task],
        data=Path(arguments.data),
        work=arguments.work.resolve(),
        tables=arguments.tables,
    )
    print(path)
    return 0


def _rungs(arguments: argparse.Namespace) -> int:
    from benchmarks.quality.rung_report import rung_report

    data = None if arguments.data is None else Path(arguments.data)
    found = rung_report(data=data, tables=arguments.tables, orders=arguments.orders)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0
