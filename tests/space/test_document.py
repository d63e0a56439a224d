from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import InputError
from autopeft.space.document import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-5", 3e-5),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("2.", 2.0),
        ("010", 10),
        ("0o10", "0o10"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("on", "on"),
        ("no", "no"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("2024-01-01", "2024-01-01"),
        ("2M", "2M"),
        ("1/128", "1/128"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("-7", -7),
        ("=", "="),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    parsed = parse_yaml(f"key: {text}", "file")["key"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["1e5", "0123456", "12e45", "2.0", "true", "main", "2024-01-01"])
def test_a_revision_stays_as_written(text: str) -> None:
    parsed = parse_yaml(f"model: {{revision: {text}}}\nrevision: {text}", "file")
    assert parsed == {"model": {"revision": text}, "revision": text}


def test_a_null_revision_is_none() -> None:
    assert parse_yaml("revision: null", "file") == {"revision": None}
    assert parse_yaml("revision: 'null'", "file") == {"revision": "null"}


def test_anchors_and_merges() -> None:
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}"
    parsed = parse_yaml(text, "file")
    assert parsed["b"] == {"x": 1, "y": 2}
    assert parsed["c"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("a: 1\nb: [1, 2", "file, line 2, column 9", "expected"),
        ("a: 1\nb: c: d", "file, line 2, column 5", "mapping values"),
        ("a: 1\na: 2", "file, line 2, column 1", "'a' a second time"),
        ("a:\n  x: 1\n  x: 2", "file, line 3, column 3", "'x' a second time"),
        ("a: 1\n\tb: 2", "file, line 2, column 1", "with spaces, not tabs"),
        ("a: !!python/object/apply:os.getcwd []", "file, line 1, column 4", "constructor"),
        ("a: !!binary aGk=", "file, line 1, column 4", "constructor"),
        ("a: !!int abc", "file, line 1, column 4", "whole number"),
        ("a: !!bool yes", "file, line 1, column 4", "true or false"),
        ("a: 1\n3: 2", "file, line 2, column 1", "not text"),
        ("? [1, 2]\n: 3", "file, line 1, column 3", "not text"),
        ("a: &a [*a]", "file, line 1", "recursive"),
        ("a: &a {b: *a}", "file, line 1", "recursive"),
        ("a: *missing", "file, line 1, column 4", "undefined alias"),
        ("a: 1\n---\nb: 2", "file, line 2, column 1", "another document"),
        ("a: 1\nb: \x07", "file, line 2", "U+0007"),
    ],
)
def test_broken_yaml_is_one_line_with_its_place(text: str, place: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "file")
    message = str(caught.value)
    assert message.startswith(place)
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "given"),
    [("", "empty"), ("# only a comment", "empty"), ("[1]", "list"), ("3", "int")],
)
def test_a_document_that_is_no_mapping(text: str, given: str) -> None:
    with pytest.raises(InputError, match=f"file; got .*{given}.*a mapping of keys to values"):
        parse_yaml(text, "file")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InputError, match="nested too deeply"):
        parse_yaml("a: " + "[" * 5000 + "]" * 5000, "file")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: é".encode("latin-1"))
    for path, problem in (
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "a directory"),
        (latin, "save it as UTF-8"),
        (latin / "below", "not a directory"),
    ):
        with pytest.raises(InputError, match=problem) as caught:
            read_yaml(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(path) == {"a": 1}


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text().filter(lambda key: key != "revision"), _plain, min_size=1))
def test_what_pyyaml_writes_is_read_back(data: dict[str, Any]) -> None:
    def without_revision(value: Any) -> bool:
        if isinstance(value, dict):
            return "revision" not in value and all(map(without_revision, value.values()))
        return all(map(without_revision, value)) if isinstance(value, list) else True

    if without_revision(data):
        # PyYAML speaks 1.1 and would leave the text 1e100 bare: quotes and tags say what is what.
        text = yaml.safe_dump(data, allow_unicode=False, default_style='"')
        assert parse_yaml(text, "file") == data
