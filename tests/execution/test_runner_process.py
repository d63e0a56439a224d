"""One runner's process, called by several threads at once as an outpost's is."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autopeft.execution import runner_process
from autopeft.execution.channel import ChannelClosedError
from autopeft.execution.runner_process import RunnerProcess

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs process groups")
SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_threads_that_end_it_at_once_close_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread ends a runner that hangs, another hears its end and makes sure."""
    process = RunnerProcess(SLEEPS, tmp_path / "runner.log")
    close, closed = os.close, []

    def slowly(descriptor: int) -> None:
        closed.append(descriptor)
        time.sleep(0.1)
        close(descriptor)

    monkeypatch.setattr(runner_process.os, "close", slowly)
    with ThreadPoolExecutor(4) as threads:
        for ended in [threads.submit(process.kill) for _ in range(4)]:
            ended.result()
    assert len(closed) == len(set(closed)) == 1
    assert process.ending().cause == "lost"


def test_who_listens_hears_the_end_and_reads_no_other_pipe(tmp_path: Path) -> None:
    process = RunnerProcess(SLEEPS, tmp_path / "runner.log")
    with ThreadPoolExecutor(1) as threads:
        begun = threading.Event()

        def listen() -> None:
            begun.set()
            process.receive(30.0)

        heard = threads.submit(listen)
        begun.wait()
        process.kill()
        with pytest.raises(ChannelClosedError):
            heard.result(10.0)
    reading, writing = os.pipe()  # the numbers that were given back are taken again
    os.write(writing, b'{"not": "its own"}\n')
    with pytest.raises(ChannelClosedError):
        process.receive(1.0)
    os.close(reading)
    os.close(writing)
