from collections.abc import Callable
from pathlib import Path

import pytest

from autopeft.errors import NotFoundError, StorageError
from dashboard import queries


def test_the_view_agrees_with_the_study(seed: Callable[..., None], url: str) -> None:
    seed("finished")
    with queries.opened(url, "finished") as study:
        view = queries.read_study(study)
        assert list(view.front) == study.front()
        assert view.verdict == study.verdict()
        assert view.choices["knee"] == study.pick("knee")
        assert view.baseline == study.best_baseline()
        assert view.status["hypervolume"] == view.snapshots[-1].hypervolume
    assert (view.done, view.total) == (9, 26)


def test_the_front_in_blocks_is_the_front(
    seed: Callable[..., None], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed("finished")
    monkeypatch.setattr(queries, "_BLOCK", 2)
    with queries.opened(url, "finished") as study:
        assert list(queries.read_study(study).front) == study.front()


def test_only_failed_trials_leave_nothing_to_choose(seed: Callable[..., None], url: str) -> None:
    seed("failed")
    with queries.opened(url, "failed") as study:
        view = queries.read_study(study)
    assert (view.front, dict(view.choices), view.best()) == ((), {}, None)
    assert view.status["failures"] == {"out-of-memory": 2}


def test_a_trial_with_its_curve_and_placement(seed: Callable[..., None], url: str) -> None:
    seed("finished")
    with queries.opened(url, "finished") as study:
        trial = queries.read_trial(study, 5)
    assert trial.placement.n_layers == 6
    assert trial.placement.sizes[("serial_adapter", 3)] == 32
    assert trial.rung_steps == {0.33: 33, 1.0: 100}
    assert len(trial.curve) == 8
    assert [attempt["attempt"] for attempt in trial.attempts] == [1]


def test_studies_by_change_with_their_best(seed: Callable[..., None], url: str) -> None:
    seed("finished", "failed", "no-trials")
    lines = queries.study_lines(url)
    assert [line.name for line in lines] == ["no-trials", "failed", "finished"]
    assert [line.best for line in lines] == [None, None, 0.9]
    assert [(line.done, line.total, line.failed) for line in lines] == [
        (0, 24, 0),
        (2, 24, 2),
        (9, 26, 1),
    ]


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no database"):
        queries.study_lines(f"sqlite:///{tmp_path}/none.db")
    assert not list(tmp_path.iterdir())


def test_an_unknown_study_is_named(seed: Callable[..., None], url: str) -> None:
    seed("single")
    with queries.opened(url, "singel") as study, pytest.raises(NotFoundError, match="single"):
        queries.read_study(study)


def test_an_export_is_the_yaml_that_trains(seed: Callable[..., None], url: str) -> None:
    seed("finished")
    with queries.opened(url, "finished") as study:
        text, fault = queries.exported(study, 5)
    assert not fault
    assert "schema: autopeft/config/v1" in text
