"""docs/sparsity.md says what the rules say of themselves."""

import inspect
import re
from pathlib import Path

import pytest

from autopeft.space.schema import ParameterSchema, RuleSchema
from autopeft.sparsity import lisa, rules

PAGE = (Path(__file__).parents[2] / "docs" / "sparsity.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`[^\n]*\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL))


def table(schema: RuleSchema) -> str:
    """A rule's parameters as the page shows them."""
    rows = [
        f"| `{each.name}` | {shown(each.default)} | {allowed(each)} |"
        for each in schema.parameters
    ]
    return "\n".join(["| parameter | default | allowed |", "| --- | --- | --- |", *rows])


def shown(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def allowed(each: ParameterSchema) -> str:
    if each.kind == "bool":
        text = "`true`, `false`"
    elif each.choices:
        text = ", ".join(f"`{choice}`" for choice in each.choices)
    else:
        kind = "whole number" if each.kind == "int" else "number"
        most = "" if each.maximum is None else f", at most {each.maximum:g}"
        text = f"{kind}, at least {each.minimum:g}{most}"
    return text if each.when is None else f"{text}; with `{each.when[0]}: {each.when[1]}`"


@pytest.mark.parametrize("name", [name for name in rules.names() if name != "none"])
def test_every_rule_has_its_section(name: str) -> None:
    rule = rules[name]
    section = SECTIONS[name]
    assert table(rule.schema) in section, f"put this under `{name}`:\n{table(rule.schema)}"
    (arxiv,) = re.findall(r"arXiv (\d{4}\.\d{5})", rule.source)
    assert f"arXiv {arxiv}" in " ".join(section.split())
    for method in rule.schema.methods:
        assert f"`{method}`" in section, "the methods that it is for"


def test_no_section_is_of_a_rule_that_is_not_there() -> None:
    assert set(SECTIONS) == set(rules.names()) - {"none"}


def test_the_rule_that_is_shown_is_the_one_that_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code.strip() in inspect.getsource(lisa)
