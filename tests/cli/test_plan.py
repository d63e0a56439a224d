"""`plan` as a table: every number with its unit, and what was not measured said so."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from autopeft.study.definition import StudyDefinition

Run = Callable[..., Result]

PLAN: dict[str, Any] = {
    "study": "demo",
    "space": {
        "name": "mixed", "description": "", "source": "arXiv 2110.04366",
        "dimensions": 9, "cardinality": 6144, "distinct": 4410, "continuous": 1,
    },
    "trainable_params": {"min": 768, "max": 1_701_888},
    "deploy": {},
    "never_proposed": ["about 50% of what the space has of oft is never proposed"],
    "baselines": {"lora-r8": "Hu et al. 2021"},
    "runners": 1,
    "head_params": 2310,
    "steps": {
        "total": 60, "rungs": {"0.34": 21, "1.0": 60}, "batch_size": 32, "trials": 16,
        "baselines": 3,
    },
    "flops": {"min": 1.2e12, "max": 2.6e12, "mean": 1.8e12, "evaluation": 1e11, "least": 3e11},
    "memory": {
        "device": "cpu", "precision": "fp32", "free_bytes": 8 * 2**30, "margin": 0.15,
        "pack_size": 4, "largest_pack": 20, "gradient_checkpointing": False,
        "micro_batch_size": 32,
        "backbone_bytes": 90 * 2**20,
        "lanes_bytes": 180 * 2**20, "activations_bytes": 640 * 2**20,
        "working_bytes": 60 * 2**20, "overhead_bytes": 0, "total_bytes": 970 * 2**20,
        "baseline_total_bytes": 700 * 2**20,
    },
    "timed_by": None,
    "calibration": None,
    "hours": None,
    "measured": {"latency_seconds": None},
}  # fmt: skip
PROBED = PLAN | {
    "timed_by": "probe",
    "calibration": {"samples_per_second": {"1": 100.4, "4": 160.2}, "bf16_speedup": 0.9},
    "hours": {"min": 0.5, "max": 1.25},
    "measured": {
        "latency_seconds": {"min": 0.0123, "max": 0.0456},
        "peak_memory_bytes": {"min": 2**27, "max": 2**30},
    },
}


@pytest.fixture
def planned(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command over an API that gives a plan and notes how it was asked."""

    def command(plan: dict[str, Any], *flags: str) -> Result:
        def fake(study: object, *, probe: bool, **_: object) -> dict[str, Any]:
            assert probe == ("--probe" in flags)
            return plan

        monkeypatch.setattr("autopeft.api.plan", fake)
        return run("plan", *flags)

    return command


def test_the_table_says_what_is_known_and_what_is_not(planned: Callable[..., Result]) -> None:
    text = " ".join(planned(PLAN).stdout.split())
    for part in (
        "mixed: 9 dimensions, 1 of them real",
        "source of the space arXiv 2110.04366",
        "baseline lora-r8 Hu et al. 2021",
        "4.41k distinct",
        "cannot be built about 50% of what the space has of oft",
        "768 to 1,701,888",
        "60 of 32 examples; rungs at 21, 60",
        "970 MiB (backbone 90 MiB, lanes 180 MiB",
        "20 trials in 8 GiB that are free",
        "1.2T to 2.6T",
        "time not measured",
        "latency_seconds not measured",
    ):
        assert part in text, part


def test_a_probe_gives_a_range_of_hours(planned: Callable[..., Result]) -> None:
    text = " ".join(planned(PROBED, "--probe").stdout.split())
    assert "30 min to 1 h 15 min" in text
    assert "stored study" not in text
    assert "1: 100, 4: 160" in text
    assert "0.90x as fast as fp32" in text
    assert "latency_seconds 0.0123 s to 0.0456 s for one trial by itself" in text
    assert "peak_memory_bytes 128 MiB to 1 GiB" in text


def test_timings_that_are_not_of_this_probe_say_whose_they_are(
    planned: Callable[..., Result],
) -> None:
    stored = PROBED | {"timed_by": "study", "runners": 4}
    text = " ".join(planned(stored, "--probe").stdout.split())
    assert "1 h 15 min on 4 runners, proposing" in text
    assert "timed when the stored study demo was created, on this machine" in text


def test_json_is_the_plan(planned: Callable[..., Result]) -> None:
    assert json.loads(planned(PROBED, "--probe", "--json").stdout) == PROBED


def test_what_a_search_would_be_told_is_planned(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags of `search`, so that a plan is of the very study that they would start."""
    seen: list[StudyDefinition] = []
    monkeypatch.setattr("autopeft.api.plan", lambda study, **_: seen.append(study) or PLAN)
    flags = ["--name", "mine", "--space", "methods", "--set", "budget.trials=7"]
    assert run("plan", *flags, "--model", "some/model").exit_code == 0
    (study,) = seen
    assert (study.study.name, study.space, study.budget.trials) == ("mine", "methods", 7)
    assert study.model.name_or_path == "some/model"
