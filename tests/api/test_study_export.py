"""A stored study, written for Optuna and read back with Optuna."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from typer.testing import CliRunner

import storage as storage_package
from autopeft.api import problem as problems
from autopeft.api.costs import Costs
from autopeft.api.study import Study
from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.skeleton import config_anatomy
from autopeft.cli.main import app
from autopeft.configuration import Configuration
from autopeft.errors import ExportError, StorageError
from autopeft.searchers.baselines import baselines
from autopeft.space.space import BoundSpace, Point
from autopeft.study.definition import StudyDefinition, default_definition
from autopeft.study.records import (
    Holder,
    Measurement,
    NewStudy,
    NewTrial,
    ObjectiveFrame,
    Origin,
    TrialState,
)
from autopeft.training.setup import backbone_request

RANKS = (0, 1, 2, 4, 8, 16, 32)
SIZES = {"lora.rank", "serial_adapter.size", "parallel_adapter.size", "prefix.length"}
CAP = 300_000
COSTS = "objectives=[{metric: accuracy}, {metric: trainable_params, cap: 300000}]"
QUALITY = ObjectiveFrame("accuracy", "max", "linear", 0.2, 1.0)
PARAMS = ObjectiveFrame("trainable_params", "min", "log10", CAP, 768)
HOLDER = Holder("here", 1, "boot")

Trial = tuple[Configuration, TrialState, float | None]


@pytest.fixture(scope="module")
def definition() -> StudyDefinition:
    return default_definition(["study.name=mine", "space=mixed", COSTS])


@pytest.fixture(scope="module")
def anatomy(definition: StudyDefinition) -> Anatomy:
    return config_anatomy(backbone_request(definition.model))


@pytest.fixture(scope="module")
def space(definition: StudyDefinition, anatomy: Anatomy) -> BoundSpace:
    return problems.bind_space(definition, anatomy)


@pytest.fixture(scope="module")
def points(space: BoundSpace) -> list[Point]:
    rng = np.random.default_rng(4)
    return [space.sample(rng) for _ in range(8)]


@pytest.fixture(scope="module")
def trials(
    definition: StudyDefinition, anatomy: Anatomy, space: BoundSpace, points: list[Point]
) -> list[Trial]:
    """A baseline outside the space, then one configuration of each fate."""
    training = problems.training_defaults(definition)
    outside = next(iter(baselines(["lora-r64"], anatomy, training=training).values()))
    fates = [
        (TrialState.COMPLETED, 0.7),
        (TrialState.COMPLETED, 0.8),
        (TrialState.COMPLETED, 0.75),
        (TrialState.STOPPED, 0.5),
        (TrialState.FAILED, None),
        (TrialState.COMPLETED, None),
        (TrialState.RUNNING, None),
        (TrialState.WAITING, None),
    ]
    built = [problems.build(definition, space, point) for point in points]
    fated = [(c, *fate) for c, fate in zip(built, fates, strict=True)]
    return [(outside, TrialState.COMPLETED, 0.99), *fated]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[storage_package.SqlStore]:
    with storage_package.open_store(f"sqlite:///{tmp_path}/autopeft.db", create=True) as opened:
        yield opened


@pytest.fixture
def stored(
    store: Any, tmp_path: Path, definition: StudyDefinition, space: BoundSpace, anatomy: Anatomy
) -> Callable[..., Study]:
    """Stores a study with trials that have met their fates."""

    def keep(
        trials: Sequence[Trial], frames: Sequence[ObjectiveFrame] = (QUALITY, PARAMS), **new: Any
    ) -> Study:
        fields = {
            "name": "mine",
            "definition": definition.to_plain(),
            "space_hash": space.hash,
            "frame": tuple(frames),
            "fingerprints": {"data": "d", "backbone": "b"},
            "versions": {"autopeft": "0"},
            "facts": {},
        }
        store.create_study(NewStudy(**(fields | new)))
        token = store.claim("mine", HOLDER, 60.0)
        costs = Costs(anatomy, head_params=10, train_tokens=1000)
        for number, trial in enumerate(trials):
            _live(store, token, number, trial, costs, [frame.name for frame in frames])
        return Study(store, "mine", output_dir=tmp_path)

    return keep


def _live(
    store: Any, token: int, number: int, trial: Trial, costs: Costs, names: Sequence[str]
) -> None:
    configuration, state, quality = trial
    known = costs.known(configuration)
    baseline = "lora-r64" if number == 0 else None
    origin = Origin.BASELINE if baseline else Origin.SEARCHER
    new = NewTrial(
        configuration,
        origin,
        int(known["trainable_params"]),
        10,
        pack=0,
        baseline=baseline,
        known={name: known[name] for name in names if name in known},
        details={"reason": "because"},
    )
    store.add_trials("mine", token, [new])
    if state is TrialState.WAITING:
        return
    store.start_trials("mine", token, [number])
    objectives = {name: quality if name == "accuracy" else known[name] for name in names}
    rungs = (0.1, 0.33) if state is TrialState.STOPPED else (0.1, 0.33, 1.0)
    if state in (TrialState.COMPLETED, TrialState.STOPPED):
        reached = quality or 0.3
        store.record(
            "mine",
            token,
            number,
            measurements=[
                Measurement(int(60 * rung), "accuracy", "validation", reached * rung, rung)
                for rung in rungs
            ]
            + [Measurement(60, "loss", "train", 0.1)],
            objectives=objectives,
            rung=rungs[-1],
            optimizer_steps=int(60 * rungs[-1]),
        )
    if state.final:
        failed = state is TrialState.FAILED
        cause, message = ("diverged", "the loss is nan") if failed else (None, None)
        store.finish_trial("mine", token, number, state, cause=cause, message=message)


@pytest.fixture(params=["sqlite", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "journal":
        return f"{tmp_path}/new/optuna.log"
    return f"sqlite:///{tmp_path}/new/optuna.db"


@pytest.fixture
def read() -> Iterator[Callable[[str], BaseStorage]]:
    """Opens what was written, with nothing of autopeft's."""
    opened: list[RDBStorage] = []

    def read(url: str) -> BaseStorage:
        if "://" not in url:
            return JournalStorage(JournalFileBackend(url))
        opened.append(RDBStorage(url))
        return opened[-1]

    yield read
    for each in opened:
        each.remove_session()
        each.engine.dispose()


