"""`autopeft confirm`: chosen trials with several seeds, against the best baseline."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopeft.cli.next_commands import Place, command
from autopeft.cli.options import (
    DevicesOption,
    ExecutorOption,
    JsonOption,
    OutputDirOption,
    QuietOption,
    RayAddressOption,
    RayWorkersOption,
    StorageOption,
    StudyArgument,
    as_overrides,
)
from autopeft.cli.streams import console, print_json, say
from autopeft.errors import InterruptedStudyError, StudyTakenOverError

if TYPE_CHECKING:
    from autopeft.api.study import Study


def confirm(  # noqa: PLR0913, PLR0917 - one parameter per option
    study: StudyArgument = None,
    top: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="So many of the front, spread over it: the best, the knee, the smallest, then "
            "those farthest from them. 3 where neither this nor --trial is given.",
        ),
    ] = None,
    trial: Annotated[
        list[int] | None, typer.Option(metavar="N", help="This trial; may be repeated.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", help="How many seeds.", show_default=True)
    ] = 5,
    open_test: Annotated[
        bool,
        typer.Option(
            "--open-test",
            help="Evaluate them on the test split as well. It is opened once, which is recorded; "
            "a second time shows what was stored.",
        ),
    ] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="With --open-test: open it for other trials or seeds than the first time; "
            "recorded, too.",
        ),
    ] = False,
    executor: ExecutorOption = None,
    devices: DevicesOption = None,
    ray_address: RayAddressOption = None,
    ray_workers: RayWorkersOption = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train trials of the front and the best baseline again, with several seeds each.

    Prints means with 95 % intervals and paired differences from the baseline. The search's own
    seed chose the trials, so it is not one of them. The same command goes on where the last one
    stopped, and shows the table where nothing is left to do.
    """
    where = {
        "executor": executor,
        "devices": devices,
        "ray.address": ray_address,
        "ray.workers": ray_workers,
    }
    overrides = as_overrides({f"execution.{key}": given for key, given in where.items()})
    chosen = {"trials": trial or (), "top": top, "seeds": seeds}
    wanted = {**chosen, "open_test": open_test, "again": again, "overrides": overrides}
    place = Place(storage, output_dir)
    words = ["confirm", *([study] if study else [])]
    words += ["--top", str(top)] if top is not None else []
    for number in trial or ():
        words += ["--trial", str(number)]
    words += ["--seeds", str(seeds), *(["--open-test"] if open_test else [])]
    words += ["--again"] if again else []
    for key, given in where.items():
        words += [f"--{key.replace('.', '-')}", str(given)] if given is not None else []
    found = _run(study, wanted, place, command(*words, *place.flags), quiet, as_json)
    if as_json:
        print_json(_plain(found))
    else:
        _print(found)


def _run(
    study: str | None, wanted: dict[str, Any], place: Place, resume: str, quiet: bool, plain: bool
) -> "Study":
    """Confirm, and answer to signals.

    Raises:
        typer.Exit: It was interrupted.
    """
    from autopeft import api
    from autopeft.cli.faults import error_object
    from autopeft.cli.outcome import print_interruption
    from autopeft.cli.progress import display
    from autopeft.cli.signals import stop_on_signals
    from autopeft.study.progress import Stopper

    stopper = Stopper()
    with (
        display(quiet=quiet, plain=plain, unit="runs") as shown,
        stop_on_signals(stopper, shown.notice) as received,
    ):
        try:
            return api.confirm(
                study,
                storage=place.storage,
                output_dir=place.output_dir,
                listener=shown,
                stopper=stopper,
                **wanted,
            )
        except InterruptedStudyError as error:
            interrupted = error
        except StudyTakenOverError as error:
            say(str(error))
            return api.load_study(study, storage=place.storage, output_dir=place.output_dir)
    exit_code = received.exit_code or interrupted.exit_code
    if plain:
        print_json(error_object(interrupted, exit_code))
    print_interruption(interrupted, resume)
    raise typer.Exit(exit_code)


def _plain(study: "Study") -> dict[str, Any]:
    from autopeft.searchers.confirmed import notes

    found = study.confirmation()
    test = study.status()["test"]
    return {"study": study.name, **found.to_dict(), "test": test, "notes": notes(found)}


def _print(study: "Study") -> None:
    from autopeft.cli.tables import confirmation_table, print_table
    from autopeft.cli.wording import test_split
    from autopeft.searchers.confirmed import notes

    target, found, trials = console(), study.confirmation(), study.trials()
    for split in ("validation", "test"):
        table = confirmation_table(found, trials, split=split)
        if table is not None:
            target.print(f"{found.frame.name} on {split}, with 95 % intervals:")
            print_table(target, table)
    target.print(f"Test split: {test_split(study.status()['test'])}.", soft_wrap=True)
    for note in notes(found):
        target.print(f"- {note}", soft_wrap=True)
    if study.front():
        target.print(f"\n{study.verdict()}", soft_wrap=True)
