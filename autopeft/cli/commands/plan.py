"""`autopeft plan`: what a study would cost, before it is started."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from autopeft.cli.options import (
    DataOption,
    JsonOption,
    ModelOption,
    NameOption,
    OutputDirOption,
    SettingsOption,
    SpaceOption,
    StorageOption,
    as_overrides,
)
from autopeft.cli.streams import console, print_json


def plan(  # noqa: PLR0913, PLR0917 - one parameter per option
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="STUDY.yaml",
            help="The study file; without one, the embedded default.",
            show_default=False,
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Time some training steps on this machine: gives hours."),
    ] = False,
    name: NameOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    space: SpaceOption = None,
    settings: SettingsOption = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a study's size, parameters, steps, memory and time before it is started.

    Trains nothing without --probe, and stores nothing.
    """
    from autopeft import api
    from autopeft.api.definitions import resolve_definition
    from autopeft.cli.tables import plain_table, print_table

    flags = {"model.name_or_path": model, "data.source": data, "space": space}
    overrides = (*as_overrides(flags), *(settings or ()))
    definition = resolve_definition(study, name=name, overrides=overrides)
    found = api.plan(definition, probe=probe, storage=storage, output_dir=output_dir)
    if as_json:
        print_json(found)
        return
    target = console()
    target.print(f"Study {found['study']}", style="bold")
    table = plain_table("what", "estimate")
    for what, text in _lines(found):
        table.add_row(what, text)
    print_table(target, table)


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from autopeft.cli.wording import compact, number

    space, params, steps = found["space"], found["trainable_params"], found["steps"]
    real = f", {space['continuous']} of them real" if space["continuous"] else ""
    plural = "" if space["dimensions"] == 1 else "s"
    yield "space", f"{space['name']}: {space['dimensions']} dimension{plural}{real}"
    if space["source"]:
        yield "source of the space", space["source"]
    for name, source in found["baselines"].items():
        yield f"baseline {name}", source
    yield "configurations", f"{compact(space['distinct'])} distinct of {_raw(space)} written down"
    yield "trainable parameters", f"{number(params['min'])} to {number(params['max'])}"
    for what, why in found["deploy"].items():
        yield "left out by deploy", f"{what}: {why}"
    for note in found["never_proposed"]:
        yield "cannot be built", note
    yield "head parameters", number(found["head_params"])
    rungs = ", ".join(str(step) for step in steps["rungs"].values())
    yield (
        "steps of a trial",
        f"{steps['total']} of {steps['batch_size']} examples; rungs at {rungs}",
    )
    yield "trials", f"{steps['trials']} and {steps['baselines']} baselines"
    low, high, mean = (compact(found["flops"][each]) for each in ("min", "max", "mean"))
    yield "FLOPs of a trial", f"{low} to {high}, {mean} on average"
    yield from _memory_lines(found["memory"])
    yield from _time_lines(found)
    yield from _measured_lines(found)


def _raw(space: Mapping[str, Any]) -> str:
    from autopeft.cli.wording import compact

    return compact(float(space["cardinality"]))


def _memory_lines(memory: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from autopeft.cli.wording import byte_count

    recomputed = ", layers recomputed" if memory["gradient_checkpointing"] else ""
    recomputed += f", {memory['micro_batch_size']} rows of a trial at once"
    size, precision = memory["pack_size"], memory["precision"]
    yield "pack", f"{size} trials, {precision}{recomputed}, on {memory['device']}"
    parts = ("backbone", "lanes", "activations", "working", "overhead")
    shown = ", ".join(f"{part} {byte_count(memory[f'{part}_bytes'])}" for part in parts)
    yield "memory at most", f"{byte_count(memory['total_bytes'])} ({shown})"
    yield "memory of a baseline pack", byte_count(memory["baseline_total_bytes"])
    if memory["free_bytes"] is not None:
        free = (
            f"{byte_count(memory['free_bytes'])} that are free, {memory['margin']:.0%} left over"
        )
        yield "largest pack that fits", f"{memory['largest_pack']} trials in {free}"


def _time_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from autopeft.cli.wording import duration

    calibration, hours = found["calibration"], found["hours"]
    if calibration is None:
        yield "time", "not measured: --probe times some steps on this machine"
        return
    if found["timed_by"] == "study":
        yield "timed", f"when the stored study {found['study']} was created, on this machine"
    speeds = ", ".join(f"{k}: {v:.0f}" for k, v in calibration["samples_per_second"].items())
    yield "samples/s by trials in a pack", speeds or "-"
    if calibration["bf16_speedup"] is not None:
        yield "bf16", f"{calibration['bf16_speedup']:.2f}x as fast as fp32"
    if hours is None:
        yield "time", "unknown: no pack could be timed"
    else:
        low, high = (duration(3600.0 * hours[end]) for end in ("min", "max"))
        on = "" if found["runners"] == 1 else f" on {found['runners']} runners"
        yield "time", f"{low} to {high}{on}, proposing and loading not counted"


def _measured_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the study's measured costs are at the ends of its space."""
    from autopeft.cli.wording import metric_value

    for name, ends in found["measured"].items():
        if ends is None:
            yield name, "not measured: --probe measures it at the ends of the space"
        else:
            low, high = (metric_value(name, ends[end]) for end in ("min", "max"))
            yield name, f"{low} to {high} for one trial by itself"
