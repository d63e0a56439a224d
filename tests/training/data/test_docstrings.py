import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from autopeft.errors import DataError
from autopeft.training.data import docstrings
from autopeft.training.data.docstrings import harvest, materialise, split_rows
from autopeft.training.data.request import DataRequest
from autopeft.training.data.text import load_text_data

SMALL = ("alembic", "botorch", "rich")


def made_up(n: int, *, libraries: tuple[str, ...] = SMALL) -> dict[str, list[str]]:
    return {name: [f"Passage {i} of {name}." for i in range(n)] for name in libraries}


def test_splits_are_balanced_and_apart() -> None:
    rows = split_rows(made_up(500), seed=0)
    assert {split: len(pairs) for split, pairs in rows.items()} == {
        "train": 3 * 267,
        "validation": 3 * 100,
        "test": 3 * 100,
    }
    for pairs in rows.values():
        assert len(set(Counter(label for _, label in pairs).values())) == 1
    texts = [text for pairs in rows.values() for text, _ in pairs]
    assert len(texts) == len(set(texts))


def test_splits_depend_on_seed_and_texts_but_not_on_order() -> None:
    passages = made_up(480)
    backwards = {name: texts[::-1] for name, texts in passages.items()}
    assert split_rows(passages, seed=0) == split_rows(backwards, seed=0)
    assert split_rows(passages, seed=0) != split_rows(passages, seed=1)


def test_a_text_of_two_libraries_is_dropped_and_the_poorest_sets_the_size() -> None:
    passages = made_up(70)
    passages["rich"] = [*passages["rich"][:60], passages["botorch"][0].upper()]
    rows = split_rows(passages, seed=0)
    texts = [text for pairs in rows.values() for text, _ in pairs]
    assert passages["botorch"][0] not in texts
    assert passages["rich"][-1] not in texts
    assert {split: len(pairs) for split, pairs in rows.items()} == {
        "train": 3 * 34,
        "validation": 3 * 13,
        "test": 3 * 13,
    }


def test_too_few_docstrings_name_the_library() -> None:
    with pytest.raises(DataError, match=r"too few docstrings in rich \(5\)"):
        split_rows(made_up(60) | made_up(5, libraries=("rich",)), seed=0)


def test_a_real_data_set_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "LIBRARIES", SMALL)
    request = DataRequest("builtin:docstrings", ("text",), "label", seed=4)
    first = load_text_data(request, output_dir=tmp_path)
    assert first.label_names == SMALL
    assert set(np_counts(first.train.labels)) == {min(np_counts(first.train.labels))}
    assert all(12 <= len(text.split()) <= 40 for text in first.train.texts[0])

    def never(library: str) -> list[str]:
        raise AssertionError(library)

    monkeypatch.setattr(docstrings, "harvest", never)
    assert load_text_data(request, output_dir=tmp_path).fingerprint == first.fingerprint
    written = tmp_path / "data" / "docstrings-seed4"
    assert (written / "origin.txt").read_text().startswith("alembic ")
    assert not list((tmp_path / "data").glob(".docstrings-*"))


def np_counts(labels: object) -> list[int]:
    return list(Counter(labels.tolist()).values())  # type: ignore[attr-defined]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "LIBRARIES", SMALL)
    monkeypatch.setattr(docstrings, "harvest", lambda name: made_up(60, libraries=(name,))[name])

    def full_disk(name: str) -> str:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(docstrings, "version", full_disk)
        with pytest.raises(OSError, match="no space"):
            materialise(tmp_path, seed=0)
    assert list(tmp_path.iterdir()) == []
    assert materialise(tmp_path, seed=0).is_dir()


def test_passages_never_name_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "SIZES", {"train": 150})
    passages = harvest("streamlit")
    assert len(passages) == len(set(passages)) >= 150
    assert not any("streamlit" in text.lower() for text in passages)


def test_libraries_are_installed_with_their_source() -> None:
    for name in docstrings.LIBRARIES:
        assert importlib.util.find_spec(name) is not None
