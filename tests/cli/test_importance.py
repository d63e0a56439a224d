"""`importance` as a table and as JSON, from a stored map and without loading anything."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import tiny_backbones as tiny
from importance_maps import importance_map
from rich.console import Console
from typer.testing import Result

import storage
from autopeft.backbone.importance import ImportanceMap
from autopeft.cli.commands.importance import about
from autopeft.cli.importance_table import importance_table
from autopeft.importance.settings import MEASURED, ImportanceSettings
from autopeft.importance.stored import to_record
from autopeft.study.definition import StudyDefinition

Run = Callable[..., Result]
FACTS = {
    "backbone": "builtin:minilm",
    "task": "sequence-classification",
    "head": "fitted",
    "batch_size": "32",
    "seconds": "9.5",
    "device": "cpu",
}


@pytest.fixture
def found() -> ImportanceMap:
    made = importance_map(
        tiny.tiny_backbone("bert").anatomy, scores=MEASURED, ranking=(2, 0, 1), block=32
    )
    return replace(made, facts=FACTS)


@pytest.fixture
def kept(stored: Path, found: ImportanceMap) -> ImportanceMap:
    """The map, stored for the model and data of the study of the default's name."""
    record = to_record(found, ImportanceSettings(), backbone="b", data="d", batch_size=32)
    with storage.open_store(f"sqlite:///{stored}/autopeft.db") as store:
        store.keep_importance(record)
    return found


def test_the_json_has_every_score_of_every_site(run: Run, kept: ImportanceMap) -> None:
    result = run("importance", "--json")
    assert result.exit_code == 0, result.stderr
    plain = json.loads(result.stdout)
    assert set(plain) == {
        "study", "facts", "block", "examples", "fingerprint", "scores",
    }  # fmt: skip
    assert set(plain["scores"]) == set(MEASURED)
    fisher = plain["scores"]["fisher"]
    assert set(fisher) == {"layers", "layer_ranking", "sites", "site_ranking"}
    assert fisher["layer_ranking"] == [2, 0, 1]
    assert [each["layer"] for each in fisher["layers"]] == [0, 1, 2]
    assert len(fisher["sites"]) == len(fisher["site_ranking"]) == 18
    site = next(s for s in fisher["sites"] if (s["layer"], s["site"]) == (1, "down"))
    own = kept.of("fisher")[1, "down"]
    assert site["total"] == pytest.approx(own.total)
    assert site["mean"] == pytest.approx(own.total / (32 * 48))
    best = max(fisher["sites"], key=lambda each: each["mean"])
    assert fisher["site_ranking"][0] == [best["layer"], best["site"]]
    assert plain["facts"]["seconds"] == "9.5"
    assert plain["facts"]["stored_at"]


def test_the_table_has_a_row_per_layer_and_says_what_was_measured(
    run: Run, kept: ImportanceMap
) -> None:
    result = run("importance", "--score", "snip")
    assert result.exit_code == 0, result.stderr
    assert "snip" in result.stdout.splitlines()[0]
    assert "64 training examples in batches of 32, 9.5 s on cpu; stored 2" in result.stdout
    rows = [line for line in result.stdout.splitlines() if "%" in line]
    assert [row.split()[0] for row in rows] == ["2", "1", "0"], "the top layer stands on top"
    assert [row.split()[-2] for row in rows] == ["50.0%", "16.7%", "33.3%"]
    assert "layers, most important first: 2, 0, 1" in result.stdout
    assert any("█ 1.00" in row for row in rows)


def test_a_terminal_without_blocks_gets_numbers_alone(found: ImportanceMap) -> None:
    target = Console(width=120, file=StringIO())
    target.print(importance_table(found, "fisher", ascii_only=True))
    drawn = target.file.getvalue()  # type: ignore[attr-defined]
    assert "1.00" in drawn
    assert "####" in drawn
    assert not set(drawn) & set("▁▂▃▄▅▆▇█")


@pytest.mark.parametrize("words", [["--score", "worth"], ["--examples", "0"]])
def test_bad_options_are_named(run: Run, kept: ImportanceMap, words: list[str]) -> None:
    result = run("importance", *words)
    assert result.exit_code == 2
    assert words[0] in result.stderr


LIGHT = """
import sys
from autopeft.cli.main import app
try:
    app(args=["importance"], prog_name="autopeft")
except SystemExit as end:
    assert end.code == 0
found = {"torch", "transformers", "datasets", "botorch"} & set(sys.modules)
assert not found, found
"""


def test_a_stored_map_is_shown_without_torch(kept: ImportanceMap) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_is_of_the_study_that_a_search_would_be_told_of(
    run: Run, monkeypatch: pytest.MonkeyPatch, found: ImportanceMap
) -> None:
    seen: list[StudyDefinition] = []
    monkeypatch.setattr(
        "autopeft.api.importance_map", lambda study, **_: seen.append(study) or found
    )
    flags = ["--name", "mine", "--data", "rows.csv", "--set", "search.importance_keep=0.5"]
    assert run("importance", *flags).exit_code == 0
    (study,) = seen
    assert (study.study.name, study.search.importance_keep) == ("mine", 0.5)
    assert study.data.source.endswith("rows.csv")


def test_the_line_says_what_was_asked_for_beyond_the_usual() -> None:
    usual = about(FACTS, 512)
    assert "ranked" not in usual
    assert "blocks" not in usual
    asked = about(FACTS | {"kept_share": "0.25", "block": "8"}, 512)
    assert "on cpu, 0.25 of each matrix's weights ranked, blocks of 8; measured now" in asked
