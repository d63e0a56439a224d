"""The dashboard cannot harm a study: it opens the database for reading, on either database."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from postgres_server import PASSWORD, PostgresServer
from streamlit.testing.v1 import AppTest

import dashboard
from autopeft.api.loading import open_store as open_for_api
from autopeft.api.place import STORAGE_VARIABLE
from autopeft.configuration import Configuration, Group
from autopeft.errors import StorageError
from autopeft.study.records import (
    Measurement,
    NewStudy,
    NewTrial,
    ObjectiveFrame,
    Origin,
    TrialState,
)
from dashboard import queries
from storage import SqlStore, open_store
from storage.lease import this_process

APP = Path(dashboard.__file__).with_name("app.py")
PAGES = ("studies", "front", "trial", "progress", "importance", "explanations")
READERS = 10

TRIAL = NewTrial(
    Configuration.of(
        [Group.of("lora", [0], ["query"], rank=4)],
        training={"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06},
    ),
    Origin.SEARCHER,
    trainable_params=768,
    head_params=770,
    pack=0,
)
FRAME = (ObjectiveFrame("accuracy", "max", "linear", 0.0, 1.0),)
FACTS = {"n_layers": 2, "rung_steps": {"1.0": 10}}


@pytest.fixture
def running(database_url: str) -> Callable[[SqlStore], int]:
    """Puts a running study into a store; its token."""

    def fill(store: SqlStore) -> int:
        definition = {"study": {"name": "s", "seed": 1}, "budget": {}, "objectives": []}
        marks = {"backbone": "b", "data": "d"}
        store.create_study(NewStudy("s", definition, "f", FRAME, marks, {}, FACTS))
        return store.claim("s", this_process(), 600.0)

    return fill


def search_one(store: SqlStore, token: int) -> int:
    """One trial from proposal to its end, as a search writes it."""
    (trial,) = store.add_trials("s", token, [TRIAL])
    store.start_trials("s", token, [trial.number])
    store.record(
        "s",
        token,
        trial.number,
        measurements=[Measurement(10, "accuracy", "validation", 0.5, 1.0)],
        objectives={"accuracy": 0.5},
        rung=1.0,
        optimizer_steps=10,
    )
    store.finish_trial("s", token, trial.number, TrialState.COMPLETED)
    store.add_snapshot("s", token, trials=trial.number + 1, front=[trial.number], hypervolume=0.5)
    return trial.number


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM studies",
        "UPDATE studies SET state = 'finished'",
        "CREATE TABLE more (id INTEGER)",
        "DROP TABLE trials",
    ],
)
def test_what_the_dashboard_opens_refuses_to_write(
    database_url: str, running: Callable[[SqlStore], int], statement: str
) -> None:
    with open_store(database_url, create=True) as store:
        running(store)
        with queries.opened(database_url, "s") as study:
            assert study.status()["held"]
            reading: Any = study._store
            with pytest.raises(StorageError, match="read"), reading._reading() as session:
                session.connection().exec_driver_sql(statement)
            with pytest.raises(StorageError, match="reading only"):
                reading.request_stop("s")
        assert not store.study("s").stop_requested
        assert len(store.studies()) == 1


def test_a_role_that_may_only_read_is_enough(
    postgres_server: PostgresServer,
    postgresql_url: str,
    running: Callable[[SqlStore], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The role of docs/databases.md: it reads tables that come later, too, and writes nothing."""
    name = postgresql_url.rpartition("/")[2]
    page = (Path(dashboard.__file__).parent.parent / "docs" / "databases.md").read_text()
    _, _, after = page.partition("<!-- the read-only role -->\n```sql\n")
    statements = [part.strip() for part in after.partition("```")[0].split(";") if part.strip()]
    assert len(statements) >= 4
    viewer = f"viewer_{name}"
    changes = {"viewer": viewer, "studies": name, "CHANGE-ME": PASSWORD, "writer": "ann"}
    for statement in statements:
        words = [changes.get(word.strip("'"), word.strip("'")) for word in statement.split()]
        shown = " ".join(
            f"'{word}'" if before.startswith("'") else word
            for before, word in zip(statement.split(), words, strict=True)
        )
        postgres_server.execute(shown, database=name)
    with open_store(postgresql_url, create=True) as store:
        search_one(store, running(store))
    url = postgres_server.url(name, viewer, PASSWORD)
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    st.cache_data.clear()
    st.cache_resource.clear()
    (line,) = queries.study_lines(url)
    assert (line.name, line.done, line.best) == ("s", 1, 0.5)
    app = AppTest.from_file(APP, default_timeout=60).run()
    assert not app.exception
    assert PASSWORD not in str(
        [element.value for element in app.main if hasattr(element, "value")]
    )
    with (
        open_store(url) as writing,  # even where it is opened for writing
        pytest.raises(StorageError, match="permission denied"),
    ):
        writing.request_stop("s")


