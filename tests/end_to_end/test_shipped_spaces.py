"""The spaces that come with autopeft are searched as a user would: on the embedded default."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., "CompletedProcess[str]"]


@pytest.mark.slow
@pytest.mark.parametrize("space", ["methods", "everything"])
def test_a_search_of_a_shipped_space_ends_with_a_front(
    space: str, tmp_path: Path, run_autopeft: Run
) -> None:
    """Two cohorts of it, and the baselines; the best exports and is what was trained."""
    few = ["--trials", "16", "--set", "data.max_train_samples=64"]
    done = run_autopeft("search", "--name", space, "--space", space, *few, "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout.splitlines()[-1])
    assert status["state"] == "finished"
    print(status)
