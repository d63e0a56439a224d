"""`autopeft.confirm`: chosen trials trained again with other seeds; the test split, once.

Members are chosen, and the rule of the test split is checked, before anything is loaded. A
confirmation holds the study's lease, as a search does, and leaves the search's own state alone.
"""

import getpass
import os
import socket
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.api.leasing import leased, renewed
from autopeft.api.loading import open_store, study_name
from autopeft.api.place import output_folder, storage_url
from autopeft.api.study import Study
from autopeft.errors import AutopeftError, Fault, InputError
from autopeft.searchers import confirmed, front
from autopeft.study.confirmation import FIRST_REPLICATE, ConfirmationRun
from autopeft.study.definition import StudyDefinition, parse_definition
from autopeft.study.overrides import with_overrides
from autopeft.study.progress import Listener, Progress, Silent, Stopper
from autopeft.study.records import TrialRecord, TrialState
from autopeft.study.sitting import AS_SAVED, Sitting
from autopeft.study.store import Store

if TYPE_CHECKING:
    from autopeft.tuner.confirming import ConfirmationTraining

SEEDS = 5
TOP = 3
"""Members of the front where nobody says how many: with the best baseline, a pack of four."""

SEEDS_ALLOWED = range(5, 101)
"""The t quantile of an interval from fewer is so wide that it tells nothing apart."""


def confirm(  # noqa: PLR0913 - as many as the command has options
    study: str | Path | None = None,
    *,
    trials: Sequence[int] = (),
    top: int | None = None,
    seeds: int = SEEDS,
    open_test: bool = False,
    again: bool = False,
    overrides: Sequence[str] = (),
    storage: str | None = None,
    output_dir: Path | None = None,
    listener: Listener | None = None,
    stopper: Stopper | None = None,
) -> Study:
    """Train chosen trials and the best baseline at the full budget with several seeds.

    What has a result is not trained again, so the same call goes on after a stop, and more seeds
    or trials add to what is there. The search's own seed is never one of them: it chose the
    trials. Results are read with `Study.confirmation`.

    Args:
        study: A name, a study file, or None where only one study is stored.
        trials: Numbers of trials to confirm; else `top` of the front.
        top: How many members of the front, spread over it (the best, the knee, the smallest,
            then those farthest from them); 3 unless given, or beside `trials` none.
        seeds: How many.
        open_test: Whether to evaluate them on the test split. It is opened once: later calls tell
            what was stored.
        again: Whether to open it for others than it was opened for; recorded like the first time.
        overrides: `execution.key=value` texts: where to train, in place of what the study says;
            not kept.
        storage: URL of the database.
        output_dir: Where the study's artifacts lie.
        listener: Watches.
        stopper: Asks for an early end.

    Raises:
        InputError: No such study or trial, no front, no test split; one opened before for others;
            overrides of what a stored study keeps.
        StudyHeldError: A coordinator runs the study.
        StudyMismatchError: Data, backbone or space are not those of the study any more.
        InterruptedStudyError: Stopped before the end; everything is saved.
        AutopeftError: The test split stays closed, since seeds lack a result.
    """
    if again and not open_test:
        allowed = "--open-test as well: it is what is done again"
        raise InputError(Fault("confirm", "--again", "without --open-test", allowed))
    sitting = Sitting(stopper)
    store = open_store(storage)
    name = study_name(store, study)
    folder = output_folder(name, output_dir)
    found = Study(store, name, output_dir=folder, storage=storage_url(storage))
    chosen = _chosen(found, trials, top, seeds)
    replicates = tuple(range(FIRST_REPLICATE, FIRST_REPLICATE + seeds))
    work = _Work(store, found, chosen, replicates, tuple(overrides))
    work.check_overrides()
    if open_test:
        work.check_opening(again)
    if not work.done(open_test):
        work.run(open_test, listener or Silent(), sitting)
    return found


def _chosen(
    study: Study, numbers: Sequence[int], top: int | None, seeds: int
) -> list[TrialRecord]:
    """The trials to train, the best baseline among them, by number.

    Raises:
        InputError: All faults of the choice.
    """
    faults = []
    if seeds not in SEEDS_ALLOWED:
        allowed = f"at least {SEEDS_ALLOWED.start}, at most {SEEDS_ALLOWED.stop - 1}"
        faults.append(Fault("confirm", "--seeds", str(seeds), allowed))
    if top is not None and top < 1:
        faults.append(Fault("confirm", "--top", str(top), "at least 1"))
    named = [study.trial(number) for number in dict.fromkeys(numbers)]
    for trial in named:
        if trial.state is not TrialState.COMPLETED or trial.rung != 1.0:
            given, allowed = f"{trial.number}, which {_state(trial)}", "a completed trial"
            faults.append(Fault("confirm", "--trial", given, allowed))
    if faults:
        raise InputError(faults)
    members = _members(study, TOP if top is None else top) if top or not named else []
    everyone = [*named, *members]
    best = study.best_baseline()
    if best is not None:
        everyone.append(best)
    return [trial for _, trial in sorted({t.number: t for t in everyone}.items())]


def _members(study: Study, top: int) -> list[TrialRecord]:
    on_front = study.front()
    front.pick_best(on_front, study.frames)  # raises where there is none
    members = confirmed.spread(on_front, study.frames, top)
    if not members:
        given = "a front of baselines alone"
        hint = "--trial N confirms a trial that is not on it"
        raise InputError(Fault("confirm", "--top", given, "trials of the search on it", hint))
    return members


def _state(trial: TrialRecord) -> str:
    if trial.state is TrialState.COMPLETED:
        return f"ended at rung {trial.rung}"
    return f"is {trial.state.value}"