def test_readers_neither_hinder_a_search_nor_see_half_of_it(
    database_url: str, running: Callable[[SqlStore], int]
) -> None:
    """Ten people look while a search writes 30 trials: all is written, and all looks are whole."""
    faults: list[BaseException] = []
    looks = [0] * READERS
    over = threading.Event()

    def look(index: int) -> None:
        try:
            with open_for_api(database_url, read_only=True) as store:  # type: ignore[attr-defined]
                last = 0
                while not over.is_set():
                    counted = sum(store.summary("s").counts.values())
                    trials = store.trials("s")
                    assert last <= counted <= len(trials)
                    assert [t.number for t in trials] == list(range(len(trials)))
                    for trial in trials[-2:]:
                        if trial.state is TrialState.COMPLETED:
                            assert trial.objectives == {"accuracy": 0.5}
                            assert len(store.curve("s", trial.number)) == 1
                    last, looks[index] = len(trials), looks[index] + 1
        except BaseException as error:
            faults.append(error)

    with open_store(f"{database_url}?timeout=10", create=True) as store:
        token = running(store)
        threads = [threading.Thread(target=look, args=(index,)) for index in range(READERS)]
        for thread in threads:
            thread.start()
        longest = 0.0
        for number in range(30):
            began = time.monotonic()
            assert search_one(store, token) == number
            longest = max(longest, time.monotonic() - began)
        over.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert min(looks) >= 1
        assert len(store.trials("s")) == 30
        assert len(store.snapshots("s")) == 30
        assert longest < 10.0  # a lock that readers held would be waited for that long


# -- sizes ----------------------------------------------------------------------------------------


def ten_thousand(store: SqlStore, token: int) -> None:
    """Trials that have completed; written at once."""
    n = 10_000
    added = store.add_trials("s", token, [TRIAL] * n)
    numbers = [trial.number for trial in added]
    with store._writing() as session:
        connection = session.connection()
        connection.exec_driver_sql(
            "UPDATE trials SET state = 'completed', rung = 1.0, optimizer_steps = 10, "
            "objectives = '{\"accuracy\": 0.5}', finished_at = created_at"
        )
        connection.exec_driver_sql(
            "INSERT INTO measurements (trial_id, step, metric, split, value, rung) "
            "SELECT id, 10, 'accuracy', 'validation', 0.5, 1.0 FROM trials"
        )
    store.add_snapshot("s", token, trials=n, front=numbers[:1], hypervolume=0.5)


def nothing(_store: SqlStore, _token: int) -> None:
    """A study without a trial."""


def one(store: SqlStore, token: int) -> None:
    """A study of one trial."""
    search_one(store, token)


def half_written(store: SqlStore, token: int) -> None:
    """A coordinator that was killed between any two of its writes."""
    search_one(store, token)
    store.add_trials("s", token, [TRIAL, TRIAL, TRIAL])
    store.start_trials("s", token, [1, 2])
    store.record(
        "s",
        token,
        1,
        measurements=[Measurement(5, "accuracy", "validation", None)],
        objectives={},
        rung=None,
        optimizer_steps=5,
    )
    # A snapshot is written after its trials; here it lacks, and one trial is measured at a rung.
    store.record(
        "s",
        token,
        2,
        measurements=[Measurement(10, "accuracy", "validation", 0.75, 1.0)],
        objectives={"accuracy": 0.75},
        rung=1.0,
        optimizer_steps=10,
    )


@pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("written", [nothing, one, half_written, ten_thousand])
def test_every_page_opens_on_a_study_of_any_size(
    written: Callable[[SqlStore, int], None],
    database: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from autopeft.study.definition import default_definition

    url = request.getfixturevalue(f"{database}_url")
    with open_store(url, create=True) as store:
        definition = default_definition(["study.name=s"]).to_plain()
        marks = {"backbone": "b", "data": "d"}
        store.create_study(NewStudy("s", definition, "f", FRAME, marks, {}, FACTS))
        token = store.claim("s", this_process(), 600.0)
        written(store, token)
        store.release("s", token)
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    st.cache_data.clear()
    st.cache_resource.clear()
    for page in PAGES:
        app = AppTest.from_file(APP, default_timeout=120)
        if page != "studies":
            app.run()
            app.switch_page(f"views/{page}.py")
        app.query_params["study"] = "s"
        app.run()
        assert not app.exception, f"{page}: {app.exception}"
        assert not app.error, f"{page}: {app.error}"
        assert app.header[0].value == ("Studies" if page == "studies" else "s")
