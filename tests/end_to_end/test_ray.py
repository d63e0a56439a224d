"""Searches on real Ray clusters of this machine: stopped, killed, and with a node that goes down.

The command, its store, Ray and the runners' processes are the real ones; what a runner trains is a
stand-in (`tests/support/stand_in_search.py`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in
from stand_in_place import SUPPORT, Place, descendants
from warm_processes import WarmProcess

from autopeft.study.records import TrialRecord, TrialState

pytest.importorskip("ray", reason="needs the extra autopeft[ray]")

HOME = SUPPORT.parents[1]
SIGNALS_S = 30.0
"""Within this a search ends after a signal."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")

CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster

given = {"include_dashboard": False, "object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **given})
given |= {"num_cpus": 1} | json.loads(sys.argv[2])
nodes = [cluster.add_node(**given) for _ in range(int(sys.argv[1]))]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    else:
        nodes.append(cluster.add_node(**given))
    print("done", flush=True)
cluster.shutdown()
"""
"""Starts nodes; kills one or adds one as it is told, and kills all at the end."""

TAKEN = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
every, free = ray.cluster_resources(), ray.available_resources()
print(json.dumps({name: amount - free.get(name, 0) for name, amount in every.items()}))
"""
"""Tells what is in use of a cluster."""


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HOME), str(SUPPORT)]),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


