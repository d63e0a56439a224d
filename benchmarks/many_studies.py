"""How long commands and pages take in a database of many studies; prints a table.

    python -m benchmarks.many_studies [--storage URL] [--studies 200] [--trials 500] [--json FILE]

Fills an empty database (without --storage, a SQLite file in a temporary folder) with studies as a
search leaves them, with configurations, curves, snapshots and failures, then times what people
ask of it, the best of three. PostgreSQL is filled and timed in the same way; name a database that
is empty and yours. One that holds studies already, of either kind, is timed as it is.

- **Cold** is what somebody waits for who has not asked before. Of a command: a whole process, from
  typing it to its end. Of a page: with nothing cached, in a dashboard that has imported its
  libraries, which it does once.
- **Warm** is the same asked again: of a command within a process, without starting Python; of a
  page with what the dashboard has kept.

Beside the seconds on the clock stand those of the CPU (for PostgreSQL without the server's): on a
busy machine, only they compare.

What mattered most in a search is worked out from hundreds of small models, which takes about a
second whatever the database; the page that shows it draws all else first. Its first part has a
line of its own, as has the working out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from sqlalchemy import Connection, insert

from autopeft.api.place import STORAGE_VARIABLE, storage_url
from autopeft.configuration import Configuration, Group
from autopeft.searchers.dominance import hypervolume, non_dominated
from autopeft.study.definition import default_definition
from autopeft.study.records import NewStudy, ObjectiveFrame, StudyState
from storage import SqlStore, open_store
from storage.engine import writer
from storage.lease import this_process
from storage.models import AttemptRow, MeasurementRow, SnapshotRow, StudyRow, TrialRow
from storage.place import parse_place

FRAMES = (
    ObjectiveFrame("accuracy", "max", "linear", 0.25, 1.0),
    ObjectiveFrame("trainable_params", "min", "log10", 500_000.0, 768.0),
)
BAR_S = 1.0
"""What the page or the command of a hundred thousand trials may take."""

N_LAYERS, PACK, TOTAL_STEPS = 6, 4, 100
POINTS = (20, 33, 60, 100)
PAGES = ("studies", "front", "trial", "progress", "importance", "explanations")
COMMANDS = (
    ("studies",),
    ("studies", "--json"),
    ("status", "{study}"),
    ("front", "{study}"),
    ("front", "{study}", "--json"),
    ("trials", "{study}"),
    ("trials", "{study}", "--json"),
    ("show", "17", "--study", "{study}"),
)
Seconds = tuple[float, float]
"""On the clock, and of the CPU."""

Line = tuple[str, Seconds, Seconds | None]
"""What was asked, cold and warm."""

ORIGIN = datetime(2026, 1, 1, tzinfo=UTC)


# -- filling --------------------------------------------------------------------------------------


def fill(url: str, n_studies: int, n_trials: int) -> None:
    """Studies with trials, written in bulk; the tables are those that a search writes."""
    rng = np.random.default_rng(0)
    with open_store(url, create=True) as store:
        for index in range(n_studies):
            name = f"study-{index:03d}"
            _create(store, name, n_trials)
            with store._writing() as session:
                connection = session.connection()
                (study_id,) = connection.execute(
                    StudyRow.__table__.select()
                    .with_only_columns(StudyRow.id)
                    .where(StudyRow.name == name)
                ).one()
                _write(connection, study_id, n_trials, rng, ORIGIN + timedelta(hours=index))
    _settle(url)
    print(f"wrote {n_studies} studies of {n_trials} trials", file=sys.stderr)


def _settle(url: str) -> None:
    """Has PostgreSQL look at what was written, as it does by itself within minutes."""
    place = parse_place(url)
    if place.path is None:
        engine = writer(place).execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
        engine.dispose()


def _create(store: SqlStore, name: str, n_trials: int) -> None:
    plain = default_definition([f"study.name={name}", f"budget.trials={n_trials}"]).to_plain()
    facts = {
        "n_layers": N_LAYERS,
        "n_baselines": 3,
        "total_steps": TOTAL_STEPS,
        "rung_steps": {"0.33": 33, "1.0": TOTAL_STEPS},
    }
    marks = {"data": "d1", "backbone": "b1"}
    store.create_study(NewStudy(name, plain, "f00d", FRAMES, marks, {"autopeft": "0.1"}, facts))
    token = store.claim(name, this_process(), 600.0)
    spent = {"train_seconds": 3000.0, "wall_seconds": 3600.0, "suggest_seconds": 60.0}
    store.update_study(name, token, state=StudyState.FINISHED, spent=spent)
    store.release(name, token)


def _write(
    connection: Connection, study_id: int, n: int, rng: np.random.Generator, at: datetime
) -> None:
    trials = [_trial(study_id, number, rng, at) for number in range(n)]
    connection.execute(insert(TrialRow), trials)
    query = TrialRow.__table__.select().with_only_columns(TrialRow.number, TrialRow.id)
    found = connection.execute(query.where(TrialRow.study_id == study_id))
    ids = {row.number: row.id for row in found}
    attempts = [
        {"trial_id": ids[t["number"]], "number": 1, "started_at": at, "finished_at": at,
         "cause": t["cause"], "message": None}
        for t in trials
    ]  # fmt: skip
    connection.execute(insert(AttemptRow), attempts)
    points = [point for t in trials for point in _curve(ids[t["number"]], t)]
    connection.execute(insert(MeasurementRow), points)
    connection.execute(insert(SnapshotRow), list(_snapshots(study_id, trials, at)))


def _trial(study_id: int, number: int, rng: np.random.Generator, at: datetime) -> dict[str, Any]:
    rank, first = 2 ** int(rng.integers(0, 6)), int(rng.integers(0, N_LAYERS))
    layers, size = range(first, N_LAYERS), 2 ** int(rng.integers(1, 6))
    configuration = Configuration.of(
        [
            Group.of("lora", layers, ["query", "value"], rank=rank, alpha=2 * rank, dropout=0.05),
            Group.of("parallel_adapter", layers[:2], size=size),
            Group.of("prefix", [first], length=size),
        ],
        training={
            "learning_rate": float(10 ** rng.uniform(-4, -2)),
            "weight_decay": 0.0,
            "warmup_ratio": 0.06,
        },
    )
    params = 1536 * rank * len(layers) + 768 * size * 3
    quality = 0.4 + 0.07 * np.log2(rank) + 0.02 * len(layers) + float(rng.normal(0, 0.05))
    state = str(rng.choice(["completed", "stopped", "failed"], p=[0.55, 0.4, 0.05]))
    stopped, failed = state == "stopped", state == "failed"
    return {
        "study_id": study_id,
        "number": number,
        "state": state,
        "origin": "baseline" if number < 3 else "searcher",
        "baseline": f"lora-r8-{number}" if number < 3 else None,
        "configuration": configuration.to_dict(),
        "hash": configuration.hash,
        "objectives": {"accuracy": min(0.99, quality), "trainable_params": float(params)},
        "known": {"trainable_params": float(params)},
        "trainable_params": params,
        "head_params": 3080,
        "rung": 0.33 if stopped or failed else 1.0,
        "optimizer_steps": 33 if stopped or failed else TOTAL_STEPS,
        "replicate": 0,
        "pack": number // PACK,
        "attempt_count": 1,
        "cause": "diverged" if failed else None,
        "message": "not finite at step 20" if failed else None,
        "profile": {"train_seconds": 2.5, "pack_train_seconds": 10.0, "tokens": 4096},
        "details": {
            "reason": "expected hypervolume gain",
            "expected_gain": 0.01,
            "predicted": {"accuracy": {"mean": quality, "sd": 0.05}},
        },
        "created_at": at,
        "started_at": at,
        "finished_at": at,
    }


def _curve(trial_id: int, trial: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for step in (step for step in POINTS if step <= trial["optimizer_steps"]):
        share = 1 - float(np.exp(-step / 25))
        values = (
            ("accuracy", "validation", trial["objectives"]["accuracy"] * share),
            ("loss", "train", 1.4 - share),
        )
        for metric, split, value in values:
            rung = {33: 0.33, 100: 1.0}.get(step)
            yield {"trial_id": trial_id, "step": step, "metric": metric, "split": split,
                   "value": value, "rung": rung}  # fmt: skip


def _snapshots(
    study_id: int, trials: list[dict[str, Any]], at: datetime
) -> Iterator[dict[str, Any]]:
    for index, end in enumerate(range(PACK, len(trials) + 1, PACK)):
        done = [t for t in trials[:end] if t["state"] == "completed"]
        points = np.array(
            [
                [
                    (t["objectives"]["accuracy"] - 0.25) / 0.75,
                    1 - np.log10(t["trainable_params"]) / 6,
                ]
                for t in done
            ]
        ).reshape(-1, 2)
        kept = [t for t, flag in zip(done, non_dominated(points), strict=True) if flag]
        kept.sort(key=lambda t: t["objectives"]["accuracy"])
        yield {"study_id": study_id, "index": index, "trials": end,
               "front": [t["number"] for t in kept], "hypervolume": hypervolume(points),
               "at": at}  # fmt: skip


# -- timing ---------------------------------------------------------------------------------------


def seconds(do: Callable[[], object]) -> Seconds:
    """On the clock, and of the CPU of this process and of those that it waits for."""
    began, cpu = time.perf_counter(), _cpu_s()
    do()
    return time.perf_counter() - began, _cpu_s() - cpu


def _cpu_s() -> float:
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def best_of_three(do: Callable[[], object]) -> Seconds:
    """The shortest of each kind."""
    clock, cpu = zip(*(seconds(do) for _ in range(3)), strict=True)
    return min(clock), min(cpu)


def time_commands(study: str) -> Iterator[Line]:
    """Every command of `COMMANDS`, and a process that asks nothing of a database."""
    from autopeft.cli.main import app

    def start(words: Sequence[str]) -> None:
        command = [sys.executable, "-m", "autopeft", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def run(words: Sequence[str]) -> None:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            app(args=list(words), prog_name="autopeft", standalone_mode=False)

    yield "`autopeft --version`", best_of_three(lambda: start(["--version"])), None
    for template in COMMANDS:
        words = [word.format(study=study) for word in template]
        cold = best_of_three(partial(start, words))
        yield f"`autopeft {' '.join(words)}`", cold, best_of_three(partial(run, words))


def time_pages(study: str) -> Iterator[Line]:
    """Every page of the dashboard; of the explanations, apart, what has to be worked out."""
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    import dashboard
    from dashboard import queries

    app_file = Path(dashboard.__file__).with_name("app.py")

    def opened(page: str) -> AppTest:
        app = AppTest.from_file(app_file, default_timeout=300)
        if page != "studies":
            app.run()
            app.switch_page(f"views/{page}.py")
        app.query_params["study"] = study
        app.run()  # imports
        if app.exception:
            raise RuntimeError(f"{page}: {app.exception}")
        return app

    def from_nothing(app: AppTest) -> None:
        st.cache_data.clear()
        st.cache_resource.clear()
        app.run()

    for page in PAGES:
        app, name, found = opened(page), f"page `{page}`", {}
        if page == "explanations":
            with queries.opened(storage_url(), study) as read:
                found = queries.read_importances(read)
                yield "what mattered, worked out", seconds(read.importances), None
            name += ", without what mattered"
        with patch.object(queries, "read_importances", return_value=found):
            yield name, best_of_three(partial(from_nothing, app)), best_of_three(app.run)


# -- putting together -----------------------------------------------------------------------------


def main() -> None:
    """Fill, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", help="an empty database, or one to time as it is")
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--json", type=Path, help="write the seconds there as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.storage or f"sqlite:///{folder}/studies.db"
        with open_store(url, create=True) as store:
            filled = [record.name for record in store.studies()]
        if not filled:
            fill(url, given.studies, given.trials)
        study = f"study-{given.studies // 2:03d}" if not filled else filled[len(filled) // 2]
        # No command line shows a password that the URL may hold.
        os.environ[STORAGE_VARIABLE] = url
        lines = [*time_commands(study), *time_pages(study)]
    print("| what | cold | its CPU | warm | its CPU |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, cold, warm in lines:
        print(f"| {name} | {_cells(cold)} | {_cells(warm)} |")
    if given.json:
        plain = {name: {"cold": cold, "warm": warm} for name, cold, warm in lines}
        given.json.write_text(json.dumps(plain, indent=2) + "\n")


def _cells(found: Seconds | None) -> str:
    if found is None:
        return "| "
    clock, cpu = found
    return f"{f'**{clock:.2f}**' if clock >= BAR_S else f'{clock:.2f}'} s | {cpu:.2f} s"


if __name__ == "__main__":
    main()
