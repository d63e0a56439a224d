"""The portfolio: configurations that publications found good, as points of a study's space.

A space-filling start knows nothing; but much is known. Each recipe below says what its source
says, relative to a backbone: a method, a size (a number, or a share of the hidden size), sites,
and the top share of the layers. On a study's space it becomes the nearest point; where that is
something else than the source speaks of, it is left out:

- the methods must be those of the recipe, no more and no fewer, and without a sparsity rule;
- of the places (layer and site) that either occupies, both must occupy more than half;
- a size may be off by a factor of `MOST_FACTOR`.

What a recipe does not name (dropout, scale, ...) is the space's. Learning rates are not the
sources': those trained for long. They follow one rule for short trainings, see `short_rate`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.methods import registry
from autopeft.searchers.base import Problem, Proposal
from autopeft.study.records import Origin

LEAST_OVERLAP = 0.5
"""Share of the places that must be exceeded: "every linear map" is four of seven, not two."""

MOST_FACTOR = 2.0
"""One step of the usual grids, which double."""

MOST = 6
"""Entries of a portfolio: enough to span the sizes, few enough to leave a start room."""

LEVEL, LEVEL_WIDTH = 7e-3, 384
"""The rate of rank 1 on a backbone of this width. It gives rank 8 2.5e-3; of 3e-4, 1e-3 and 3e-3,
LoRA of rank 8 does best at 3e-3 there (TREC-6, 1000 questions, 96 steps: docs/results.md)."""

ALL, UPPER_HALF, UPPER_QUARTER = Fraction(1), Fraction(1, 2), Fraction(1, 4)


@dataclass(frozen=True)
class PortfolioEntry:
    """A configuration of the study's space that a publication speaks for.

    Attributes:
        configuration: A feasible point of the space.
        source: The publications.
        reason: What they found.
    """

    configuration: Configuration
    source: str
    reason: str

    @property
    def proposal(self) -> Proposal:
        """The entry as a part of a start."""
        details = {"reason": self.reason, "source": self.source}
        return Proposal(self.configuration, Origin.INITIAL, details)


@dataclass(frozen=True)
class Use:
    """One method of a recipe, relative to a backbone.

    Attributes:
        method: Its name.
        size: Rank, bottleneck or length; a `Fraction` is a share of the hidden size.
        sites: Where it sits; () where the method implies it.
        layers: The top share of the layers.
    """

    method: str
    size: int | Fraction
    sites: tuple[str, ...] = ()
    layers: Fraction = ALL

    def size_on(self, anatomy: Anatomy) -> int:
        """The size as a number."""
        if isinstance(self.size, Fraction):
            return max(1, int(self.size * anatomy.hidden_size))
        return self.size

    def to_dict(self, anatomy: Anatomy) -> dict[str, Any]:
        """A group of a configuration's plain form; sites that the backbone lacks among them."""
        n = len(anatomy.layers)
        share = math.ceil(self.layers * n)
        plain: dict[str, Any] = {"layers": list(range(n - share, n))}
        plain |= {"sites": list(self.sites)} if self.sites else {}
        return plain | {registry[self.method].schema.size: self.size_on(anatomy)}


@dataclass(frozen=True)
class Recipe:
    """What a publication found good.

    Attributes:
        uses: The methods, each once.
        source: Where it is written.
        reason: What was found, in one line.
    """

    uses: tuple[Use, ...]
    source: str
    reason: str


