"""Studies move between any two databases, whole or not at all."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, inspect
from sqlalchemy.engine import Engine
from typer.testing import CliRunner

from autopeft.cli.main import app
from autopeft.errors import InputError, NotFoundError, StudyHeldError, StudyMismatchError
from autopeft.study.records import (
    Holder,
    ImportanceRecord,
    Measurement,
    NewStudy,
    TrialState,
    TrialUpdate,
)
from storage import SqlStore, copy, copying, importances, open_store
from storage.lease import this_process
from storage.models import Base

Fill = Callable[[SqlStore], int]

MAP = ImportanceRecord("key-1", "b", "d", {"examples": 8}, {"device": "cpu"}, b"units", b"fine")
OTHER_MAP = replace(MAP, key="key-2", backbone="another")


@pytest.fixture
def source(database_url: str, small_study: Fill, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two studies that nobody holds, and two maps, of which one belongs to no study of them."""
    monkeypatch.setattr(importances, "PART_BYTES", 3)
    with open_store(database_url, create=True) as store:
        store.create_study(NewStudy("first", {}, "x", (), {"backbone": "b", "data": "d"}, {}, {}))
        token = small_study(store)
        store.requeue_trials("small", token)
        store.start_trials("small", token, [1])
        store.finish_trial("small", token, 1, TrialState.FAILED, cause="error", message="é\n<b>")
        store.add_confirmations("small", token, [0], [1])
        store.start_confirmations("small", token, 1, [0], runner={"pid": 1})
        store.requeue_confirmations("small", token, message="died")
        confirmed = TrialUpdate(
            0,
            (Measurement(10, "accuracy", "validation", 0.5, 1.0),),
            optimizer_steps=10,
            state=TrialState.COMPLETED,
        )
        store.add_confirmations("small", token, [0], [2])
        store.start_confirmations("small", token, 2, [0], runner={"pid": 2})
        store.update_confirmations("small", token, 2, [confirmed])
        store.add_opening("small", token, by="ann@host", trials=[0], replicates=[2])
        store.keep_test("small", token, 2, {0: {"accuracy": 0.25}})
        store.add_orphans("small", token, [TrialUpdate(1, optimizer_steps=7)])
        store.release("small", token)
        store.keep_importance(MAP)
        store.keep_importance(OTHER_MAP)
    return database_url


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where nothing is yet; on PostgreSQL with rows of others, so that numbers must change."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'target.db'}"
    url: str = request.getfixturevalue("postgres_server").new_database()
    return url


def contents(url: str, name: str) -> dict[str, Any]:
    """All that a store says of a study."""
    with open_store(url, read_only=True) as store:
        trials = store.trials(name)
        return {
            "study": store.study(name),
            "trials": trials,
            "curves": [store.curve(name, trial.number) for trial in trials],
            "attempts": [store.attempts(name, trial.number) for trial in trials],
            "of seeds": [store.confirmation_attempts(name, trial.number) for trial in trials],
            "confirmations": store.confirmations(name),
            "openings": store.openings(name),
            "orphans": store.orphans(name),
            "snapshots": store.snapshots(name),
            "summary": store.summary(name),
        }


def check_maps(url: str, *maps: ImportanceRecord) -> None:
    with open_store(url, read_only=True) as store:
        for each in maps:
            found = store.importance(each.key)
            assert found is not None
            assert replace(found, created_at=None) == each


def test_what_is_copied_is_the_same_in_every_record(source: str, target: str) -> None:
    told: list[tuple[str, int, int]] = []
    studies, maps = copy(source, target, on_progress=lambda *each: told.append(each))
    assert [(each.study, each.trials, each.result) for each in studies] == [
        ("first", 0, "copied"),
        ("small", 2, "copied"),
    ]
    assert maps == 2
    for name in ("first", "small"):
        assert contents(target, name) == contents(source, name)
    assert all(contents(target, "small").values()), "nothing of some kind was there to be copied"
    check_maps(target, MAP, OTHER_MAP)
    assert told[-1][1] == told[-1][2] == studies[-1].rows
    assert all(done <= total for _, done, total in told)


def test_a_copy_goes_on_like_the_original(source: str, target: str) -> None:
    """New trials, measurements and snapshots find their places among the old ones."""
    copy(source, target)
    with open_store(target) as store:
        before = len(store.snapshots("small"))
        token = store.claim("small", this_process(), 60.0)
        trial = store.trial("small", 0)
        store.add_snapshot("small", token, trials=2, front=[0], hypervolume=0.5)
        assert store.snapshots("small")[-1].index == before
        assert store.study("small").created_at == contents(source, "small")["study"].created_at
        assert trial.configuration.hash == trial.hash
        store.delete_study("first")


