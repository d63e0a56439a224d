"""What a step of an arm takes by itself: seconds and memory, beside LoRA of the same size.

Arms take turns, a round of steps each, so that whatever else the machine does slows all alike;
ratios are of the same round of LoRA's, and the median over the rounds is kept.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from autopeft.execution.peak_memory import added_peak
from autopeft.training.lanes.pack import Lane
from benchmarks.importance_runs import table
from benchmarks.importance_runs.arms import Case
from benchmarks.importance_runs.grounds import Ground
from benchmarks.importance_runs.recording import Job, Plan, chosen_rates, job
from benchmarks.sparsity_cost import ROUND, Arm, ratios

REFERENCE = "lora"

ROUNDS = 4
"""The first of them warms up."""

AT_ONCE = 8
"""Arms that take turns, besides LoRA: fewer rounds are lost where a recording is stopped."""


def record_probes(plan: Plan) -> None:
    """Time every arm at every budget on the first task."""
    rates = chosen_rates(table.load(plan.tables))
    ground = plan.ground(plan.tasks[0])
    for rank in plan.ranks:
        case = Case(ground.anatomy, rank, plan.replicates[0])
        names = [name for name in dict.fromkeys([REFERENCE, *plan.arms]) if name in rates]
        jobs = [job(ground, table.PROBE, name, case, rates[name]) for name in names]
        every = table.load(plan.tables)
        left = [each for each in jobs if not table.has(every, each.row)]
        for first in range(0, len(left), AT_ONCE):
            rows = probed(ground, left[first : first + AT_ONCE], jobs[0])
            table.put(plan.tables, rows)
            done = first + len(rows)
            print(f"probe {ground.name}, rank {rank}: {done} of {len(left)}", flush=True)


def probed(ground: Ground, jobs: Sequence[Job], reference: Job) -> list[dict[str, Any]]:
    """The rows of arms that are timed now, in turns with LoRA."""
    if reference.row["arm"] != REFERENCE:
        raise ValueError(f"probes are compared with {REFERENCE}, which has no rate yet")
    timed = {each.row["arm"]: _started(ground, each) for each in [reference, *jobs]}
    for _ in range(ROUNDS):
        for arm in timed.values():
            arm.round(ground.trainer.device)
    return [{**each.row, **_figures(ground, each, timed)} for each in jobs]


def _started(ground: Ground, each: Job) -> Arm:
    lane = Lane(0, each.configuration)
    return Arm(ground.trainer.start([lane], replicate=each.row["replicate"]))


def _figures(ground: Ground, each: Job, timed: Mapping[str, Arm]) -> dict[str, Any]:
    own = timed[each.row["arm"]]
    with added_peak(ground.trainer.device) as added:
        _started(ground, each).run.train(ROUND + 1)
        peak = added()
    return {
        "step_seconds": median(own.seconds[1:]),
        "step_cpu_seconds": median(own.cpu_seconds[1:]),
        "step_ratio": ratios(own, timed[REFERENCE], lambda arm: arm.cpu_seconds),
        "peak_bytes": peak,
    }
