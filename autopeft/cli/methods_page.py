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

Trained weights of packed and solo runs agree within 1e-9 in float64 and within 1e-5 in float32,
but for single scalars of `comp_lora` in float32, whose gradients are mostly rounding (its file
says why). Where several methods sit at one map, [lanes](lanes.md) says in which order they act.

All methods train as lanes of one pack, in any mixture. Every one is held by the same tests
(`tests/methods`): counts against tensors; outputs, gradients and merged weights against dense
float64 references; packed against solo runs; and HF `peft` where it has the method. What differs
from a paper or its released code is said in the method's file. How they compare has not been
measured yet.
"""


def page() -> str:
    """The whole page, as Markdown."""
    cards = api.methods()
    rows = ["| method | what | size | sites | arXiv |", "| --- | --- | --- | --- | --- |"]
    rows += [_row(card) for card in cards]
    settings = [line for card in cards for line in _settings(card)]
    return "\n".join([_HEAD, *rows, "", "## Settings", "", *settings]) + "\n"


def _row(card: MethodCard) -> str:
    cells = (
        f"`{card.name}`", card.about, f"`{card.size}`" if card.size else "none",
        ", ".join(card.sites) or "implied", ", ".join(card.papers),
    )  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _settings(card: MethodCard) -> Iterator[str]:
    if card.settings:
        told = "; ".join(f"`{name}` ({legal})" for name, legal in card.settings.items())
        yield f"- `{card.name}`: {told}"


if __name__ == "__main__":
    sys.stdout.write(page())
