"""Every page on seeded databases, in Streamlit's own test runner."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import dashboard
from autopeft.api.place import STORAGE_VARIABLE
from autopeft.errors import InputError
from autopeft.searchers.explain import importances
from dashboard import live, queries
from storage import SqlStore, open_store
from storage.lease import this_process

APP = Path(dashboard.__file__).with_name("app.py")
PAGES = ("studies", "front", "trial", "progress", "importance", "explanations")
STUDY_PAGES = PAGES[1:]

Seed = Callable[..., None]


def _open(page: str, **parameters: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=30)
    if page != "studies":
        app.run()
        app.switch_page(f"views/{page}.py")
    for name, value in parameters.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def _text(app: AppTest) -> str:
    kinds = ("header", "subheader", "markdown", "caption", "info", "warning", "error", "code")
    return "\n".join(str(element.value) for kind in kinds for element in app.get(kind))


def _labels(app: AppTest) -> dict[str, str]:
    return {metric.label: str(metric.value) for metric in app.metric}


@pytest.mark.parametrize("page", PAGES)
def test_without_a_database_the_place_and_the_command_are_named(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: str
) -> None:
    missing = tmp_path / "nowhere" / "none.db"
    monkeypatch.setenv(STORAGE_VARIABLE, f"sqlite:///{missing}")
    app = _open(page)
    assert "nowhere" in app.warning[0].value
    assert f"autopeft search --storage sqlite:///{missing}" in app.code[0].value
    assert not missing.parent.exists()


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_database_says_how_to_start(page: str, seed: Seed, served: str) -> None:
    seed()
    app = _open(page)
    assert "no study in this database yet" in app.info[0].value
    assert "autopeft search" in app.code[0].value


@pytest.mark.parametrize("page", STUDY_PAGES)
@pytest.mark.parametrize(
    "situation", ["finished", "running", "killed", "failed", "single", "no-trials"]
)
def test_every_page_copes_with_every_study(
    page: str, situation: str, seed: Seed, served: str
) -> None:
    seed(situation)
    app = _open(page, study=situation)
    assert app.header[0].value == situation.replace("-", r"\-")
    assert app.query_params["study"] == situation


def test_the_list_names_every_study(seed: Seed, served: str) -> None:
    seed("finished", "failed", "no-trials")
    app = _open("studies")
    text = _text(app)
    assert "builtin\\:minilm on builtin\\:docstrings" in text
    assert "**0.9000**" in text
    assert {"finished", "interrupted", "running"} <= {
        word
        for element in app.markdown
        for word in ("finished", "interrupted", "running")
        if word in str(element.value)
    }
    assert len(app.get("page_link")) == 3


def test_the_front_shows_verdict_numbers_and_the_knee(seed: Seed, served: str) -> None:
    seed("finished")
    app = _open("front", study="finished")
    labels = _labels(app)
    assert labels["Trials ended"] == "9 / 26"
    assert labels["Best accuracy"] == "0.9000"
    assert labels["Front"] == "4"
    assert "Trial 4 reaches the accuracy of the best baseline" in app.info[0].value
    assert app.subheader[0].value == "Trial 4"
    assert "knee" in _text(app)
    assert len(app.get("plotly_chart")) == 4


def _change_of_the_best(app: AppTest) -> str:
    (tile,) = [metric for metric in app.metric if metric.label == "Best accuracy"]
    return str(tile.delta)


def test_the_best_trial_is_set_against_the_best_baseline(seed: Seed, served: str) -> None:
    seed("finished")
    assert _change_of_the_best(_open("front", study="finished")) == "+0.1200 vs best baseline"


def test_where_a_baseline_is_best_no_gain_is_shown(seed: Seed, served: str) -> None:
    seed("beaten")
    assert _change_of_the_best(_open("front", study="beaten")) == "by a baseline"


def test_confirmed_values_and_the_opened_test_split_are_shown(seed: Seed, served: str) -> None:
    seed("confirmed")
    app = _open("front", study="confirmed")
    tables = [frame.value for frame in app.dataframe if "vs baseline" in frame.value.columns]
    assert len(tables) == 2, "one for validation, one for test"
    marks = dict(zip(tables[0]["trial"], tables[0]["vs baseline"], strict=True))
    assert next(iter(marks)).startswith("1 (lora-r8")
    assert list(marks.values()) == ["(the baseline)", "not significant", "better"]
    text = _text(app)
    assert "Test split: locked" not in text
    assert r"by ann@\<host\> for trials 1, 4, 5" in text
    assert "1 of trial 4" in text, "a seed that diverged is told"
    assert "over 5 seeds on test: no significant difference" in app.info[0].value.replace("\\", "")


def test_an_unconfirmed_study_says_so_and_that_its_test_split_is_none(
    seed: Seed, served: str
) -> None:
    seed("finished")
    text = _text(_open("front", study="finished"))
    assert "autopeft confirm finished" in text
    assert "names no test split" in text


def test_a_trial_shows_its_seeds(seed: Seed, served: str) -> None:
    seed("confirmed")
    app = _open("trial", study="confirmed", trial="5")
    values = [frame.value for frame in app.dataframe if list(frame.value) == ["seed", "value"]]
    assert [list(table["seed"]) for table in values] == [[1, 2, 3, 4, 5]] * 2
    assert "from the best baseline: better" in _text(app).replace("\\", "")


@pytest.mark.parametrize("page", ["front", "progress"])
def test_a_killed_study_says_what_goes_on(page: str, seed: Seed, served: str) -> None:
    seed("killed", "running")
    assert any("No process holds it" in w.value for w in _open(page, study="killed").warning)
    assert not _open(page, study="running").warning


def test_an_interrupted_study_says_by_what(seed: Seed, served: str) -> None:
    seed("failed")
    (warning,) = _open("progress", study="failed").warning
    told = r"Interrupted: /disk/\*states\*: no space left on device; free some space there"
    assert str(warning.value).replace(r"\:", ":").replace(r"\;", ";") == told


def test_the_list_tells_killed_from_running(seed: Seed, served: str) -> None:
    seed("killed", "running")
    badges = [str(m.value) for m in _open("studies").markdown if "-badge[" in str(m.value)]
    assert len([badge for badge in badges if "killed?" in badge]) == 1
    assert len([badge for badge in badges if "running" in badge]) == 1


def test_only_a_search_at_work_is_refreshed_fast(seed: Seed, url: str) -> None:
    seed("running", "killed", "finished")
    every = {}
    for name in ("running", "killed", "finished"):
        with queries.opened(url, name) as study:
            every[name] = live.refresh_s(queries.read_study(study))
    assert every == {"running": live.REFRESH_S, "killed": live.LOST_REFRESH_S, "finished": None}


def test_a_search_that_comes_back_is_seen(seed: Seed, served: str) -> None:
    seed("killed")
    assert live.study_view("killed").lost
    with open_store(served) as store:
        store.claim("killed", this_process(), 60.0)
    assert live.study_view("killed").running


def test_a_link_opens_its_trial(seed: Seed, served: str) -> None:
    seed("finished", "running")
    app = _open("front", study="finished", trial="5")
    assert app.header[0].value == "finished"
    assert app.subheader[0].value == "Trial 5"
    codes = [element.value for element in app.code]
    assert any("autopeft export finished --trial 5" in code for code in codes)
    assert any("schema: autopeft/config/v1" in code for code in codes)
    assert any(code.startswith("lora:") for code in codes)
    captions = [element.value for element in app.caption]
    assert "lora\\: LoRA's \\*paper\\*" in captions, "of its own methods, escaped"
    assert not any("BOFT" in caption for caption in captions)


def test_choosing_a_trial_changes_the_address(seed: Seed, served: str) -> None:
    seed("finished")
    app = _open("front", study="finished")
    app.button(key="pick-best").click().run()
    assert app.query_params["trial"] == "5"
    assert app.subheader[0].value == "Trial 5"


def test_a_refresh_keeps_trial_and_axes(seed: Seed, served: str) -> None:
    seed("running")
    app = _open("front", study="running", trial="3")
    app.selectbox(key="axis-Across-running").select("train_seconds").run()
    app.run()
    assert app.selectbox(key="axis-Across-running").value == "train_seconds"
    assert app.subheader[0].value == "Trial 3"
    assert not app.exception


@pytest.mark.parametrize("trial", ["99", "abc", "-1", "1e9"])
@pytest.mark.parametrize("page", ["front", "trial"])
def test_a_link_to_no_trial_says_so(page: str, trial: str, seed: Seed, served: str) -> None:
    seed("finished")
    app = _open(page, study="finished", trial=trial)
    assert any("allowed" in warning.value for warning in app.warning)


def test_a_link_to_no_study_lists_those_there_are(seed: Seed, served: str) -> None:
    seed("single")
    app = _open("front", study="singel")
    assert "single" in app.warning[0].value
    app.selectbox[0].select("single").run()
    assert app.header[0].value == "single"
    assert not app.exception


def test_another_study_forgets_the_trial(seed: Seed, served: str) -> None:
    seed("finished", "failed")
    app = _open("front", study="finished", trial="5")
    app.selectbox[0].select("failed").run()
    assert app.query_params["study"] == "failed"
    assert "trial" not in app.query_params
    assert not app.exception


def test_a_failed_trial_says_why(seed: Seed, served: str) -> None:
    seed("failed")
    app = _open("trial", study="failed", trial="1")
    assert app.error[0].value == r"out\-of\-memory\: no memory for \*4\* lanes"


def test_failures_are_listed_beneath_the_front(seed: Seed, served: str) -> None:
    seed("failed")
    app = _open("front", study="failed")
    assert app.expander[0].label == "2 failed"
    assert list(app.dataframe[0].value["cause"]) == ["out-of-memory", "out-of-memory"]
    assert list(app.dataframe[0].value["attempts"]) == [1, 1]
    assert len(app.expander) == 1, "nothing came too late"


def test_retries_and_what_came_too_late_are_told(seed: Seed, served: str) -> None:
    seed("retried")
    late = "step 33, rung 0.33, accuracy 0.625"
    app = _open("front", study="retried")
    assert [each.label for each in app.expander] == ["1 too late"]
    assert [list(d.value["what"]) for d in app.dataframe if "what" in d.value] == [[late]] * 2
    assert "Too late, from a coordinator that another had replaced: kept apart" in _text(app)
    (attempts,) = [d.value for d in app.dataframe if "message" in d.value]
    assert list(attempts["cause"])[:2] == ["lost", "lost"]
    assert [code.value for code in app.code][-1] == "<b>oh</b>"
    progress = _open("progress", study="retried")
    (spent,) = [dict(d.value.to_numpy()) for d in progress.dataframe if "spent" in d.value]
    assert (spent["attempts: lost"], spent["came too late"]) == ("2", "1")
    (trials,) = [d.value for d in progress.dataframe if "attempts" in d.value]
    assert list(trials["attempts"]) == [3]


def test_the_reason_is_set_beside_what_came(seed: Seed, served: str) -> None:
    seed("finished")
    app = _open("trial", study="finished", trial="5")
    (table,) = [d.value for d in app.dataframe if "predicted" in d.value.columns]
    assert table.iloc[0].to_dict() == {
        "metric": "accuracy",
        "predicted": "0.8",
        "± sd": "0.03",
        "measured": "0.9",
    }


def test_why_a_trial_was_proposed_is_said_in_sentences(seed: Seed, served: str) -> None:
    seed("explained")
    text = _text(_open("trial", study="explained", trial="20")).replace("\\", "")
    assert "Proposed because: expected gain 0.00105 hypervolume at" in text
    assert "x the mean cost." in text
    assert "Predicted accuracy" in text
    assert "sd above)" in text or "sd below)" in text
    first = _text(_open("trial", study="explained", trial="0")).replace("\\", "")
    assert "Baseline lora-r8: run before the search, as what it has to beat." in first


def test_the_explanations_of_a_study(
    seed: Seed, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importances, "TREES", 10)
    seed("explained")
    app = _open("explanations", study="explained")
    assert [s.value for s in app.subheader] == ["What mattered", "Predicted against measured"]
    assert len(app.get("plotly_chart")) == 2
    labels = _labels(app)
    assert 0.3 < float(labels["Accuracy: held-out rank correlation"]) <= 1.0
    assert labels["Within 2 sd"].endswith("%")
    text = _text(app).replace("\\", "")
    assert "From 40 trials: " in text
    assert "of the 28 trials with a prediction completed the full budget" in text
    assert not app.info


def test_all_else_of_the_explanations_is_there_before_what_mattered_is_worked_out(
    seed: Seed, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(_study: Any) -> None:
        raise InputError("so far")

    monkeypatch.setattr(queries, "read_importances", work)
    seed("explained")
    app = _open("explanations", study="explained")
    assert "so far" in app.error[0].value
    assert "Trials ended" in _labels(app)
    assert _labels(app)["Within 2 sd"].endswith("%")
    assert len(app.get("plotly_chart")) == 1


def test_a_page_of_one_study_reads_no_other(
    seed: Seed, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picker shows the names of all studies, and costs no more than names."""
    seed("finished", "failed")
    app = _open("studies")
    read: list[str] = []
    for name in ("summaries", "studies"):
        monkeypatch.setattr(SqlStore, name, lambda _store, name=name: read.append(name))
    for page in STUDY_PAGES:
        app.switch_page(f"views/{page}.py")
        app.query_params["study"] = "finished"
        app.run()
        assert not app.exception, app.exception
        assert app.header[0].value == "finished"
        assert app.selectbox[0].options == ["failed", "finished"]
    assert read == []


