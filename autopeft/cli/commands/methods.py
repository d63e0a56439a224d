"""`autopeft methods`: what a space may name."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from autopeft.cli.options import JsonOption
from autopeft.cli.streams import console, print_json

if TYPE_CHECKING:
    from autopeft.api.catalogue import MethodCard


def methods(as_json: JsonOption = False) -> None:
    """List the methods with their sizes, sites, parameter counts, exports and sources.

    r, m, b, n and the like are the method's size; d_in and d_out a map's widths. Trials of HF
    peft's own types, `peft:<TYPE>`, are packs of one. `peft-registered` is what `autopeft train`
    writes for peft's own loader, after `autopeft.register_with_peft()`. --json also has every
    setting and its legal values, and the kinds of backbones.
    """
    from autopeft import api
    from autopeft.cli.tables import plain_table, print_table

    cards = (*api.methods(), *api.passed_types())
    if as_json:
        print_json([asdict(card) for card in cards])
        return
    table = plain_table("method", "what it is, and where")
    for card in cards:
        table.add_row(card.name, "\n".join(_told(card)))
    for name, why in api.absent_methods().items():
        table.add_row(name, f"not there: {why}")
    print_table(console(), table)


def _told(card: "MethodCard") -> Iterator[str]:
    """Lines about a method; what there is none of is left out."""
    yield card.about
    yield f"size: {card.size or 'none'}; parameters: {card.count}"
    yield f"sites: {', '.join(card.sites) or 'implied'}; for {' and '.join(card.modalities)}"
    yield f"exports: {', '.join(card.exports)}"
    yield f"source: {card.source}"
