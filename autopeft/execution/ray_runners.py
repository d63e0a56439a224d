"""Packs beyond this machine: one runner per GPU, or per node without one, of a Ray cluster.

The coordinator holds every runner as it holds one on its own machine (`supervised`); between the
two stands an outpost on the runner's node. Lane states travel as the bytes of their files, so no
shared disk is needed, and only this process writes to the study's folder and database.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.errors import OutputError, TrialError
from autopeft.execution.base import LOST
from autopeft.execution.channel import ChannelClosedError, Message
from autopeft.execution.outpost import Heard
from autopeft.execution.ray_cluster import (
    Cluster,
    Needs,
    Post,
    Tick,
    WaitingError,
    check_room,
    needs_of,
)
from autopeft.execution.runner_log import log_path, open_log
from autopeft.execution.shipping import Parcel, beside, readdressed
from autopeft.execution.supervised import Begun, SupervisedRunner, Terms
from autopeft.execution.time_limits import TimeLimits
from autopeft.study.disk import writing
from autopeft.study.progress import Stopper
from autopeft.study.search_blocks import RayBlock

logger = logging.getLogger(__name__)

HEAR_S = 5.0
"""An outpost is asked for news this often, and answers sooner where there are some."""

CALL_S = 600.0
"""For one file to arrive."""

END_S = 15.0
"""For a runner to be ended with all that it has started."""

CLOSE_S = 8.0
"""For a runner to end by itself and its files to be removed."""


@dataclass(frozen=True)
class RayLaunch:
    """How runners on a cluster are made.

    Attributes:
        request: What a runner needs to know of its study, plain JSON; see `worker`.
        parcels: Files that the request names.
        workers: How many runners.
        needs: What each takes of its node.
        folder: The study's artifacts; logs go below it.
        limits: How long a runner may take.
        stopper: Heard while a runner is waited for.
        command: What starts a runner on a node; the node's own Python where it is None.
    """

    request: Mapping[str, Any]
    parcels: Sequence[Parcel]
    workers: int
    needs: Needs
    folder: Path
    limits: TimeLimits
    stopper: Stopper
    command: Sequence[str] | None = field(default=None)


def workers_of(nodes: Sequence[Mapping[str, float]], asked: RayBlock) -> tuple[int, Needs]:
    """How many runners there are to be on a cluster's nodes, and what each takes.

    Raises:
        InputError: No node has room for one, and no number of runners is asked for.
    """

    def given(value: Any) -> Any:
        return None if value == "auto" else value

    needs = needs_of(nodes, gpus=given(asked.gpus), cpus=given(asked.cpus), memory=asked.memory)
    return given(asked.workers) or check_room(nodes, needs), needs


class RayExecutor:
    """Runners on a Ray cluster; see `Executor`.

    Args:
        cluster: Connected; closed with this.
        launch: How runners are made.
    """

    apart = True

    def __init__(self, cluster: Cluster, launch: RayLaunch) -> None:
        self._cluster = cluster
        self.runners = [
            SupervisedRunner(
                Terms(
                    begin=_Placing(cluster, launch, index),
                    device=launch.needs.device,
                    named=f"runner {index} of the cluster",
                    log=log_path(launch.folder, index),
                    limits=launch.limits,
                    stopper=launch.stopper,
                )
            )
            for index in range(launch.workers)
        ]

    def attend(self, call: Callable[[], object]) -> None:
        """See `Executor.attend`."""
        for runner in self.runners:
            runner.attended = call

    def close(self) -> None:
        """See `Executor.close`."""
        for runner in self.runners:
            runner.close()
        self._cluster.close()


class _Placing:
    """Has an outpost placed, its files sent and its runner's process begun."""

    def __init__(self, cluster: Cluster, launch: RayLaunch, index: int) -> None:
        self._cluster, self._launch, self._index = cluster, launch, index
        self._waiting: Post | None = None

    def __call__(self, tick: Tick) -> Begun:
        launch, waiting = self._launch, self._waiting
        self._waiting = None
        try:
            post = self._cluster.place(launch.needs, launch.command, waiting, tick)
        except WaitingError as error:
            self._waiting = error.post
            raise
        handle = RayHandle(post, log_path(launch.folder, self._index), tick, self._cluster.seen)
        try:
            values = {parcel.key: handle.delivered(parcel) for parcel in launch.parcels}
            request = readdressed(launch.request, values)
            handle.begin()
        except BaseException:
            handle.kill()
            raise
        own = {"device": launch.needs.device, "index": self._index, "runners": 1}
        return Begun(handle, {**request, **own})


