"""The spaces that come with autopeft are searched as a user would: on the embedded default."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.mark.slow
@pytest.mark.parametrize("space", ["methods", "everything"])
def test_a_search_of_a_shipped_space_ends_with_a_front(
    space: str, tmp_path: Path, cli: Callable[..., str]
) -> None:
    """A cohort of its start and one of the acquisition; what is on the front exports."""
    rows = [f"data.limit.{split}=96" for split in ("train", "validation")]
    few = ["--trials", "16", "--set", rows[0], "--set", rows[1], "--set", "training.epochs=1"]
    out = cli(tmp_path, "search", "--name", space, "--space", space, *few, "--json")
    status = json.loads(out.splitlines()[-1])
    assert status["state"] == "finished"
    trials = json.loads(cli(tmp_path, "trials", space, "--json"))
    assert {trial["state"] for trial in trials} <= {"completed", "stopped"}
    others = {"training", "sparsity"}
    methods = {name for trial in trials for name in trial["configuration"]} - others
    assert len(methods) > 6
    members = json.loads(cli(tmp_path, "front", space, "--json"))
    assert members
    chosen = str(members[-1]["trial"])
    cli(tmp_path, "export", space, "--trial", chosen, "--output", "chosen.yaml")
    assert yaml.safe_load((tmp_path / "chosen.yaml").read_text())["configuration"]
