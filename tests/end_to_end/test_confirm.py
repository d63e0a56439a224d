"""Several seeds and the locked test split, on real training: the whole path of a user."""

import json
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from warm_processes import WarmProcess

import autopeft
from autopeft.api import executors
from autopeft.api.place import OUTPUT_VARIABLE, STORAGE_VARIABLE
from autopeft.errors import InputError
from autopeft.study.confirmation import Opening
from autopeft.training.data.files import FilesSource
from storage import open_store

Cli = Callable[..., str]
MakePath = Callable[..., Path]
SPLITS = {"train": "train", "validation": "validation", "test": "test"}
SEEDS, STEPS = 5, 60


class TestIsLockedError(AssertionError):
    """The test split was read."""

    __test__ = False


@pytest.fixture(scope="module")
def locked() -> Any:
    """Every test file raises when it is read, unless the block `unlocked` allows it."""
    read = FilesSource.read
    state = {"open": False, "reads": 0}

    def guarded(source: FilesSource, split: str) -> Any:
        if split == "test":
            state["reads"] += 1
            if not state["open"]:
                raise TestIsLockedError("the test split was read")
        return read(source, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FilesSource, "read", guarded)
        yield state


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    locked: dict[str, Any],
) -> Path:
    """A folder with a finished study, whose test split has never been read."""
    folder = tmp_path_factory.mktemp("confirmed")
    data = make_data(folder / "data")
    rows = (data / "validation.csv").read_text().splitlines()
    (data / "test.csv").write_text("\n".join([rows[0], *rows[:0:-1][:30]]) + "\n")
    study = make_study(folder, bert_folder, data, training={"epochs": 10})
    plain = yaml.safe_load(study.read_text())
    plain["data"]["splits"] = SPLITS
    study.write_text(yaml.safe_dump(plain))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in (STORAGE_VARIABLE, OUTPUT_VARIABLE):
            patch.delenv(name, raising=False)
        autopeft.validate(study)
        autopeft.plan(study)
        found = autopeft.search(study)
        for member in found.front():
            found.export(folder / f"{member.number}.yaml", trial=member.number)
        autopeft.train(folder / f"{member.number}.yaml", folder / "adapter")
        autopeft.load(folder / "adapter").predict(["w1 w2"])
        member = found.confirm(top=1, seeds=SEEDS).members[0].trial
        others = [t for t in found.trials() if not t.baseline and t.number != member]
        best = max(others, key=lambda trial: trial.objectives["accuracy"] or 0.0)
        found.confirm([best.number], seeds=SEEDS)
        found.verdict()
    assert locked["reads"] == 0
    return folder


@pytest.fixture
def words(here: Path) -> list[str]:
    """The command line that confirms what is confirmed."""
    members = autopeft.load_study("tiny").confirmation().members
    named = [word for each in members for word in ("--trial", str(each.trial))]
    return ["confirm", *named, "--seeds", str(SEEDS)]


