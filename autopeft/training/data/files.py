"""Data on this machine: a file, a folder with one file per split, or a saved `datasets` folder.

Splits are named by files alone, and each is opened by itself: a broken test file harms nobody who
does not ask for it.
"""

import glob
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError
from datasets.utils import logging as datasets_logging

from autopeft.errors import DataError, Fault
from autopeft.training.data.request import listed

_CSV = {"keep_default_na": False, "na_values": [""]}
"""Only an empty field is missing: to pandas, texts such as "None", "NA" and "null" were too."""

_LOADERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", _CSV | {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
"""File suffix -> the `datasets` builder that reads it, and how."""

_ALIASES = {"dev": "validation", "val": "validation", "valid": "validation", "eval": "validation"}
_USUAL = {"train": 0, "validation": 1, "test": 2}
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_WHAT_IS_READ = "csv, tsv, json, jsonl or parquet"


@dataclass(frozen=True)
class FilesSource:
    """Splits that are files.

    Attributes:
        where: The source as the user gave it.
        files: Split -> its files (more than one where it is sharded).
        cache_dir: Where `datasets` keeps the converted files.
    """

    where: str
    files: Mapping[str, tuple[Path, ...]]
    cache_dir: Path

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.files)

    def read(self, split: str) -> datasets.Dataset:
        """One split; a file that cannot be read raises `DataError`."""
        paths = self.files[split]
        kind, options = _LOADERS[paths[0].suffix.lower()]
        names = listed([path.name for path in paths])
        with _quiet(), _one_line(self.where, names):
            table = datasets.load_dataset(
                kind,
                data_files={"train": [glob.escape(str(path)) for path in paths]},
                split="train",
                cache_dir=str(self.cache_dir),
                **options,
            )
        if paths[0].suffix.lower() == ".tsv":
            _refuse_swallowed_rows(table, where=self.where, name=names)
        return table


@dataclass(frozen=True)
class SavedSource:
    """Splits that `datasets.save_to_disk` wrote.

    Attributes:
        where: The source as the user gave it.
        folders: Split -> its folder.
    """

    where: str
    folders: Mapping[str, Path]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.folders)

    def read(self, split: str) -> datasets.Dataset:
        """One split; a folder that cannot be read raises `DataError`."""
        with _quiet(), _one_line(self.where, self.folders[split].name):
            return datasets.load_from_disk(str(self.folders[split]))


def local_source(path: Path, *, where: str, cache_dir: Path) -> FilesSource | SavedSource:
    """The splits of an existing file or folder, none of them opened."""
    if path.is_file():
        if path.suffix.lower() not in _LOADERS:
            raise DataError(Fault(where, "data.source", f"a file '*{path.suffix}'", _WHAT_IS_READ))
        return FilesSource(where, {"train": (path.resolve(),)}, cache_dir)
    if (path / "state.json").is_file():
        return SavedSource(where, {"train": path})
    if (path / "dataset_dict.json").is_file():
        saved = sorted(entry.parent for entry in path.glob("*/state.json"))
        return SavedSource(where, {folder.name: folder for folder in saved})
    return FilesSource(where, _split_files(path, where), cache_dir)


def _split_files(folder: Path, where: str) -> dict[str, tuple[Path, ...]]:
    """Split -> files; `dev`, `val`, `valid` and `eval` are validation where nothing else is."""
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in _LOADERS:
            by_stem.setdefault(_SHARD.sub("", path.stem), []).append(path.resolve())
    if not by_stem:
        given = f"a folder with {listed(sorted(entry.name for entry in folder.iterdir()))}"
        allowed = f"one file per split, such as train.csv ({_WHAT_IS_READ})"
        raise DataError(Fault(where, "data.source", given, allowed))
    clashes = {stem: paths for stem, paths in by_stem.items() if not _one_split(paths)}
    if clashes:
        raise DataError(
            [
                Fault(where, "data.source", listed([p.name for p in paths]), f"one file '{stem}'")
                for stem, paths in clashes.items()
            ]
        )
    files: dict[str, tuple[Path, ...]] = {}
    for stem, paths in by_stem.items():
        name = _ALIASES.get(stem.lower(), stem)
        taken = name in by_stem or name in files
        files[stem if taken else name] = tuple(paths)
    return dict(sorted(files.items(), key=lambda item: (_USUAL.get(item[0], 3), item[0])))


def _one_split(paths: list[Path]) -> bool:
    """Whether files of one stem belong together: a single one, or shards of one kind."""
    if len(paths) == 1:
        return True
    return all(_SHARD.search(path.stem) for path in paths) and len({p.suffix for p in paths}) == 1


def _refuse_swallowed_rows(table: datasets.Dataset, *, where: str, name: str) -> None:
    """An unbalanced quote makes many lines of a tsv file one value: GLUE's own files have some."""
    for column, feature in table.features.items():
        if getattr(feature, "dtype", None) not in ("string", "large_string"):
            continue
        for row, value in enumerate(table[column]):
            if value is not None and "\n" in value and "\t" in value:
                given = f"{name}: row {row} holds several lines, by an unbalanced quote"
                hint = "double every quotation mark inside a field, or write jsonl"
                raise DataError(Fault(where, "data.source", given, "a row per line", hint))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and log lines of `datasets` while it converts a local file."""
    bars = not datasets.are_progress_bars_disabled()
    level = datasets_logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)
    try:
        yield
    finally:
        datasets_logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _one_line(where: str, name: str) -> Iterator[None]:
    """What reading a local file raises, as one line: its first cause."""
    try:
        yield
    except (DatasetsError, OSError, ValueError) as error:
        # `datasets` says "corresponds to no data" of a file with a header and no row.
        why = "no rows" if "corresponds to no data" in str(error) else first_cause(error)
        raise DataError(
            Fault(where, "data.source", f"{name}: {why}", "a file with a row per example")
        ) from error


def first_cause(error: BaseException) -> str:
    """The first line of the error that started a chain, at most 200 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
