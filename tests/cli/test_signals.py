"""Ctrl-C and SIGTERM, sent to a process that searches (or seems to)."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autopeft.cli.signals import STEP_S
from autopeft.execution.ray_runners import CLOSE_S
from autopeft.execution.runner_process import TERM_S
from autopeft.execution.supervised import TICK_S
from autopeft.tuner.station import SAVE_S

BATCH_SYSTEM_S = 30.0
"""Between the SIGTERM of SLURM or Kubernetes and their SIGKILL."""

SEARCHING = """
import sys, time
from autopeft import api
from autopeft.cli.main import app
from autopeft.errors import InterruptedStudyError
from autopeft.study.progress import Progress

def search(study=None, *, listener, stopper, **given):
    listener.on_progress(Progress("demo", "training", 1, 16))
    listener.on_event("ready")
    while not (OBEYS and stopper.reason):
        time.sleep(0.01)
    raise InterruptedStudyError(f"stopped by {stopper.reason}")

vars(api)["search"] = search
app(args=["search", "--name", "demo"], prog_name="autopeft")
"""


def _started(place: Path, *, obeys: bool) -> "subprocess.Popen[str]":
    code = SEARCHING.replace("OBEYS", str(obeys))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=place,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _read_until(process.stderr, "ready")
    return process


def _read_until(stream: Any, text: str) -> None:
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never written")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_saves_and_stops(place: Path, number: int, code: int) -> None:
    process = _started(place, obeys=True)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert err.splitlines() == [
        "saving, press again to stop now",
        f"stopped by {signal.Signals(number).name}",
        "resume with: autopeft search --name demo",
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_stops_at_once(place: Path, number: int, code: int) -> None:
    process = _started(place, obeys=False)
    process.send_signal(signal.SIGINT)
    _read_until(process.stderr, "press again")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code


def test_what_follows_a_signal_fits_into_the_notice_of_a_batch_system() -> None:
    """A step that is given up, a last look at its runner, and the end of the runners."""
    given_up_s = STEP_S + TICK_S
    assert given_up_s + TERM_S <= BATCH_SYSTEM_S
    assert given_up_s + CLOSE_S <= BATCH_SYSTEM_S


def test_a_running_pack_is_saved_every_ten_minutes() -> None:
    assert SAVE_S + 30.0 <= 600.0, "a step and the save itself take time"
