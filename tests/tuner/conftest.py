"""A study on a tiny anatomy whose packs are trained by an honest, instant stand-in."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from autopeft.api import problem as problems
from autopeft.backbone.anatomy import Anatomy, Layer, Site
from autopeft.configuration import Configuration
from autopeft.execution.base import Result, Run, state_path
from autopeft.searchers.base import Problem, Searcher
from autopeft.searchers.baselines import baselines
from autopeft.searchers.registry import make_searcher
from autopeft.study.confirmation import Opening
from autopeft.study.definition import parse_definition
from autopeft.study.progress import Silent, Stopper
from autopeft.study.records import Measurement, NewStudy
from autopeft.study.sitting import Sitting
from autopeft.tuner import Tuner, TunerSettings
from autopeft.tuner.ledger import Ledger
from storage import SqlStore, open_store
from storage.lease import this_process

NAME, STEPS = "toy", 30


def anatomy() -> Anatomy:
    """Four BERT-like layers of width 16."""
    widths = {
        "query": (16, 16),
        "key": (16, 16),
        "value": (16, 16),
        "output": (16, 16),
        "up": (16, 32),
        "down": (32, 16),
    }
    layers = tuple(
        Layer(
            index,
            f"layer.{index}",
            {
                role: Site(index, role, f"layer.{index}.{role}", d_in, d_out)
                for role, (d_in, d_out) in widths.items()
            },
            attention=f"layer.{index}.attention",
        )
        for index in range(4)
    )
    return Anatomy("bert", layers, 16, 32, 4, 4, 4, 10_000)


class StandInRun:
    """A pack whose quality is a known function of the configuration and the step."""

    def __init__(
        self, runner: "StandIn", lanes: Sequence[tuple[int, Configuration]], replicate: int
    ) -> None:
        self._runner, self._lanes, self.step, self._drawn = runner, list(lanes), 0, 0
        self.replicate = replicate

    def train(self, until: int, *, on_step: Callable[[int], bool]) -> bool:
        self._runner.packs.append([number for number, _ in self._lanes])
        while self.step < until:
            self._runner.before_step(self._lanes, self.step)
            self.step += 1
            if not on_step(self.step):
                return self.step >= until
        return True

    def measure(self, opening: Opening | None = None) -> list[Result]:
        if opening is not None:
            self._runner.tested.append((self.replicate, [number for number, _ in self._lanes]))
        # Seeds other than the search's shift every quality a little, each in its own way.
        shift = 0.003 * math.sin(self.replicate) - (0.05 if opening else 0.0)
        return [
            Result(
                number,
                {}
                if self._runner.diverges(c)
                else {"accuracy": quality(c, self.step) + shift * (1 + number)},
                self._runner.diverges(c),
            )
            for number, c in self._lanes
        ]

    def curve(self) -> dict[int, list[Measurement]]:
        steps = range(self._drawn + 1, self.step + 1)
        self._drawn = self.step
        points = [Measurement(step, "loss", "train", 1.0 / step) for step in steps]
        return {number: points for number, _ in self._lanes}

    def save(self, folder: Path) -> None:
        self._runner.before_save(folder)
        for number, _ in self._lanes:
            state_path(folder, number).write_text(json.dumps({"step": self.step}))

    def profile(self, number: int) -> dict[str, Any]:
        return {"optimizer_steps": self.step}


class StandIn:
    """Runs packs at once; tests put faults in through its attributes."""

    def __init__(self) -> None:
        self.packs: list[list[int]] = []
        self.before_step: Callable[[Sequence[tuple[int, Configuration]], int], None] = (
            lambda lanes, step: None
        )
        self.before_save: Callable[[Path], object] = lambda folder: None
        self.diverges: Callable[[Configuration], bool] = lambda configuration: False
        self.resumed: list[int] = []
        self.replicates: list[int] = []
        self.tested: list[tuple[int, list[int]]] = []
        self.rows: list[int | None] = []
        self.probed: list[str] = []
        self.costs: Callable[[Configuration], dict[str, Any]] = lambda configuration: {}

    @property
    def identity(self) -> dict[str, Any]:
        return {"pid": 0, "host": "here", "device": "cpu"}

    def last_lines(self) -> str | None:
        return None

    def probe(self, configuration: Configuration) -> dict[str, Any]:
        found = self.costs(configuration)
        self.probed.append(configuration.hash)
        return found

    def start(
        self,
        lanes: Sequence[tuple[int, Configuration]],
        *,
        resume: Mapping[int, Path],
        waited: Mapping[int, float],
        replicate: int = 0,
        micro_batch_size: int | None = None,
    ) -> Run:
        self.rows.append(micro_batch_size)
        run = StandInRun(self, lanes, replicate)
        self.replicates.append(replicate)
        assert set(waited) == {number for number, _ in lanes}
        if resume:
            assert set(resume) == set(waited), "a lane has no state"
            steps = {json.loads(path.read_text())["step"] for path in resume.values()}
            assert len(steps) == 1, "lanes at different steps in one pack"
            run.step = run._drawn = steps.pop()
            self.resumed.append(run.step)
        return run


class StandIns:
    """As many runners as there are to be; an `Executor`."""

    apart = False

    def __init__(self, runners: Sequence[StandIn]) -> None:
        self.runners = runners

    def attend(self, call: Callable[[], object]) -> None:
        """Nothing: whoever waits here is the one that trains."""

    def close(self) -> None:
        """They are kept for the next sitting."""


def quality(configuration: Configuration, step: int) -> float:
    """More parameters, higher layers and a rate near 1e-3 are better; saturates with steps."""
    size = sum(
        int(g.get("rank") or g.get("size") or 0) * len(g.layers) for g in configuration.groups
    )
    rate = configuration.training_value("learning_rate")
    fit = math.exp(-(math.log10(rate / 1e-3) ** 2))
    top = max(configuration.layers) / 3
    learnt = 1 - math.exp(-4 * step / STEPS)
    return 0.3 + 0.6 * fit * (1 - math.exp(-size / 12)) * (0.5 + 0.5 * top) * learnt


SPACE = {
    "methods": {
        "lora": {
            "rank": {"choice": [1, 2, 4, 8]},
            "alpha_over_rank": 2,
            "sites": ["query", "value"],
            "layers": {"mode": "range"},
        },
    },
    "training": {"learning_rate": {"float": [1.0e-4, 1.0e-2], "log": True}},
}


class Desk:
    """Everything that one sitting needs; `tuner` makes a fresh one over the same database."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.url = folder, changes.pop("url", f"sqlite:///{folder}/toy.db")
        self.store: SqlStore = open_store(self.url, create=True)
        plain = {
            "study": {"name": NAME},
            "model": {"name_or_path": "toy"},
            "data": {"source": "toy.csv"},
            "space": changes.pop("space", SPACE),
            "search": {"initial": 4, "searcher": "random"} | changes.pop("search", {}),
            "budget": {"trials": 12},
        }
        plain |= {key: changes.pop(key) for key in ("objectives", "constraints") if key in changes}
        self.definition = parse_definition(plain, where="test", base=None)
        self.changes = changes
        self.anatomy = anatomy()
        self.space = problems.bind_space(self.definition, self.anatomy)
        facts = problems.Facts(0.3, 1.0, 34, 1000, 2000)
        self.problem: Problem = problems.make_problem(
            self.definition, self.anatomy, self.space, facts, measured=changes.pop("measured", {})
        )
        self.searcher: Callable[[Problem], Searcher] = changes.pop(
            "searcher", lambda problem: make_searcher(self.definition.search.searcher, problem)
        )
        self.runners = [StandIn() for _ in range(changes.pop("runners", 1))]
        self.runner, self.stopper, self.listener = self.runners[0], Stopper(), Silent()
        self._token: int | None = None

    def create(self) -> None:
        self.store.create_study(
            NewStudy(
                NAME,
                self.definition.to_plain(),
                self.space.hash,
                self.problem.frame,
                {"data": "d", "backbone": "b"},
                {},
                {"n_layers": 4, "n_baselines": 3},
            )
        )

    def tuner(self, sitting: Sitting | None = None) -> Tuner:
        if self._token is not None:  # the holder is this very process: it would count as alive
            self.store.release(NAME, self._token)
        self._token = token = self.store.claim(NAME, this_process(), 100.0)
        defaults = problems.training_defaults(self.definition)
        settings: dict[str, Any] = {
            "trials": 12,
            "proposals": self.changes.get("pack_size", 4),
            "pack_size": 4,
            "memory_limit": None,
            "device": "cpu",
            "rung_steps": {1.0: STEPS},
            "baselines": baselines(["lora-r8"], self.anatomy, training=defaults),
            "enqueued": [],
            "head_params": 34,
            "bounds": [],
            "wall_clock_s": None,
            "train_s": None,
            "states": self.folder / "states",
            "accuracy_like": True,
        }
        return Tuner(
            Ledger(self.store, NAME, token),
            problem=self.problem,
            searcher=self.searcher(self.problem),
            executor=StandIns(self.runners),
            settings=TunerSettings(**(settings | self.changes)),
            listener=self.listener,
            sitting=sitting or Sitting(self.stopper),
        )


@pytest.fixture(scope="session")
def toy_anatomy() -> Anatomy:
    """`anatomy`."""
    return anatomy()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A study of two rungs, cohorts of eight and packs of four, run without any trouble."""
    rungs = {0.4: 12, 1.0: STEPS}
    changes = {"proposals": 8, "pack_size": 4, "rung_steps": rungs, "trials": 16}
    desk = Desk(tmp_path_factory.mktemp("calm"), **changes)
    desk.create()
    desk.tuner().run()
    return desk


@pytest.fixture
def make_desk(tmp_path: Path) -> Callable[..., Desk]:
    """A desk in a fresh folder (one folder per name)."""

    def make(name: str = "one", **changes: Any) -> Desk:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Desk(folder, **changes)

    return make
