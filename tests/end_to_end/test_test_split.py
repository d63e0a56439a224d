"""No process of any command opens the test split before it is told to, runners not either.

Every interpreter that is started here, by whom ever, has a hook that hears of each file that is
opened: for the test split's it leaves a mark and raises.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

MakePath = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]

GUARD = """
import os, sys

def guard(event, given, mark=os.environ["TEST_SPLIT_MARK"]):
    if event == "open" and str(given[0]).endswith("test.csv"):
        os.close(os.open(mark, os.O_CREAT | os.O_WRONLY))
        raise RuntimeError("the test split was opened")

sys.addaudithook(guard)
"""
COMMANDS = (
    ("init", "MODEL", "DATA", "-o", "guessed.yaml"),
    ("validate", "study.yaml"),
    ("plan", "study.yaml", "--probe"),
    ("importance", "study.yaml"),
    ("search", "study.yaml", "--executor", "local", "--devices", "cpu"),
    ("explain",),
    ("export", "--trial", "0", "-o", "best.yaml"),
    ("train", "best.yaml", "-o", "adapter"),
)


@pytest.mark.slow
def test_no_command_and_no_runner_opens_it(
    tmp_path: Path,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    start_fresh_cli: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, mark, hook = make_data(tmp_path / "data"), tmp_path / "mark", tmp_path / "hook"
    (data / "test.csv").write_text((data / "validation.csv").read_text())
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(GUARD)
    paths = [str(hook), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("TEST_SPLIT_MARK", str(mark))
    study = make_study(tmp_path, bert_folder, data, budget={"trials": 2})
    plain = yaml.safe_load(study.read_text())
    plain["data"]["splits"] = {"train": "train", "validation": "validation", "test": "test"}
    study.write_text(yaml.safe_dump(plain))
    places = {"MODEL": str(bert_folder), "DATA": str(data)}

    def said(*words: str) -> tuple[int, str]:
        process = start_fresh_cli(tmp_path, *[places.get(word, word) for word in words])
        out, err = process.communicate(timeout=600)
        return process.returncode, out + err

    for words in COMMANDS:
        code, text = said(*words)
        assert code == 0, f"{words}: {text}"
        assert not mark.exists(), words
    assert "test: test" in (tmp_path / "guessed.yaml").read_text()
    assert list(tmp_path.glob("autopeft-runs/tiny/logs/runner-0.log")), "no runner has trained"
    code, text = said("confirm", "--trial", "0", "--seeds", "5", "--open-test")
    assert code != 0, "the guard is deaf"
    assert mark.exists(), text
