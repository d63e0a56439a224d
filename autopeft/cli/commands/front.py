"""`autopeft front`: the Pareto front, one pick from it, and both as files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopeft.cli.options import (
    JsonOption,
    OutputDirOption,
    Pick,
    StorageOption,
    StudyArgument,
)
from autopeft.cli.streams import console, print_json, say
from autopeft.errors import Fault, InputError
from autopeft.study.records import TrialRecord

if TYPE_CHECKING:
    from autopeft.api.study import Study


def front(
    study: StudyArgument = None,
    pick: Annotated[
        Pick | None,
        typer.Option("--pick", metavar="|".join(Pick), help="Choose one trial, and say why."),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(
            metavar="MARGIN",
            help="Choose among trials within 0.5% (relative) or 0.005 (in the metric's unit) of "
            "the best quality.",
        ),
    ] = None,
    prefer: Annotated[
        str, typer.Option(metavar="METRIC", help="With --within: what to have least of.")
    ] = "trainable_params",
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the front as .html, .png or .csv as well."),
    ] = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the Pareto front, or choose one trial of it."""
    from autopeft import api
    from autopeft.cli.front_files import check_suffix, save_front
    from autopeft.cli.outcome import print_front

    if pick is not None and within is not None:
        raise InputError(Fault("--within", "", "--pick as well", "one of --pick and --within"))
    if save is not None:
        check_suffix(save)
    loaded = api.load_study(study, storage=storage, output_dir=output_dir)
    chosen = _choose(loaded, pick, within, prefer)
    if save is not None:
        save_front(loaded, save)
    members = loaded.front() if chosen is None else [chosen[0]]
    if as_json:
        found = loaded.confirmation().trials
        print_json(
            [
                trial.to_dict()
                | {"confirmed": found[trial.number].to_dict() if trial.number in found else None}
                for trial in members
            ]
        )
    elif chosen is None:
        print_front(loaded, console())
        if members:
            console().print(loaded.verdict(), soft_wrap=True)
    else:
        _print_choice(loaded, *chosen)
    if save is not None:
        say(f"wrote {save}")


def _choose(
    study: "Study", pick: Pick | None, within: str | None, prefer: str
) -> tuple[TrialRecord, str] | None:
    if within is not None:
        return study.pick_within(within, prefer)
    return None if pick is None else study.pick(pick.value)


def _print_choice(study: "Study", chosen: TrialRecord, why: str) -> None:
    from autopeft.cli.tables import print_table, trials_table

    target = console()
    found = study.confirmation()
    print_table(target, trials_table([chosen], study.frames, confirmation=found))
    target.print(why, soft_wrap=True)
