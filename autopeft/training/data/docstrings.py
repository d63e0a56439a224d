"""`builtin:docstrings`: which library wrote this? A real task that needs no hub.

Passages of the installed packages' own documentation, found in their source. Which passages are
taken depends on the installed versions alone; how they are split depends on the seed and on the
texts, not on the order of files. They are written once, so that an upgraded package does not
change a running study.

Measured on validation (6 classes of 267 / 100 / 100 passages): the constant predictor reaches
0.17, TF-IDF with logistic regression 0.78.
"""

import hashlib
import importlib.util
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from autopeft.errors import DataError, Fault
from autopeft.training.data.prose import docstrings, passages, sentences

logger = logging.getLogger(__name__)

BUILTIN = "builtin:docstrings"

LIBRARIES = ("pandas", "plotly", "scipy", "sqlalchemy", "streamlit", "transformers")
"""Dependencies of autopeft, so always there, each with a subject of its own."""

SIZES: Mapping[str, int] = {"train": 267, "validation": 100, "test": 100}
"""Passages per library and split."""

_SMALLEST = 40
"""Fewer passages than this of a library make no task."""

_PER_FILE, _PER_DOCSTRING = 12, 2
"""So that no single file or docstring speaks for its library."""

_MAX_FILES = 900
"""Bounds the time of a first use; about twice what any library needs."""

_LARGEST_BYTES = 80_000
"""Larger files cost more parsing than the passages that one file may give are worth."""

_SKIPPED_FOLDERS = frozenset({"tests", "test", "testing", "_vendor", "externals"})

_GIVEAWAYS = re.compile(
    r"\b(pandas|pd|plotly|px|scipy|numpy|np|sqlalchemy|streamlit|st|transformers|hugging ?face"
    r"|hf|torch|pytorch|sklearn|scikit\S*)\b|🤗",
    re.IGNORECASE,
)
"""Names and customary abbreviations: a sentence with one would give the answer away."""


def materialise(folder: Path, *, seed: int) -> Path:
    """The folder with the data set's parquet files, written if they are not there yet.

    Columns: `text` (12 to 40 words) and `label` (the library's name); one file per split.

    Args:
        folder: Where the data set's folder lies, or is made.
        seed: Decides which passages go into which split.

    Raises:
        DataError: The installed packages hold too few docstrings.
    """
    final = folder / f"docstrings-seed{seed}"
    if final.is_dir():
        return final
    logger.info("reading docstrings of %s", ", ".join(LIBRARIES))
    rows = split_rows({name: harvest(name) for name in LIBRARIES}, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".docstrings-", dir=folder) as scratch:
        made = Path(scratch) / final.name
        made.mkdir()
        for split, pairs in rows.items():
            texts, labels = zip(*pairs, strict=True)
            table = pd.DataFrame({"text": texts, "label": labels})
            table.to_parquet(made / f"{split}.parquet", index=False)
        origin = "".join(f"{name} {version(name)}\n" for name in LIBRARIES)
        (made / "origin.txt").write_text(origin, encoding="utf-8")
        _move(made, final)
    return final


def _move(made: Path, final: Path) -> None:
    """Put the whole folder in place at once; another process may have been first."""
    try:
        os.rename(made, final)
    except OSError:
        if not final.is_dir():
            raise


def harvest(library: str) -> list[str]:
    """Passages of an installed library, enough for every split, none twice.

    Files are visited in the order of a hash of their path: the same for all, and well mixed.
    """
    wanted = sum(SIZES.values())
    found: list[str] = []
    seen: set[str] = set()
    for path in _source_files(library)[:_MAX_FILES]:
        if path.stat().st_size > _LARGEST_BYTES:
            continue
        found += _file_passages(path, seen)
        if len(found) >= wanted:
            break
    return found


def _source_files(library: str) -> list[Path]:
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(spec.submodule_search_locations[0])
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    kept = [name for name in names if not _SKIPPED_FOLDERS.intersection(name.parts)]
    return [root / name for name in sorted(kept, key=lambda name: _digest(name.as_posix()))]


def _file_passages(path: Path, seen: set[str]) -> list[str]:
    """Passages of one file, without sentences that were seen before or give the library away."""
    found: list[str] = []
    for docstring in docstrings(path):
        fresh = passages(_fresh_sentences(docstring, seen))
        found += [passage for _, passage in zip(range(_PER_DOCSTRING), fresh, strict=False)]
        if len(found) >= _PER_FILE:
            break
    return found[:_PER_FILE]


def _fresh_sentences(docstring: str, seen: set[str]) -> Iterator[str]:
    for sentence in sentences(docstring):
        key = sentence.lower()
        if key not in seen and not _GIVEAWAYS.search(sentence):
            seen.add(key)
            yield sentence


def split_rows(
    passages_of: Mapping[str, list[str]], *, seed: int
) -> dict[str, list[tuple[str, str]]]:
    """Balanced splits of (text, label) rows, ordered and dealt out by a seeded hash of the text.

    A text that two libraries share is dropped. Where a library has fewer passages than `SIZES`
    asks for, every library gives that many, in the same proportions.
    """
    owners: dict[str, set[str]] = {}
    for library, texts in passages_of.items():
        for text in texts:
            owners.setdefault(text.lower(), set()).add(library)
    kept = {
        library: sorted(
            {text for text in texts if len(owners[text.lower()]) == 1},
            key=lambda text: _digest(f"{seed}:{text}"),
        )
        for library, texts in passages_of.items()
    }
    total = sum(SIZES.values())
    size = min(total, *(len(texts) for texts in kept.values()))
    if size < _SMALLEST:
        poor = [f"{name} ({len(texts)})" for name, texts in kept.items() if len(texts) == size]
        hint = "reinstall it with its source, or give data of your own"
        given = f"too few docstrings in {', '.join(poor)}"
        raise DataError(Fault(BUILTIN, "data.source", given, f"at least {_SMALLEST} each", hint))
    rows: dict[str, list[tuple[str, str]]] = {}
    start = 0
    for split, wanted in reversed(tuple(SIZES.items())):
        stop = size if split == "train" else start + round(size * wanted / total)
        pairs = [(text, library) for library, texts in kept.items() for text in texts[start:stop]]
        rows[split] = sorted(pairs, key=lambda pair: _digest(f"{seed}:{pair[0]}"))
        start = stop
    return rows


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