class RayHandle:
    """A runner's process on a node of a cluster; a `Handle`.

    Args:
        post: The outpost beside it.
        log: Where its last lines are kept on this machine.
        tick: Called while it is waited for.
        seen: Called whenever it was heard of.
    """

    def __init__(self, post: Post, log: Path, tick: Tick, seen: Callable[[], None]) -> None:
        self._post, self._log, self._tick, self._seen = post, log, tick, seen
        self._messages: deque[Message] = deque()
        self._hearing: Any = None
        self._ended: TrialError | None = None
        self._lines, self._over = "", False

    def begin(self) -> None:
        """Start the process."""
        self._call("begin")

    def delivered(self, parcel: Parcel) -> str:
        """A parcel's value as the runner finds it, its files sent where they are not there.

        Raises:
            InputError: They are too large to be sent.
            TrialError: The node is gone.
        """
        if parcel.in_place is not None:
            if self._call("holds", parcel.sizes):
                return str(parcel.in_place)
            parcel.check_size(self._post.host)
        for place, path in parcel.files.items():
            self._call("put", place, path.read_bytes())
        return f"{self._post.root}/{parcel.value}"

    def send(self, message: Mapping[str, Any]) -> None:
        """See `Handle.send`; one that does not arrive shows when the answer is waited for."""
        self._post.ask("send", dict(message))

    def receive(self, timeout_s: float) -> Message | None:
        """See `Handle.receive`."""
        if self._messages:
            return self._messages.popleft()
        if self._ended is not None:
            raise ChannelClosedError
        if self._hearing is None:
            self._hearing = self._post.ask("hear", HEAR_S)
        if not self._post.ready(self._hearing, timeout_s):
            return None
        asked, self._hearing = self._hearing, None
        try:
            self._take(self._post.answer(asked, self._tick))
        except TrialError as error:
            self._ended = error
            raise ChannelClosedError from error
        return self._messages.popleft() if self._messages else None

    def _take(self, heard: Heard) -> None:
        self._seen()
        self._messages.extend(heard.messages)
        if heard.log is not None:
            self._lines = heard.log
        if heard.ended is not None:
            self._ended = TrialError(heard.ended.message, cause=heard.ended.cause)

    def lend(self, files: Sequence[Path]) -> list[str]:
        """See `Handle.lend`; what lies beside a file under its name goes with it."""
        if files:
            self._call("fresh", "lent")
        there = {
            path: self._call("put", f"lent/{path.name}", path.read_bytes())
            for path in beside(files)
        }
        return [there[path] for path in files]

    @contextmanager
    def saving(self, folder: Path) -> Iterator[str]:
        """See `Handle.saving`."""
        yield self._call("fresh", "saved")
        for name in self._call("names", "saved"):
            (folder / Path(name).name).write_bytes(self._call("get", f"saved/{name}"))

    def last_lines(self) -> str:
        """The end of its log, as far as it was told before its node was gone."""
        return self._lines

    def ending(self) -> TrialError:
        """See `Handle.ending`."""
        return self._ended or TrialError("the runner is gone", cause=LOST)

    def close(self) -> None:
        """See `Handle.close`."""
        self._finish("close", CLOSE_S)

    def terminate(self) -> None:
        """See `Handle.terminate`."""
        if lines := self._finish("terminate", END_S):
            self._lines = lines

    def kill(self) -> None:
        """See `Handle.kill`."""
        self._finish(None, 0.0)

    def _finish(self, call: str | None, limit_s: float) -> Any:
        """Have the outpost end the runner, then end it; its last lines are kept here."""
        if self._over:
            return None
        self._over, found = True, None
        with suppress(TrialError):
            if call is not None and self._ended is None:
                found = self._post.answer(self._post.ask(call), self._tick_quietly, limit_s)
        self._post.end()
        if self._lines:
            self._keep_lines()
        return found

    def _keep_lines(self) -> None:
        """Write its last lines to the log of this machine."""
        try:
            with writing(self._log), open_log(self._log) as log:
                log.write(f"{self._lines}\n".encode())
        except OutputError as error:  # it has ended all the same, and attempts hold these lines
            logger.warning("a runner's last lines are lost: %s", error.message)

    def _tick_quietly(self) -> None:
        """Nothing: what is ended is waited for, for seconds, whatever is asked meanwhile."""

    def _call(self, name: str, *given: Any) -> Any:
        return self._post.answer(self._post.ask(name, *given), self._tick, CALL_S)