ATTENTION = ("query", "value")

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        (Use("lora", 8, ATTENTION, UPPER_HALF),),
        "Hu et al. 2021, arXiv 2106.09685; Pu et al. 2023, arXiv 2304.14999",
        "LoRA of rank 8 on query and value, as for GLUE; half of the layers keep the quality",
    ),
    Recipe(
        (Use("lora", 1, ATTENTION, UPPER_QUARTER),),
        "Hu et al. 2021, arXiv 2106.09685, section 7.2; Lee, Tang and Lin 2019, arXiv 1911.03090",
        "rank 1 suffices on query and value together; the last quarter of the layers gives 90 % "
        "of the quality",
    ),
    Recipe(
        (Use("lora", 32, LINEAR_ROLES),),
        "Dettmers et al. 2023 (QLoRA), arXiv 2305.14314; Hu et al. 2023, arXiv 2304.01933",
        "LoRA on every linear map of all layers matches full fine-tuning, its rank matters less",
    ),
    Recipe(
        (Use("parallel_adapter", Fraction(1, 16), ("ffn",)),),
        "Hu et al. 2023 (LLM-Adapters), arXiv 2304.01933; He et al. 2021, arXiv 2110.04366",
        "adapters parallel to the FFN do best; a bottleneck of 256 for a hidden size of 4096",
    ),
    Recipe(
        (Use("serial_adapter", Fraction(1, 128), ("ffn",), UPPER_HALF),),
        "Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2020, arXiv 2005.00247",
        "a bottleneck of 8 for a hidden size of 1024 does nearly as well as 64, one adapter after "
        "the FFN as well as two, and those of the lower layers hardly matter",
    ),
    Recipe(
        (Use("prefix", 30), Use("parallel_adapter", Fraction(1, 2), ("ffn",))),
        "He et al. 2021 (MAM adapter), arXiv 2110.04366",
        "a prefix of 30 for attention and a wide parallel adapter for the FFN do best together",
    ),
    Recipe(
        (Use("prefix", 10),),
        "Li and Liang 2021, arXiv 2101.00190; Hu et al. 2023, arXiv 2304.01933",
        "10 tokens in every layer: longer prefixes gained nothing on table-to-text and reasoning",
    ),
)
"""In the order in which they are tried: any first few span the sizes."""


def short_rate(uses: Sequence[Use], anatomy: Anatomy) -> float:
    """The learning rate of a short training, two significant digits.

    Adam moves every weight by about the rate, so what r ranks (or units of a bottleneck) do
    together grows with r. LoRA's own 1 / r takes that back, too much (rsLoRA, arXiv 2312.03732:
    1 / sqrt r is right); here scales do not fall with the size, so the rate falls with its root.
    A longer prefix adds nothing up: its softmax shares out. With the hidden size the rate falls as
    in "LoRA Without Regret" (Schulman et al. 2025): by a power that is 0.08 for one family of
    models and 0.78 for another. Of several methods it is the geometric mean.
    """
    width = (LEVEL_WIDTH / anatomy.hidden_size) ** 0.43
    sizes = [use.size_on(anatomy) if use.method != "prefix" else 1 for use in uses]
    logs = [math.log(LEVEL * width / math.sqrt(size)) for size in sizes]
    return float(f"{math.exp(sum(logs) / len(logs)):.2g}")


def portfolio(problem: Problem, recipes: Sequence[Recipe] = RECIPES) -> list[PortfolioEntry]:
    """At most `MOST` entries for a study, distinct and feasible, in the order of trial.

    Args:
        problem: The study's; its space finds nearest points.
        recipes: What is known.
    """
    entries: dict[str, PortfolioEntry] = {}
    for recipe in recipes:
        configuration = _located(recipe, problem)
        if configuration is not None and problem.feasible(configuration):
            entry = PortfolioEntry(configuration, recipe.source, recipe.reason)
            entries.setdefault(configuration.hash, entry)
    return list(entries.values())[:MOST]


def _located(recipe: Recipe, problem: Problem) -> Configuration | None:
    """The recipe on the study's space, or None where that is something else."""
    anatomy = problem.anatomy
    wanted = {use.method: use.to_dict(anatomy) for use in recipe.uses}
    training = {"learning_rate": short_rate(recipe.uses, anatomy)}
    plain = {method: [entry] for method, entry in wanted.items()}
    point = problem.space.nearest({**plain, "training": training})
    if point is None:
        return None
    found = problem.build(point)
    if dict(found.sparsity)["rule"] != "none" or set(found.methods) != wanted.keys():
        return None
    groups = {
        method: [group for group in found.groups if group.method == method] for method in wanted
    }
    near = all(_is_near(groups[method], entry) for method, entry in wanted.items())
    return found if near else None


def _is_near(found: Sequence[Group], wanted: dict[str, Any]) -> bool:
    """Whether a method's groups, all of one size, are still what the source speaks of."""
    size = registry[found[0].method].schema.size
    factor = float(found[0][size]) / float(wanted[size]) if size else 1.0
    ours = {place for group in found for place in _places(group.layers, group.sites)}
    theirs = _places(wanted["layers"], wanted.get("sites", ()))
    overlap = len(ours & theirs) / len(ours | theirs)
    return 1.0 / MOST_FACTOR <= factor <= MOST_FACTOR and overlap > LEAST_OVERLAP


def _places(layers: Sequence[int], sites: Sequence[str]) -> set[tuple[int, str]]:
    return {(layer, site) for layer in layers for site in sites or ("",)}
