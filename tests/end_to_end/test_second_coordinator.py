"""A second command beside a coordinator that is busy for longer than its lease lasts.

The commands, their store and their leases are the real ones; what proposes and trains is a
stand-in, in the coordinator's own process where a case says so.
"""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import stand_in
from grounds import Ground
from stand_in_place import Place
from warm_processes import WarmProcess

from autopeft.study.records import TrialState

LEASE_S = 3.0
IN_PROCESS = ("--executor", "in-process")
HELD = 4

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


def busy(place: Place, sign: Path, *words: str, **settings: Any) -> WarmProcess:
    """A search that has begun, two leases ago, what takes a minute."""
    first = place.start(*words, lease_s=LEASE_S, **settings)
    for _ in range(2400):
        if sign.exists():
            break
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    time.sleep(2 * LEASE_S)
    return first


def check(ground: Ground, first: WarmProcess, *words: str) -> None:
    """While the first lives, a second is refused; once it is killed the study is taken over."""
    place = ground.place
    refused = place.search(*words, code=HELD, lease_s=LEASE_S)
    assert f"process {first.pid}" in refused
    assert first.poll() is None
    first.kill()
    first.wait(30)
    place.search(*words, lease_s=LEASE_S)
    assert [trial.state for trial in place.trials()] == [TrialState.COMPLETED] * 12
    ground.check()


def test_one_that_waits_for_a_proposal_holds_its_study(ground: Ground) -> None:
    check(ground, busy(ground.place, ground.place.folder / "asking", ask_s=60.0))


def test_a_step_in_its_own_process_holds_the_study(ground: Ground) -> None:
    sign = stand_in.marker(ground.place.folder / "autopeft-runs/toy", "stepping")
    script = {"1": "once slow 60"}
    check(ground, busy(ground.place, sign, *IN_PROCESS, script=script), *IN_PROCESS)


@pytest.mark.slow
def test_an_evaluation_in_its_own_process_holds_the_study(ground: Ground) -> None:
    sign = stand_in.marker(ground.place.folder / "autopeft-runs/toy", "measuring")
    check(ground, busy(ground.place, sign, *IN_PROCESS, measure_s=60.0), *IN_PROCESS)


@pytest.mark.slow
def test_one_that_stood_still_while_it_waited_for_a_proposal_is_replaced(
    ground: Ground,
) -> None:
    """The thread stands still with its process: nothing speaks for it then."""
    place = ground.place
    first = busy(place, place.folder / "asking", ask_s=15.0)
    first.send_signal(signal.SIGSTOP)
    time.sleep(1.5 * LEASE_S)
    place.search(lease_s=LEASE_S)
    before = place.trials()
    first.send_signal(signal.SIGCONT)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 0, out
    assert "another coordinator has taken over" in out
    assert place.trials() == before
    assert [trial.state for trial in before] == [TrialState.COMPLETED] * 12
