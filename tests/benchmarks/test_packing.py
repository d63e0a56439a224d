"""The packing benchmark runs, where next to nothing is installed, and measures what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = "pydantic datasets pandas sklearn scipy botorch sqlalchemy alembic plotly streamlit"
UNWANTED = ("typer", "rich", *ELSEWHERE.split())
LIGHT = "autopeft.training.loop, autopeft.training.lanes.pack, autopeft.backbone.loading"


def _bare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python without site-packages but for `folder`; it does not see an installed autopeft."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=540,
        check=False,
    )


def test_training_imports_none_of_what_it_does_not_need(bare_packages: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {LIGHT}, autopeft.methods; "
        f"print([name for name in {UNWANTED!r} if name in sys.modules])"
    )
    done = _bare(bare_packages, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    for name in ELSEWHERE.split():
        assert _bare(bare_packages, "-c", f"import {name}").returncode, f"{name} is not blocked"


@pytest.mark.parametrize(
    "scenarios",
    [
        ["solo_lora"],
        pytest.param(["trials16", "solo_packed"], marks=pytest.mark.slow),
        pytest.param(["gpu_mixed", "gpu_decoder"], marks=pytest.mark.slow),
    ],
)
def test_the_tiny_benchmark_runs_on_a_bare_machine(
    bare_packages: Path, tmp_path: Path, scenarios: list[str]
) -> None:
    written, record = tmp_path / "results.json", tmp_path / "record.jsonl"
    command = ["benchmarks/packing.py", "--tiny", "--device", "cpu", "--repeats", "1"]
    command += ["--json", str(written), "--record", str(record), "--scenario", *scenarios]
    done = _bare(bare_packages, *command)
    assert done.returncode == 0, done.stderr
    results = json.loads(written.read_text())["results"]
    assert {result["scenario"] for result in results} == set(scenarios)
    for result in results:
        assert result["skipped"] or result["median"] > 0.0
        assert result["factor"] in done.stdout
    for result in results:
        if "loss curves" in result["factor"]:
            assert result["median"] < 1e-5
    lines = record.read_text()
    again = _bare(bare_packages, *command)
    assert again.returncode == 0, again.stderr
    assert record.read_text() == lines, "what was recorded is measured once more"
    ratios = [result for result in results if result["cpu_values"]]
    assert ratios
    found = json.loads(written.read_text())["results"]
    assert [result for result in found if result["cpu_values"]] == ratios


def test_without_a_gpu_and_without_data_scenarios_are_skipped_with_the_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from benchmarks.speed.command import main

    options = ["--device", "cpu", "--scenario", "gpu_mixed", "gpu_decoder", "trials16"]
    written = tmp_path / "results.json"
    main([*options, "--backbone", "tiny-bert", "--json", str(written)])
    verdicts = [result["verdict"] for result in json.loads(written.read_text())["results"]]
    assert len(verdicts) == 3
    assert all("no CUDA device here" in verdict for verdict in verdicts[:2])
    assert "--data" in verdicts[2]
    assert capsys.readouterr().out.count("skipped: ") == 3
