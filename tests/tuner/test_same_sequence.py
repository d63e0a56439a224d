"""R13: the same seed, one worker, the same versions: the same sequence, also across a resume.

The golden list is of searchers that nothing but NumPy's generators drives; it changes only where
a release means to change what is proposed. A kill is injected after every write of a search in
turn, which is every place where a coordinator can die and leave something behind.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft.tuner.ledger import Ledger

Make = Callable[..., Any]
NAME, STEPS = "toy", 30
GOLDEN = Path(__file__).with_name("same_sequence.json")
WRITES = (
    "set_state", "spend", "add", "start", "update", "note", "add_snapshot", "begin",
)  # fmt: skip
RUNGS = {"rung_steps": {0.4: 12, 1.0: STEPS}, "trials": 8, "proposals": 4}


class Killed(BaseException):
    """What SIGKILL looks like from inside."""


class Killer:
    """Kills the sitting after its n-th write; `None` only counts them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.writes = 0
        for name in WRITES:
            patch.setattr(Ledger, name, self._counted(getattr(Ledger, name)))

    def _counted(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            done = write(*given, **named)
            self.writes += 1
            if self.writes == self.at:
                raise Killed
            return done

        return counted


def sequence(desk: Any) -> list[tuple[int, str, str]]:
    trials = desk.store.trials(NAME)
    return [(t.number, t.hash, t.state.value) for t in trials]


def searched(make_desk: Make, name: str, searcher: str) -> Any:
    desk = make_desk(name, search={"searcher": searcher}, **RUNGS)
    desk.create()
    desk.tuner().run()
    return desk


@pytest.mark.parametrize("searcher", ["random", "evolution"])
def test_the_sequence_is_the_golden_one(make_desk: Make, searcher: str) -> None:
    expected = json.loads(GOLDEN.read_text())[searcher]
    assert [hash_ for _, hash_, _ in sequence(searched(make_desk, "one", searcher))] == expected


@pytest.mark.parametrize(
    ("searcher", "every"),
    [
        ("random", 7),
        pytest.param("random", 1, marks=pytest.mark.slow),
        pytest.param("evolution", 2, marks=pytest.mark.slow),
    ],
)
def test_a_kill_after_any_write_changes_nothing(
    make_desk: Make, monkeypatch: pytest.MonkeyPatch, searcher: str, every: int
) -> None:
    killer = Killer(monkeypatch)
    expected = sequence(searched(make_desk, "calm", searcher))
    total = killer.writes
    assert total > 20
    for at in range(1, total, every):
        desk = make_desk(f"killed-{at}", search={"searcher": searcher}, **RUNGS)
        desk.create()
        killer.at, killer.writes = at, 0
        with pytest.raises(Killed):
            desk.tuner().run()
        killer.at = None
        desk.tuner().run()
        assert sequence(desk) == expected, f"killed after write {at} of {total}"


@pytest.mark.parametrize("searcher", ["gp", "tpe"])
def test_searchers_that_learn_repeat_their_sequence_across_several_kills(
    make_desk: Make, monkeypatch: pytest.MonkeyPatch, searcher: str
) -> None:
    killer = Killer(monkeypatch)
    expected = sequence(searched(make_desk, "calm", searcher))
    total = killer.writes
    desk = make_desk("killed", search={"searcher": searcher}, **RUNGS)
    desk.create()
    for at in (3, total // 3, total // 4):
        killer.at, killer.writes = at, 0
        with pytest.raises(Killed):
            desk.tuner().run()
    killer.at = None
    desk.tuner().run()
    assert sequence(desk) == expected