class Nodes:
    """A cluster whose nodes are processes of this machine, with one CPU each.

    Args:
        count: Of nodes.
        resources: Of each, other than that; Ray hands them out, whether they are real or not.
    """

    def __init__(self, count: int, **resources: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, str(count), json.dumps(resources)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._said()

    def kill_one(self) -> None:
        self._do("kill")

    def add_one(self) -> None:
        self._do("add")

    def _do(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._said() == "done"

    def taken(self) -> dict[str, float]:
        """What is in use, by Ray's names."""
        command = [sys.executable, "-c", TAKEN, self.address]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=True, timeout=120
        )
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _said(self) -> str:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        assert said, "the cluster has ended"
        return said


class Site(Place):
    """A folder with a study file of eight trials, and searches in it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__(folder, trials=8)

    def found(self) -> list[Any]:
        """All that was measured of every trial, with all digits."""
        with self.store() as store:
            return [
                (trial.number, trial.hash, trial.state, trial.objectives, store.curve("toy", n))
                for n, trial in enumerate(store.trials("toy"))
            ]

    def every_attempt(self) -> list[dict[str, Any]]:
        return [attempt for trial in self.trials() for attempt in self.attempts(trial.number)]

    def until(self, there: Callable[[list[TrialRecord]], bool], process: WarmProcess) -> None:
        """Wait for something to be so of the trials."""
        for _ in range(2400):
            if there(self.trials()):
                return
            assert process.poll() is None, f"it ended before: {process.communicate()[0]}"
            time.sleep(0.1)
        raise AssertionError("it never was so")


def ended(process: WarmProcess, code: int) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == code, f"exit {process.returncode}\n{out}"
    return out


def running(trials: list[TrialRecord]) -> int:
    return sum(trial.state is TrialState.RUNNING for trial in trials)


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def all_end(pids: set[int]) -> bool:
    for _ in range(400):
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def on_ray(nodes: Nodes) -> tuple[str, ...]:
    return ("--executor", "ray", "--ray-address", nodes.address)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[[str], Site]]:
    made: list[Site] = []

    def make(name: str) -> Site:
        made.append(Site(tmp_path / name))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def make_nodes() -> Iterator[Callable[..., Nodes]]:
    made: list[Nodes] = []

    def make(count: int, **resources: float) -> Nodes:
        made.append(Nodes(count, **resources))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_search_that_is_stopped_goes_on_and_finds_what_a_local_one_finds(
    place: Callable[[str], Site], make_nodes: Callable[..., Nodes]
) -> None:
    nodes, far, here = make_nodes(1), place("far"), place("here")
    process = far.start(*on_ray(nodes), step_s=0.02)
    far.until(lambda trials: running(trials) > 0, process)
    time.sleep(0.5)
    for pid in {int(attempt["runner"]["pid"]) for attempt in far.every_attempt()}:
        for each in (*descendants(pid), pid):
            os.kill(each, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert "stopped (SIGTERM); all is saved" in ended(process, 143)
    assert time.monotonic() - asked < SIGNALS_S
    states = list(far.folder.glob("autopeft-runs/toy/states/*/cohort-*/step-*/*.safetensors"))
    assert states, "no lane state came back from the node"
    out = far.search(*on_ray(nodes))
    assert "Traceback" not in out
    assert "(pid=" not in out, "Ray's own log"
    here.search()
    assert far.found() == here.found()
    assert len(far.found()) == 8
    causes = {attempt["cause"] for attempt in far.every_attempt()}
    assert causes <= {None, "interrupted"}, "something was lost on the way"
    resumed = [json.loads(path.read_text()) for path in states if path.exists()]
    assert not resumed, "states of a cohort that has ended are still there"


@pytest.mark.slow
def test_a_node_that_is_killed_costs_its_packs_one_attempt(
    place: Callable[[str], Site], make_nodes: Callable[..., Nodes]
) -> None:
    nodes, far, here = make_nodes(2), place("far"), place("here")
    process = far.start(*on_ray(nodes), "--trials", "24", step_s=0.05)
    far.until(lambda trials: running(trials) == 8, process)
    nodes.kill_one()
    out = ended(process, 0)
    trials = far.trials()
    assert [trial.number for trial in trials] == list(range(24)), out
    assert all(trial.state is TrialState.COMPLETED for trial in trials)
    lost = [attempt for attempt in far.every_attempt() if attempt["cause"] == "lost"]
    assert len(lost) == 4, "one pack was on the node"
    assert {attempt["cause"] for attempt in far.every_attempt()} == {None, "lost"}
    here.search("--trials", "24")
    assert far.found() == here.found()


@pytest.mark.slow
def test_a_confirmation_goes_to_a_cluster_that_the_search_did_not_use(
    place: Callable[[str], Site], make_nodes: Callable[..., Nodes]
) -> None:
    nodes, far, here = make_nodes(1), place("far"), place("here")
    words = ("confirm", "--trial", "2", "--trial", "5", "--seeds", "5")
    for each, where in ((far, on_ray(nodes)), (here, ())):
        each.search()
        ended(each.start_command(*words, *where), 0)
        with each.store() as store:
            runs = store.confirmations("toy")
        wanted = [(number, seed) for number in (2, 5) for seed in range(1, 6)]
        assert [(run.trial, run.replicate) for run in runs] == wanted
        trials = each.trials()
        for run in runs:
            quality = stand_in.quality(trials[run.trial].configuration, 60, run.replicate)
            assert run.values["accuracy"] == quality
            assert run.profile["on_ray"] == (each is far)


@pytest.mark.slow
def test_a_node_that_joins_later_gets_the_runner_that_waits_for_it(
    place: Callable[[str], Site], make_nodes: Callable[..., Nodes]
) -> None:
    nodes, far = make_nodes(1), place("far")
    process = far.start(*on_ray(nodes), "--ray-workers", "2", "--trials", "32", step_s=0.05)
    far.until(lambda trials: running(trials) > 0, process)
    nodes.add_one()
    ended(process, 0)
    assert all(trial.state is TrialState.COMPLETED for trial in far.trials())
    attempts = far.every_attempt()
    assert {attempt["cause"] for attempt in attempts} == {None}
    assert len({attempt["runner"]["pid"] for attempt in attempts}) == 2


@pytest.mark.slow
def test_runners_take_their_share_of_a_gpu_and_their_memory(
    place: Callable[[str], Site], make_nodes: Callable[..., Nodes]
) -> None:
    """Two runners share a GPU, which need not be a real one: Ray believes what a node says."""
    nodes, far = make_nodes(1, num_cpus=3, num_gpus=1, memory=float(4 << 30)), place("far")
    sizes = ("--set", "execution.ray.gpus=0.5", "--set", "execution.ray.memory=1GiB")
    process = far.start(*on_ray(nodes), *sizes, "--trials", "32", step_s=0.2)
    far.until(lambda _: len({a["runner"]["pid"] for a in far.every_attempt()}) == 2, process)
    taken = nodes.taken()
    assert {name: taken[name] for name in ("GPU", "CPU", "memory")} == {
        "GPU": 1.0,
        "CPU": 2.0,
        "memory": float(2 << 30),
    }
    process.send_signal(signal.SIGTERM)
    ended(process, 143)
    assert {attempt["runner"]["device"] for attempt in far.every_attempt()} == {"cuda"}


@pytest.mark.slow
def test_runners_end_with_their_coordinator_and_with_a_cluster_of_their_own(
    place: Callable[[str], Site],
) -> None:
    far = place("far")
    words = ("--executor", "ray", "--ray-address", "local")
    process = far.start(*words, step_s=0.2)
    far.until(lambda trials: running(trials) > 0, process)
    pids = {int(attempt["runner"]["pid"]) for attempt in far.every_attempt()}
    assert pids
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.communicate()
    assert all_end(pids), "a runner outlived its coordinator"
    far.search(*words)
    assert all(trial.state is TrialState.COMPLETED for trial in far.trials())
