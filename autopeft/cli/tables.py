"""Tables of trials and studies, for terminals and as CSV."""

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autopeft.cli.streams import ascii_only, draw
from autopeft.cli.wording import configuration_text, duration, lost, number, objective
from autopeft.study.records import ObjectiveFrame, TrialRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_table(console: "Console", table: "Table") -> None:
    """Print a table whose lines the terminal's encoding has."""
    from rich import box

    if ascii_only(console):
        table.box = box.ASCII2
    draw(console, table)


def plain_table(*columns: str, right: Collection[str] = ()) -> "Table":
    """An empty table in the house's style; columns in `right` are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def trials_table(
    trials: Sequence[TrialRecord],
    frames: Sequence[ObjectiveFrame],
    *,
    marked: Collection[int] = (),
) -> "Table":
    """Trials with their objectives; numbers in `marked` get a star."""
    names = [frame.name for frame in frames]
    extra = [] if "trainable_params" in names else ["trainable_params"]
    right = ["trial", *names, *extra, "rung"]
    table = plain_table(
        "trial", "state", "origin", *names, *extra, "rung", "configuration", right=right
    )
    for trial in trials:
        table.add_row(
            f"{trial.number}{'*' if trial.number in marked else ''}",
            trial.state.value if trial.cause is None else f"{trial.state.value} ({trial.cause})",
            trial.baseline or trial.origin.value,
            *(objective(frame, trial.objectives.get(frame.name)) for frame in frames),
            *(number(trial.trainable_params) for _ in extra),
            number(trial.rung),
            configuration_text(trial.configuration),
        )
    return table


def studies_table(statuses: Sequence[Mapping[str, Any]]) -> "Table":
    """Studies with their progress."""
    columns = ("study", "state", "trials", "hypervolume", "front", "time left", "updated")
    table = plain_table(*columns, right=("trials", "hypervolume", "front"))
    for status in statuses:
        counts = status["trials"]
        done = counts["completed"] + counts["stopped"] + counts["failed"]
        table.add_row(
            status["study"],
            "killed?" if lost(status) else status["state"],
            f"{done}/{sum(counts.values())}",
            f"{status['hypervolume']:.4f}",
            str(status["front_size"]),
            duration(status["eta_seconds"]),
            str(status.get("updated_at", ""))[:16].replace("T", " "),
        )
    return table


def trials_csv(trials: Sequence[TrialRecord], frames: Sequence[ObjectiveFrame]) -> str:
    """Trials as CSV with a header; the configuration is one column of JSON."""
    names = [frame.name for frame in frames]
    kept = (
        "trial", "state", "origin", "baseline", "baseline_name", "trainable_params",
        "head_params", "rung", "seed", "optimizer_steps", "hash", "cause",
    )  # fmt: skip
    objectives = [name for name in names if name not in kept]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*kept, *objectives, "configuration"], lineterminator="\n")
    writer.writeheader()
    for trial in trials:
        plain = trial.to_dict()
        row = {key: plain[key] for key in kept}
        row |= {name: trial.objectives.get(name) for name in objectives}
        row |= {"configuration": json.dumps(plain["configuration"], sort_keys=True)}
        writer.writerow(row)
    return text.getvalue()
