"""What a search says when it ends: the front drawn and listed, the verdict, what to type next."""

from typing import TYPE_CHECKING

from autopeft.cli.faults import error_object, lines_of
from autopeft.cli.next_commands import Place, after_search, listed
from autopeft.cli.plots import print_front_plot
from autopeft.cli.streams import console, print_json, say
from autopeft.cli.tables import print_table, trials_table
from autopeft.errors import InterruptedStudyError
from autopeft.study.ending import what_goes_on

if TYPE_CHECKING:
    from rich.console import Console

    from autopeft.api.study import Study
    from autopeft.cli.progress import TrialLines


def print_outcome(study: "Study", place: Place, *, finished_before: bool) -> None:
    """The whole of it, on stdout.

    Args:
        study: The study that has ended.
        place: Where it is; part of the next commands.
        finished_before: Whether there was nothing left to do.
    """
    ended = study.record.facts.get("ended")
    if finished_before:
        say(f"study {study.name} is already finished; {what_goes_on(ended)}")
    target = console()
    print_front(study, target)
    target.print(study.verdict(), soft_wrap=True)
    if ended and ended["reason"] != "trials":
        target.print(ended["text"], soft_wrap=True)
    if study.front():
        target.print()
        target.print("Next:")
        for line in listed(after_search(study.name, study.pick("knee")[0].number, place)):
            target.print(line, soft_wrap=True)


def print_front(study: "Study", target: "Console") -> None:
    """The front as a plot and a table, or a line that says that there is none."""
    trials, front, frames = study.trials(), study.front(), study.frames
    print_front_plot(target, trials, front, frames)
    if front:
        print_table(target, trials_table(front, frames, confirmation=study.confirmation()))
    else:
        target.print(f"study {study.name} has no front yet", soft_wrap=True)


def print_interruption(error: InterruptedStudyError, resume: str) -> None:
    """Why the search stopped, and the command that goes on; on stderr."""
    for line in lines_of(error):
        say(line)
    say(f"resume with: {resume}")


def print_last_lines(study: "Study", lines: "TrialLines") -> None:
    """The last JSON lines: what was not printed yet, then the status."""
    lines.print_new(study)
    print_json({"type": "status", **study.status()}, indent=None)


def print_interrupted_lines(
    error: InterruptedStudyError, exit_code: int, study: "Study | None", lines: "TrialLines"
) -> None:
    """The last JSON lines of an interrupted search: why, then the status where there is one."""
    print_json({"type": "interrupted", **error_object(error, exit_code)}, indent=None)
    if study is not None:
        print_last_lines(study, lines)
