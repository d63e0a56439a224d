"""`--set key.path=value`: single keys of a study replaced from the command line."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from autopeft.errors import Fault, InputError
from autopeft.space.document import parse_yaml
from autopeft.space.faults import shown
from autopeft.study.paths import PATH_KEYS

WHERE = "--set"


def with_overrides(plain: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a study file's content with single keys replaced.

    Args:
        plain: The content; left as it is.
        overrides: Texts such as `budget.trials=40`, `objectives.1.cap=2M` (items of a list by
            index, from 0) or `search.rungs=[0.5, 1.0]`; values are YAML. Later ones win. Relative
            paths start at the working directory.

    Raises:
        InputError: Every override that cannot be read or placed.
    """
    result = deepcopy(dict(plain))
    faults: list[Fault] = []
    for override in overrides:
        try:
            key, value = _read(override)
            _place(result, key, value, override)
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)
    return result


def _read(override: str) -> tuple[tuple[str, ...], Any]:
    path, equals, text = override.partition("=")
    key = tuple(part.strip() for part in path.split("."))
    if not equals or not all(key):
        raise InputError(Fault(WHERE, "", override, "key.path=value, such as budget.trials=40"))
    # The last key goes along, for there are keys whose value is text whatever it looks like.
    value = parse_yaml(f"'{key[-1]}': {text or 'null'}", f"{WHERE} {override}")[key[-1]]
    if key in PATH_KEYS and isinstance(value, str):
        value = PATH_KEYS[key](value, Path.cwd())
    return key, value


def _place(plain: dict[str, Any], key: tuple[str, ...], value: Any, override: str) -> None:
    block: Any = plain
    for depth, part in enumerate(key[:-1]):
        name = _name(block, part, key[: depth + 1])
        if isinstance(block, dict) and block.get(name) is None:
            block[name] = {}
        block = block[name]
        if not isinstance(block, (dict, list)):
            hint = f"set {'.'.join(key[: depth + 1])} as a whole"
            raise InputError(Fault(WHERE, ".".join(key), shown(block), "a block or list", hint))
    block[_name(block, key[-1], key)] = value


def _name(block: Any, part: str, key: tuple[str, ...]) -> int | str:
    """A key of a mapping, or an index that a list has."""
    if isinstance(block, dict):
        return part
    if part.isdecimal() and int(part) < len(block):
        return int(part)
    allowed = f"an item of 0 to {len(block) - 1}" if block else "no item: the list is empty"
    hint = f"set {'.'.join(key[:-1])} as a whole"
    raise InputError(Fault(WHERE, ".".join(key), part, allowed, hint))
