"""Strict reading of YAML: what the user wrote is what we get, or one line says why not.

PyYAML speaks YAML 1.1, where `3e-5` is text, `on` is true, `010` is 8, `1:30` is 90 and a commit
hash such as `12345678` turns into a number. Here scalars follow YAML 1.2's core schema, the value
of a `revision` stays as written, a key given twice is a fault, and no tag builds Python objects.
"""

import re
import reprlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from autopeft.errors import Fault, InputError

_VERBATIM_KEYS = frozenset({"revision"})


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars, text keys without duplicates, and no recursion."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as PyYAML declares it
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:str", None)
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        self._check_keys(node)
        self.flatten_mapping(node)
        mapping: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            mapping[key_node.value] = self._construct_value(key_node.value, value_node, deep)
        return mapping

    def _construct_value(self, key: str, node: yaml.Node, deep: bool) -> Any:
        verbatim = key in _VERBATIM_KEYS and isinstance(node, yaml.ScalarNode)
        if verbatim and node.tag != "tag:yaml.org,2002:null":
            return node.value
        return self.construct_object(node, deep=deep)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is not text (put it in quotes)", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} a second time", key_node.start_mark
                )
            seen.add(key_node.value)


def _map(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    # Built at once, not by SafeLoader's generators: an alias to itself is then an error.
    return loader.construct_mapping(node, deep=True)


def _seq(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _scalar(convert: Callable[[str], Any], expected: str) -> Callable[[_Loader, yaml.Node], Any]:
    """A constructor that says so where a value does not fit its tag (`!!int abc`)."""

    def construct(loader: _Loader, node: yaml.Node) -> Any:
        try:
            return convert(str(node.value))
        except (KeyError, ValueError) as error:
            problem = f"{reprlib.repr(node.value)} as {expected}"
            raise yaml.constructor.ConstructorError(
                None, None, problem, node.start_mark
            ) from error

    return construct


_RESOLVERS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
    )
_Loader.add_constructor("tag:yaml.org,2002:bool", _scalar(_bool, "true or false"))
_Loader.add_constructor("tag:yaml.org,2002:int", _scalar(int, "a whole number"))
_Loader.add_constructor("tag:yaml.org,2002:float", _scalar(_float, "a number"))
_Loader.add_constructor("tag:yaml.org,2002:map", _map)
_Loader.add_constructor("tag:yaml.org,2002:seq", _seq)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping that a YAML document holds.

    Args:
        text: The document.
        where: What it is called in errors: a file's path.

    Raises:
        InputError: It is broken (with line and column), empty, or no mapping.
    """
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _broken(where, error.problem_mark, str(error.problem or error.context)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        place = f"{where}, line {line}"
        character = f"the character U+{error.character:04X}"
        raise InputError(Fault(place, "", character, "printable text")) from error
    except RecursionError as error:
        raise InputError(Fault(where, "", "YAML nested too deeply", "a few levels")) from error
    if data is None:
        raise InputError(Fault(where, "", "an empty document", "a mapping of keys to values"))
    if not isinstance(data, dict):
        raise InputError(
            Fault(where, "", f"a {type(data).__name__}", "a mapping of keys to values")
        )
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        InputError: The file cannot be read, is not UTF-8, is broken, empty, or no mapping.
    """
    where = str(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        hint = f"looked in {path.parent.resolve()}"
        raise InputError(Fault(where, "", "no such file", "a YAML file", hint)) from error
    except IsADirectoryError as error:
        raise InputError(Fault(where, "", "a directory", "a YAML file")) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(Fault(where, "", reason.lower(), "a readable YAML file")) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        given = f"byte 0x{content[error.start]:02X} at offset {error.start}"
        raise InputError(Fault(where, "", given, "UTF-8 text", "save it as UTF-8")) from error
    return parse_yaml(text, where)


def _broken(where: str, mark: Any, problem: str) -> InputError:
    place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
    hint = "indent with spaces, not tabs" if r"'\t'" in problem else ""
    return InputError(Fault(place, "", problem, "well-formed YAML", hint))
