"""Runners on a cluster: real outposts and runner processes, with a stand-in for Ray between them.

What Ray itself does is tested in `tests/end_to_end/test_ray.py`.
"""

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import stand_in

pytest.importorskip("ray", reason="needs the extra autopeft[ray]")

from outposts import FakeCluster
from ray import exceptions

from autopeft.configuration import Configuration
from autopeft.errors import (
    AutopeftError,
    InputError,
    OutputError,
    RunnerAwayError,
    TrialError,
)
from autopeft.execution import outpost, shipping, supervised
from autopeft.execution.base import state_path
from autopeft.execution.ray_cluster import (
    Cluster,
    Needs,
    check_room,
    check_versions,
    failure_of,
    needs_of,
    room,
)
from autopeft.execution.ray_runners import RayExecutor, RayLaunch, workers_of
from autopeft.execution.shipping import Parcel
from autopeft.execution.supervised import SupervisedRunner
from autopeft.execution.time_limits import TimeLimits
from autopeft.study.disk import writing
from autopeft.study.progress import Stopper
from autopeft.study.search_blocks import RayBlock

SUPPORT = Path(stand_in.__file__).parent
LANES: list[tuple[int, Configuration]] = list(enumerate(islice(stand_in.configurations(), 3)))
WAITED = dict.fromkeys(range(3), 0.0)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs process groups")
Make = Callable[..., SupervisedRunner]


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def make(tmp_path: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(supervised, "BETWEEN_STARTS_S", 0.0)
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    made: list[RayExecutor] = []

    def make_runner(
        parcels: Any = (), limit_s: float | None = None, **request: Any
    ) -> SupervisedRunner:
        known = {"script": {}, "step_s": 0.001, "folder": str(tmp_path)}
        launch = RayLaunch(
            request=known | request,
            parcels=parcels,
            workers=1,
            needs=Needs(0, 1),
            folder=tmp_path,
            limits=TimeLimits(limit_s),
            stopper=Stopper(),
            command=[sys.executable, str(SUPPORT / "stand_in_worker.py")],
        )
        stand_in_for_it: Any = cluster
        made.append(RayExecutor(stand_in_for_it, launch))
        return made[-1].runners[0]

    yield make_runner
    for executor in made:
        executor.close()
    assert cluster.closed == bool(made)
    assert all(post.ended and not Path(post.root).exists() for post in cluster.posts)


def on(step: int) -> bool:
    return True


def failure(call: Callable[[], Any]) -> TrialError:
    with pytest.raises(TrialError) as caught:
        call()
    return caught.value


# -- packs ----------------------------------------------------------------------------------------


def test_lane_states_travel_from_one_node_to_another(
    make: Make, cluster: FakeCluster, tmp_path: Path
) -> None:
    runner, heard = make(step_s=0.005), []
    run = runner.start(LANES, resume={}, waited=WAITED)
    assert not run.train(60, on_step=lambda step: heard.append(step) or step < 15)
    stood = run.step
    assert 15 <= stood < 60, "a pause did not arrive"
    assert heard == sorted(heard)
    assert max(point.step for point in run.curve()[1]) == stood
    folder = tmp_path / "saved"
    folder.mkdir()
    run.save(folder)
    profile = state_path(folder, 1).with_suffix(".json")
    profile.write_text("{}")  # as a real runner leaves beside a state
    cluster.posts[0].lose()
    with pytest.raises(TrialError):
        run.train(60, on_step=on)
    resume = {number: state_path(folder, number) for number, _ in LANES}
    again = runner.start(LANES, resume=resume, waited=WAITED)
    assert again.step == stood
    first, second = cluster.posts
    assert first.root != second.root
    lent = {path.name for path in Path(second.root, "lent").iterdir()}
    assert lent == {path.name for path in folder.iterdir()}, "what lies beside a state goes too"
    assert again.train(60, on_step=on)
    expected = [stand_in.quality(configuration, 60) for _, configuration in LANES]
    assert [each.values["accuracy"] for each in again.measure()] == expected
    assert runner.probe(LANES[0][1])["train_seconds"] == stand_in.params(LANES[0][1])


def test_a_state_that_is_saved_again_is_the_new_one(make: Make, tmp_path: Path) -> None:
    run = make().start(LANES[:2], resume={}, waited=WAITED)
    for until, name in ((15, "first"), (30, "second")):
        assert run.train(until, on_step=on)
        (tmp_path / name).mkdir()
        run.save(tmp_path / name)
        assert f'"step": {until}' in state_path(tmp_path / name, 1).read_text()
        assert len(list((tmp_path / name).iterdir())) == 2


@pytest.mark.parametrize(
    ("script", "cause", "told", "survives"),
    [
        ({"1": "die"}, "lost", "SIGKILL", False),
        ({"1": "poison"}, "lost", "CUDA error", False),
        ({"1": "err"}, "error", "ValueError: this configuration cannot be", True),
        ({"1": "wide 8"}, "out-of-memory", "out of memory", True),
    ],
)
def test_a_failure_has_its_cause_and_the_next_pack_a_runner(
    make: Make,
    cluster: FakeCluster,
    script: dict[str, str],
    cause: str,
    told: str,
    survives: bool,
) -> None:
    runner = make(script=script)
    pid = runner.identity["pid"]
    run = runner.start(LANES, resume={}, waited=WAITED)
    error = failure(lambda: run.train(15, on_step=on))
    assert (error.cause, told in str(error)) == (cause, True)
    assert f"trial 1: now {script['1']}" in (runner.last_lines() or "")
    healthy = runner.start(LANES[:1], resume={}, waited={0: 0.0})
    assert healthy.train(15, on_step=on)
    assert (runner.identity["pid"] == pid) is survives
    assert len(cluster.posts) == (1 if survives else 2)


def test_one_that_hangs_is_ended_with_its_children(
    make: Make, cluster: FakeCluster, tmp_path: Path
) -> None:
    runner = make(limit_s=10.0, script={"1": "hang"})
    run = runner.start(LANES, resume={}, waited=WAITED)
    runner.limits = TimeLimits(1.0)
    assert failure(lambda: run.train(15, on_step=on)).cause == "timeout"
    assert "trial 1: now hang" in (runner.last_lines() or "")
    pids = stand_in.marker(tmp_path, "children").read_text().split()
    assert len(pids) == 2
    assert all(_gone(pid) for pid in pids)
    assert runner.start(LANES[:1], resume={}, waited={0: 0.0}).train(15, on_step=on)
    assert len(cluster.posts) == 2


def _gone(pid: str) -> bool:
    """Whether a process ends within seconds (a zombie that nobody reaps has ended)."""
    for _ in range(200):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True
        if stat.rpartition(")")[2].split()[0] in "ZX":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (exceptions.NodeDiedError("gone"), "lost"),
        (exceptions.OutOfMemoryError("killed"), "out-of-memory"),
    ],
)
def test_a_node_that_goes_down_takes_one_pack_with_it(
    make: Make,
    cluster: FakeCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    cause: str,
) -> None:
    monkeypatch.setattr(outpost, "LOG_S", 0.0)
    runner = make(step_s=0.02)
    run = runner.start(LANES, resume={}, waited=WAITED)

    def lose(step: int) -> bool:
        if step > 5:
            cluster.posts[0].lose(error)
        return True

    assert failure(lambda: run.train(60, on_step=lose)).cause == cause
    assert "trials 0, 1, 2" in (runner.last_lines() or ""), "its last lines went with its node"
    cluster.full = True
    with pytest.raises(RunnerAwayError):
        runner.identity  # noqa: B018
    cluster.full = False
    assert runner.start(LANES, resume={}, waited=WAITED).train(15, on_step=on)
    assert "trials 0, 1, 2" in (tmp_path / "logs/runner-0.log").read_text()


