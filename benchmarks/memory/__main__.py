"""The memory model against measured peaks; prints a table.

    python -m benchmarks.memory [--cases cpu|quick|small|gpu] [--in-process] [--unmultiplied]
    python -m benchmarks.memory --case '{"backbone": "gpt2", "placement": "all", "lanes": 4,
        "rows": 8, "tokens": 64, "compute": "fp32", "checkpointing": true}'

On a CPU a peak is the growth of the resident set over that of a process that has loaded the
backbone (Linux), in training steps and an evaluation; each case has a process of its own, whose
heap is set up as a runner's, or with `--in-process` left as glibc has it. On a GPU it is the
growth of what its allocator has handed out, one case after another in this process. Quantised
cases need the extra `autopeft[quant]`.

`--case` measures one pack instead of a set; its keys are the attributes of `cases.Case`. With
`--here`, too, it is measured in this very process, heap and all, and what is known of it comes as
JSON, in bytes: so the others' processes are run.

With `--unmultiplied` a CPU computes no matrix products (see `unmultiplied`).
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import asdict

from autopeft.backbone.quantization import NEEDS
from autopeft.execution.heap import with_heap
from benchmarks.memory.cases import CASES, Case


def main() -> None:
    """Print a table, or what one case takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("--cases", choices=CASES, default="cpu", help="the set, default cpu")
    parser.add_argument("--case", metavar="JSON", help="one case, by its attributes")
    parser.add_argument("--here", action="store_true", help="that case in this process, as JSON")
    parser.add_argument("--unmultiplied", action="store_true", help="compute no products on a CPU")
    parser.add_argument("--in-process", action="store_true", help="glibc's own heap on a CPU")
    given = parser.parse_args()
    options = {"multiplies": not given.unmultiplied, "in_process": given.in_process}
    cases = (Case(**json.loads(given.case)),) if given.case else CASES[given.cases]
    if given.here:
        if not given.case:
            parser.error("--here needs --case")
        print(json.dumps(_measured(cases[0], **options)))
    else:
        sys.exit(not _print_table(cases, **options))


def _print_table(cases: tuple[Case, ...], *, multiplies: bool, in_process: bool) -> bool:
    """Whether every case that could be run was measured."""
    failed = False
    gpu = any(case.device == "cuda" for case in cases)
    columns = ["backbone", "lanes", "rows x tokens", "compute"]
    columns += ["estimated MiB", "measured MiB", "ratio"]
    if gpu:
        columns += ["backbone MiB", "backbone ratio", "reserved in all MiB", "s a step"]
    print(_row(columns))
    print(_row(["---"] * len(columns)))
    for case in cases:
        if lacking := _lacking(case):
            print(f"{case.backbone}, {case.computing}: skipped without {lacking}")
            continue
        started = time.perf_counter()
        try:
            run = _measured if case.device == "cuda" else _in_own_process
            found = run(case, multiplies=multiplies, in_process=in_process)
        except Exception:  # the others are still to be measured
            traceback.print_exc()
            failed = True
            continue
        print(_row(_cells(case, found, gpu=gpu)), flush=True)
        print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return not failed


def _cells(case: Case, found: dict[str, float], *, gpu: bool) -> list[str]:
    cells = [case.backbone, f"{case.lanes} {case.placement}", f"{case.rows} x {case.tokens}"]
    cells += [case.computing, _mib(found["estimated"]), _mib(found["measured"])]
    cells.append(f"{found['estimated'] / found['measured']:.2f}")
    if gpu:
        ratio = found["backbone_estimated"] / found["backbone_measured"]
        cells += [_mib(found["backbone_measured"]), f"{ratio:.2f}"]
        cells += [_mib(found["reserved"]), f"{found['step_s']:.3f}"]
    return cells


def _mib(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.0f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lacking(case: Case) -> str:
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    return " and ".join(missing) if case.quantization != "none" else ""


def _measured(case: Case, *, multiplies: bool, in_process: bool) -> dict[str, float]:
    from benchmarks.memory.measuring import measure

    return measure(case, multiplies=multiplies, in_process=in_process)


def _in_own_process(case: Case, *, multiplies: bool, in_process: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--here"]
    command += ["--case", json.dumps(asdict(case))]
    command += [] if multiplies else ["--unmultiplied"]
    command += ["--in-process"] if in_process else []
    environment = dict(os.environ) if in_process else with_heap(os.environ)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