Read = Callable[[str], BaseStorage]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_trial_comes_back_value_by_value(
    stored: Callable[..., Study],
    trials: list[Trial],
    points: list[Point],
    url: str,
    read: Read,
) -> None:
    study = stored(trials)
    written = study.export_study(url)
    assert written == {
        "study": "mine",
        "output": url,
        "trials": {"WAITING": 1, "RUNNING": 1, "COMPLETE": 4, "PRUNED": 1, "FAIL": 2},
    }
    found = optuna.load_study(study_name="mine", storage=read(url))
    assert [each.name for each in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert found.metric_names == ["accuracy", "trainable_params"]
    assert found.user_attrs["definition"] == study.record.definition
    assert found.user_attrs["frame"][1]["worst"] == CAP
    exported = found.get_trials()
    assert [each.number for each in exported] == list(range(9))
    for theirs, ours in zip(exported, study.trials(), strict=True):
        assert theirs.user_attrs["hash"] == ours.hash
        plain = theirs.user_attrs["configuration"]
        assert Configuration.from_dict(plain) == ours.configuration
        assert theirs.user_attrs["trainable_params"] == ours.trainable_params
        assert theirs.user_attrs["state"] == ours.state.value
        assert theirs.user_attrs["details"] == {"reason": "because"}
    assert exported[0].params == {}
    assert [each.user_attrs["in_space"] for each in exported] == [False] + 8 * [True]
    assert exported[0].user_attrs["baseline_name"] == "lora-r64"
    for theirs, point in zip(exported[1:], points, strict=True):
        assert point.items() <= theirs.params.items()
        off = {name: value for name, value in theirs.params.items() if name not in point}
        assert not any(off.values())
        assert set(off) <= SIZES


def _states(study: optuna.Study) -> list[OptunaState]:
    return [each.state for each in study.get_trials()]


def test_states_values_and_curves(
    stored: Callable[..., Study], trials: list[Trial], url: str, read: Read
) -> None:
    study = stored(trials)
    study.export_study(url)
    found = optuna.load_study(study_name="mine", storage=read(url))
    assert _states(found) == [
        OptunaState.COMPLETE,
        OptunaState.COMPLETE,
        OptunaState.COMPLETE,
        OptunaState.COMPLETE,
        OptunaState.PRUNED,
        OptunaState.FAIL,
        OptunaState.FAIL,  # completed, with a quality that is no number
        OptunaState.RUNNING,
        OptunaState.WAITING,
    ]
    exported, ours = found.get_trials(), study.trials()
    for number in (0, 1, 2, 3, 4):
        assert exported[number].values == [trials[number][2], ours[number].trainable_params]
    assert all(exported[number].values is None for number in (5, 6, 7, 8))
    assert exported[1].intermediate_values == pytest.approx({6: 0.07, 19: 0.231, 60: 0.7})
    assert exported[4].intermediate_values == {}
    assert exported[4].user_attrs["curve"] == pytest.approx({"6": 0.05, "19": 0.165})
    assert (exported[4].user_attrs["rung"], exported[4].user_attrs["state"]) == (0.33, "stopped")
    assert exported[5].user_attrs["cause"] == "diverged"
    assert exported[5].user_attrs["message"] == "the loss is nan"
    assert exported[6].user_attrs["objectives"]["accuracy"] is None


def test_times_are_the_same_moments(
    stored: Callable[..., Study], trials: list[Trial], url: str, read: Read
) -> None:
    study = stored(trials)
    study.export_study(url)
    exported = optuna.load_study(study_name="mine", storage=read(url)).get_trials()
    for theirs, ours in zip(exported, study.trials(), strict=True):
        moments = [theirs.datetime_start, theirs.datetime_complete]
        assert [each and each.astimezone(UTC) for each in moments] == [
            ours.started_at,
            ours.finished_at,
        ]


def test_distributions_are_those_of_the_space(
    stored: Callable[..., Study], trials: list[Trial], url: str, read: Read
) -> None:
    stored(trials).export_study(url)
    exported = optuna.load_study(study_name="mine", storage=read(url)).get_trials()
    found = {name: d for each in exported for name, d in each.distributions.items()}
    assert found["lora.rank"] == CategoricalDistribution(RANKS)
    assert found["serial_adapter.size"] == CategoricalDistribution([0, 1, 3, 6, 12, 24, 48])
    assert found["lora.sites.query"] == CategoricalDistribution([False, True])
    assert found["prefix.layers.first"] == IntDistribution(0, 5)
    rate = found["training.learning_rate"]
    assert isinstance(rate, FloatDistribution)
    assert rate.log


def test_optunas_best_trials_are_the_front(
    stored: Callable[..., Study], trials: list[Trial], url: str, read: Read
) -> None:
    """The baseline is best in quality, and over the cap."""
    study = stored(trials)
    study.export_study(url)
    found = optuna.load_study(study_name="mine", storage=read(url))
    front = [each.number for each in study.front()]
    assert sorted(each.number for each in found.best_trials) == sorted(front)
    assert 0 not in front
    assert len(front) >= 1
    excess = found.get_trials()[0].constraints
    assert excess == {"trainable_params at most 300000": study.trial(0).trainable_params - CAP}


@pytest.mark.parametrize("sampler", ["TPESampler", "NSGAIISampler"])
def test_optuna_can_go_on_from_it(
    stored: Callable[..., Study], trials: list[Trial], url: str, read: Read, sampler: str
) -> None:
    stored(trials[:7]).export_study(url)
    eager = {"TPESampler": {"n_startup_trials": 1}, "NSGAIISampler": {"population_size": 2}}
    made = getattr(optuna.samplers, sampler)(**eager[sampler])
    found = optuna.load_study(study_name="mine", storage=read(url), sampler=made)
    trial = found.ask()
    assert trial.suggest_categorical("lora.rank", RANKS) in RANKS
    found.tell(trial, [0.5, 1000.0])


def test_one_objective_keeps_pruned_curves(
    stored: Callable[..., Study], trials: list[Trial], url: str, read: Read
) -> None:
    stored(trials[:6], (QUALITY,)).export_study(url)
    sampler = optuna.samplers.TPESampler(n_startup_trials=1)
    found = optuna.load_study(study_name="mine", storage=read(url), sampler=sampler)
    pruned = found.get_trials()[4]
    assert (pruned.state, pruned.value) == (OptunaState.PRUNED, 0.5)
    assert pruned.intermediate_values == pytest.approx({6: 0.05, 19: 0.165})
    assert "curve" not in pruned.user_attrs
    trial = found.ask()
    trial.suggest_categorical("lora.rank", RANKS)


@pytest.mark.parametrize("n_trials", [0, 1])
def test_small_studies(
    stored: Callable[..., Study], trials: list[Trial], url: str, read: Read, n_trials: int
) -> None:
    stored(trials[:n_trials]).export_study(url)
    assert len(optuna.load_study(study_name="mine", storage=read(url)).get_trials()) == n_trials


def test_the_command_line_says_what_it_wrote(
    stored: Callable[..., Study], trials: list[Trial], tmp_path: Path, read: Read
) -> None:
    stored(trials)
    place, log = f"sqlite:///{tmp_path}/optuna.db", str(tmp_path / "optuna.log")
    words = ["export", "--format", "optuna", "--storage", f"sqlite:///{tmp_path}/autopeft.db"]
    told = CliRunner().invoke(app, [*words, "-o", place])
    assert told.exit_code == 0
    assert told.stdout == ""
    assert f"wrote study mine with its 9 trials to {place}" in told.stderr
    assert f"optuna-dashboard {place}" in told.stderr
    plain = json.loads(CliRunner().invoke(app, [*words, "-o", log, "--json"]).stdout)
    assert (plain["trial"], plain["format"], plain["output"]) == (None, "optuna", log)
    assert plain["trials"]["COMPLETE"] == 4
    again = CliRunner().invoke(app, [*words, "-o", place, "--json"])
    assert again.exit_code == 2
    assert json.loads(again.stdout)["errors"][0]["where"] == "-o"
    assert optuna.get_all_study_names(read(place)) == ["mine"]


# -- what is refused ------------------------------------------------------------------------------


def test_a_study_of_that_name_is_never_overwritten(
    stored: Callable[..., Study], trials: list[Trial], url: str, read: Read
) -> None:
    study = stored(trials)
    study.export_study(url)
    before = optuna.load_study(study_name="mine", storage=read(url)).get_trials()
    with pytest.raises(ExportError, match="optuna delete-study --study-name mine"):
        study.export_study(url)
    assert optuna.load_study(study_name="mine", storage=read(url)).get_trials() == before


def test_studies_of_other_names_stay(
    stored: Callable[..., Study], trials: list[Trial], url: str, read: Read
) -> None:
    study = stored(trials)
    Path(url.removeprefix("sqlite:///")).parent.mkdir()
    optuna.create_study(study_name="theirs", storage=read(url))
    study.export_study(url)
    assert set(optuna.get_all_study_names(read(url))) == {"mine", "theirs"}


def test_autopefts_own_database_is_refused_and_untouched(
    stored: Callable[..., Study], trials: list[Trial], tmp_path: Path
) -> None:
    study = stored(trials)
    with pytest.raises(ExportError, match="a database of another program"):
        study.export_study(f"sqlite:///{tmp_path}/autopeft.db")
    assert len(study.trials()) == len(trials)
    assert study.status()["trials"]["completed"] == 5


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("notes.log", "my notes\n", "no journal of Optuna's"),
        ("other.log", '{"a": 1}\n', "no journal of Optuna's"),
        ("optuna.db", "", "write sqlite:///"),
    ],
)
def test_foreign_files_are_refused_and_untouched(
    stored: Callable[..., Study],
    trials: list[Trial],
    tmp_path: Path,
    name: str,
    content: str,
    match: str,
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ExportError, match=match):
        stored(trials).export_study(str(tmp_path / name))
    assert (tmp_path / name).read_text() == content


