"""The real `autopeft` command over a study that is prepared in no time: run as a script.

The store, the lease, the tuner, the executor with its processes and the command line are the real
ones; only what would load a model is another (`stand_in`). The variable STAND_IN holds what tests
set: `{"script", "step_s", "measure_s", "ask_s", "limit_s", "lease_s", "poll_s", "devices",
"save_s", "loading_s", "notes"}`.
"""

import json
import os
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stand_in

from autopeft.backbone.anatomy import Anatomy, Layer, Site
from autopeft.configuration import Configuration
from autopeft.searchers.base import Problem, Proposal
from autopeft.study.definition import StudyDefinition
from autopeft.study.records import NewStudy, ObjectiveFrame, Origin

SETTINGS = json.loads(os.environ.get("STAND_IN", "{}"))
WORKER = Path(__file__).with_name("stand_in_worker.py")
FRAME = (
    ObjectiveFrame("accuracy", "max", "linear", 0.0, 1.0),
    ObjectiveFrame("trainable_params", "min", "log10", 4096.0, 32.0),
)


def anatomy() -> Anatomy:
    """Four layers of width 16."""
    roles = ("query", "key", "value", "output")
    layers = tuple(
        Layer(
            index,
            f"layer.{index}",
            {role: Site(index, role, f"layer.{index}.{role}", 16, 16) for role in roles},
            attention=f"layer.{index}.attention",
        )
        for index in range(4)
    )
    return Anatomy("bert", layers, 16, 32, 4, 4, 4, 10_000)


class StandInSearcher:
    """Proposes one configuration after the other."""

    def __init__(self) -> None:
        self._told: set[int] = set()

    def ask(self, q: int, pending: Sequence[Configuration] = ()) -> list[Proposal]:
        """See `Searcher.ask`."""
        if ask_s := SETTINGS.get("ask_s"):
            Path("asking").touch()
            time.sleep(ask_s)
        every = stand_in.configurations()
        for _ in range(len(self._told) + len(pending)):
            next(every)
        return [Proposal(next(every), Origin.SEARCHER) for _ in range(q)]

    def tell(self, observations: Sequence[Any]) -> None:
        """See `Searcher.tell`."""
        self._told.update(each.number for each in observations)


