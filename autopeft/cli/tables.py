"""Tables of trials and studies, for terminals and as CSV."""

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autopeft.cli.list_table import ListTable
from autopeft.cli.streams import ascii_only, draw
from autopeft.cli.wording import configuration_text, duration, lost, number, objective
from autopeft.study.confirmation import Confirmation, Seen
from autopeft.study.records import ObjectiveFrame, TrialRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_table(console: "Console", table: "Table | ListTable") -> None:
    """Print a table whose lines the terminal's encoding has."""
    from rich import box

    if ascii_only(console) and not isinstance(table, ListTable):
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
    confirmation: Confirmation | None = None,
) -> ListTable:
    """Trials with their objectives; numbers in `marked` get a star.

    Args:
        trials: The rows.
        frames: The objectives, quality first.
        marked: Numbers that get a star.
        confirmation: Where other seeds have confirmed some, two columns tell what they say.
    """
    known = {} if confirmation is None else confirmation.trials
    more = ["over seeds", "vs baseline"] if known else []
    names = [frame.name for frame in frames]
    extra = [] if "trainable_params" in names else ["trainable_params"]
    right = ["trial", *names, *extra, "rung"]
    table = ListTable(
        "trial",
        "state",
        "origin",
        *names,
        *extra,
        "rung",
        *more,
        "configuration",
        right=right,
    )
    for trial in trials:
        table.add_row(
            f"{trial.number}{'*' if trial.number in marked else ''}",
            trial.state.value if trial.cause is None else f"{trial.state.value} ({trial.cause})",
            trial.baseline or trial.origin.value,
            *(objective(frame, trial.objectives.get(frame.name)) for frame in frames),
            *(number(trial.trainable_params) for _ in extra),
            number(trial.rung),
            *(_over_seeds(confirmation, trial.number) if more and confirmation else ()),
            configuration_text(trial.configuration),
        )
    return table


def _over_seeds(found: Confirmation, trial: int) -> tuple[str, str]:
    """Mean with its interval, and the mark against the best baseline; of validation."""
    own = found.trials.get(trial)
    if own is None or own.validation is None:
        return "-", "-"
    difference = own.validation.difference
    mark = "(the baseline)" if own.reference else "-"
    return own.validation.over.shown(), mark if difference is None else difference.mark.value


def confirmation_table(
    found: Confirmation, trials: Sequence[TrialRecord], *, split: str
) -> "Table | None":
    """Means, intervals and paired differences on one split; None where there are none.

    Args:
        found: What the seeds show.
        trials: The study's, by which the table tells sizes and names.
        split: `validation` or `test`.
    """
    by_number = {trial.number: trial for trial in trials}
    seen: dict[int, Seen] = {
        number: own
        for number, each in found.trials.items()
        if (own := getattr(each, split)) is not None
    }
    if not seen:
        return None
    name = found.frame.name
    figures = ("trial", "parameters", "seed 0", "mean of seeds", "sd", "seeds")
    compared = ("difference", "p (Holm)", "vs baseline")
    table = plain_table(*figures, *compared, right=(*figures, *compared[:2]))
    for number_, own in seen.items():
        trial, over = by_number[number_], own.over
        table.add_row(
            str(number_),
            number(trial.trainable_params),
            _four(trial.objectives.get(name)),
            over.shown(),
            _four(over.sd),
            str(over.n),
            *_compared(own, trial, reference=number_ == found.reference),
        )
    return table


def _compared(seen: Seen, trial: TrialRecord, *, reference: bool) -> tuple[str, str, str]:
    if seen.difference is None:
        return "-", "-", f"({trial.baseline})" if reference else "-"
    p = seen.difference.adjusted
    return (
        seen.difference.over.shown(signed=True),
        "-" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001",
        seen.difference.mark.value,
    )


def _four(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def studies_table(statuses: Sequence[Mapping[str, Any]]) -> ListTable:
    """Studies with their progress."""
    columns = ("study", "state", "trials", "hypervolume", "front", "time left", "updated")
    table = ListTable(*columns, right=("trials", "hypervolume", "front"))
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


def trials_csv(
    trials: Sequence[TrialRecord],
    frames: Sequence[ObjectiveFrame],
    confirmation: Confirmation | None = None,
) -> str:
    """Trials as CSV with a header; the configuration is one column of JSON.

    With a confirmation, columns tell mean, interval and mark of validation and test over seeds;
    they are empty for trials that it does not hold.
    """
    names = [frame.name for frame in frames]
    kept = (
        "trial", "state", "origin", "baseline", "baseline_name", "trainable_params",
        "head_params", "rung", "seed", "optimizer_steps", "hash", "cause",
    )  # fmt: skip
    objectives = [name for name in names if name not in kept]
    text = io.StringIO()
    seeds = () if confirmation is None else _SEED_COLUMNS
    columns = [*kept, *objectives, *seeds, "configuration"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for trial in trials:
        plain = trial.to_dict()
        row = {key: plain[key] for key in kept}
        row |= {name: trial.objectives.get(name) for name in objectives}
        row |= {"configuration": json.dumps(plain["configuration"], sort_keys=True)}
        if confirmation is not None:
            row |= _seed_cells(confirmation, trial.number)
        writer.writerow(row)
    return text.getvalue()


_SEED_COLUMNS = tuple(
    f"{split}_{what}"
    for split in ("validation", "test")
    for what in ("seeds", "mean", "sd", "low", "high", "vs_baseline")
)


def _seed_cells(found: Confirmation, trial: int) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for split in ("validation", "test"):
        seen: Seen | None = getattr(found.trials.get(trial), split, None)
        if seen is not None:
            over, difference = seen.over, seen.difference
            values = (over.n, over.mean, over.sd, over.low, over.high)
            names = ("seeds", "mean", "sd", "low", "high")
            cells |= {f"{split}_{n}": v for n, v in zip(names, values, strict=True)}
            cells[f"{split}_vs_baseline"] = None if difference is None else difference.mark.value
    return cells