def test_what_cannot_be_explained_is_said(seed: Seed, served: str) -> None:
    seed("finished")
    app = _open("explanations", study="finished")
    said = [str(info.value) for info in app.info]
    (few,) = [text.replace("\\", "") for text in said if "it takes 16 trials" in text]
    assert few.startswith("Accuracy and hypervolume: 7 trials (1 stopped early, 1 diverged); ")
    assert "Within 1 sd" in _labels(app)  # five predictions were measured in full
    seed("beaten")
    app = _open("explanations", study="beaten")
    assert any("No trial was proposed with a prediction" in str(i.value) for i in app.info)


def test_the_cost_of_a_trial_is_set_beside_its_packs(seed: Seed, served: str) -> None:
    seed("finished")
    app = _open("trial", study="finished", trial="2")
    (table,) = [d.value for d in app.dataframe if "its packs" in d.value.columns]
    assert table.to_dict("records") == [
        {"seconds": "training seconds", "this trial": "4.5 s", "its packs": "2 min"}
    ]
    pairs = [d.value for d in app.dataframe if list(d.value.columns) == ["", "value"]]
    counts = {"tokens, padded": "4,096", "trials in the last pack": "4"}
    assert counts in [dict(table.to_numpy()) for table in pairs]


def test_what_a_trial_costs_by_itself_stands_apart(seed: Seed, served: str) -> None:
    seed("ended")
    app = _open("trial", study="ended", trial="1")
    pairs = [d.value for d in app.dataframe if list(d.value.columns) == ["", "value"]]
    alone = {"peak memory": "128 MiB", "latency": "0.0125 s"}
    assert alone in [dict(table.to_numpy()) for table in pairs]