@dataclass(frozen=True)
class _Work:
    """What is to be confirmed.

    Attributes:
        store: Keeps the study.
        study: The study.
        trials: Whose configurations are trained.
        replicates: With which seeds.
        overrides: Where, see `confirm`.
    """

    store: Store
    study: Study
    trials: Sequence[TrialRecord]
    replicates: tuple[int, ...]
    overrides: tuple[str, ...]

    @property
    def _numbers(self) -> list[int]:
        return [trial.number for trial in self.trials]

    def _runs(self) -> list[ConfirmationRun]:
        """Those of them that are stored."""
        wanted = set(self._numbers)
        return [
            run
            for run in self.store.confirmations(self.study.name)
            if run.trial in wanted and run.replicate in self.replicates
        ]

    def done(self, open_test: bool) -> bool:
        """Whether there is nothing left to do."""
        runs = [run for run in self._runs() if run.ended]
        untested = [run for run in runs if run.test is None and not run.diverged]
        whole = len(runs) == len(self.trials) * len(self.replicates)
        return whole and not (open_test and (untested or self._uncovered()))

    def _uncovered(self) -> list[int]:
        """Trials that no opening of the test split covers with all seeds."""
        openings = self.store.openings(self.study.name)
        return [
            number
            for number in self._numbers
            for replicate in self.replicates
            if not any(opening.covers(number, replicate) for opening in openings)
        ]

    def check_overrides(self) -> None:
        """Refuse what cannot be, even where nothing is left to train.

        Raises:
            InputError: An override of something else than `execution`, or of a wrong value.
        """
        faults = [
            Fault("confirm", key, override, "keys of execution: a stored study keeps all others")
            for override in self.overrides
            if (key := override.partition("=")[0].strip()).partition(".")[0] != "execution"
        ]
        if faults:
            raise InputError(faults)
        if self.overrides:
            self._definition()

    def _definition(self) -> StudyDefinition:
        plain = with_overrides(self.study.record.definition, self.overrides)
        return parse_definition(plain, where=f"study {self.study.name}", base=None)

    def check_opening(self, again: bool) -> None:
        """Refuse what may not be opened, before anything is trained for it.

        Raises:
            InputError: The study names no test split, or it was opened for others.
        """
        record, openings = self.study.record, self.store.openings(self.study.name)
        if record.definition["data"]["splits"].get("test") is None:
            allowed = "a split's name, or a share of train"
            hint = "a stored study keeps its definition: name one in another study"
            where = f"study {self.study.name}"
            raise InputError(Fault(where, "data.splits.test", "null", allowed, hint))
        others = sorted(set(self._uncovered()))
        if openings and others and not again:
            first = openings[0]
            opened = ", ".join(str(number) for number in first.trials)
            raise InputError(
                Fault(
                    f"study {self.study.name}",
                    "--open-test",
                    f"trials {', '.join(map(str, others))} with seeds "
                    f"{self.replicates[0]}-{self.replicates[-1]}",
                    f"trials {opened} with seeds {first.replicates[0]}-{first.replicates[-1]}, "
                    f"for which {first.by} opened it on {first.at:%Y-%m-%d %H:%M} UTC",
                    "a test split that is looked at again and again chooses, too; --again opens "
                    "it for these, and is recorded",
                )
            )

    def run(self, open_test: bool, listener: Listener, sitting: Sitting) -> None:
        """Train what lacks, and open the test split."""
        from autopeft.api.preparation import Preparation

        name, record = self.study.name, self.study.record
        definition = self._definition()
        with leased(self.store, name) as token:
            listener.on_progress(Progress(name, "loading", 0, 0))
            with (
                renewed(self.store, name, token),
                sitting.preparing(name, AS_SAVED),
            ):
                prepared = Preparation(
                    definition, self.study.output_dir, listener, store=self.store, sitting=sitting
                )
            prepared.check(record, listener)
            training = prepared.confirmation(self.store, token, listener=listener, sitting=sitting)
            if definition.execution.executor != "in-process":
                prepared.release()
            listener.on_event(self._announced())
            with closing(training):
                training.run(self.trials, self.replicates)
                if open_test:
                    self._open_test(training, token, listener)

    def _open_test(self, training: "ConfirmationTraining", token: int, listener: Listener) -> None:
        """Evaluate on the test split what no opening covers yet; the opening is recorded first."""
        self._check_whole()
        if self._uncovered():
            opening = self.store.add_opening(
                self.study.name,
                token,
                by=this_user(),
                trials=self._numbers,
                replicates=self.replicates,
            )
            listener.on_event(
                f"the test split is opened{' again' if opening.again else ''}, "
                f"recorded for {opening.by}"
            )
        for opening in self.store.openings(self.study.name):
            training.evaluate_test(self.trials, opening)

    def _announced(self) -> str:
        best = self.study.best_baseline()
        others = [n for n in self._numbers if best is None or n != best.number]
        beside = "" if best is None else f" and baseline {best.baseline} (trial {best.number})"
        return (
            f"confirming trials {', '.join(map(str, others))}{beside} with seeds "
            f"{self.replicates[0]}-{self.replicates[-1]}; the search's own seed 0 chose them and "
            "does not count"
        )

    def _check_whole(self) -> None:
        """A test split that is opened for half of the seeds would have to be opened again."""
        lacking = [run for run in self._runs() if not run.ended]
        if lacking:
            named = "; ".join(
                f"trial {run.trial} seed {run.replicate} ({run.cause or run.state.value})"
                for run in lacking
            )
            raise AutopeftError(
                f"study {self.study.name}: the test split stays closed, as seeds lack a result: "
                f"{named}",
                hint="the same command tries them again",
            )


def this_user() -> str:
    """Who runs this process: user@host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no entry for the user
        user = f"uid-{os.getuid()}" if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"