@pytest.fixture
def here(searched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(searched)
    monkeypatch.setenv("COLUMNS", "200")  # words of a table are looked for, and must not be broken
    return searched


def test_nothing_reads_the_test_split_before_it_is_opened(
    here: Path, locked: dict[str, Any]
) -> None:
    study = autopeft.load_study("tiny")
    assert locked["reads"] == 0
    assert study.openings() == []
    assert study.status()["test"]["state"] == "locked"
    assert all(each.test is None for each in study.confirmation().trials.values())


def test_members_and_the_best_baseline_are_trained_with_other_seeds(here: Path) -> None:
    study = autopeft.load_study("tiny")
    found = study.confirmation()
    best = study.best_baseline()
    assert best is not None
    assert found.reference == best.number
    assert len(found.members) == 2
    assert {each.trial for each in found.members} & {t.number for t in study.front()}
    for each in found.trials.values():
        assert each.seeds == (1, 2, 3, 4, 5), "replicate 0 chose the trials"
        assert each.validation is not None
    values = [own.by_seed.values() for each in found.trials.values() if (own := each.validation)]
    assert any(len(set(own)) > 1 for own in values), "seeds give the same result"
    assert study.record.state.value == "finished"
    assert study.record.spent["confirm_optimizer_steps"] == 3 * SEEDS * STEPS
    assert study.status()["spent"]["optimizer_steps"] == STEPS * len(study.trials())


def test_figures_are_those_of_an_independent_computation(here: Path) -> None:
    found = autopeft.load_study("tiny").confirmation()
    theirs = found.trials[found.reference or 0].validation
    assert theirs is not None
    p_values = []
    for each in found.members:
        own = each.validation
        assert own is not None
        assert own.difference is not None
        mine = np.array([own.by_seed[seed] for seed in each.seeds])
        base = np.array([theirs.by_seed[seed] for seed in each.seeds])
        reach = stats.t.ppf(0.975, SEEDS - 1) * stats.sem(mine)
        interval = (mine.mean() - reach, mine.mean() + reach)
        assert (own.over.low, own.over.high) == pytest.approx(interval)
        expected = stats.ttest_rel(mine, base)
        assert own.difference.p == pytest.approx(expected.pvalue)
        ends = expected.confidence_interval(0.95)
        assert (own.difference.over.low, own.difference.over.high) == pytest.approx(ends)
        p_values.append(expected.pvalue)
    first, second = sorted(p_values)
    adjusted = sorted(each.validation.difference.adjusted for each in found.members)  # type: ignore[union-attr]
    assert adjusted == pytest.approx([min(1, 2 * first), max(min(1, 2 * first), second)])


def test_a_replicate_is_the_solo_run_with_that_replicate(here: Path) -> None:
    from autopeft.api.materials import study_materials
    from autopeft.study.definition import parse_definition
    from autopeft.training.lanes.pack import Lane

    study = autopeft.load_study("tiny")
    each = study.confirmation().members[0]
    definition = parse_definition(study.record.definition, where="test", base=None)
    trainer = study_materials(definition, study.output_dir).trainer
    run = trainer.start([Lane(0, study.trial(each.trial).configuration)], replicate=2)
    run.train(STEPS)
    assert each.validation is not None
    value = run.evaluate()[0].values["accuracy"]
    assert value == pytest.approx(each.validation.by_seed[2], abs=1 / 48 + 1e-9)


def test_the_same_command_has_nothing_left_to_do(here: Path, words: list[str], cli: Cli) -> None:
    plain = json.loads(cli(here, *words, "--json"))
    assert plain["study"] == "tiny"
    assert plain["metric"] == "accuracy"
    assert plain["test"] == {"state": "locked", "openings": []}
    before = autopeft.load_study("tiny").confirmation().to_dict()
    assert plain["trials"] == json.loads(json.dumps(before["trials"]))
    assert any("Holm" in note for note in plain["notes"])
    text = cli(here, *words)
    assert "accuracy on validation" in text
    assert "accuracy on test" not in text
    assert "Test split: locked." in text
    assert "not significant" in text or "better" in text or "worse" in text


def test_what_is_confirmed_is_shown_everywhere(here: Path, cli: Cli) -> None:
    study = autopeft.load_study("tiny")
    on_front = {trial.number for trial in study.front()}
    member = next(e.trial for e in study.confirmation().members if e.trial in on_front)
    front = {each["trial"]: each for each in json.loads(cli(here, "front", "--json"))}
    assert front[member]["confirmed"]["validation"]["n"] == SEEDS
    assert "over seeds" in cli(here, "front")
    assert "With other seeds" in cli(here, "show", str(member))
    assert json.loads(cli(here, "show", str(member), "--json"))["confirmed"]["seeds"] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert json.loads(cli(here, "status", "--json"))["confirmed"]["runs"] == 3 * SEEDS
    results = yaml.safe_load(study.export(trial=member))["results"]["accuracy"]
    assert results["seeds"] == [1, 2, 3, 4, 5]
    assert len(results["interval"]) == 2
    assert results["difference"]["from"].startswith("baseline, trial")
    cli(here, "front", "--save", "front.csv")
    assert "validation_low" in (here / "front.csv").read_text().splitlines()[0]
    cli(here, "front", "--save", "front.html")
    assert "mean of seeds" in (here / "front.html").read_text()


def test_more_seeds_and_trials_add_to_what_is_there(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = autopeft.load_study("tiny")
    before = study.confirmation()
    number = before.members[0].trial
    named: list[str] = []

    def elsewhere(ground: executors.Ground) -> Any:
        named.append(ground.definition.execution.devices)
        return executors.EXECUTORS["in-process"](ground)

    monkeypatch.setitem(executors.EXECUTORS, "local", elsewhere)
    with pytest.raises(InputError, match=r"training\.epochs"):
        study.confirm([number], seeds=SEEDS + 1, overrides=["training.epochs=1"])
    where = ["execution.executor=local", "execution.devices=cpu"]
    found = study.confirm([number], seeds=SEEDS + 1, overrides=where)
    assert named == ["cpu"], "it did not train where it was told to"
    assert study.record.definition["execution"]["executor"] == "in-process", "that is not kept"
    assert found.trials[number].seeds == (1, 2, 3, 4, 5, 6)
    assert found.trials[before.reference or 0].seeds == (1, 2, 3, 4, 5, 6)
    assert found.members[1].seeds == (1, 2, 3, 4, 5)
    for seed in (1, 2, 3):
        assert (
            found.members[0].validation.by_seed[seed]
            == (  # type: ignore[union-attr]
                before.members[0].validation.by_seed[seed]  # type: ignore[union-attr]
            )
        )


def test_the_test_split_is_opened_once_and_that_is_recorded(
    here: Path, locked: dict[str, Any]
) -> None:
    study = autopeft.load_study("tiny")
    number = study.confirmation().members[0].trial
    locked["open"] = True
    try:
        found = study.confirm([number], seeds=SEEDS, open_test=True)
        reads = locked["reads"]
        assert reads > 0
        (opening,) = study.openings()
        assert opening.trials == tuple(sorted({number, found.reference}))
        assert "@" in opening.by
        assert not opening.again
        own = found.trials[number]
        assert own.test is not None
        assert own.test.over.n == SEEDS
        assert own.test.difference is not None
        assert found.members[1].test is None

        again = study.confirm([number], seeds=SEEDS, open_test=True)
        assert again.trials[number].test == own.test
        assert locked["reads"] == reads, "the second time reads what was stored"
        other = found.members[1].trial
        with pytest.raises(InputError, match="--again"):
            study.confirm([other], seeds=SEEDS, open_test=True)
        assert locked["reads"] == reads

        more = study.confirm([other], seeds=SEEDS, open_test=True, again=True)
        assert more.trials[other].test is not None
        assert more.trials[number].test is not None
        assert more.trials[number].test.by_seed == own.test.by_seed
        assert [each.again for each in study.openings()] == [False, True]
    finally:
        locked["open"] = False
    status = study.status()["test"]
    assert status["state"] == "opened"
    assert len(status["openings"]) == 2
    plain = yaml.safe_load(study.export(trial=number))
    assert len(plain["origin"]["test_openings"]) == 2
    assert opening.by not in yaml.safe_dump(plain), "an export names no user"
    assert plain["results"]["accuracy"]["test"]["n"] == SEEDS


def test_test_metrics_are_those_of_the_trained_weights_on_the_test_rows(
    here: Path, locked: dict[str, Any]
) -> None:
    from autopeft.api.materials import study_materials
    from autopeft.study.definition import parse_definition
    from autopeft.training.lanes.pack import Lane

    study = autopeft.load_study("tiny")
    each = next(e for e in study.confirmation().members if e.test is not None)
    definition = parse_definition(study.record.definition, where="test", base=None)
    trainer = study_materials(definition, study.output_dir).trainer
    run = trainer.start([Lane(0, study.trial(each.trial).configuration)], replicate=1)
    run.train(STEPS)
    opening: Opening = study.openings()[0]
    locked["open"] = True
    try:
        examples = trainer.test(opening)
    finally:
        locked["open"] = False
    assert len(examples) == 30
    value = run.evaluate(examples)[0].values["accuracy"]
    assert each.test is not None
    assert value == pytest.approx(each.test.by_seed[1], abs=1 / 30 + 1e-9)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (["--seeds", "4"], "--seeds"),
        (["--top", "0"], "--top"),
        (["--trial", "99"], "trial"),
    ],
)
def test_what_cannot_be_confirmed_is_refused(
    here: Path, cli: Cli, given: list[str], key: str
) -> None:
    (error,) = json.loads(cli(here, "confirm", *given, "--json", code=2))["errors"]
    assert error["key"] == key


