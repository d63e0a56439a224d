"""Finds search spaces: by name in `search_spaces/`, by path, or as an inline block."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from autopeft.errors import Fault, NotFoundError
from autopeft.space.document import parse_yaml, read_yaml
from autopeft.space.faults import nearest
from autopeft.space.parser import parse_space
from autopeft.space.schema import MethodSchema, RuleSchema
from autopeft.space.space import Space

_SUFFIXES = (".yaml", ".yml")


def list_spaces() -> tuple[str, ...]:
    """The names of the spaces that come with autopeft, sorted."""
    entries = (Path(entry.name) for entry in files("search_spaces").iterdir())
    return tuple(sorted(entry.stem for entry in entries if entry.suffix == ".yaml"))


def load_space(
    source: str | Path | Mapping[str, Any],
    *,
    schemas: Mapping[str, MethodSchema],
    rules: Mapping[str, RuleSchema],
    base: Path | None = None,
    where: str = "space",
) -> Space:
    """The space that `source` names or holds.

    Args:
        source: A name in `search_spaces/`, a path, or an inline block.
        schemas: The registered methods by name.
        rules: The registered sparsity rules by name.
        base: The folder where a relative path starts; the working directory if None.
        where: What an inline block is called in errors.

    Raises:
        SpaceError: The block has faults; all at once.
        NotFoundError: No space has that name.
        InputError: The file cannot be read or is broken.
    """
    if isinstance(source, Mapping):
        return parse_space(source, schemas, rules=rules, name="inline", where=where)
    if isinstance(source, str) and _is_name(source):
        name, where, block = _by_name(source)
    else:
        path = (base or Path()) / Path(source).expanduser()
        name, where, block = path.stem, str(path), read_yaml(path)
    return parse_space(block, schemas, rules=rules, name=name, where=where, is_file=True)


def _is_name(source: str) -> bool:
    return not source.endswith(_SUFFIXES) and "/" not in source and "\\" not in source


def _by_name(name: str) -> tuple[str, str, dict[str, Any]]:
    """A space that comes with autopeft: its name, what it is called in errors, its block."""
    known = list_spaces()
    if name not in known:
        close = nearest(name, known)
        hint = f"write {close}" if close else "write a path such as ./my-space.yaml for a file"
        raise NotFoundError(Fault("space", "", name or "no name", ", ".join(known), hint))
    where = f"search_spaces/{name}.yaml"
    text = files("search_spaces").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return name, where, parse_yaml(text, where)
