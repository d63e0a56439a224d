"""Named configurations on any backbone: sparse fine-tuning as its papers set it up, and others.

Those without sparse weights are in `published`.

Numbers that the papers give for the width of LLaMA (4,096) are taken as shares of it. Where a
paper matches its budget to LoRA's, the rank can be named: `speft-r16`. What is not the paper's is
said beside each.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.configuration import Group
from autopeft.methods.sparse import DEFAULT_BLOCK
from autopeft.methods.units import MEASURED, SCORES
from autopeft.searchers.published import PUBLISHED, Published
from autopeft.space.schema import Scalar

S2FT_DENSITY = 0.03
S2FT_HEADS, S2FT_BESIDE = 0.052, 0.02
"""Heads of the output map and channels of the FFN, where S2FT trains both."""
GIFT_DENSITY = 128 / 4096
GIFT_BITS = 4
DIAGONAL_BLOCKS = 64
SCT_SHARE = 8


@dataclass(frozen=True)
class Preset:
    """What a name stands for, but for its training values.

    Attributes:
        groups: Before the rule.
        sparsity: The rule and all its parameters.
    """

    groups: tuple[Group, ...]
    sparsity: Mapping[str, Scalar]


@dataclass(frozen=True)
class _Recipe:
    """How a preset is made.

    Attributes:
        make: Of the backbone and the argument.
        argument: What follows the name: "rank", "score" or "" for nothing.
        default: Its value where the name stands alone.
        source: Paper and code.
        measured: Whether it needs an importance map whatever the argument.
    """

    make: Callable[[Anatomy, str], Preset]
    argument: str
    default: str
    source: str
    measured: bool = False


_NONE: Mapping[str, Scalar] = {"rule": "none"}


def _sites(anatomy: Anatomy, *roles: str) -> list[str]:
    return [role for role in roles or LINEAR_ROLES if role in anatomy.roles]


def _as_lora(anatomy: Anatomy, rank: str, sites: list[str], **sparsity: Scalar) -> Preset:
    """As many sparse weights as LoRA of a rank would have parameters in all layers."""
    layers, alpha = range(len(anatomy.layers)), 2.0 * int(rank)
    lora = Group.of("lora", layers, sites, rank=int(rank), alpha=alpha, dropout=0.0)
    settings: dict[str, Scalar] = {"rule": "sparse", "granularity": "weight", "smallest": False}
    return Preset((lora,), settings | sparsity)


def _speft(anatomy: Anatomy, rank: str) -> Preset:
    sites = _sites(anatomy, "query", "value")
    return _as_lora(anatomy, rank, sites, scope="global", score="gradient")


def _shira(anatomy: Anatomy, rank: str) -> Preset:
    sites = _sites(anatomy, "query", "value")
    return _as_lora(anatomy, rank, sites, scope="site", score="random")


def _tr_pts(anatomy: Anatomy, rank: str) -> Preset:
    """The highest of all weights say how many each layer gets, which then gets its own highest."""
    return _as_lora(anatomy, rank, _sites(anatomy), scope="global", score="fisher")


def _smt(anatomy: Anatomy, rank: str) -> Preset:
    """Blocks have the side that was measured: 256 of 4,096 is more than small backbones bear."""
    measured = anatomy.importance
    side = DEFAULT_BLOCK if measured is None else measured.block
    sites = _sites(anatomy, "query", "key", "value")
    settings: dict[str, Scalar] = {"granularity": "block", "block": side}
    return _as_lora(anatomy, rank, sites, scope="global", score="gradient_sum", **settings)


def _s2ft(anatomy: Anatomy, score: str) -> Preset:
    """Each layer gets the same share; the released code draws over the pool of all layers."""
    return Preset((_channels(anatomy, _sites(anatomy, "down"), S2FT_DENSITY, score, 0),), _NONE)


def _s2ft_heads(anatomy: Anatomy, score: str) -> Preset:
    """At least one head of each layer, of backbones with few."""
    heads = Group.of(
        "sparse",
        range(len(anatomy.layers)),
        _sites(anatomy, "output"),
        density=S2FT_HEADS,
        granularity="head",
        score=score,
        smallest=False,
    )
    channels = _channels(anatomy, _sites(anatomy, "down"), S2FT_BESIDE, score, 0)
    return Preset((heads, channels), _NONE)


def _gift_sw(anatomy: Anatomy, score: str) -> Preset:
    group = _channels(anatomy, _sites(anatomy), GIFT_DENSITY, score, GIFT_BITS)
    return Preset((group,), _NONE)


def _channels(anatomy: Anatomy, sites: list[str], density: float, score: str, noise: int) -> Group:
    return Group.of(
        "sparse",
        range(len(anatomy.layers)),
        sites,
        density=density,
        granularity="input",
        score=score,
        smallest=False,
        noise=noise,
    )


def _sct(anatomy: Anatomy, score: str) -> Preset:
    """An eighth of the channels, after attention."""
    channels = max(1, anatomy.hidden_size // SCT_SHARE)
    group = Group.of(
        "salient_channels",
        range(len(anatomy.layers)),
        [name for name in ("attention",) if name in anatomy.sublayers],
        channels=channels,
        score=score,
    )
    return Preset((group,), _NONE)


def _diablo(anatomy: Anatomy, argument: str) -> Preset:
    """Blocks are squares: a wide map's N blocks of m/N x n/N are rows of squares."""
    groups = []
    for layer in anatomy.layers:
        for role in _sites(anatomy, "query", "key", "value", "up", "down"):
            site = layer.sites[role]
            smaller = min(site.in_features, site.out_features)
            side = max(1, smaller // DIAGONAL_BLOCKS)
            settings: dict[str, Scalar] = {"granularity": "block", "block": side}
            share = 1.0 / (smaller // side)
            groups.append(
                Group.of(
                    "sparse",
                    (layer.index,),
                    (role,),
                    density=share,
                    score="diagonal",
                    smallest=False,
                    **settings,
                )
            )
    return Preset(tuple(groups), _NONE)


def _plain(published: Published) -> Callable[[Anatomy, str], Preset]:
    """What a publication sets up without a sparsity rule."""
    return lambda anatomy, argument: Preset(published.make(anatomy, argument), _NONE)


RECIPES: Mapping[str, _Recipe] = {
    "speft": _Recipe(
        _speft, "rank", "8", "SPEFT, arXiv 2412.13488: static, by gradient", measured=True
    ),
    "shira": _Recipe(_shira, "rank", "32", "SHiRA, arXiv 2406.13175, as HF peft has it: random"),
    "smt": _Recipe(
        _smt, "rank", "8", "SMT, arXiv 2405.15525: mean_abs, no_restriction", measured=True
    ),
    "tr-pts": _Recipe(
        _tr_pts, "rank", "2", "TR-PTS, arXiv 2507.22872: its parameter half", measured=True
    ),
    "s2ft": _Recipe(_s2ft, "score", "random", "S2FT, arXiv 2412.06289: d = 0.03, as released"),
    "s2ft-heads": _Recipe(
        _s2ft_heads,
        "score",
        "random",
        "S2FT, arXiv 2412.06289: o = 0.052, d = 0.02, as released for LLaMA-2",
    ),
    "gift-sw": _Recipe(_gift_sw, "score", "activation", "GIFT-SW, arXiv 2408.15300: 4 bits"),
    "sct": _Recipe(_sct, "score", "activation", "SCT, arXiv 2309.08513: K = d / 8, attention"),
    "diablo": _Recipe(_diablo, "", "", "DiaBlo, arXiv 2506.03230: N = 64"),
    **{
        name: _Recipe(_plain(each), "rank" if each.rank else "", each.rank, each.source)
        for name, each in PUBLISHED.items()
    },
}

_SHOWN = {"rank": "-r<rank>", "score": "-<score>", "": ""}

KNOWN = tuple(
    shown
    for name, recipe in RECIPES.items()
    for shown in dict.fromkeys((name, name + _SHOWN[recipe.argument]))
)


def preset(name: str, anatomy: Anatomy) -> Preset | None:
    """What a name stands for on a backbone; None for an unknown name."""
    recipe, argument = _recipe(name)
    return None if recipe is None else recipe.make(anatomy, argument)


def needs_map(name: str) -> bool:
    """Whether a preset chooses by measured scores; False for an unknown name."""
    recipe, argument = _recipe(name)
    return recipe is not None and (recipe.measured or argument in MEASURED)


def _recipe(name: str) -> tuple[_Recipe | None, str]:
    """The recipe behind a name, and the argument that it gives."""
    for known, recipe in RECIPES.items():
        if name == known:
            return recipe, recipe.default
        argument = name.removeprefix(f"{known}-")
        if argument == name:
            continue
        if recipe.argument == "rank" and (match := re.fullmatch(r"r([1-9]\d{0,3})", argument)):
            return recipe, match[1]
        if recipe.argument == "score" and argument in SCORES and argument != "diagonal":
            return recipe, argument
    return None, ""
