"""The packs of a rung: shared out over the runners, tried again where they fail."""

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from queue import SimpleQueue
from threading import RLock

from autopeft.errors import InterruptedStudyError, RunnerAwayError
from autopeft.execution.base import OUT_OF_MEMORY, Executor
from autopeft.searchers.base import Problem
from autopeft.study.records import TrialRecord, TrialState, TrialUpdate
from autopeft.tuner.away import first_there, pass_over
from autopeft.tuner.failures import Failure, FailuresInARow, Job, described, next_jobs
from autopeft.tuner.ledger import Ledger
from autopeft.tuner.patience import OutputPatience
from autopeft.tuner.reporter import Reporter
from autopeft.tuner.settings import TunerSettings
from autopeft.tuner.station import Station
from autopeft.tuner.waiting import Waiting
from autopeft.tuner.watch import Watch

TICK_S = 1.0
"""Between two looks at the clock and the lease while several runners train."""


class PackTraining:
    """Takes packs of one study to their next rung.

    Packs on several runners are driven by a thread each; this one keeps the lease meanwhile.

    Args:
        ledger: The study.
        problem: Its objectives.
        executor: Its runners.
        settings: Its rungs.
        watch: When to stop.
        reporter: Whom to tell.

    Attributes:
        patience: Waits where there is no room for what is written.
    """

    def __init__(
        self,
        ledger: Ledger,
        problem: Problem,
        executor: Executor,
        settings: TunerSettings,
        watch: Watch,
        reporter: Reporter,
    ) -> None:
        self._ledger, self._settings = ledger, settings
        self._watch, self._reporter = watch, reporter
        self.patience = OutputPatience(ledger, watch)
        self._waiting, self._in_a_row, self._lock = Waiting(), FailuresInARow(), RLock()
        self._most = min(settings.pack_size, settings.memory_limit or settings.pack_size)
        self._rows: dict[int, int] = {}
        self._stations = [
            Station(
                runner, ledger, problem, settings, watch, reporter, self._waiting, self.patience
            )
            for runner in executor.runners
        ]
        self._free: SimpleQueue[Station] = SimpleQueue()
        for station in self._stations:
            self._free.put(station)
        self._threads = ThreadPoolExecutor(len(self._stations), "runner")

    @property
    def first(self) -> Station:
        """The station of the first runner that is there, for what is done by itself."""
        runners = [station.runner for station in self._stations]
        return self._stations[self.patience.call(lambda: first_there(runners, self._watch))]

    def size(self, trials: int) -> int:
        """Most lanes of a pack: so that no runner is idle, and what memory has allowed so far.

        Args:
            trials: How many are to be shared out.
        """
        return max(1, min(self._most, -(-trials // len(self._stations))))

    def expect(self, numbers: Sequence[int]) -> None:
        """From now on these trials wait for their packs."""
        self._waiting.expect(numbers)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown()

    def run(self, packs: Sequence[Sequence[TrialRecord]], share: float) -> bool:
        """Train packs to a rung and record them; those that fail are tried again, then halved.

        Args:
            packs: Each of lanes of one cohort at one common step; not final.
            share: The rung.

        Returns:
            Whether all were trained; False where a budget was spent before.

        Raises:
            InterruptedStudyError: Asked to stop; the lanes are saved.
            OutputError: There was no room to save them for too long.
            AutopeftError: Several lone trials in a row failed, whatever they train.
        """
        if len(self._stations) == 1:
            return all(self._in_time(pack, share) for pack in packs)
        return self._side_by_side(packs, share)

    def _side_by_side(self, packs: Sequence[Sequence[TrialRecord]], share: float) -> bool:
        futures = [self._threads.submit(self._in_time, pack, share) for pack in packs]
        pending = set(futures)
        while pending:
            done, pending = wait(pending, TICK_S, FIRST_EXCEPTION)
            self._watch.stopping()
            if any(each.exception() for each in done):
                for each in pending:
                    each.cancel()
        try:
            return _answers(futures)
        except InterruptedStudyError as error:
            if self._watch.reason:  # what one runner saved says nothing of the others
                raise self._watch.stopped() from error
            raise

    def _in_time(self, pack: Sequence[TrialRecord], share: float) -> bool:
        """Train a pack, and what is left of it after failures, while a budget is left.

        Returns:
            Whether nothing of it is left.
        """
        jobs = [Job(list(pack), self._rows_of(pack))]
        too_large: list[int] = []
        while jobs and self._watch.spent() is None:
            job = jobs.pop(0)
            failure = self.patience.call(partial(self._attempt, job, share))
            if failure is None:
                self._in_a_row.went_well()
                continue
            if failure.cause == OUT_OF_MEMORY:
                too_large.append(len(job.trials))
            jobs = [*self._after(job, failure), *jobs]
        self._remember(too_large)
        return not jobs

    def _attempt(self, job: Job, share: float) -> Failure | None:
        """Train on a runner that is free; one that has no place just now is passed over."""
        while True:
            station = self._free.get()
            try:
                return station.attempt(job, share)
            except RunnerAwayError as error:
                pass_over(error, self._watch)
            finally:
                self._free.put(station)

    def _after(self, job: Job, failure: Failure) -> list[Job]:
        """What to try after a failure; a lone trial for which nothing is left has failed."""
        then = next_jobs(job, failure, micro_batch_size=self._settings.micro_batch_size)
        if not then:
            self.fail(job.numbers[0], failure)
            return []
        self._reporter.event(described(job, failure, then))
        self._ledger.requeue(
            cause=failure.cause, numbers=job.numbers, message=failure.message, log=failure.log
        )
        self.expect(job.numbers)
        for each in then:
            if each.micro_batch_size is not None:
                self._rows[each.numbers[0]] = each.micro_batch_size
        return then

    def _rows_of(self, pack: Sequence[TrialRecord]) -> int | None:
        """Rows at once of a lone trial that needed fewer before."""
        return self._rows.get(pack[0].number) if len(pack) == 1 else None

    def fail(self, number: int, failure: Failure) -> None:
        """End a lone trial that has failed.

        Raises:
            AutopeftError: Several in a row failed, whatever they train.
        """
        failed = TrialUpdate(
            number,
            state=TrialState.FAILED,
            cause=failure.cause,
            message=failure.message,
            log=failure.log,
        )
        with self._lock:
            self._ledger.update([failed])
            self._watch.saved([number])
            self._reporter.ended(self._ledger.trial(number))
            self._in_a_row.failed(failure)

    def _remember(self, too_large: Sequence[int]) -> None:
        """Keep later packs within what has fitted, unless a lone trial was too large by itself."""
        if not too_large or 1 in too_large:
            return
        smallest = min(too_large)
        with self._lock:
            self._most = min(self._most, smallest - smallest // 2)
            limit = {"lanes": self._most, "device": self._settings.device}
            self._ledger.note(memory_limit=limit)
        self._reporter.event(
            f"packs of at most {self._most} from here on: the device's memory holds no more"
        )


def _answers(futures: Sequence["Future[bool]"]) -> bool:
    """Whether all packs were trained; of several errors, the one that says most is raised."""
    errors = [error for each in futures if not each.cancelled() and (error := each.exception())]
    graver = [each for each in errors if not isinstance(each, InterruptedStudyError)]
    for error in [*graver, *errors]:
        raise error
    return all(not each.cancelled() and each.result() for each in futures)
