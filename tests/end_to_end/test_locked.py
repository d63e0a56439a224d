"""A signal to a search whose database is locked by another process, or whose server is frozen.

The URL is a plain one.

The command and its processes are the real ones; what a runner trains is a stand-in.
"""

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from postgres_server import PostgresServer
from stand_in_place import Place, all_gone, children, placed

from autopeft.study.records import TrialState

SIGNALS_S = 30.0

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


@contextmanager
def locked_file(place: Place) -> Iterator[None]:
    other = sqlite3.connect(place.folder / "autopeft.db", isolation_level=None, timeout=30.0)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextmanager
def locked_table(place: Place) -> Iterator[None]:
    with psycopg.connect(place.url) as other:
        other.execute("LOCK TABLE studies, trials")
        yield
        other.rollback()


def check_one_signal(place: Place, locked: object, *, step_s: float) -> None:
    """It ends in time with the lanes saved, and the same command goes on from there.

    Args:
        place: Of the search.
        locked: Within, the database gives no answer.
        step_s: Seconds of a runner's step.
    """
    process = place.start(step_s=step_s)
    place.until_training(process)
    time.sleep(0.6)
    runners = children(process.pid)
    with locked:  # type: ignore[attr-defined]
        time.sleep(3.0)  # it waits already
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
        assert time.monotonic() - began < SIGNALS_S, out
        assert process.returncode != 0
        assert "Traceback" not in out
        assert all_gone(runners)
    saved = place.saved_steps()
    assert saved, out
    assert max(saved.values()) > 0
    place.search()
    assert [trial.state for trial in place.trials()] == [TrialState.COMPLETED] * 12


@pytest.mark.slow
@pytest.mark.parametrize("step_s", [0.5, 0.05])
def test_a_signal_ends_a_search_whose_file_is_locked(step_s: float, tmp_path: Path) -> None:
    """Within a pack's training, and where it has reached its rung meanwhile."""
    with placed(tmp_path) as place:
        check_one_signal(place, locked_file(place), step_s=step_s)


@pytest.mark.slow
def test_a_signal_ends_a_search_whose_table_is_locked(
    postgres_server: PostgresServer, postgresql_url: str, tmp_path: Path
) -> None:
    with placed(tmp_path, postgresql_url) as place:
        check_one_signal(place, locked_table(place), step_s=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("step_s", [0.5, 0.05])
def test_a_signal_ends_a_search_whose_server_is_frozen(
    step_s: float, postgres_server: PostgresServer, postgresql_url: str, tmp_path: Path
) -> None:
    with placed(tmp_path, postgresql_url) as place:
        check_one_signal(place, postgres_server.frozen(), step_s=step_s)


def test_two_signals_end_it_at_once(tmp_path: Path) -> None:
    with placed(tmp_path) as place:
        process = place.start(step_s=0.05)
        place.until_training(process)
        with locked_file(place):
            time.sleep(2.0)
            process.send_signal(signal.SIGTERM)
            time.sleep(2.0)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert time.monotonic() - began < 15.0
