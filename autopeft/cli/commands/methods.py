"""`autopeft methods`: what a space may name."""

from dataclasses import asdict

from autopeft.cli.options import JsonOption
from autopeft.cli.streams import console, print_json


def methods(as_json: JsonOption = False) -> None:
    """List the methods with their sizes, sites and sources, and HF peft's types.

    Trials of `peft:<TYPE>` methods are packs of one. --json also has every setting and its legal
    values.
    """
    from autopeft import api
    from autopeft.cli.tables import plain_table, print_table

    cards = (*api.methods(), *api.passed_types())
    if as_json:
        print_json([asdict(card) for card in cards])
        return
    table = plain_table("method", "size", "sites", "what", "arXiv")
    for card in cards:
        sites = ", ".join(card.sites) or "implied"
        table.add_row(card.name, card.size or "none", sites, card.about, ", ".join(card.papers))
    print_table(console(), table)
