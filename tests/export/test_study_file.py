from itertools import pairwise
from pathlib import Path

import pytest

from autopeft.export.study_file import study_file_text
from autopeft.study.definition import StudyDefinition, default_definition, load_definition

OVERRIDES = [
    "study.name=rte",
    "data.text=[sentence1, sentence2]",
    "data.splits.validation=0.1",
    "data.revision=12e5",
    "objectives=[{metric: f1, floor: 0.5}, {metric: adapter_bytes, cap: 20MiB}]",
    "space={methods: {lora: {rank: {choice: [1, 2]}, sites: [query]}}, layers: {mode: bits}}",
    "search.enqueue=[{lora: [{layers: [0], rank: 1}]}]",
    "model.sites={query: 'layer\\.\\d+\\.q # not a comment'}",
    "budget.wall_clock=90s",
]


@pytest.fixture
def definition() -> StudyDefinition:
    return default_definition(OVERRIDES)


def test_it_loads_back_to_the_same_definition(definition: StudyDefinition, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    guesses = {"data.text": "two text\ncolumns: # a, b", "data.splits": "x", "objectives": "y"}
    for some in ({}, guesses):
        path.write_text(study_file_text(definition, some))
        assert load_definition(path) == definition


def test_every_value_has_a_comment() -> None:
    text = study_file_text(default_definition(), {})
    lines = [s for s in text.splitlines() if s and not s.lstrip().startswith(("#", "-"))]
    blocks = [line for line in lines if line.endswith(":")]
    assert all("  # " in line for line in lines if line not in blocks)
    above = {after: line for line, after in pairwise(text.splitlines())}
    assert all(above[block].lstrip().startswith("# ") for block in blocks)
    assert max(map(len, text.splitlines())) <= 99


def test_guesses_are_marked_and_keep_the_meaning(definition: StudyDefinition) -> None:
    guesses = {"data.label": "the only column with few\nvalues", "data.splits": "as on the hub"}
    lines = study_file_text(definition, guesses).splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith("  label: label"))
    assert lines[index].endswith("# guessed: the only column with few values")
    assert lines[index - 1] == "  # the column predicted"
    splits = next(i for i, line in enumerate(lines) if line.startswith("  splits:"))
    assert lines[splits].endswith("# guessed: as on the hub")


def test_a_guess_about_no_key_is_an_error(definition: StudyDefinition) -> None:
    with pytest.raises(KeyError, match=r"data\.txt"):
        study_file_text(definition, {"data.txt": "x"})
