"""`autopeft status`: how far a study is, what it spent, and what failed."""

from collections.abc import Iterator, Mapping
from typing import Any

import typer

from autopeft.cli.options import JsonOption, OutputDirOption, StorageOption, StudyArgument
from autopeft.cli.streams import print_json
from autopeft.cli.wording import test_split


def status(
    study: StudyArgument = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a study's progress, budget and failures."""
    from autopeft import api

    plain = api.load_study(study, storage=storage, output_dir=output_dir).status()
    if as_json:
        print_json(plain)
        return
    for name, text in _lines(plain):
        typer.echo(f"{name + ':':<14}{text}")


def _lines(plain: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from autopeft.cli.wording import KILLED, duration, lost, number
    from autopeft.study.orphans import WHY

    spent, left = plain["spent"], plain["left"]
    yield "study", f"{plain['study']} ({KILLED if lost(plain) else plain['state']})"
    yield "trials", ", ".join(f"{count} {state}" for state, count in plain["trials"].items())
    yield "front", f"{plain['front_size']} trials, hypervolume {plain['hypervolume']:.4f}"
    worst = ", ".join(f"{key} {number(value)}" for key, value in plain["reference_point"].items())
    yield "reference", worst
    yield (
        "spent",
        f"{spent['trials']} trials of the budget, {duration(spent['train_seconds'])} of training,"
        f" {spent['optimizer_steps']:,} optimizer steps,"
        f" {duration(spent['suggest_seconds'])} of proposing",
    )
    trials_left = "no limit" if left["trials"] is None else f"{left['trials']} trials"
    clock, hours, steps = left["wall_clock"], left["gpu_hours"], left["optimizer_steps"]
    parts = [
        trials_left,
        "" if clock is None else f"{duration(clock)} of wall clock",
        "" if hours is None else f"{hours:.3g} device hours",
        "" if steps is None else f"{steps:,} optimizer steps",
    ]
    yield "left", ", ".join(filter(None, parts))
    yield "time left", duration(plain["eta_seconds"])
    if plain["ended"]:
        yield "ended", plain["ended"]["text"]
    if why := plain["interrupted"]:
        yield "interrupted", f"{why['reason']}; {why['hint']}"
    yield "confirmed", _confirmed(plain["confirmed"])
    yield "test split", test_split(plain["test"])
    yield "failures", _by_cause(plain["failures"]) or "none"
    if plain["attempts"] != plain["failures"]:  # some were tried again
        yield "attempts", f"{_by_cause(plain['attempts'])} (trials may be tried again)"
    if plain["orphans"]:
        yield "too late", f"{plain['orphans']} results {WHY}"


def _by_cause(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in counts.items())


def _confirmed(plain: Mapping[str, Any]) -> str:
    if not plain["runs"]:
        return "no trial yet"
    named = ", ".join(str(number) for number in plain["trials"])
    text = f"trials {named} with {plain['seeds']} seeds ({plain['ended']} of {plain['runs']} runs)"
    again = _by_cause(plain["attempts"])
    return f"{text}; attempts that ended otherwise: {again}" if again else text
