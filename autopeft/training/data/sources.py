"""Where data come from: the hub, a local file or folder, or the built-in data set.

A source knows the names of its splits without opening any, and opens one split at a time, so that
nobody reads a test split by accident. (For a hub data set, `datasets` downloads and converts all
splits into its cache; only those asked for are ever opened from there.)

Local files are converted below the study's output directory. Hub data sets stay in the user's own
Hugging Face cache, through which offline machines are supplied.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from autopeft.errors import DataError, Fault
from autopeft.training.data.docstrings import BUILTIN, materialise
from autopeft.training.data.files import first_cause, local_source
from autopeft.training.data.request import nearest

_OFFLINE = (
    "to work offline, fill the cache where there is a connection (autopeft validate --fetch) and "
    "set HF_HUB_OFFLINE=1, or give a local file or folder"
)


_HTTP_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]
"""The root of transport errors in whichever HTTP client the installed hub client uses."""


class Source(Protocol):
    """Named splits, read one at a time."""

    @property
    def where(self) -> str:
        """The source as the user gave it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the splits."""

    def read(self, split: str) -> datasets.Dataset:
        """One split; what cannot be read raises `DataError`."""


@dataclass(frozen=True)
class LockedSource:
    """A source whose test split cannot be read.

    Attributes:
        source: What it is.
        locked: The test split's name.
    """

    source: Source
    locked: str

    @property
    def where(self) -> str:
        """The source as the user gave it."""
        return self.source.where

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the splits, the locked one among them."""
        return self.source.names

    def read(self, split: str) -> datasets.Dataset:
        """One split but the locked one."""
        if split == self.locked:
            given, allowed = f"'{split}', which is locked", "the other splits"
            hint = "only `autopeft confirm --open-test` opens it, and leaves a record"
            raise DataError(Fault(self.where, "data.splits.test", given, allowed, hint))
        return self.source.read(split)


@dataclass(frozen=True)
class HubSource:
    """A hub data set, prepared in the Hugging Face cache.

    Attributes:
        where: Its id.
        builder: The `datasets` builder that prepared it.
    """

    where: str
    builder: Any

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.builder.info.splits or ())

    def read(self, split: str) -> datasets.Dataset:
        """One split."""
        return self.builder.as_dataset(split=split)


def open_source(
    source: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    output_dir: Path,
    seed: int = 0,
) -> Source:
    """The source of that name, no split of it opened.

    Args:
        source: A hub id, a path, or `builtin:docstrings`.
        config: A hub data set's configuration.
        revision: A hub data set's branch, tag or commit.
        output_dir: The built-in data set and converted local files are kept in its `data/`.
        seed: Decides the built-in data set's splits.

    Raises:
        DataError: Nothing readable of that name, or the hub cannot be reached.
    """
    folder = output_dir / "data"
    if source.startswith("builtin:"):
        if source != BUILTIN:
            raise DataError(Fault(source, "data.source", f"'{source}'", f"'{BUILTIN}'"))
        path = materialise(folder, seed=seed)
    else:
        path = Path(source).expanduser()
        if not path.exists():
            return _hub_source(source, config, revision)
    _refuse_hub_keys(source, config, revision)
    return local_source(path, where=source, cache_dir=folder / "cache")


def _refuse_hub_keys(source: str, config: str | None, revision: str | None) -> None:
    faults = [
        Fault(source, f"data.{key}", f"'{value}'", "null: only a hub data set has one")
        for key, value in (("config", config), ("revision", revision))
        if value is not None
    ]
    if faults:
        raise DataError(faults)


def _hub_source(source: str, config: str | None, revision: str | None) -> HubSource:
    if not _may_be_hub_id(source):
        parent = Path(source).expanduser().parent
        beside = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
        hint = nearest(Path(source).name, beside)
        allowed = "an existing file or folder, a hub id, or builtin:docstrings"
        raise DataError(Fault(source, "data.source", "a path where nothing lies", allowed, hint))
    try:
        builder = datasets.load_dataset_builder(source, config, revision=revision)
        builder.download_and_prepare()
    except (DatasetsError, OSError, ValueError, RuntimeError, _HTTP_ERROR) as error:
        raise DataError(_hub_fault(source, error)) from error
    return HubSource(source, builder)


def _may_be_hub_id(source: str) -> bool:
    """Whether it looks like `name` or `owner/name` rather than like a path."""
    looks_like_path = source.startswith((".", "~", "/")) or source.count("/") > 1
    suffixes = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
    return not looks_like_path and "\\" not in source and not source.lower().endswith(suffixes)


def _hub_fault(source: str, error: BaseException) -> Fault:
    if isinstance(error, DatasetNotFoundError):
        hint = "check the id; a private or gated one needs `hf auth login`"
        key = "data.revision" if str(error).startswith("Revision") else "data.source"
        return Fault(source, key, str(error).splitlines()[0], "a data set on the hub", hint)
    no_answer = isinstance(error, _HTTP_ERROR) and not isinstance(error, HfHubHTTPError)
    if no_answer or isinstance(error, ConnectionError | LocalEntryNotFoundError):
        return Fault(source, "data.source", "an unreachable hub", "a reachable hub", _OFFLINE)
    if "config" in str(error).lower():  # "Config name is missing", "BuilderConfig 'x' not found"
        given = " ".join(str(error).split())[:400]
        return Fault(source, "data.config", given, "one of the data set's configurations")
    if "scripts are no longer supported" in str(error):
        hint = "choose a copy in parquet, or give a local file or folder"
        return Fault(source, "data.source", "a data set that runs code", "data files", hint)
    return Fault(source, "data.source", first_cause(error), "a readable data set")
