"""The product's three uses as a user has them: search, look, export, train, load."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from warm_processes import WarmProcess

import autopeft
from autopeft.errors import InterruptedStudyError
from autopeft.study.progress import Progress, Silent, Stopper

Cli = Callable[..., str]
MakePath = Callable[..., Path]


class StopsWithinTraining(Silent):
    """Asks for a stop once some steps are taken."""

    def __init__(self) -> None:
        self.stopper = Stopper()

    def on_progress(self, progress: Progress) -> None:
        if progress.phase == "training" and progress.step:
            self.stopper.request("test")


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    cli: Cli,
) -> Path:
    """A folder with a finished study."""
    folder = tmp_path_factory.mktemp("searched")
    make_study(folder, bert_folder, make_data(folder / "data"))
    out = cli(folder, "search", "study.yaml", "--json")
    last = json.loads(out.splitlines()[-1])
    assert last["state"] == "finished"
    assert last["trials"]["completed"] == 9
    return folder


def test_status_front_and_trials_are_json_of_the_binding_shape(searched: Path, cli: Cli) -> None:
    status = json.loads(cli(searched, "status", "--json"))
    assert {"study", "state", "trials", "hypervolume", "reference_point", "front_size"} <= set(
        status
    )
    trials = json.loads(cli(searched, "trials", "--json"))
    assert [trial["trial"] for trial in trials] == list(range(9))
    assert sum(trial["baseline"] for trial in trials) == 3
    front = json.loads(cli(searched, "front", "--json"))
    assert status["front_size"] == len(front) > 0
    assert 0 < status["hypervolume"] <= 1


def test_what_is_exported_trains_to_the_same_result_and_loads(searched: Path, cli: Cli) -> None:
    front = json.loads(cli(searched, "front", "--json"))
    chosen = front[-1]
    cli(searched, "export", "--trial", str(chosen["trial"]), "-o", "best.yaml")
    written = autopeft.load_configuration(searched / "best.yaml")
    assert written.hash == chosen["hash"]
    metrics = json.loads(cli(searched, "train", "best.yaml", "-o", "adapter", "--json"))
    assert metrics["validation"]["accuracy"] == pytest.approx(chosen["objectives"]["accuracy"])
    assert metrics["trainable_params"] == chosen["trainable_params"]
    for name in ("adapter.safetensors", "autopeft.yaml", "metrics.json", "README.md"):
        assert (searched / "adapter" / name).stat().st_size > 0
    model = autopeft.load(searched / "adapter")
    rows = (searched / "data" / "validation.csv").read_text().splitlines()[1:]
    texts, labels = zip(*(row.split(",") for row in rows), strict=True)
    right = np.mean([p == t for p, t in zip(model.predict(texts), labels, strict=True)])
    assert right == pytest.approx(metrics["validation"]["accuracy"])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_lora_adapter_gives_the_same_logits_through_peft(
    searched: Path, bert_folder: Path, cli: Cli
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    cli(searched, "export", "--trial", "1", "-o", "lora.yaml")
    metrics = json.loads(cli(searched, "train", "lora.yaml", "-o", "lora", "--json"))
    assert "peft" in metrics["forms"]
    texts = ["w1 w2 w3", "w11 w12 w30 w31", "w25 w26"]
    ours = autopeft.load(searched / "lora").logits(texts)
    base = AutoModelForSequenceClassification.from_pretrained(bert_folder, num_labels=3)
    theirs = PeftModel.from_pretrained(base, searched / "lora").eval()
    encoded = AutoTokenizer.from_pretrained(bert_folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**encoded).logits.numpy()
    assert np.abs(ours - expected).max() < 1e-5
    config = json.loads(cli(searched, "export", "--trial", "1", "--format", "peft"))
    assert (config["r"], config["lora_alpha"]) == (8, 16)


AT_ONCE = """
import sys
from autopeft.cli.main import main
sys.argv = ["autopeft", "search", "study.yaml", "--json"]
try:
    main()
finally:
    assert "torch" not in sys.modules, "a study that has ended waits for what trains"
