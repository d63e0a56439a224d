"""The replay of rules for stopping: by hand, on a written table, and on the public runs."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.quality.command import main
from benchmarks.quality.errors import NotHereError
from benchmarks.quality.public_runs import public_runs
from benchmarks.quality.rung_replay import dominance, halving, layers, ours, replay
from benchmarks.quality.rung_report import known_rows
from benchmarks.quality.rung_tables import RungTable, recorded, rung_noise
from benchmarks.quality.tables import COLUMNS

DATA = Path(
    os.environ.get("AUTOPEFT_BENCH_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
)
RUNGS = (0.1, 0.2, 0.33, 1.0)


def small() -> RungTable:
    """Four trials whose curves cross once, and a baseline."""
    quality = np.array([[0.5, 0.9], [0.6, 0.5], [0.2, 0.3], [0.1, 0.2], [0.05, 0.1]])
    costs = np.array([[0.2], [0.3], [0.6], [0.5], [0.1]])
    return RungTable(
        "small",
        (0.5, 1.0),
        quality,
        1.0 - quality,
        costs,
        quality[:, 1],
        frozenset({4}),
        100,
        0.02,
    )


def test_a_replay_counts_steps_and_losses_by_hand() -> None:
    found = replay(small(), (0.5,), halving(0.4))
    assert found.saving == pytest.approx(4 / (4 * 0.5 + 2 * 0.5)), "the baseline was counted"
    assert (found.lost, found.surely_lost) == (1, 1)
    # Trials 0, 1 and the baseline 4 are left of the staircase 0.9 x 0.2, 0.5 x 0.1, 0.3 x 0.3.
    assert found.kept == pytest.approx((0.9 * 0.2 + 0.5 * 0.1) / (0.9 * 0.2 + 0.5 * 0.1 + 0.09))
    nothing = replay(small(), (0.5,), dominance(2.0))
    assert (nothing.saving, nothing.kept, nothing.lost) == (1.0, 1.0, 0)


def test_a_stopped_trial_that_another_replaces_is_no_sure_loss() -> None:
    table = small()
    table.costs[1] = 0.65
    table.final[1] = 0.24  # the slack is 2 * sqrt(2) * 0.02 below trial 2's 0.3
    found = replay(table, (0.5,), halving(0.4))
    assert (found.lost, found.surely_lost) == (1, 1)
    table.final[1] = 0.25
    found = replay(table, (0.5,), halving(0.4))
    assert (found.lost, found.surely_lost) == (1, 0)


def test_cohorts_decide_by_what_came_before_them_only() -> None:
    table, seen = small(), []

    def rule(rung: object) -> set[int]:
        seen.append((rung.place, rung.numbers, rung.candidates, sorted(rung.earlier)))
        return {3} & set(rung.candidates)

    found = replay(table, (0.5,), rule, order=[3, 2, 1, 0], cohort=2)
    assert seen == [
        (0, [2, 3, 4], [3, 2], [4]),
        (0, [0, 1, 2, 3, 4], [1, 0], [2, 4]),
    ]
    assert found.saving == pytest.approx(4 / 3.5)


def written(folder: Path, *, n: int = 40, seeds: int = 3) -> Path:
    """A table as the recorder writes it, of curves that rise to a known quality."""
    rng, rows = np.random.default_rng(0), []
    for trial in range(n):
        params = int(10 ** rng.uniform(3, 6))
        top = 0.3 + 0.1 * np.log10(params) / 6 + 0.5 * rng.random()
        for seed in range(seeds if trial < 8 else 1):
            for rung in RUNGS:
                share = 0.2 + (top - 0.2) * (1 - np.exp(-5 * rung)) + rng.normal(0, 0.01)
                loss = 1.8 - 1.5 * share + rng.normal(0, 0.01)
                rows.append(
                    {"hash": f"h{trial}", "configuration": "{}", "origin": "initial"}
                    | {"baseline": "lora-r8" if trial == 0 else "", "state": "completed"}
                    | {"seed": seed, "rung": rung, "step": int(225 * rung), "accuracy": share}
                    | {"loss": loss, "trainable_params": params, "train_seconds": 1.0}
                )
    rows.append(dict.fromkeys(COLUMNS) | {"hash": "lost", "baseline": "", "seed": 0})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.attrs = {
        "task": "made",
        "facts": {"n_validation": 500},
        "frame": [
            ["accuracy", "max", "linear", 0.2, 1.0],
            ["trainable_params", "min", "log10", 1e6, 1e3],
        ],
    }
    path = folder / "sst2.parquet"
    table.to_parquet(path, index=False)
    return path


def test_a_recorded_table_is_read_with_its_frame_and_its_noise(tmp_path: Path) -> None:
    path = written(tmp_path)
    table = recorded(path)
    assert table.shares == RUNGS
    assert table.quality.shape == table.loss.shape == (40, 4)
    assert len(table.baselines) == 1
    assert table.costs.shape == (40, 1)
    assert 0.0 <= table.costs.min() < table.costs.max() <= 1.0
    assert table.final == pytest.approx((table.quality[:, -1] - 0.2) / 0.8)
    assert table.noise == pytest.approx(0.01 / 0.8, rel=0.5)
    assert rung_noise(path) == {rung: pytest.approx(0.01, rel=0.5) for rung in RUNGS}
    single = tmp_path / "single"
    single.mkdir()
    middle = float(np.median(table.quality[:, -1]))
    expected = (middle * (1 - middle) / 500) ** 0.5 / 0.8
    assert recorded(written(single, seeds=1)).noise == pytest.approx(expected, rel=0.1)


def test_our_rule_saves_steps_and_keeps_the_front_of_a_table(tmp_path: Path) -> None:
    table = recorded(written(tmp_path))
    order = np.random.default_rng(0).permutation(40).tolist()
    for cohort in (None, 8):
        found = replay(table, RUNGS[:3], ours(), order=order, cohort=cohort)
        assert found.saving > 1.8
        assert found.kept > 0.99


def test_the_command_reports_tables_and_skips_where_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOPEFT_BENCH_DATA", raising=False)
    assert main(["rungs", "--tables", str(tmp_path)]) == 77
    assert "no table in" in capsys.readouterr().err
    assert main(["rungs", "--tables", str(tmp_path), "--data", str(tmp_path)]) == 77
    written(tmp_path, n=14)
    figures = tmp_path / "figures.json"
    command = ["rungs", "--tables", str(tmp_path), "--orders", "2", "--json", str(figures)]
    assert main(command) == 0
    assert "| ours | 0.1, 0.2, 0.33 |" in capsys.readouterr().out
    found = json.loads(figures.read_text())
    assert found[0]["rule"] == "ours"
    assert 1.0 <= found[0]["at_once"]["saving"] < 10.0


# -- the public runs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> RungTable:
    try:
        return public_runs(DATA)
    except NotHereError as error:
        pytest.skip(str(error))


def test_known_rules_have_their_known_figures(runs: RungTable) -> None:
    known = [(1.88, 100.0), (2.73, 99.7), (3.22, 98.4), (5.29, 91.5), (7.16, 82.0)]
    for row, (saving, kept) in zip(known_rows(), known, strict=False):
        found = replay(runs, row.early, row.rule)
        assert round(found.saving, 2) == saving
        assert 100.0 * found.kept == pytest.approx(kept, abs=0.25)


def test_our_rule_keeps_the_front_of_the_public_runs_at_fewer_steps(runs: RungTable) -> None:
    early = (0.05, 0.1, 0.2, 0.35)  # the defaults, where these runs were measured
    at_once = replay(runs, early, ours())
    assert at_once.saving >= 2.7
    assert at_once.kept >= 0.99
    orders = [np.random.default_rng(seed).permutation(63).tolist() for seed in range(7)]
    found = [replay(runs, early, ours(), order=order, cohort=8) for order in orders]
    assert np.median([each.kept for each in found]) >= 0.99
    assert np.median([each.saving for each in found]) >= 2.5
    plain = replay(runs, early, layers(0.4))
    assert plain.kept < 0.9, "what the noise margin and the losses are for"