def test_a_file_that_is_no_database_is_refused(
    stored: Callable[..., Study], trials: list[Trial], tmp_path: Path
) -> None:
    (tmp_path / "x.db").write_text("no database, but long enough to be taken for one" * 10)
    with pytest.raises(ExportError, match="not a database"):
        stored(trials).export_study(f"sqlite:///{tmp_path}/x.db")


@pytest.mark.parametrize("place", ["sqlite://", "sqlite:///:memory:"])
def test_memory_is_no_place(stored: Callable[..., Study], trials: list[Trial], place: str) -> None:
    with pytest.raises(ExportError, match="name a file"):
        stored(trials).export_study(place)


@pytest.mark.parametrize(
    "place",
    [
        "postgresql+nodriver://me:s%40cr3t@nowhere.invalid/db",
        "nothing://me:s%40cr3t@nowhere.invalid/db",
        "mysql+nodriver://nowhere.invalid/db?password=s%40cr3t",
    ],
)
def test_secrets_are_never_shown(
    stored: Callable[..., Study], trials: list[Trial], place: str
) -> None:
    with pytest.raises(StorageError) as caught:
        stored(trials).export_study(place)
    told: list[BaseException | None] = [caught.value]
    while told[-1] is not None and not told[-1].__suppress_context__:
        told.append(told[-1].__cause__ or told[-1].__context__)
    for secret in ("s%40cr3t", "s@cr3t"):
        assert not any(secret in str(each) for each in told)
    assert "nowhere.invalid" in str(caught.value)