"""


def test_a_finished_study_says_so_and_ends_at_once(searched: Path, cli: Cli) -> None:
    before = json.loads(cli(searched, "status", "--json"))
    command = [sys.executable, "-c", AT_ONCE]
    done = subprocess.run(command, cwd=searched, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"type": "status", **before}


def test_another_definition_under_the_same_name_is_refused(searched: Path, cli: Cli) -> None:
    out = cli(searched, "search", "study.yaml", "--seed", "5", "--json", code=2)
    (error,) = json.loads(out)["errors"]
    assert (error["key"], error["given"], error["allowed"]) == ("study.seed", "5", "1")


def test_a_raised_budget_goes_on_with_the_same_sequence(
    tmp_path: Path, bert_folder: Path, make_data: MakePath, make_study: MakePath, cli: Cli
) -> None:
    data = make_data(tmp_path / "data")
    for name, budgets in (("once", ["4"]), ("twice", ["2", "4"])):
        (tmp_path / name).mkdir()
        search = {"pack": 2, "initial": 2, "baselines": []}
        study = make_study(tmp_path / name, bert_folder, data, search=search)
        for budget in budgets:
            cli(tmp_path / name, "search", str(study), "--trials", budget)
    hashes = [
        [trial["hash"] for trial in json.loads(cli(tmp_path / name, "trials", "--json"))]
        for name in ("once", "twice")
    ]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 4


def test_sigkill_in_the_middle_of_a_trial_loses_nothing(
    tmp_path: Path,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    cli: Cli,
    start_cli: Callable[..., WarmProcess],
) -> None:
    data = make_data(tmp_path / "data")
    blocks: dict[str, Any] = {
        "training": {"epochs": 40},
        "search": {"pack": 2},
        "budget": {"trials": 3},
    }
    make_study(tmp_path, bert_folder, data, **blocks)
    killed = 0
    for wanted in (1, 4):
        process = start_cli(tmp_path, "search", "study.yaml")
        while process.poll() is None and not _running_beyond(tmp_path / "autopeft.db", wanted):
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed == 2, "a study ended before it could be killed"
    cli(tmp_path, "search", "study.yaml")
    trials = json.loads(cli(tmp_path, "trials", "--json"))
    assert [trial["trial"] for trial in trials] == list(range(6))
    assert len({trial["hash"] for trial in trials}) == 6
    assert {trial["state"] for trial in trials} <= {"completed", "stopped"}
    with closing(sqlite3.connect(tmp_path / "autopeft.db")) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)


def _running_beyond(path: Path, number: int) -> bool:
    """Whether a trial of at least this number is in training."""
    if not path.exists():
        return False
    try:
        address = f"file:{path}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=1)) as database:
            query = "select max(number) from trials where state = 'running'"
            found = database.execute(query).fetchone()[0]
    except sqlite3.OperationalError:
        return False  # the tables are just being made
    return found is not None and found >= number


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        ("pairs", {"data": {"text": ["text", "text2"]}}),
        ("regression", {"model": {"task": "regression"}}),
    ],
)
def test_pairs_and_regression_train(
    kind: str,
    blocks: dict[str, Any],
    tmp_path: Path,
    llama_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    cli: Cli,
) -> None:
    data = make_data(tmp_path / "data", pairs=kind == "pairs", regression=kind == "regression")
    study = make_study(tmp_path, llama_folder, data)
    plain = yaml.safe_load(study.read_text())
    for name, block in blocks.items():
        plain[name] |= block
    plain |= {"budget": {"trials": 2}, "search": {"searcher": "random", "baselines": []}}
    study.write_text(yaml.safe_dump(plain))
    cli(tmp_path, "search", "study.yaml")
    trials = json.loads(cli(tmp_path, "trials", "--json"))
    metric = "spearman" if kind == "regression" else "accuracy"
    assert len(trials) == 2
    assert all(trial["objectives"][metric] is not None for trial in trials)


def test_a_folder_that_holds_a_storage_module_is_told_in_one_line(
    tmp_path: Path, start_fresh_cli: Callable[..., subprocess.Popen[str]]
) -> None:
    (tmp_path / "storage.py").write_text("raise RuntimeError('not yours')\n")
    process = start_fresh_cli(tmp_path, "studies")
    out, err = process.communicate(timeout=60)
    assert process.returncode in (1, 3)
    assert "Traceback" not in err
    assert out == ""


def test_a_backbone_whose_lanes_cannot_share_a_pass_is_searched_one_by_one(
    tmp_path: Path, deberta_folder: Path, make_data: MakePath, make_study: MakePath, cli: Cli
) -> None:
    study = make_study(
        tmp_path, deberta_folder, make_data(tmp_path / "data"), space="lora", budget={"trials": 2}
    )
    cli(tmp_path, "search", str(study))
    trials = json.loads(cli(tmp_path, "trials", "--json"))
    assert [trial["state"] for trial in trials] == ["completed"] * 5


def test_saved_states_of_another_study_are_never_taken_up(
    tmp_path: Path, bert_folder: Path, make_data: MakePath, make_study: MakePath, cli: Cli
) -> None:
    data = make_data(tmp_path / "data")
    blocks: dict[str, Any] = {"training": {"epochs": 60}, "budget": {"trials": 1}}
    study = make_study(tmp_path, bert_folder, data, **blocks)
    listener = StopsWithinTraining()
    with pytest.raises(InterruptedStudyError):
        autopeft.search(
            study,
            storage=f"sqlite:///{tmp_path / 'autopeft.db'}",
            output_dir=tmp_path / "autopeft-runs" / "toy",
            listener=listener,
            stopper=listener.stopper,
        )
    assert list((tmp_path / "autopeft-runs").rglob("trial-00000.safetensors")), "nothing saved"
    for file in tmp_path.glob("autopeft.db*"):
        file.unlink()
    cli(tmp_path, "search", str(study), "--seed", "7")
    status = json.loads(cli(tmp_path, "status", "--json"))
    assert status["spent"]["optimizer_steps"] == 4 * 60 * 6, "steps of another study were kept"


def test_faulty_input_leaves_no_database_behind(
    tmp_path: Path, bert_folder: Path, make_data: MakePath, make_study: MakePath, cli: Cli
) -> None:
    study = make_study(tmp_path, bert_folder, make_data(tmp_path / "data"))
    out = cli(tmp_path, "search", str(study), "--set", "data.label=lable", "--json", code=2)
    assert any("label" in error["key"] for error in json.loads(out.splitlines()[-1])["errors"])
    assert not list(tmp_path.glob("*.db"))


def test_faults_of_keys_data_space_and_search_are_told_in_one_go(
    tmp_path: Path, bert_folder: Path, make_data: MakePath, cli: Cli
) -> None:
    make_data(tmp_path / "data")
    (tmp_path / "study.yaml").write_text(
        f"""
schema: autopeft/v1
model: {{name_or_path: '{bert_folder}', lora_r: 8}}
data: {{source: data, text: txt, label: lable}}
objectives: [{{metric: acuracy}}, {{metric: trainable_params}}]
training: {{epochs: 0, per_device_train_batch_size: 8}}
search: {{baselines: [full]}}
space: {{methods: {{loar: {{rank: 8}}}}}}
""".lstrip()
    )
    out = cli(tmp_path, "validate", "study.yaml", "--json", code=2)
    found = {error["key"]: error for error in json.loads(out)["errors"]}
    assert set(found) == {
        "model.lora_r",
        "data.text",
        "data.label",
        "objectives.0.metric",
        "training.epochs",
        "training.per_device_train_batch_size",
        "search.baselines.0",
        "space.methods.loar",
    }
    again = cli(tmp_path, "search", "study.yaml", "--json", code=2)
    assert json.loads(again.splitlines()[-1])["errors"] == json.loads(out)["errors"]
    assert "batch_size" in found["training.per_device_train_batch_size"]["hint"]
    assert "lora" in found["space.methods.loar"]["hint"]
