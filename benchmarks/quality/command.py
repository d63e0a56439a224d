"""The command line of `benchmarks/search_quality.py`."""

import argparse
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
    arguments = parser.parse_args(argv)
    try:
        return _record(arguments)
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
