"""What is told of `peft`'s types is true: counts, against adapters that `peft` has built."""

from math import ceil
from typing import Any

import pytest
from passed_cases import SETTINGS
from peft.tuners.lokr.layer import factorization

from autopeft import api
from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.methods import registry
from autopeft.methods.passed.about import ABOUT
from autopeft.methods.passed.build import Target
from autopeft.methods.passed.counts import ModuleShape, PassedPlace, count_at
from autopeft.methods.passed.method import Passed
from autopeft.methods.passed.types import TYPES

SHAPES = ((32, 32), (32, 48), (48, 32), (64, 32))
LINEAR = tuple(kind.name for kind in TYPES if kind.where == "linear")


def _built(name: str, settings: dict[str, Any], d_in: int, d_out: int, layers: int) -> int:
    """Scalars that `peft` trains on so many layers' maps of a shape."""
    kind = registry[f"peft:{name}"].kind
    told = tuple(sorted(settings.items()))
    shapes = tuple(
        ModuleShape(Target(f"layers.{layer}.query", "query"), d_in, d_out, bias=True)
        for layer in range(layers)
    )
    places = [
        PassedPlace(layer, "query", d_in, d_out, 8, modules=shapes, index=layer)
        for layer in range(layers)
    ]
    return sum(count_at(kind, told, place).trained for place in places)


def _told(name: str, settings: dict[str, Any], d_in: int, d_out: int, layers: int) -> int:
    """The same by what is told."""
    about, method = ABOUT[name], registry[f"peft:{name}"]
    known: dict[str, Any] = {each.name: each.default for each in method.schema.parameters}
    known |= settings | {"d_in": d_in, "d_out": d_out, "m": min(d_in, d_out)}
    (a, c), (b, e) = factorization(d_out), factorization(d_in)
    known |= {"a": a, "b": b, "c": c, "e": e, "ceil": ceil}
    each = eval(about.count, {}, known)
    if name == "LOKR" and known["r"] >= max(c, e) / 2:
        each = a * b + c * e
    each += sum(eval(added, {}, known) for n, added in about.more.items() if known[n])
    once = eval(about.once, {}, known) if about.once else 0
    return int(layers * each + once)


@pytest.mark.parametrize("name", LINEAR)
def test_counts_are_told_as_they_are(name: str) -> None:
    assert isinstance(registry[f"peft:{name}"], Passed)
    size = registry[f"peft:{name}"].schema.size
    given = dict(SETTINGS.get(name, {}))
    cases = [given]
    if size and name != "LOKR":
        middle = given.get(size, registry[f"peft:{name}"].schema.parameter(size).default)
        cases += [given | {size: middle // 2 if isinstance(middle, int) else middle / 2}]
    if name == "LOKR":
        cases = [{"r": 1}, {"r": 2}, {"r": 3}, {"r": 8}]
    cases += [given | {flag: 4 if flag == "r" else True} for flag in ABOUT[name].more]
    for settings in cases:
        for d_in, d_out in SHAPES:
            for layers in (1, 2):
                found = _built(name, settings, d_in, d_out, layers)
                assert _told(name, settings, d_in, d_out, layers) == found, (settings, d_in, d_out)


OTHERWISE = [
    ("DEFT", {"para": True}, lambda d_in, d_out: 8 * d_out),
    ("MISS", {"r": 4, "init_weights": "mini", "mini_r": 2}, lambda d_in, d_out: 8),
    ("OFT", {"oft_block_size": 8, "block_share": True}, lambda d_in, d_out: 28),
    ("OSF", {}, lambda d_in, d_out: min(d_in, d_out) // 2 * (d_in + d_out + 1)),
    ("ROAD", {"variant": "road_2", "group_size": 8}, lambda d_in, d_out: 2 * d_out),
    ("ROAD", {"variant": "road_4", "group_size": 8}, lambda d_in, d_out: 4 * d_out),
]
"""What is told in words."""


@pytest.mark.parametrize(("name", "settings", "expected"), OTHERWISE, ids=lambda v: str(v)[:20])
def test_what_is_told_of_settings_is_so(
    name: str, settings: dict[str, Any], expected: Any
) -> None:
    for d_in, d_out in SHAPES:
        assert _built(name, settings, d_in, d_out, 1) == expected(d_in, d_out)


def test_every_type_is_told_with_its_paper_and_count() -> None:
    cards = {card.name: card for card in api.passed_types()}
    assert set(ABOUT) == {kind.name for kind in TYPES}
    for kind in TYPES:
        card = cards[f"peft:{kind.name}"]
        assert card.source == f"{ABOUT[kind.name].paper}; HF peft 0.21"
        assert card.count
        assert "As `peft` builds it" not in card.count
        assert bool(ABOUT[kind.name].count) == (kind.where in ("linear", "norm"))
        assert bool(card.papers) == ("arXiv" in card.source)
    assert cards["peft:LORA"].count == (
        "r (d_in + d_out), d_out more with use_dora, d_out more with lora_bias"
    )
    assert cards["peft:UNILORA"].count == "theta_d_length once"
    assert cards["peft:LORA"].papers == ("2106.09685",)
    assert cards["peft:LORA"].sites == LINEAR_ROLES
