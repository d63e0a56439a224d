"""Runs what has not been measured yet, interleaved, and records it.

A measurement is one part of one arm of one scenario in one repeat. Parts of different arms take
turns, so that a machine that slows down slows all of them; each is appended to a JSON lines file
as soon as it is done, and what that file holds is not measured again. Where a part of a second is
to be told apart, arms share their turns step by step (`Arm.abreast`).
"""

import gc
import json
import random
import sys
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SITTING = uuid.uuid4().hex[:8]
"""Names this process: a ratio should not mix sittings, and the table tells where one does."""

Span = tuple[float, float]
"""Wall seconds, CPU seconds of this process: where others use the machine, the latter say more."""


class Stopwatch:
    """Reads both clocks once the device has done what it was told."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def _now(self) -> Span:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), time.process_time()

    def lap(self) -> Span:
        """The span since the last lap, or since the start."""
        before, self._last = self._last, self._now()
        return self._last[0] - before[0], self._last[1] - before[1]


@dataclass(frozen=True)
class Measured:
    """What one part took: (wall seconds, CPU seconds of this process) of each phase.

    Attributes:
        setup: Making lanes or wrapping the model.
        train: Training.
        evaluation: Evaluation.
        samples: Rows trained, of all lanes.
        details: Accuracies, losses and the like, JSON.
    """

    setup: Span
    train: Span
    evaluation: Span
    samples: int
    details: Mapping[str, Any] = field(default_factory=dict)

    def span(self, phase: str) -> Span:
        """`setup`, `train`, `evaluation`, or `total` for all of them."""
        if phase != "total":
            return tuple(getattr(self, phase))
        spans = (self.setup, self.train, self.evaluation)
        return sum(wall for wall, _ in spans), sum(cpu for _, cpu in spans)


Turns = Generator[None, None, Measured]
"""A part in progress: where it yields, others may take a turn."""


@dataclass(frozen=True)
class Part:
    """One thing to run: a trial, or a pack of trials.

    Attributes:
        label: Unique in its arm.
        trials: Trials in it.
        run: Does it, told the repeat's number.
    """

    label: str
    trials: tuple[int, ...]
    run: Callable[[int], Turns]


@dataclass(frozen=True)
class Arm:
    """One way of doing the work.

    Attributes:
        name: Unique in its scenario.
        parts: What it consists of.
        abreast: Names the arms whose parts run at the same time, turn by turn; "" = one part
            after the other.
    """

    name: str
    parts: tuple[Part, ...]
    abreast: str = ""


Key = tuple[str, str, str, int]
"""Scenario, arm, part, repeat."""


@dataclass(frozen=True)
class Record:
    """One measurement and where it comes from."""

    key: Key
    measured: Measured
    sitting: str


class Records:
    """Measurements by key, kept in a file where one is given.

    Args:
        path: JSON lines, appended to; None keeps them in memory alone.
        about: What must be equal for a recorded measurement to count (machine, settings).
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        self._path, self._about = path, dict(about)
        self._records: dict[Key, Record] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._read(json.loads(line))

    def _read(self, plain: dict[str, Any]) -> None:
        if plain["about"] == self._about:
            scenario, arm, part, repeat = plain["key"]
            key = (scenario, arm, part, repeat)
            self._records[key] = Record(key, Measured(**plain["measured"]), plain["sitting"])

    def __contains__(self, key: Key) -> bool:
        return key in self._records

    def __getitem__(self, key: Key) -> Record:
        return self._records[key]

    def add(self, key: Key, measured: Measured) -> None:
        """Keep it, in the file too."""
        self._records[key] = Record(key, measured, SITTING)
        if self._path is None:
            return
        plain = {
            "key": key,
            "measured": vars(measured),
            "sitting": SITTING,
            "about": self._about,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")


def finished(turns: Turns) -> Measured:
    """What a part measures that shares its turns with nobody."""
    return taken_in_turns([turns], seed=0)[0]


def taken_in_turns(parts: Sequence[Turns], *, seed: int) -> list[Measured]:
    """What parts measure that take turns, in another order every round."""
    done: dict[int, Measured] = {}
    left, order = list(range(len(parts))), random.Random(seed)
    while left:
        order.shuffle(left)
        for index in left:
            try:
                next(parts[index])
            except StopIteration as end:
                done[index] = end.value
        left = [index for index in left if index not in done]
    return [done[index] for index in range(len(parts))]


def interleaved(arms: Sequence[Arm], repeat: int) -> list[list[tuple[Arm, Part]]]:
    """All parts of all arms, spread evenly over each other; odd repeats run backwards.

    Parts of arms that run abreast are one entry, at the place of the first of them.
    """
    placed = [
        ((position + 0.5) / len(arm.parts), index, arm, part)
        for index, arm in enumerate(arms)
        for position, part in enumerate(arm.parts)
    ]
    placed.sort(key=lambda item: item[:2])
    groups: dict[str, list[tuple[Arm, Part]]] = {}
    for number, (_, _, arm, part) in enumerate(placed):
        groups.setdefault(arm.abreast or f"alone {number}", []).append((arm, part))
    order = list(groups.values())
    return order[::-1] if repeat % 2 else order


def measure(scenario: str, arms: Sequence[Arm], repeats: int, records: Records) -> None:
    """Measure every part of every arm `repeats` times, telling the progress on stderr."""
    todo = [
        [((scenario, arm.name, part.label, repeat), part) for arm, part in group]
        for repeat in range(repeats)
        for group in interleaved(arms, repeat)
    ]
    left = [group for group in todo if any(key not in records for key, _ in group)]
    if len(left) < len(todo):
        _say(f"{scenario}: {len(todo) - len(left)} of {len(todo)} measurements are recorded")
    began = time.perf_counter()
    for done, group in enumerate(left):
        so_far = time.perf_counter() - began
        eta = f", {so_far / done * (len(left) - done):.0f} s to go" if done else ""
        names = " and ".join(dict.fromkeys(key[1] for key, _ in group))
        labels = group[0][0][2] if len(group) == 1 else f"({len(group)} parts, turn by turn)"
        _say(f"{scenario} {done + 1}/{len(left)} {names} {labels}: {so_far:.0f} s{eta}")
        gc.collect()
        repeat = group[0][0][3]
        found = taken_in_turns([part.run(repeat) for _, part in group], seed=repeat)
        for (key, _), measured in zip(group, found, strict=True):
            records.add(key, measured)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
