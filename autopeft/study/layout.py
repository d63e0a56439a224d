"""How autopeft writes YAML: blocks as blocks, short lists on one line, numbers that come back.

PyYAML quotes what YAML 1.1 would misread; the files are read by YAML 1.2's rules (see
`autopeft.space.document`), under which `12e5` and `08` are numbers. Such texts are quoted as well.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

WIDTH = 96

_NUMBER_IN_YAML_1_2 = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes numbers of YAML 1.2 and writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Text as a scalar; with line breaks in it, quoted so that it stays on one line."""
    style = '"' if text.splitlines() not in ([], [text]) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", _NUMBER_IN_YAML_1_2, list("-+.0123456789")
)


def flow_text(value: Any) -> str:
    """A plain value as YAML on one line."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
    )
    return text.removesuffix("\n").removesuffix("\n...")


def yaml_text(plain: Mapping[str, Any]) -> str:
    """A plain mapping as a YAML document.

    Mappings are blocks. Lists of scalars, and mappings within lists where they fit, are written
    on one line.
    """
    return "".join(_block_lines(plain, 0))


def _block_lines(plain: Mapping[str, Any], indent: int) -> list[str]:
    return [line for key, value in plain.items() for line in entry_lines(key, value, indent)]


def entry_lines(key: str, value: Any, indent: int) -> list[str]:
    """The lines of one key with its value, each with its line end."""
    start = f"{' ' * indent}{flow_text(key)}:"
    if isinstance(value, Mapping) and value:
        return [f"{start}\n", *_block_lines(value, indent + 2)]
    line = f"{start} {flow_text(value)}\n"
    is_list_of_blocks = isinstance(value, list) and any(isinstance(i, Mapping) for i in value)
    if not is_list_of_blocks or len(line) <= WIDTH:
        return [line]
    return [f"{start}\n", *(f"{' ' * indent}  - {flow_text(item)}\n" for item in value)]