# -- what Ray tells ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "cause", "told"),
    [
        (exceptions.NodeDiedError("x"), "lost", "node has died"),
        (exceptions.ActorDiedError(), "lost", "The actor died unexpectedly"),
        (exceptions.ActorUnavailableError("reset by peer", b"1" * 16), "lost", "be reached"),
        (
            exceptions.RayActorError(error_msg="The actor is dead because its node has died."),
            "lost",
            "the runner's node has died",
        ),
        (exceptions.WorkerCrashedError(), "lost", "WorkerCrashedError"),
        (exceptions.OwnerDiedError("ab", None, ""), "lost", "OwnerDiedError"),
        (exceptions.OutOfMemoryError("killed"), "out-of-memory", "short of memory"),
        (exceptions.GetTimeoutError("late"), "timeout", "in time"),
        (
            exceptions.RayTaskError("hear", "Traceback ...", ValueError("it cannot be")),
            "error",
            "ValueError: it cannot be",
        ),
        (
            exceptions.RayTaskError("hear", "...", TrialError("full", cause="out-of-memory")),
            "out-of-memory",
            "full",
        ),
    ],
)
def test_every_failure_of_rays_has_a_cause_of_ours(
    error: Exception, cause: str, told: str
) -> None:
    found = failure_of(error)
    assert found.cause == cause
    assert told in str(found)
    assert "\n" not in str(found)