def test_doing_it_again_changes_nothing(source: str, target: str) -> None:
    copy(source, target)
    before = contents(target, "small")
    studies, maps = copy(source, target)
    assert [each.result for each in studies] == ["already there"] * 2
    assert maps == 0
    assert contents(target, "small") == before


def test_there_and_back(source: str, target: str, tmp_path: Path) -> None:
    copy(source, target)
    back = f"sqlite:///{tmp_path / 'back.db'}"
    copy(target, back)
    assert contents(back, "small") == contents(source, "small")
    assert [each.result for each in copy(source, back)[0]] == ["already there"] * 2


def test_numbers_of_rows_that_are_taken_are_given_anew(
    source: str, target: str, small_study: Fill
) -> None:
    with open_store(target, create=True) as store:
        store.release("small", small_study(store))
        with store._writing() as session:
            session.connection().exec_driver_sql("UPDATE studies SET name = 'mine'")
        store.keep_importance(own := replace(MAP, key="own", fine=b"of mine"))
    mine = contents(target, "mine")
    copy(source, target)
    assert contents(target, "small") == contents(source, "small")
    assert contents(target, "mine") == mine
    check_maps(target, own, MAP, OTHER_MAP)


def test_some_studies_alone_with_the_maps_of_their_data(source: str, target: str) -> None:
    studies, maps = copy(source, target, ["first"])
    assert [each.study for each in studies] == ["first"]
    assert maps == 1
    with open_store(target, read_only=True) as store:
        assert [study.name for study in store.studies()] == ["first"]
        assert store.importance("key-2") is None
    with pytest.raises(NotFoundError, match="small"):
        copy(source, target, ["smal"])


def test_a_running_study_is_refused(source: str, target: str) -> None:
    with open_store(source) as store:
        store.claim("small", Holder("another-host", 1, "x:1"), 60.0)
    with pytest.raises(StudyHeldError, match="another-host") as raised:
        copy(source, target)
    assert raised.value.exit_code == 4
    copy(source, target, ["first"])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE studies SET space_hash = 'other' WHERE name = 'small'",
        "UPDATE measurements SET value = 0.5",
        "DELETE FROM snapshots",
        "UPDATE attempts SET message = 'x' WHERE number = 2",
    ],
)
def test_another_study_of_that_name_is_left_alone(source: str, target: str, change: str) -> None:
    copy(source, target)
    with open_store(target) as store, store._writing() as session:
        session.connection().exec_driver_sql(change)
    before = contents(target, "small")
    with pytest.raises(StudyMismatchError, match=r"small.*--study"):
        copy(source, target)
    assert contents(target, "small") == before


def test_a_copy_that_was_cut_short_is_finished_by_the_same_command(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any statement: what is there of a study is all of it."""
    count, fatal = [0], [-1]

    class CutError(BaseException):
        pass

    def cut(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT"):
            count[0] += 1
            if count[0] - 1 == fatal[0]:
                raise CutError

    monkeypatch.setattr(copying, "BATCH", 1)
    event.listen(Engine, "before_cursor_execute", cut)
    try:
        for at in range(40):
            count[0], fatal[0] = 0, at
            try:
                copy(source, target)
            except CutError:
                continue
            break
        assert at > 3
    finally:
        event.remove(Engine, "before_cursor_execute", cut)
    for name in ("first", "small"):
        assert contents(target, name) == contents(source, name)
    check_maps(target, MAP, OTHER_MAP)


def test_a_database_is_not_copied_onto_itself(source: str) -> None:
    with pytest.raises(InputError, match="another database"):
        copy(source, source)


def test_every_table_belongs_to_a_study_or_is_copied_apart(source: str, target: str) -> None:
    """A table that is new must be reached, or this fails: nothing is left behind silently."""
    apart = {"studies", "importances", "importance_parts"}
    reached = {table.name for table in copying.OWNED} | apart
    assert reached == set(Base.metadata.tables)
    with open_store(source, read_only=True) as store:
        made = set(inspect(store._reader).get_table_names())
    assert made == reached | {"autopeft_schema"}


def test_the_command_says_what_it_did(source: str, target: str) -> None:
    result = CliRunner().invoke(app, ["db", "copy", source, target, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [each["study"] for each in told["studies"]] == ["first", "small"]
    assert told["importances"] == 2
    assert "s3cr3t" not in result.output
    again = CliRunner().invoke(app, ["db", "copy", source, target, "--study", "small"])
    assert again.exit_code == 0
    assert "small: 2 trials already there" in again.stderr
    assert again.stdout == ""
    assert "s3cr3t" not in again.output
