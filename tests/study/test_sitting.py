"""A sitting: what ends it while a study is prepared, and what preparation costs."""

import os
import signal
import threading
import time

import pytest

from autopeft.cli.signals import stop_on_signals
from autopeft.errors import InterruptedStudyError
from autopeft.study.progress import Stopper
from autopeft.study.sitting import Sitting

LEFT = "nothing is stored"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_at_once_what_only_prepares(number: signal.Signals) -> None:
    sitting, began = Sitting(), time.monotonic()
    with stop_on_signals(sitting.stopper, lambda _: None) as received:
        sender = threading.Timer(0.05, os.kill, [os.getpid(), number])
        sender.start()
        with (
            pytest.raises(InterruptedStudyError, match=rf"'toy'.*\({number.name}\).*{LEFT}"),
            sitting.preparing("toy", LEFT),
        ):
            time.sleep(60.0)
        sender.join()
    assert time.monotonic() - began < 30.0
    assert received.exit_code == 128 + number


def test_a_library_that_swallows_the_signal_only_delays_the_end() -> None:
    sitting = Sitting()

    def library() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            return

    with (
        stop_on_signals(sitting.stopper, lambda _: None),
        pytest.raises(InterruptedStudyError),
        sitting.preparing("toy", LEFT),
    ):
        library()


def test_what_trains_is_never_cut() -> None:
    sitting = Sitting()
    with stop_on_signals(sitting.stopper, lambda _: None):
        with sitting.preparing("toy", LEFT):
            pass
        signal.raise_signal(signal.SIGTERM)
        assert sitting.stopping()


def test_an_interrupt_that_is_nobodys_request_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), Sitting().preparing("toy", LEFT):
        raise KeyboardInterrupt


def test_one_that_is_asked_to_stop_before_prepares_nothing() -> None:
    stopper = Stopper()
    stopper.request("test")
    with pytest.raises(InterruptedStudyError), Sitting(stopper).preparing("toy", LEFT):
        raise AssertionError("it prepares")


def test_its_time_counts_from_the_beginning() -> None:
    clock = Clock()
    sitting = Sitting(stop_after_s=20.0, clock=clock)
    clock.now += 19.0
    assert not sitting.stopping()
    clock.now += 1.0
    assert sitting.stopping()
    assert sitting.stopper.reason == "the time of this sitting is over"


def test_everything_is_paid_once_and_what_cannot_be_added_stays_due() -> None:
    clock, paid = Clock(), []

    def broken(**spent: float) -> None:
        raise OSError("no database")

    sitting = Sitting(clock=clock)
    clock.now += 5.0
    with sitting.on_device():
        clock.now += 3.0
    with pytest.raises(OSError, match="no database"):
        sitting.pay(broken)
    clock.now += 1.0
    sitting.pay(lambda **spent: paid.append(spent))
    clock.now += 2.0
    sitting.pay(lambda **spent: paid.append(spent))
    assert paid == [{"wall_seconds": 9.0, "preparation_seconds": 3.0}, {"wall_seconds": 2.0}]