def test_a_disk_without_room_is_no_trials_fault_on_this_side_or_that(
    make: Make, cluster: FakeCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = OutputError("/tmp/x: no space left on device")
    assert failure_of(exceptions.RayTaskError("put", "...", full)) is full
    runner, folder = make(), tmp_path / "saved"
    run = runner.start(LANES, resume={}, waited=WAITED)
    assert run.train(5, on_step=on)
    folder.write_text("a file where a folder is to be")
    with pytest.raises(OutputError, match="saved: not a directory"), writing(folder):
        run.save(folder)
    there = Path(cluster.posts[0].root, "saved")
    shutil.rmtree(there)
    there.write_text("and on the node")
    with pytest.raises(OutputError, match=f"{there}: file exists"):
        run.save(folder)
    there.unlink()
    folder.unlink()
    folder.mkdir()
    run.save(folder)
    assert run.train(8, on_step=on), "the pack is gone"
    (tmp_path / "logs").write_text("no place for a log")
    os.kill(runner.identity["pid"], signal.SIGKILL)
    assert failure(lambda: run.train(60, on_step=on)).cause == "lost"
    assert "a runner's last lines are lost" in caplog.text


def test_a_node_with_other_versions_is_told_and_with_another_release_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = {"autopeft": "1.0", "torch": "2.9", "numpy": "2.0"}
    check_versions(outpost.Greeting("n1", "/", {**own, "transformers": "5"}), own)
    assert not caplog.messages
    check_versions(outpost.Greeting("n1", "/", {**own, "torch": "2.8"}), own)
    [told] = caplog.messages
    assert told.startswith("n1 has torch 2.8, this machine 2.9")
    with pytest.raises(InputError, match=r"the node n1: autopeft; got 0.9; allowed: 1.0"):
        check_versions(outpost.Greeting("n1", "/", {**own, "autopeft": "0.9"}), own)
    assert {"torch", "transformers"} <= set(outpost.installed())


@pytest.mark.parametrize("variable", [False, True])
def test_an_address_where_nobody_listens_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, variable: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(AutopeftError, match=r"no Ray cluster at .*refused.*ray start --head"):
        Cluster(None if variable else address)
    assert time.monotonic() - began < 20


# -- what a runner takes -------------------------------------------------------------------------

CPU_NODES = [{"CPU": 8.0, "memory": 64.0}, {"CPU": 4.0, "memory": 8.0}, {"memory": 1.0}]
GPU_NODES = [{"CPU": 32.0, "GPU": 4.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 16.0}]


@pytest.mark.parametrize(
    ("nodes", "asked", "workers", "needs"),
    [
        (CPU_NODES, {}, 3, Needs(0, 4)),  # two on the larger node
        (CPU_NODES, {"cpus": 8}, 1, Needs(0, 8)),
        (CPU_NODES, {"memory": 16}, 2, Needs(0, 4, 16)),
        (CPU_NODES, {"workers": 7}, 7, Needs(0, 4)),
        (GPU_NODES, {}, 7, Needs(1, 1)),
        (GPU_NODES, {"gpus": 0.5}, 11, Needs(0.5, 1)),
        (GPU_NODES, {"gpus": 0.1, "cpus": 0.25}, 52, Needs(0.1, 0.25)),
        (GPU_NODES, {"gpus": 0}, 16, Needs(0, 3)),
    ],
)
def test_as_many_runners_as_the_cluster_has_room_for(
    nodes: list[dict[str, float]], asked: dict[str, Any], workers: int, needs: Needs
) -> None:
    assert workers_of(nodes, RayBlock.model_validate(asked)) == (workers, needs)


def test_a_cluster_without_room_is_a_fault_that_names_what_there_is() -> None:
    with pytest.raises(InputError, match=r"1 GPU, 1 CPU.*0 GPU, 8 CPU.*execution.ray.workers"):
        check_room(CPU_NODES[:1], Needs(1, 1))
    assert room([], Needs(0, 1)) == 0
    assert needs_of([], gpus=None, cpus=None, memory=None) == Needs(0, 1)


# -- what is sent --------------------------------------------------------------------------------


@pytest.fixture
def request_of_a_study(tmp_path: Path) -> dict[str, Any]:
    model, data, output = tmp_path / "model", tmp_path / "data", tmp_path / "output"
    for path in (
        model / "config.json", model / "model.safetensors", model / "onnx/model.onnx",
        model / "pytorch_model.bin", data / "train.csv", data / ".hidden",
        output / "data/docstrings-seed0/train.parquet", output / "data/cache/train.arrow",
        output / "importance/ab.json", output / "importance/ab.units.npz",
        output / "importance/cd.json",
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    return {
        "definition": {
            "model": {"name_or_path": str(model)},
            "data": {"source": str(data)},
        },
        "output_dir": str(output),
        "activations": str(output / "activations"),
        "importance": str(output / "importance/ab.json"),
    }


def test_what_a_runner_reads_is_sent_and_nothing_else(
    request_of_a_study: dict[str, Any],
) -> None:
    parcels = {".".join(each.key): each for each in shipping.study_parcels(request_of_a_study)}
    sent = {key: sorted(each.files) for key, each in parcels.items()}
    assert sent == {
        "output_dir": ["output/data/docstrings-seed0/train.parquet"],
        "activations": [],
        "definition.model.name_or_path": [
            "model/model/config.json", "model/model/model.safetensors",
        ],
        "definition.data.source": ["data/data/train.csv"],
        "importance": ["importance/ab.json", "importance/ab.units.npz"],
    }  # fmt: skip
    values = {each.key: f"/there/{each.value}" for each in parcels.values()}
    there = shipping.readdressed(request_of_a_study, values)
    assert there["definition"] == {
        "model": {"name_or_path": "/there/model/model"},
        "data": {"source": "/there/data/data"},
    }
    assert there["importance"] == "/there/importance/ab.json"
    assert request_of_a_study["definition"]["data"]["source"].startswith("/"), "it was changed"
    assert "/there" not in str(request_of_a_study)


def test_names_of_the_hub_and_builtins_are_not_sent(request_of_a_study: dict[str, Any]) -> None:
    request_of_a_study["definition"] = {
        "model": {"name_or_path": "builtin:minilm"},
        "data": {"source": "nyu-mll/glue"},
    }
    request_of_a_study["importance"] = None
    keys = [each.key for each in shipping.study_parcels(request_of_a_study)]
    assert keys == [("output_dir",), ("activations",)]


def test_files_arrive_below_the_outposts_folder(
    make: Make, cluster: FakeCluster, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a file")
    runner = make([Parcel(("extra",), "given/a.txt", {"given/a.txt": tmp_path / "a.txt"})])
    assert runner.identity["host"]
    [post] = cluster.posts
    assert Path(post.root, "given/a.txt").read_text() == "a file"
    with pytest.raises(ValueError, match="not below"):
        post.outpost.put("../../elsewhere", b"")


def test_a_file_that_lies_there_is_not_sent(
    make: Make, cluster: FakeCluster, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"12345")
    parcel = Parcel(("folder",), "w", {"w": path}, path)
    assert make([parcel]).identity["pid"]
    assert "put" not in cluster.posts[0].asked


def test_what_is_too_large_to_be_sent_has_to_lie_there(
    make: Make, cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"12345")
    parcel = Parcel(("definition", "model", "name_or_path"), "w", {"w": path}, path)
    monkeypatch.setattr(shipping, "MOST_BYTES", 4)
    monkeypatch.setattr("autopeft.execution.outpost.Outpost.holds", lambda self, sizes: False)
    with pytest.raises(InputError, match=r"model.name_or_path.*the same path on every node"):
        make([parcel]).identity  # noqa: B018


def test_a_map_is_used_where_it_lies_or_sent_or_too_large(
    request_of_a_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parcel = shipping.study_parcels(request_of_a_study)[-1]
    assert str(parcel.in_place) == request_of_a_study["importance"]
    parcel.check_size("node")
    monkeypatch.setattr(shipping, "MOST_BYTES", sum(parcel.sizes.values()) - 1)
    with pytest.raises(
        InputError, match=r"ray: importance; got .*ab\.json.* not on node.*--output"
    ):
        parcel.check_size("node")


def test_outposts_clear_away_what_killed_ones_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, alive, other = (
        tmp_path / name
        for name in (f"{outpost.PREFIX}4194305-x", f"{outpost.PREFIX}{os.getpid()}-x", "other")
    )
    for folder in (dead, alive, other):
        folder.mkdir()
    post = outpost.Outpost()
    assert [path.exists() for path in (dead, alive, other)] == [False, True, True]
    post.close()
    assert sorted(tmp_path.iterdir()) == sorted([alive, other])
