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

Trained weights of packed and solo runs agree within 1e-9 in float64 and within 1e-5 in float32
on a CPU (mostly bit for bit). Where several methods sit at one map, [lanes](lanes.md) says in
which order they act.

All methods train as lanes of one pack, in any mixture. Every one is held by the same tests
(`tests/methods`): counts against tensors; outputs, gradients and merged weights against dense
float64 references; packed against solo runs; and HF `peft` where it has the method. What differs
from a paper or its released code is said in the method's file. How they compare at equal
parameters: [results](results.md); to add one: [a method in one file](adding-a-method.md).

`parameters` counts one place, a map of d_in x d_out or a sub-layer of width d. Every method is
exported as `yaml`, which `autopeft train` reads; the column names the other formats
(`peft-registered` is written by `autopeft train`, see [peft](peft.md)).
"""

_PASSED = """\
## Types of HF peft

Passed through as `peft` builds them, with `peft`'s own parameters: one adapter per type and set of
parameters. They have no lane axis, so their trials are packs of one. See [peft](peft.md).
"""

_LEFT_OUT = """\
## Not there

A space that names one of these is refused with the reason.
"""


_BASELINES = """\
## Baselines by name

What `search.baselines` takes. `autopeft plan` tells the sources of a study's own ones, and of its
space.
"""


def page() -> str:
    """The whole page, as Markdown."""
    cards = api.methods()
    columns = ("method", "what", "size", "parameters", "sites", "for", "exports", "source")
    rows = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---'] * len(columns))} |"]
    rows += [_row(card) for card in cards]
    settings = [line for card in cards for line in _settings(card)]
    passed = api.passed_types()
    own = ("method", "what", "size", "parameters", "sites", "source")
    types = [f"| {' | '.join(own)} |", f"| {' | '.join(['---'] * len(own))} |"]
    types += [_row(card, of_peft=True) for card in passed]
    theirs = [line for card in passed for line in _settings(card)]
    lines = [_HEAD, *rows, "", "## Settings", "", *settings, "", _PASSED, *types, ""]
    lines += ["### Their settings", "", *theirs, "", _BASELINES]
    lines += ["| name | source |", "| --- | --- |"]
    lines += [f"| `{name}` | {source} |" for name, source in api.preset_sources().items()]
    lines += ["", _LEFT_OUT]
    return (
        "\n".join([*lines, *(f"- `{n}`: {why}" for n, why in api.absent_methods().items())]) + "\n"
    )


def _row(card: MethodCard, *, of_peft: bool = False) -> str:
    about, sites = card.about.removeprefix("HF peft: "), ", ".join(card.sites) or "implied"
    size = f"`{card.size}`" if card.size else "none"
    cells = [f"`{card.name}`", about, size, card.count, sites]
    if of_peft:
        cells.append(card.source.removesuffix("; HF peft 0.21"))
    else:
        cells += [", ".join(each) for each in (card.modalities, card.exports[1:])]
        cells.append(card.source)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _settings(card: MethodCard) -> Iterator[str]:
    if card.settings:
        told = "; ".join(f"`{name}` ({legal})" for name, legal in card.settings.items())
        yield f"- `{card.name}`: {told}"


if __name__ == "__main__":
    sys.stdout.write(page())