def test_a_search_that_ended_by_itself_says_so(seed: Seed, served: str) -> None:
    seed("ended", "finished")

    def told(study: str) -> list[str]:
        infos = _open("front", study=study).info
        return [each.value for each in infos if "The search ended" in each.value]

    (text,) = told("ended")
    assert "by itself" in text
    assert "7 trials were left" in text
    assert not told("finished")


def test_progress_lists_every_trial_newest_first(seed: Seed, served: str) -> None:
    seed("running")
    app = _open("progress", study="running")
    (table,) = [d.value for d in app.dataframe if "number" in d.value.columns]
    assert list(table["number"]) == list(range(11, -1, -1))
    assert len(app.get("plotly_chart")) == 2


@pytest.mark.parametrize("page", PAGES)
def test_names_are_shown_as_they_are(
    page: str, seed: Seed, served: str, special_name: str
) -> None:
    seed(special_name)
    app = _open(page, **({} if page == "studies" else {"study": special_name}))
    assert not any(element.allow_html for element in app.markdown)
    assert special_name not in _text(app).replace(f"'{special_name}'", "")


# -- importance -----------------------------------------------------------------------------------


def _heatmap(app: AppTest) -> dict[str, Any]:
    figure: dict[str, Any] = json.loads(app.get("plotly_chart")[0].proto.spec)
    return figure