class StandInPreparation:
    """Stands for `Preparation`."""

    def __init__(self, definition: StudyDefinition, folder: Path, *_: Any, **__: Any) -> None:
        self._definition, self._folder = definition, folder
        if loading_s := SETTINGS.get("loading_s"):
            Path("loading").touch()
            time.sleep(loading_s)

    def warm_start(self, *_: Any) -> list[Any]:
        """Nothing."""
        return []

    def calibrate(self, *_: Any) -> None:
        """Nothing to find out."""

    def probe_space(self, *_: Any) -> None:
        """Nothing to find out."""

    def new_study(self, *_: Any) -> NewStudy:
        """The record to create."""
        facts = {"n_layers": 4, "n_baselines": 0}
        plain = self._definition.to_plain()
        marks = {"backbone": "stand-in", "data": "stand-in"}
        return NewStudy(self._definition.study.name, plain, "space", FRAME, marks, {}, facts)

    def check(self, *_: Any) -> None:
        """Nothing changes."""

    def keep_importance(self, *_: Any) -> None:
        """There is none."""

    def release(self) -> None:
        """Nothing is held."""

    def tuner(self, store: Any, token: int, *, listener: Any, sitting: Any) -> Any:
        """The real tuner over a real executor of stand-in workers."""
        from autopeft.execution.states import states_folder
        from autopeft.tuner import Tuner, TunerSettings
        from autopeft.tuner.ledger import Ledger

        name, budget = self._definition.study.name, self._definition.budget
        folder = self._folder
        gpu_s = None if budget.gpu_hours is None else budget.gpu_hours * 3600.0
        settings = TunerSettings(
            trials=budget.trials,
            proposals=2 * stand_in.PACK,
            pack_size=stand_in.PACK,
            memory_limit=None,
            device="cpu",
            rung_steps=stand_in.RUNGS,
            baselines={},
            enqueued=[],
            head_params=0,
            bounds=[],
            wall_clock_s=budget.wall_clock,
            train_s=gpu_s,
            states=states_folder(folder, store.study(name).created_at),
            accuracy_like=True,
            stops=False,
            optimizer_steps=budget.optimizer_steps,
            micro_batch_size=stand_in.MICRO_BATCH,
        )
        return Tuner(
            Ledger(store, name, token),
            problem=self._problem(),
            searcher=StandInSearcher(),
            executor=self._executor(sitting.stopper),
            settings=settings,
            listener=listener,
            sitting=sitting,
        )

    def confirmation(self, store: Any, token: int, *, listener: Any, sitting: Any) -> Any:
        """The real training of a confirmation, over the same executor."""
        from autopeft.execution.states import states_folder
        from autopeft.tuner.confirming import ConfirmationTraining, confirmation_settings

        name = self._definition.study.name
        settings = confirmation_settings(
            pack_size=stand_in.PACK,
            memory_limit=None,
            device="cpu",
            total_steps=stand_in.STEPS,
            head_params=0,
            states=states_folder(self._folder, store.study(name).created_at),
        )
        return ConfirmationTraining(
            store,
            name,
            token,
            problem=self._problem(),
            executor=self._executor(sitting.stopper),
            settings=settings,
            listener=listener,
            sitting=sitting,
        )

    def _problem(self) -> Problem:
        params: Any = {
            "space": None,
            "build": None,
            "site_params": None,
            "feasible": lambda configuration: True,
            "flops": lambda configuration: 1.0,
        }
        return Problem(
            anatomy=anatomy(),
            frame=FRAME,
            known=lambda c: {"trainable_params": float(stand_in.params(c))},
            n_validation=100,
            seed=0,
            initial=0,
            **params,
        )

    def _executor(self, stopper: Any) -> Any:
        """The real one that the study names, with stand-in runners."""
        from autopeft.execution.time_limits import TimeLimits

        execution = self._definition.execution
        common: dict[str, Any] = {
            "request": {
                "script": SETTINGS.get("script", {}),
                "step_s": SETTINGS.get("step_s", 0.002),
                "measure_s": SETTINGS.get("measure_s", 0.0),
                "notes": SETTINGS.get("notes", False),
                "folder": str(self._folder),
            },
            "folder": self._folder,
            "limits": TimeLimits(SETTINGS.get("limit_s")),
            "stopper": stopper,
            "command": [sys.executable, str(WORKER)],
        }
        if execution.executor == "ray":
            from autopeft.execution.ray_cluster import Cluster
            from autopeft.execution.ray_runners import RayExecutor, RayLaunch, workers_of

            cluster = Cluster(execution.ray.address)
            workers, needs = workers_of(cluster.nodes, execution.ray)
            return RayExecutor(
                cluster, RayLaunch(parcels=[], workers=workers, needs=needs, **common)
            )
        if execution.executor == "in-process":
            from stand_in_worker import StandInRunner

            from autopeft.execution.inprocess import InProcessExecutor

            self._folder.mkdir(parents=True, exist_ok=True)  # else the executor's
            return InProcessExecutor(StandInRunner({**common["request"], "device": "cpu"}))
        from autopeft.execution.local import Launch, LocalExecutor

        return LocalExecutor(Launch(devices=SETTINGS.get("devices", ["cpu"]), **common))


def _instead(module: str, **names: Any) -> None:
    """Put a module in place of one that takes seconds to import."""
    made = types.ModuleType(module)
    vars(made).update(names)
    sys.modules[module] = made


def main() -> None:
    """The command line."""
    _instead("autopeft.api.preparation", Preparation=StandInPreparation)
    _instead("autopeft.api.warm_start", sources=lambda *_: [])
    _instead("autopeft.execution.spare", Spare=lambda _: None)
    from autopeft.tuner import station, watch

    watch.LEASE_S = SETTINGS.get("lease_s", watch.LEASE_S)
    watch.BUSY_S = SETTINGS.get("lease_s", watch.BUSY_S)
    watch.POLL_S = SETTINGS.get("poll_s", 0.2)
    station.SAVE_S = SETTINGS.get("save_s", station.SAVE_S)
    from autopeft import tuner

    tuner.BUSY_S = watch.BUSY_S
    from autopeft.cli.main import app

    app(args=sys.argv[1:], prog_name="autopeft")


if __name__ == "__main__":
    main()
