"""Ray, as far as autopeft uses it: outposts on the nodes of a cluster. Nothing else imports Ray.

Ray places every outpost as an actor with the GPU, CPU and memory that it needs, moves what is sent
and tells when a node or a process is gone. It restarts nothing: an actor that has died stays dead
(`max_restarts=0`), and what it was at is tried again by the rules of `autopeft.tuner.failures`.

| what Ray tells                                         | cause         |
| ------------------------------------------------------ | ------------- |
| a node, an actor's process or an object in it is gone  | lost          |
| its memory monitor has ended the actor                 | out-of-memory |
| a call has no answer in time                           | timeout       |
| an exception within the outpost                        | error         |

A node's disk that is full or fails (`OutputError`) is no trial's fault, and waited for.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray is to do from now on

import ray
from ray import exceptions

from autopeft.errors import (
    AutopeftError,
    Fault,
    InputError,
    OutputError,
    RunnerAwayError,
    TrialError,
)
from autopeft.execution.base import ERROR, LOST, OUT_OF_MEMORY, TIMEOUT
from autopeft.execution.outpost import Greeting, Outpost, installed
from autopeft.execution.time_limits import Deadline

logger = logging.getLogger(__name__)

NODE_DIED = "node has died"
"""What Ray says where an actor went down with its node."""

Tick: TypeAlias = Callable[[], None]
"""Called every second or so of a wait; may raise."""

TICK_S = 0.5

PLACE_S = 120.0
"""So long an outpost may take to be placed and started before its runner counts as away; no longer
than a moment where the nodes that are left have no room for it."""

KNOCK_S = 10.0
"""For the head of a cluster to take a connection."""

LOOK_S = 1.0
"""How long is waited for the place of a runner that is known to be away."""

AWAY_S = 900.0
"""So long the cluster may be without a single runner before the search gives up."""

CALLS_AT_ONCE = 4
"""In an outpost: it is listened to and spoken to at once, and may be ended meanwhile."""


@dataclass(frozen=True)
class Needs:
    """What one runner takes of a node.

    Attributes:
        gpus: A number, or a fraction below one.
        cpus: Likewise.
        memory: Bytes, or None where it is not counted.
    """

    gpus: float
    cpus: float
    memory: int | None = None

    @property
    def resources(self) -> dict[str, float]:
        """By Ray's names; only what is needed."""
        named = {"GPU": self.gpus, "CPU": self.cpus, "memory": float(self.memory or 0)}
        return {name: amount for name, amount in named.items() if amount}

    @property
    def device(self) -> str:
        """The torch device of a runner: Ray shows it no GPU but its own."""
        return "cuda" if self.gpus else "cpu"

    def fit(self, node: Mapping[str, float]) -> int:
        """How many times they fit into the resources of a node."""
        if not self.resources:
            return 0
        return min(int(node.get(name, 0.0) / n + 1e-9) for name, n in self.resources.items())

    def __str__(self) -> str:
        """For people."""
        return ", ".join(f"{amount:g} {name}" for name, amount in self.resources.items())


def failure_of(error: Exception) -> TrialError | OutputError:
    """What an error of Ray's means for what was trained; a node's full disk means nothing."""
    text = " ".join(str(error).split())
    match error:
        case exceptions.OutOfMemoryError():
            message = "Ray has ended the runner: its node is short of memory"
            return TrialError(message, cause=OUT_OF_MEMORY)
        case exceptions.GetTimeoutError():
            return TrialError("the runner's node does not answer in time", cause=TIMEOUT)
        case exceptions.NodeDiedError():
            return TrialError("the runner's node has died", cause=LOST)
        case exceptions.ActorUnavailableError():
            return TrialError("the runner's node cannot be reached", cause=LOST)
        case exceptions.RayActorError() if NODE_DIED in text:
            return TrialError("the runner's node has died", cause=LOST)
        case exceptions.RayActorError():
            return TrialError(f"the runner's outpost has died: {_why(error)}", cause=LOST)
        case exceptions.RayTaskError():
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, TrialError | OutputError):
                return cause
            return TrialError(f"{type(cause).__name__}: {cause}".splitlines()[0], cause=ERROR)
    return TrialError(f"{type(error).__name__}: {text}"[:500], cause=LOST)