def test_an_unmeasured_study_says_how_to_measure_it(seed: Seed, served: str) -> None:
    seed("finished")
    app = _open("importance", study="finished")
    assert "has not been measured" in _text(app)
    assert f"autopeft importance STUDY.yaml --storage {served}" in app.code[0].value
    assert not app.get("plotly_chart")


def test_a_measured_study_shows_layers_and_sites_of_a_score(seed: Seed, served: str) -> None:
    seed("scored")
    app = _open("importance", study="scored")
    assert app.selectbox(key="score").value == "sensitivity"
    (heat,) = _heatmap(app)["data"]
    assert heat["y"] == ["query", "key", "value", "output", "up", "down"]
    assert heat["x"] == ["0", "1", "2", "3", "4", "5"]
    assert "64 training examples in batches of 32 through a fitted head" in _text(app)
    before = heat["customdata"]
    app.selectbox(key="score").select("fisher").run()
    assert not app.exception
    assert _heatmap(app)["data"][0]["customdata"] != before


def test_a_trials_placement_lies_over_the_map(seed: Seed, served: str) -> None:
    seed("scored")
    app = _open("importance", study="scored", trial="5")
    _, squares = _heatmap(app)["data"]
    placed = set(zip(squares["y"], squares["x"], strict=True))
    assert placed == {(role, layer) for role in ("query", "value") for layer in "345"}
    assert "Squares\\: trial 5" in _text(app)
    app.selectbox(key="placement-of").select("no trial").run()
    assert len(_heatmap(app)["data"]) == 1
