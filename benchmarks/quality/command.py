"""The command line of `benchmarks/search_quality.py`."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.quality.errors import NotHereError
from benchmarks.quality.tasks import IMPORTANCE, MIXED, OF_SPACE, TASKS

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
    recording.set_defaults(run=_record)
    tracing = commands.add_parser("trace", help="run searchers on the emulated tasks")
    tracing.add_argument("--searchers", help="comma-separated; all by default")
    tracing.add_argument("--tasks", help="comma-separated; all that are recorded by default")
    tracing.add_argument("--seeds", type=int, help="fewer seeds than each has")
    tracing.add_argument("--tables", type=Path, default=TABLES)
    tracing.set_defaults(run=_trace)
    reporting = commands.add_parser("report", help="tables and picture from the traces")
    reporting.add_argument("--tables", type=Path, default=TABLES)
    reporting.add_argument(
        "--space", choices=sorted(OF_SPACE), default=MIXED, help="of the tables that are shown"
    )
    reporting.add_argument(
        "--without-evaluations", action="store_true", help="training and proposing alone are cost"
    )
    reporting.add_argument("--picture", type=Path, help="an .svg, .png or .html file")
    reporting.add_argument("--json", type=Path, dest="json_file")
    reporting.set_defaults(run=_report)
    rungs = commands.add_parser("rungs", help="replay rules for stopping on trained trials")
    rungs.add_argument(
        "--data", type=Path, default=os.environ.get("AUTOPEFT_BENCH_DATA"), help="data folder"
    )
    rungs.add_argument("--tables", type=Path, default=TABLES)
    rungs.add_argument("--orders", type=int, default=50, help="random orders of the cohorts")
    rungs.add_argument("--json", type=Path, help="where the figures go too")
    rungs.set_defaults(run=_rungs)
    covering = commands.add_parser(
        "coverage", help="what importance maps tell the surrogate of trials it has not seen"
    )
    covering.add_argument("--tables", type=Path, default=TABLES)
    covering.set_defaults(run=_coverage)
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
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


def _recorded(tables: Path, names: Iterable[str] = TASKS) -> list[str]:
    found = [name for name in names if (tables / f"{name}.parquet").exists()]
    if not found:
        raise NotHereError(f"no table in {tables}: record one")
    return found


def _trace(arguments: argparse.Namespace) -> int:
    from benchmarks.quality.traces import CONTENDERS, record_traces

    names = arguments.searchers.split(",") if arguments.searchers else list(CONTENDERS)
    tasks = arguments.tasks.split(",") if arguments.tasks else _recorded(arguments.tables)
    unknown = [*(set(names) - set(CONTENDERS)), *(set(tasks) - set(TASKS))]
    if unknown:
        allowed = ", ".join([*CONTENDERS, *TASKS])
        print(f"unknown: {', '.join(unknown)}; there are {allowed}", file=sys.stderr)
        return 2
    print(record_traces(arguments.tables, names, tasks, most_seeds=arguments.seeds))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from benchmarks.quality import report
    from benchmarks.quality.traces import OURS, PLAIN, load_table, load_traces, searcher_code

    tasks = _recorded(arguments.tables, OF_SPACE[arguments.space])
    for task in tasks:
        print(report.emulator_line(load_table(arguments.tables, task)))
    traces = load_traces(arguments.tables)
    traces = traces[traces["task"].isin(OF_SPACE[arguments.space])]
    if traces.empty:
        raise NotHereError(f"no traces of the space {arguments.space}: run trace")
    for name in sorted(set(traces["searcher"])):
        other = traces[(traces["searcher"] == name) & (traces["code"] != searcher_code(name))]
        if n := other.groupby(["task", "seed"]).ngroups:
            print(f"note: {n} traces of {name} were made by other code than there is now")
    every = report.runs(traces, evaluations=not arguments.without_evaluations)
    print(report.markdown(report.summary(every)))
    everything = report.runs(traces, evaluations=not arguments.without_evaluations, worth="found")
    print("\nthe same, of everything that was trained in full\n")
    print(report.markdown(report.summary(everything)))
    plain = [name for name in PLAIN if name in {run.searcher for run in every}]
    if plain:
        print(f"\n{OURS} against the best of {', '.join(plain)}\n")
        print(report.markdown(report.against_best(every, OURS, plain)))
    found = {}
    for other in sorted({run.searcher for run in every} - {OURS}):
        table = report.paired(every, OURS, other)
        found[other] = table.to_dict("records")
        print(f"\n{OURS} - {other}")
        print(report.markdown(table))
        level, pairs = report.to_level_of(every, OURS, other)
        print(f"cost to what it ended at, against its training: {report.times_less(level, pairs)}")
        for share in report.SHARES:
            ratio, pairs = report.speedup(every, OURS, other, share)
            print(f"cost to {share:.0%}: {report.times_less(ratio, pairs)}")
    if arguments.picture:
        report.picture(every, arguments.picture)
    if arguments.json_file:
        arguments.json_file.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _rungs(arguments: argparse.Namespace) -> int:
    from benchmarks.quality.rung_report import rung_report

    data = None if arguments.data is None else Path(arguments.data)
    found = rung_report(data=data, tables=arguments.tables, orders=arguments.orders)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _coverage(arguments: argparse.Namespace) -> int:
    from benchmarks.quality.coverage_value import coverage_value
    from benchmarks.quality.report import markdown
    from benchmarks.quality.traces import load_table

    for task in _recorded(arguments.tables, OF_SPACE[IMPORTANCE]):
        print(f"\n{task}\n")
        print(markdown(coverage_value(load_table(arguments.tables, task))))
    return 0