def _why(error: exceptions.RayActorError) -> str:
    """The first sentence of what Ray knows of a death, after what it calls the dead."""
    last = (str(error).strip().splitlines() or ["nobody knows why"])[-1].strip()
    return last.partition(". ")[0].rstrip(".")


class Cluster:
    """A connection to a Ray cluster.

    Args:
        address: Of its head, `auto` for one that runs on this machine, or None for Ray's own
            rule: RAY_ADDRESS, else one that runs here, else a new one of this machine alone.

    Raises:
        AutopeftError: There is no such cluster.
    """

    def __init__(self, address: str | None) -> None:
        self._own = not ray.is_initialized()
        self._alive_at = time.monotonic()
        self._posts: list[Post] = []
        self._lock = threading.Lock()
        if not self._own:
            return
        before = signal.getsignal(signal.SIGTERM)
        try:
            _knock(address or os.environ.get("RAY_ADDRESS", ""))
            ray.init(
                address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, RuntimeError, ValueError, exceptions.RayError) as error:
            text = " ".join(str(error).split())[:300].rstrip(".")
            raise AutopeftError(
                f"no Ray cluster at {address or 'any address'}: {text}",
                hint="start one with `ray start --head`, and name its address with --ray-address",
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's own would end the study unsaved

    @property
    def nodes(self) -> list[dict[str, float]]:
        """The resources of every node that is alive."""
        return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]

    def place(
        self, needs: Needs, command: Sequence[str] | None, waiting: "Post | None", tick: Tick
    ) -> "Post":
        """An outpost on a node that has what it needs.

        Args:
            needs: Which is kept free for it.
            command: What starts a runner there.
            waiting: The outpost that had no place before, which may have found one since.
            tick: Called while Ray looks for one.

        Raises:
            RunnerAwayError: There is no place now; it carries the outpost that waits for one.
            AutopeftError: There has been none for any runner for a while.
            TrialError: It died on the way.
        """
        post = waiting or Post(self._actor(needs, command))
        deadline = Deadline(LOOK_S if waiting else PLACE_S)
        while not post.is_there(TICK_S):
            tick()
            if deadline.over() or self._is_full(needs):
                self._give_up(needs)
                raise WaitingError(post, f"no node of the cluster has {needs} to spare just now")
        self.seen()
        post.greeted(tick)
        with self._lock:
            self._posts = [*(each for each in self._posts if not each.ended), post]
        return post

    def _is_full(self, needs: Needs) -> bool:
        """Whether the nodes that are left hold no more runners than those that are there."""
        return room(self.nodes, needs) <= sum(not each.ended for each in self._posts)

    def _actor(self, needs: Needs, command: Sequence[str] | None) -> Any:
        placed = {"memory": needs.memory} if needs.memory else {}
        return (
            ray.remote(Outpost)
            .options(
                num_gpus=needs.gpus,
                num_cpus=needs.cpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=CALLS_AT_ONCE,
                scheduling_strategy="SPREAD",
                **placed,
            )
            .remote(command)
        )

    def _give_up(self, needs: Needs) -> None:
        if time.monotonic() - self._alive_at > AWAY_S:
            raise AutopeftError(
                f"no node of the cluster has had {needs} to spare for {AWAY_S:.0f} s",
                hint="`ray status` tells what it has; the same command goes on from here",
            )

    def seen(self) -> None:
        """Some runner has been heard of."""
        self._alive_at = time.monotonic()

    def close(self) -> None:
        """Let go of the cluster; one that was started for this search ends."""
        if self._own:
            ray.shutdown()


class WaitingError(RunnerAwayError):
    """An outpost has no place yet.

    Args:
        post: Which one.
        message: One line.
    """

    def __init__(self, post: "Post", message: str) -> None:
        super().__init__(message)
        self.post = post


