"""Outposts without Ray: real ones, in this process, spoken to as they are through Ray."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from ray import exceptions

from autopeft.errors import RunnerAwayError
from autopeft.execution.outpost import Outpost
from autopeft.execution.ray_cluster import failure_of


class FakePost:
    """Stands for `Post`: what is asked is done in threads.

    Attributes:
        gone: What Ray would raise from now on, or None.
    """

    def __init__(self, outpost: Outpost) -> None:
        self.outpost = outpost
        said = outpost.hello()
        self.host, self.root = said.host, said.root
        self.gone: Exception | None = None
        self.ended = False
        self.asked: list[str] = []
        self._threads = ThreadPoolExecutor(4)

    def ask(self, name: str, *given: Any) -> "Future[Any]":
        self.asked.append(name)
        return self._threads.submit(getattr(self.outpost, name), *given)

    def ready(self, asked: "Future[Any]", wait_s: float) -> bool:
        return self.gone is not None or bool(wait([asked], wait_s).done)

    def answer(
        self, asked: "Future[Any]", tick: Callable[[], None], limit_s: float | None = None
    ) -> Any:
        while not self.ready(asked, 0.05):
            tick()
        if self.gone is not None:
            raise failure_of(self.gone) from self.gone
        return asked.result()

    def lose(self, error: Exception | None = None) -> None:
        """Let its node go down."""
        self.gone = error or exceptions.NodeDiedError("gone")
        self.outpost._runner.kill()

    def end(self) -> None:
        self.ended = True
        self.outpost.close()
        self._threads.shutdown()


class FakeCluster:
    """Stands for `Cluster`.

    Attributes:
        posts: All that were placed.
        full: Whether there is no place for another one.
    """

    def __init__(self) -> None:
        self.posts: list[FakePost] = []
        self.full = self.closed = False

    def place(
        self, needs: Any, command: Sequence[str] | None, waiting: Any, tick: Callable[[], None]
    ) -> FakePost:
        tick()
        if self.full:
            raise RunnerAwayError("no place")
        self.posts.append(FakePost(Outpost(command)))
        return self.posts[-1]

    def seen(self) -> None:
        """Nothing."""

    def close(self) -> None:
        self.closed = True
