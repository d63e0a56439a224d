"""A runner's process that trains nothing, and fails as it is told: run as a script.

Obeys the contract of `autopeft.execution.base`, through the real `worker.serve`. The `load`
command carries `script`: what happens by trial number.
"""

import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import stand_in

from autopeft.configuration import Configuration
from autopeft.errors import TrialError
from autopeft.execution.base import Result, state_path
from autopeft.execution.worker import serve
from autopeft.study.confirmation import Opening
from autopeft.study.records import Measurement

AT_STEP = 3


class StandInRun:
    """One pack."""

    def __init__(
        self,
        runner: "StandInRunner",
        lanes: Sequence[tuple[int, Configuration]],
        step: int,
        rows: int,
        replicate: int,
    ) -> None:
        self._runner, self._lanes, self.step, self._drawn = runner, list(lanes), step, step
        self._rows, self._replicate = rows, replicate

    def train(self, until: int, *, on_step: Callable[[int], bool]) -> bool:
        """See `Run.train`."""
        while self.step < until:
            time.sleep(self._runner.step_s)
            if self.step % 15 == AT_STEP:
                for number, _ in self._lanes:
                    self._runner.play(number, lanes=len(self._lanes), rows=self._rows)
            self.step += 1
            self._runner.note(self.step, self._lanes)
            if not on_step(self.step):
                break
        return self.step >= until

    def measure(self, opening: Opening | None = None) -> list[Result]:
        """See `Run.measure`; there is no test split."""
        assert opening is None
        if self.step == stand_in.STEPS and self._runner.measure_s:
            stand_in.marker(self._runner.folder, "measuring").touch()
            time.sleep(self._runner.measure_s)
        return [self._result(number, configuration) for number, configuration in self._lanes]

    def _result(self, number: int, configuration: Configuration) -> Result:
        if self._runner.script.get(str(number)) == "diverge":
            return Result(number, {}, diverged=True)
        value = stand_in.quality(configuration, self.step, self._replicate)
        return Result(number, {"accuracy": value, "loss": 1.0 - value}, diverged=False)

    def curve(self) -> dict[int, list[Measurement]]:
        """See `Run.curve`."""
        points = [
            Measurement(step, "loss", "train", 1.0 / step)
            for step in range(self._drawn + 1, self.step + 1)
        ]
        self._drawn = self.step
        return {number: points for number, _ in self._lanes}

    def save(self, folder: Path) -> None:
        """See `Run.save`."""
        if self._runner.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for number, configuration in self._lanes:
            plain = {"step": self.step, "hash": configuration.hash}
            state_path(folder, number).write_text(json.dumps(plain))

    def profile(self, number: int) -> dict[str, Any]:
        """See `Run.profile`."""
        on_ray, device = "RAY_RAYLET_PID" in os.environ, self._runner.identity["device"]
        return {"optimizer_steps": self.step, "on_ray": on_ray, "device": device}


class StandInRunner:
    """Obeys, or fails as the script says."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.script: Mapping[str, Any] = request["script"]
        self.step_s: float = request["step_s"]
        self.measure_s: float = request.get("measure_s", 0.0)
        self.folder, self._device = Path(request["folder"]), request["device"]
        self._notes: bool = request.get("notes", False)

    @property
    def is_full(self) -> bool:
        """Whether there is no room to save."""
        return stand_in.marker(self.folder, "full").exists()

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `Runner.identity`."""
        return {"pid": os.getpid(), "host": socket.gethostname(), "device": self._device}

    def probe(self, configuration: Configuration) -> dict[str, Any]:
        """See `Runner.probe`."""
        return {"train_seconds": float(stand_in.params(configuration)), "seconds": 0.01}

    def last_lines(self) -> str | None:
        """See `Runner.last_lines`."""
        return None

    def start(
        self,
        lanes: Sequence[tuple[int, Configuration]],
        *,
        resume: Mapping[int, Path],
        waited: Mapping[int, float],
        replicate: int = 0,
        micro_batch_size: int | None = None,
    ) -> StandInRun:
        """See `Runner.start`."""
        saved = [json.loads(path.read_text()) for path in resume.values()]
        assert {each["hash"] for each in saved} <= {
            configuration.hash for _, configuration in lanes
        }
        steps = {each["step"] for each in saved} or {0}
        assert len(steps) == 1, "lanes at different steps in one pack"
        assert not resume or set(resume) == {number for number, _ in lanes}
        rows = micro_batch_size or stand_in.MICRO_BATCH
        return StandInRun(self, lanes, steps.pop(), rows, replicate)

    def note(self, step: int, lanes: Sequence[tuple[int, Configuration]]) -> None:
        """Write down a step that was taken, for whoever counts them over all deaths."""
        if self._notes:
            with stand_in.marker(self.folder, "steps").open("a") as file:
                file.write(json.dumps([step, [number for number, _ in lanes]]) + "\n")

    def play(self, number: int, *, lanes: int, rows: int) -> None:
        """What the script has for a trial."""
        part = self.script.get(str(number))
        if part in (None, "diverge"):
            return
        sys.stderr.write(f"trial {number}: now {part}\n")
        kind, _, rest = str(part).partition(" ")
        if kind == "once":
            remembered = stand_in.marker(self.folder, str(number))
            if remembered.exists():
                return
            remembered.touch()
            kind, _, rest = rest.partition(" ")
        getattr(self, f"_{kind}")(int(rest or 0), lanes, rows)

    def _die(self, *_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _poison(self, *_: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _err(self, *_: int) -> None:
        raise ValueError("this configuration cannot be")

    def _slow(self, seconds: int, *_: int) -> None:
        stand_in.marker(self.folder, "stepping").touch()
        time.sleep(seconds)

    def _wide(self, limit: int, lanes: int, rows: int) -> None:
        """Memory holds so many rows of all lanes together."""
        if lanes * rows > limit:
            raise TrialError("the device is out of memory", cause="out-of-memory")

    def _hang(self, *_: int) -> None:
        """For ever, deaf to SIGTERM, with a child that is deaf too."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = os.fork()
        if child:
            with stand_in.marker(self.folder, "children").open("a") as file:
                file.write(f"{os.getpid()} {child}\n")
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    serve(StandInRunner)
