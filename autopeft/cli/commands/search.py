"""`autopeft search`: create or resume a study, show its progress, print what it found."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopeft.cli.next_commands import Place, command
from autopeft.cli.options import (
    DataOption,
    DevicesOption,
    ExecutorOption,
    JsonOption,
    ModelOption,
    NameOption,
    OutputDirOption,
    QuietOption,
    RayAddressOption,
    RayWorkersOption,
    SettingsOption,
    SpaceOption,
    StorageOption,
    as_overrides,
)
from autopeft.errors import Fault, InputError, InterruptedStudyError, StudyTakenOverError

if TYPE_CHECKING:
    from autopeft.api.study import Study
    from autopeft.cli.progress import TrialLines, Watch
    from autopeft.study.progress import Stopper


def search(  # noqa: PLR0913, PLR0917 - one parameter per option
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="STUDY.yaml",
            help="The study file; without one, the embedded default.",
            show_default=False,
        ),
    ] = None,
    name: NameOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    space: SpaceOption = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Sets budget.trials.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Sets study.seed.")] = None,
    executor: ExecutorOption = None,
    devices: DevicesOption = None,
    ray_address: RayAddressOption = None,
    ray_workers: RayWorkersOption = None,
    warm_start: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY[,STUDY...]",
            help="Sets search.warm_start: try first what these stored studies found good.",
        ),
    ] = None,
    settings: SettingsOption = None,
    stop_after: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="End this sitting after 45m, 2h, ...; exit 75."),
    ] = None,
    storage: StorageOption = None,
    output_dir: OutputDirOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Create or resume a study and run it to its end.

    The same command goes on where the last one stopped. Ctrl-C saves and stops; pressed twice, it
    stops at once. With --json, stdout carries one JSON object per line, the last one the status.
    """
    flags = {
        "model.name_or_path": model,
        "data.source": data,
        "space": space,
        "budget.trials": trials,
        "study.seed": seed,
        "execution.executor": executor,
        "execution.devices": devices,
        "execution.ray.address": ray_address,
        "execution.ray.workers": ray_workers,
        "search.warm_start": _names(warm_start),
    }
    overrides = (*as_overrides(flags), *(settings or ()))
    request = _Request(study, name, overrides, _seconds(stop_after), Place(storage, output_dir))
    if not _run(request, quiet=quiet, as_json=as_json).front():
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Request:
    """What was asked for.

    Attributes:
        study: The study file, or None for the embedded default.
        name: Replaces the study's name.
        overrides: `key.path=value` texts, flags among them.
        stop_after_s: Seconds of this sitting, or None.
        place: Where the study is kept.
    """

    study: Path | None
    name: str | None
    overrides: tuple[str, ...]
    stop_after_s: float | None
    place: Place

    def load(self, study: str) -> "Study":
        """The stored study of that name."""
        from autopeft import api

        return api.load_study(study, storage=self.place.storage, output_dir=self.place.output_dir)

    @property
    def resume_command(self) -> str:
        """The command that goes on; a study keeps its definition, so every override is in it."""
        words = ["search", *([str(self.study)] if self.study else [])]
        words += ["--name", self.name] if self.name else []
        for override in self.overrides:
            words += ["--set", override]
        return command(*words, *self.place.flags)


def _names(listed: str | None) -> list[str] | None:
    """The names of a list with commas."""
    return None if listed is None else [name.strip() for name in listed.split(",")]


def _seconds(stop_after: str | None) -> float | None:
    from autopeft.space.quantities import parse_duration_s

    try:
        return None if stop_after is None else parse_duration_s(stop_after)
    except ValueError as error:
        allowed = str(error).partition("allowed: ")[2]
        raise InputError(Fault("--stop-after", "", stop_after or '""', allowed)) from error


def _run(request: _Request, *, quiet: bool, as_json: bool) -> "Study":
    """Run the search and print what it found.

    Raises:
        typer.Exit: It was interrupted.
    """
    from autopeft.cli.progress import TrialLines, Watch, display
    from autopeft.cli.signals import stop_on_signals
    from autopeft.study.progress import Stopper

    lines = TrialLines(request.load) if as_json else None
    stopper = Stopper()
    with display(quiet=quiet, plain=as_json) as shown:
        watch = Watch([shown, lines] if lines else [shown])
        with stop_on_signals(stopper, shown.notice) as received:
            found = _searched(request, watch, stopper)
    if isinstance(found, StudyTakenOverError):
        _tell_taken_over(request, found, watch.study, lines)
        raise typer.Exit(found.exit_code)
    if isinstance(found, InterruptedStudyError):
        exit_code = received.exit_code or found.exit_code
        _tell_interrupted(request, found, exit_code, watch.study, lines)
        raise typer.Exit(exit_code)
    _tell_ended(request, found, lines, finished_before=not watch.worked)
    return found


def _tell_ended(
    request: _Request, study: "Study", lines: "TrialLines | None", *, finished_before: bool
) -> None:
    from autopeft.cli import outcome

    if lines is not None:
        outcome.print_last_lines(study, lines)
    else:
        outcome.print_outcome(study, request.place, finished_before=finished_before)


def _tell_taken_over(
    request: _Request, error: StudyTakenOverError, study: str, lines: "TrialLines | None"
) -> None:
    from autopeft.cli.outcome import print_last_lines
    from autopeft.cli.streams import say

    say(str(error))
    if lines is not None:
        print_last_lines(request.load(study), lines)


def _tell_interrupted(
    request: _Request,
    error: InterruptedStudyError,
    exit_code: int,
    study: str,
    lines: "TrialLines | None",
) -> None:
    from autopeft.cli import outcome

    if lines is not None:
        stored = request.load(study) if study else None
        outcome.print_interrupted_lines(error, exit_code, stored, lines)
    outcome.print_interruption(error, request.resume_command)


def _searched(
    request: _Request, watch: "Watch", stopper: "Stopper"
) -> "Study | InterruptedStudyError | StudyTakenOverError":
    """The study, or why the search stopped before its end."""
    from autopeft import api

    try:
        return api.search(
            request.study,
            storage=request.place.storage,
            output_dir=request.place.output_dir,
            name=request.name,
            overrides=request.overrides,
            listener=watch,
            stopper=stopper,
            stop_after=request.stop_after_s,
        )
    except (InterruptedStudyError, StudyTakenOverError) as error:
        return error