def test_a_changed_space_is_refused(
    stored: Callable[..., Study], trials: list[Trial], url: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="the space has changed"):
        stored(trials, space_hash="0123456789abcdef").export_study(url)
    assert not (tmp_path / "new").exists()


def test_an_unknown_format_is_refused(
    stored: Callable[..., Study], trials: list[Trial], url: str
) -> None:
    study = stored(trials)
    with pytest.raises(ExportError, match="optuna"):
        study.export_study(url, format="mlflow")
    with pytest.raises(ExportError, match="a whole study"):
        study.export(trial=0, format="optuna")


def test_an_interrupted_export_leaves_no_study(
    stored: Callable[..., Study],
    trials: list[Trial],
    url: str,
    read: Read,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_trial, added = optuna.Study.add_trial, []

    def interrupted(study: optuna.Study, trial: FrozenTrial) -> None:
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(trial)
        add_trial(study, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stored(trials).export_study(url)
    assert optuna.get_all_study_names(read(url)) == []


def test_a_place_that_cannot_be_made_is_a_fault(
    stored: Callable[..., Study], trials: list[Trial], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    study = stored(trials)
    for place in (f"sqlite:///{tmp_path}/file/x.db", f"{tmp_path}/file/x.log"):
        with pytest.raises(ExportError, match="a place that can be written"):
            study.export_study(place)


# -- the dashboard --------------------------------------------------------------------------------


class _Silent(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.mark.skipif(
    find_spec("optuna_dashboard") is None, reason="optuna-dashboard is not installed"
)
@pytest.mark.filterwarnings("ignore")
def test_optuna_dashboard_opens_it(
    stored: Callable[..., Study], trials: list[Trial], url: str, read: Read
) -> None:
    from optuna_dashboard import wsgi

    study = stored(trials)
    study.export_study(url)
    server = make_server("127.0.0.1", 0, wsgi(read(url)), handler_class=_Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        home = f"http://127.0.0.1:{server.server_port}"
        (summary,) = _json(f"{home}/api/studies")["study_summaries"]
        detail = _json(f"{home}/api/studies/{summary['study_id']}?after=0")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (summary["study_name"], summary["directions"]) == ("mine", ["maximize", "minimize"])
    assert detail["objective_names"] == ["accuracy", "trainable_params"]
    states = {each["number"]: each["state"] for each in detail["trials"]}
    assert states == {
        0: "Complete", 1: "Complete", 2: "Complete", 3: "Complete", 4: "Pruned", 5: "Fail",
        6: "Fail", 7: "Running", 8: "Waiting",
    }  # fmt: skip
    shown = {each["number"]: each for each in detail["trials"]}
    assert shown[1]["values"] == [0.7, study.trial(1).trainable_params]
    names = {each["name"] for each in shown[1]["params"]}
    assert "training.learning_rate" in names


def _json(url: str) -> Any:
    with urlopen(url, timeout=30) as answer:
        return json.load(answer)
