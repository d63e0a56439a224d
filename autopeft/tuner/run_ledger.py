"""A confirmation's runs, as what trains packs sees trials: their ledger, runner and packs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.configuration import Configuration
from autopeft.execution.base import Executor, Run, Runner
from autopeft.study.confirmation import ConfirmationRun
from autopeft.study.ending import Interruption
from autopeft.study.records import TrialRecord, TrialState, TrialUpdate
from autopeft.study.store import Store
from autopeft.tuner.ledger import Ledger

FULL = 1.0
"""The one rung of a confirmation."""

SPENT = {
    "train_seconds",
    "evaluation_seconds",
    "preparation_seconds",
    "optimizer_steps",
    "wall_seconds",
}
"""What a confirmation spends is counted beside the search's budget, under `confirm_...`."""


class RunLedger(Ledger):
    """The runs of one replicate, as what trains packs sees trials.

    Args:
        store: Keeps the study.
        name: The study's name.
        token: Of the lease.
        trials: Whose configurations are trained, by number.
        replicate: Of the study's seed.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        token: int,
        trials: Mapping[int, TrialRecord],
        replicate: int,
    ) -> None:
        super().__init__(store, name, token, replicate)
        self._chosen = dict(trials)

    def trials(self) -> list[TrialRecord]:
        """The chosen trials, in the states of their runs."""
        runs = {run.trial: run for run in self._runs()}
        return [self._as_trial(runs[number]) for number in sorted(self._chosen)]

    def trial(self, number: int) -> TrialRecord:
        """One of them."""
        return next(self._as_trial(run) for run in self._runs() if run.trial == number)

    def counts(self) -> dict[TrialState, int]:
        """Runs by state."""
        states = [trial.state for trial in self.trials()]
        return {state: states.count(state) for state in TrialState}

    def start(self, numbers: Sequence[int], runner: Mapping[str, Any] | None) -> None:
        """Mark runs running, on a runner."""
        self._store.start_confirmations(
            self.name, self._token, self._replicate, numbers, runner=runner
        )

    def _record(self, updates: Sequence[TrialUpdate]) -> None:
        self._store.update_confirmations(self.name, self._token, self._replicate, updates)

    def spend(self, **spent: float) -> None:
        """Add to what confirmations have spent; the search's budget stays."""
        own = {f"confirm_{key}": amount for key, amount in spent.items() if key in SPENT}
        super().spend(**own)

    def requeue(
        self,
        *,
        cause: str,
        numbers: Sequence[int] | None = None,
        message: str | None = None,
        log: str | None = None,
    ) -> list[int]:
        """Have running runs wait, their attempts closed; the numbers of their trials."""
        return self._store.requeue_confirmations(
            self.name, self._token, numbers, cause=cause, message=message, log=log
        )

    def interrupt(self, why: Interruption) -> None:
        """End a sitting before its time; the study's own state stays."""
        self._store.requeue_confirmations(
            self.name, self._token, cause="interrupted", message=why.reason
        )

    def _runs(self) -> list[ConfirmationRun]:
        runs = self._store.confirmations(self.name)
        return [
            run for run in runs if run.replicate == self._replicate and run.trial in self._chosen
        ]

    def _as_trial(self, run: ConfirmationRun) -> TrialRecord:
        return replace(
            self._chosen[run.trial],
            state=run.state,
            objectives=run.values,
            rung=FULL if run.ended else None,
            optimizer_steps=run.optimizer_steps,
            replicate=run.replicate,
            pack=run.replicate,
            attempts=run.attempts,
            cause=run.cause,
            message=run.message,
            profile=run.profile,
        )


class SeededExecutor:
    """An executor whose runners train one replicate."""

    def __init__(self, executor: Executor, replicate: int) -> None:
        self.apart, self._executor = executor.apart, executor
        self._seeded = [SeededRunner(each, replicate) for each in executor.runners]

    @property
    def runners(self) -> Sequence[Runner]:
        """See `Executor.runners`."""
        return self._seeded

    def attend(self, call: Callable[[], object]) -> None:
        """See `Executor.attend`."""
        self._executor.attend(call)

    def close(self) -> None:
        """See `Executor.close`."""
        self._executor.close()


class SeededRunner:
    """A runner of one replicate."""

    def __init__(self, runner: Runner, replicate: int) -> None:
        self._runner, self._replicate = runner, replicate

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `Runner.identity`."""
        return self._runner.identity

    def last_lines(self) -> str | None:
        """See `Runner.last_lines`."""
        return self._runner.last_lines()

    def probe(self, configuration: Configuration) -> dict[str, Any]:
        """See `Runner.probe`."""
        return self._runner.probe(configuration)

    def start(
        self,
        lanes: Sequence[tuple[int, Configuration]],
        *,
        resume: Mapping[int, Path],
        waited: Mapping[int, float],
        replicate: int = 0,
        micro_batch_size: int | None = None,
    ) -> Run:
        """See `Runner.start`; always of the own replicate."""
        return self._runner.start(
            lanes,
            resume=resume,
            waited=waited,
            replicate=self._replicate,
            micro_batch_size=micro_batch_size,
        )
