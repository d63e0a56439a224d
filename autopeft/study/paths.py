"""Which values of a study file are paths, and where relative ones start.

In a file they start at the file's folder, in flags at the working directory; the study keeps them
absolute, so that it can be resumed from anywhere. A hub id looks like a relative path: it is taken
as one only where such a folder or file exists, or where it cannot be anything else.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BUILTIN = "builtin:"
DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_EXPLICIT = ("./", "../", "/", "~", ".\\", "..\\")


def resolve_source(value: str, base: Path) -> str:
    """A data source, absolute where it is a file or folder."""
    is_file_name = value.lower().endswith(DATA_SUFFIXES)
    return _resolved(value, base, surely=is_file_name, maybe=True)


def resolve_model(value: str, base: Path) -> str:
    """A model, absolute where it is a folder."""
    return _resolved(value, base, surely=False, maybe=True)


def resolve_space(value: str, base: Path) -> str:
    """A space, absolute where it is a file and not a name."""
    is_file_name = value.lower().endswith((".yaml", ".yml")) or "/" in value
    return _resolved(value, base, surely=is_file_name, maybe=False)


PATH_KEYS: Mapping[tuple[str, ...], Callable[[str, Path], str]] = {
    ("model", "name_or_path"): resolve_model,
    ("data", "source"): resolve_source,
    ("space",): resolve_space,
}
"""Every key that may hold a path, and how it is resolved."""


def with_absolute_paths(plain: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """A copy of a study file's content with its paths made absolute."""
    result = dict(plain)
    for key, resolve in PATH_KEYS.items():
        block = result
        for part in key[:-1]:
            if not isinstance(block.get(part), Mapping):
                break
            block[part] = dict(block[part])
            block = block[part]
        else:
            if isinstance(block.get(key[-1]), str):
                block[key[-1]] = resolve(block[key[-1]], base)
    return result


def _resolved(value: str, base: Path, *, surely: bool, maybe: bool) -> str:
    if not value.strip() or value.startswith(BUILTIN) or "://" in value:
        return value
    path = Path(value).expanduser()
    explicit = surely or value in (".", "..") or value.startswith(_EXPLICIT)
    if explicit or (maybe and (base / path).exists()):
        return str((base / path).resolve())
    return value