@pytest.mark.slow
def test_a_kill_and_a_stop_lose_no_run(
    tmp_path: Path,
    bert_folder: Path,
    make_data: MakePath,
    make_study: MakePath,
    cli: Cli,
    start_cli: Callable[..., WarmProcess],
) -> None:
    data = make_data(tmp_path / "data")
    make_study(tmp_path, bert_folder, data, training={"epochs": 30}, budget={"trials": 2})
    cli(tmp_path, "search", "study.yaml")
    words = ("confirm", "--trial", "3", "--seeds", "6")
    url = f"sqlite:///{tmp_path}/autopeft.db"

    def holder() -> int | None:
        with closing(open_store(url)) as store:
            found = store.holder("tiny")
        return None if found is None else found.pid

    def ended() -> int:
        return int(autopeft.load_study("tiny", storage=url).status()["confirmed"]["ended"])

    killed = {}
    for number, wanted in ((signal.SIGKILL, 2), (signal.SIGTERM, 4)):
        process = start_cli(tmp_path, *words)
        while process.poll() is None and not (holder() == process.pid and ended() >= wanted):
            time.sleep(0.05)
        if number is signal.SIGKILL and process.poll() is None:
            held = start_cli(tmp_path, *words)
            held.communicate()
            assert held.returncode == 4, "a second coordinator was let in"
        process.send_signal(number)
        process.communicate()
        killed[number] = process.returncode
    assert killed == {signal.SIGKILL: -9, signal.SIGTERM: 143}
    before = ended()
    assert 4 <= before < 12, "it ended before it could be stopped"
    plain = json.loads(cli(tmp_path, *words, "--json"))
    assert [each["seeds"] for each in plain["trials"]] == [[1, 2, 3, 4, 5, 6]] * 2
    study = autopeft.load_study("tiny", storage=url)
    assert study.record.state.value == "finished"
    (error,) = json.loads(cli(tmp_path, *words, "--open-test", "--json", code=2))["errors"]
    assert (error["key"], error["given"]) == ("data.splits.test", "null")
