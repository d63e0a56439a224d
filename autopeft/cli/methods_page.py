"""Writes the table of methods, `docs/methods.md`, from their files.

`python -m autopeft.cli.methods_page > docs/methods.md`; a test keeps the page in step.
"""

import sys
from collections.abc import Iterator

from autopeft import api
from autopeft.api.catalogue import MethodCard

_HEAD = """\
# Methods

<!-- Written by `make docs` from the files of the methods: edit those. -->

All methods train as lanes of one pack, in any mixture. Every one is held by the same tests
(`tests/methods`): counts against tensors; outputs, gradients and merged weights against dense
float64 references; packed against solo runs; and HF `peft` where it has the method. What differs
from a paper or its released code is said in the method's file. How they compare has not been
measured yet.
"""

_PASSED = """\
## Types of HF peft

Passed through as `peft` builds them, with `peft`'s own parameters: one adapter per type and set of
parameters. They have no lane axis, so their trials are packs of one. See [peft](peft.md).
"""


def page() -> str:
    """The whole page, as Markdown."""
    cards = api.methods()
    rows = ["| method | what | size | sites | arXiv |", "| --- | --- | --- | --- | --- |"]
    rows += [_row(card) for card in cards]
    settings = [line for card in cards for line in _settings(card)]
    passed = api.passed_types()
    types = ["| method | what | size | sites |", "| --- | --- | --- | --- |"]
    types += [_row(card, of_peft=True) for card in passed]
    theirs = [line for card in passed for line in _settings(card)]
    lines = [_HEAD, *rows, "", "## Settings", "", *settings, "", _PASSED, *types, ""]
    return "\n".join([*lines, "### Their settings", "", *theirs]) + "\n"


def _row(card: MethodCard, *, of_peft: bool = False) -> str:
    cells = [
        f"`{card.name}`", card.about.removeprefix("HF peft: "),
        f"`{card.size}`" if card.size else "none", ", ".join(card.sites) or "implied",
    ]  # fmt: skip
    cells += [] if of_peft else [", ".join(card.papers)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _settings(card: MethodCard) -> Iterator[str]:
    if card.settings:
        told = "; ".join(f"`{name}` ({legal})" for name, legal in card.settings.items())
        yield f"- `{card.name}`: {told}"


if __name__ == "__main__":
    sys.stdout.write(page())