class Post:
    """An outpost, spoken to through Ray.

    Args:
        actor: Ray's handle of it.

    Attributes:
        host: The name of its machine, once it is there.
        root: The folder that it puts files below.
        ended: Whether it was ended from here.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._hello = actor.hello.remote()
        self.host, self.root, self.ended = "", "", False

    def is_there(self, wait_s: float) -> bool:
        """Whether it has been placed and has started, or has failed to."""
        return bool(ray.wait([self._hello], timeout=wait_s)[0])

    def greeted(self, tick: Tick) -> None:
        """Learn where it is.

        Raises:
            InputError: Another release of autopeft is installed there.
        """
        said: Greeting = self.answer(self._hello, tick)
        self.host, self.root = said.host, said.root
        check_versions(said, installed())

    def ask(self, name: str, *given: Any) -> Any:
        """Have it do something: Ray's reference to what it will answer."""
        return getattr(self._actor, name).remote(*given)

    def answer(self, asked: Any, tick: Tick, limit_s: float | None = None) -> Any:
        """What it answers.

        Raises:
            TrialError: It failed, is gone, or took too long.
            OutputError: Its node has no room for what it is to write.
        """
        deadline = None if limit_s is None else Deadline(limit_s)
        while not self.ready(asked, TICK_S):
            tick()
            if deadline is not None and deadline.over():
                raise failure_of(exceptions.GetTimeoutError())
        try:
            return ray.get(asked)
        except exceptions.RayError as error:
            raise failure_of(error) from error

    @staticmethod
    def ready(asked: Any, wait_s: float) -> bool:
        """Whether it has answered, or has failed to."""
        return bool(ray.wait([asked], timeout=wait_s)[0])

    def end(self) -> None:
        """End it at once, and with it the runner."""
        self.ended = True
        ray.kill(self._actor, no_restart=True)


def _knock(address: str) -> None:
    """Make sure that somebody listens at a host's port: Ray itself would try for minutes.

    Raises:
        OSError: Nobody does.
    """
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()


def check_versions(said: Greeting, own: Mapping[str, str]) -> None:
    """Make sure that a node trains as this machine would; tell where it may not.

    Raises:
        InputError: Another release of autopeft is installed there.
    """
    other = {
        name: (theirs, own[name])
        for name, theirs in said.versions.items()
        if own.get(name, theirs) != theirs
    }
    if found := other.pop("autopeft", None):
        hint = "install the same release on every node"
        raise InputError(Fault(f"the node {said.host}", "autopeft", found[0], found[1], hint))
    for name, (theirs, here) in other.items():
        logger.warning(
            "%s has %s %s, this machine %s: results may differ in the last digits",
            said.host, name, theirs, here,
        )  # fmt: skip


def room(nodes: Sequence[Mapping[str, float]], needs: Needs) -> int:
    """How many runners the nodes hold."""
    return sum(needs.fit(node) for node in nodes)


def needs_of(
    nodes: Sequence[Mapping[str, float]],
    *,
    gpus: float | None,
    cpus: float | None,
    memory: int | None,
) -> Needs:
    """What a runner takes, with what was left to the cluster filled in.

    One GPU where some node has one. Beside a GPU one CPU, else a whole node's, the smallest
    node's where they differ: a runner uses all that it is given.
    """
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
    if cpus is None:
        all_of_one = min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
        cpus = 1.0 if gpus else all_of_one
    return Needs(gpus, cpus, memory)


def check_room(nodes: Sequence[Mapping[str, float]], needs: Needs) -> int:
    """How many runners the cluster holds: one at least.

    Raises:
        InputError: None.
    """
    if found := room(nodes, needs):
        return found
    there = "; ".join(
        ", ".join(f"{node.get(name, 0.0):g} {name}" for name in needs.resources) for node in nodes
    )
    hint = "ask for less, or name execution.ray.workers to wait for nodes that are to come"
    raise InputError(Fault("execution", "ray", str(needs), f"what one node has: {there}", hint))
