import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from autopeft.study.records import Holder
from storage import SqlStore, engine, lease
from storage.columns import DatabaseNow
from storage.lease import lives, this_process
from storage.place import parse_place

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def test_this_process_lives() -> None:
    me = this_process()
    assert me.pid == os.getpid()
    assert me == this_process()
    assert lives(me)


@needs_proc
def test_a_later_process_with_the_same_id_is_another() -> None:
    me = this_process()
    space, _, start = me.boot.rpartition(":")
    assert not lives(replace(me, boot=f"{space}:{int(start) + 1}"))
    assert not lives(replace(me, boot=str(int(start) + 1)))
    assert lives(replace(me, boot=start))


@needs_proc
def test_the_start_is_read_past_a_name_with_blanks_and_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "7").mkdir()
    after = " ".join(str(n) for n in range(4, 30))
    (tmp_path / "7" / "stat").write_text(f"7 (a ) R 99 (b) S {after}")
    monkeypatch.setattr(lease, "_PROC", tmp_path)
    assert lease._state_and_start(7) == ("S", "22")


def dead_process() -> Holder:
    code = "from storage.lease import this_process as t; p = t(); print(p.pid, p.boot)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    pid, boot = shown.stdout.split()
    return replace(this_process(), pid=int(pid), boot=boot)


def test_only_a_process_that_can_be_seen_from_here_counts_as_dead() -> None:
    dead = dead_process()
    assert not lives(dead)
    assert not lives(replace(dead, boot=""))
    assert lives(replace(dead, host="another-host"))
    start = dead.boot.rpartition(":")[2]
    assert lives(replace(dead, boot=f"another-container:{start}"))


def test_without_proc_a_signal_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = dead_process()
    monkeypatch.setattr(lease, "_PROC", tmp_path)
    lease._pid_space.cache_clear()
    try:
        me = this_process()
        assert me.boot == ""
        assert lives(me)
        assert not lives(replace(me, pid=dead.pid))
    finally:
        lease._pid_space.cache_clear()


def test_another_users_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert lives(this_process())


def test_the_lease_of_a_dead_process_is_taken_at_once(
    store: SqlStore, small_study: Callable[[SqlStore], int]
) -> None:
    store.release("small", small_study(store))
    old = store.claim("small", dead_process(), 3600.0)
    assert store.holder("small") is None
    new = store.claim("small", this_process(), 60.0)
    assert new == old + 1
    assert store.holder("small") == this_process()


def test_a_study_of_a_dead_process_can_be_deleted(
    store: SqlStore, small_study: Callable[[SqlStore], int]
) -> None:
    store.release("small", small_study(store))
    store.claim("small", dead_process(), 3600.0)
    store.delete_study("small")
    assert store.studies() == []


def test_leases_run_on_the_databases_clock(
    store: SqlStore,
    small_study: Callable[[SqlStore], int],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_study(store)
    reader = engine.reader(parse_place(url))
    with reader.connect() as connection:
        shown = connection.scalar(select(DatabaseNow()))
    reader.dispose()
    assert shown == pytest.approx(time.time(), abs=2.0)
    # A client whose clock is a day ahead does not see the lease run out.
    ahead = time.time() + 86400
    monkeypatch.setattr(time, "time", lambda: ahead)
    assert store.holder("small") == this_process()
