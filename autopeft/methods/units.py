"""The units of a linear map that are trained or left alone as a whole, and how they are chosen.

W is [d_in, d_out], y = x W. A unit is one weight, a row (`input`), a column (`output`), a block of
side b or a head: head_dim columns of query, key and value, head_dim rows of output. Where b does
not divide a side, the strip that is left over at its end belongs to no block, so that every block
has the same size and counts are exact whatever is chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, randperm

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.importance import ImportanceMap, SiteScores, not_measured
from autopeft.configuration import Group
from autopeft.errors import BackboneError, Fault
from autopeft.methods.base import Start
from autopeft.methods.lane_operator import Place

GRANULARITIES = ("weight", "input", "output", "block", "head")
HEAD_COLUMNS, HEAD_ROWS = ("query", "key", "value"), ("output",)
"""Sites whose output, and whose input, consists of heads."""

MEASURED = (
    "gradient",
    "sensitivity",
    "snip",
    "fisher",
    "taylor",
    "activation",
    "gradient_sum",
)
DATA_FREE = ("random", "magnitude", "diagonal")
SCORES = (*MEASURED, *DATA_FREE)
"""`diagonal` is the nearness of blocks to the diagonal from the first to the last weight."""

KEEP_MORE = "`search.importance_keep` says what share of each matrix's weights"
KEEP_ALL = "`search.importance_keep: 1`"
"""How a map comes to keep more single weights than it does by itself."""

_ADDITIVE = frozenset(MEASURED) - {"gradient_sum"}

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """All units of one matrix.

    Attributes:
        granularity: One of `GRANULARITIES`.
        axis: Of which whole lines are units: "input", "output", or "" for weights and blocks.
        count: How many there are.
        lines: Rows or columns of each; 1 for weights and blocks.
        size: Weights of each.
        side: Of a block; 0 for other units.
    """

    granularity: str
    axis: str
    count: int
    lines: int
    size: int
    side: int = 0

    def number(self, density: float) -> int:
        """Units of a share of them: the nearest number, at least one."""
        return min(self.count, max(1, round(density * self.count)))

    def density(self, number: int) -> float:
        """The share that gives this number."""
        return number / self.count


def units(group: Group, place: Place) -> Units:
    """The units that a group of the method `sparse` chooses from; `fault` has found none."""
    return units_at(str(group["granularity"]), place, block=int(group.get("block") or 0))


def units_at(granularity: str, place: Place, *, block: int = 0) -> Units:
    """The units of a matrix; `fault_at` has found none."""
    d_in, d_out, head = place.d_in, place.d_out, place.head_dim
    if granularity == "weight":
        return Units("weight", "", d_in * d_out, 1, 1)
    if granularity == "block":
        return Units("block", "", (d_in // block) * (d_out // block), 1, block * block, block)
    lines = head if granularity == "head" else 1
    rows = granularity == "input" or (granularity == "head" and place.site in HEAD_ROWS)
    if rows:
        return Units(granularity, "input", d_in // lines, lines, lines * d_out)
    return Units(granularity, "output", d_out // lines, lines, lines * d_in)


def fault_at(granularity: str, place: Place, *, block: int = 0) -> Fault | None:
    """Why a matrix has no such units."""
    where = f"layer {place.layer}, {place.site}"
    smaller = min(place.d_in, place.d_out)
    if granularity == "block" and not 1 <= block <= smaller:
        given = f"{block} at {where}, {place.d_in} x {place.d_out}"
        return Fault("configuration", "sparse.block", given, f"1 to {smaller}")
    if granularity != "head":
        return None
    hint = "choose other sites, or another granularity"
    if place.site not in HEAD_COLUMNS + HEAD_ROWS:
        allowed = ", ".join(HEAD_COLUMNS + HEAD_ROWS)
        return Fault("configuration", "sparse.granularity", f"head at {where}", allowed, hint)
    width = place.d_in if place.site in HEAD_ROWS else place.d_out
    if place.head_dim < 1 or width % place.head_dim:
        given = f"head at {where}, {width} channels"
        allowed = f"a multiple of {place.head_dim}, the width of a head"
        return Fault("configuration", "sparse.granularity", given, allowed, hint)
    return None


def choice_faults(group: Group, places: Sequence[Place], anatomy: Anatomy) -> list[Fault]:
    """Why units cannot be chosen as a group says; what only a map tells, where there is one."""
    granularity, score = str(group["granularity"]), str(group["score"])
    found = [fault_at(granularity, place, block=int(group.get("block") or 0)) for place in places]
    faults = [fault for fault in found if fault is not None]
    if score == "diagonal" and granularity != "block":
        faults.append(_not_diagonal(granularity))
    if group.get("noise") == 1:
        hint = "a symmetric quantisation of one bit has no step"
        faults.append(Fault("configuration", "sparse.noise", "1", "0 (none), or 2 to 16", hint))
    if faults or score not in MEASURED:
        return faults
    if granularity == "head" and score not in _ADDITIVE:
        return [_no_heads(score)]
    return [] if anatomy.importance is None else _map_faults(group, places, anatomy.importance)


def _map_faults(group: Group, places: Sequence[Place], importance: ImportanceMap) -> list[Fault]:
    """What a map cannot tell: scores and sites it lacks, too many weights, other blocks."""
    faults: list[Fault] = []
    for place in places:
        own, score = units(group, place), str(group["score"])
        try:
            site = scores_at(importance, score, (place.layer, place.site))
            if own.granularity == "weight":
                _measured_weights(group, place, site, own)
            else:
                measured_units(own, site, score, importance.block)
        except BackboneError as error:
            faults += error.faults
    return faults


def chosen(group: Group, place: Place, start: Start) -> NDArray[np.int64]:
    """The units that a group trains at a place, ascending.

    The highest scores, or the lowest; of equal ones, those that come first. `random` depends on
    study and replicate alone, and a higher density adds units to those of a lower one.

    Raises:
        BackboneError: Scores that the importance map lacks, or that were not measured.
    """
    score = str(group["score"])
    if score in MEASURED:
        return chosen_by_map(group, place, start.importance)
    own = units(group, place)
    if score == "random":
        order = randperm(own.count, generator=start.draw("index")).numpy()
    elif score == "diagonal":
        order = _ordered(_nearness(own, place), group)
    else:
        matrix = start.weight(place.layer, place.site).abs().numpy().astype(np.float64)
        order = _ordered(_summed(own, matrix), group)
    return _first(order, own, group)


def chosen_by_map(
    group: Group, place: Place, importance: ImportanceMap | None
) -> NDArray[np.int64]:
    """The same for a measured score, by which a map alone decides.

    Raises:
        BackboneError: As `chosen`.
    """
    own, score = units(group, place), str(group["score"])
    if importance is None:
        raise not_measured()
    site = scores_at(importance, score, (place.layer, place.site))
    if own.granularity == "weight":
        return _first(_measured_weights(group, place, site, own), own, group)
    return _first(_ordered(measured_units(own, site, score, importance.block), group), own, group)


def _ordered(values: Scores, group: Group) -> NDArray[np.int64]:
    return np.argsort(values if group["smallest"] else -values, kind="stable")


def _first(order: NDArray[np.int64], own: Units, group: Group) -> NDArray[np.int64]:
    return np.sort(order[: own.number(float(group["density"]))]).astype(np.int64)


def _measured_weights(
    group: Group, place: Place, site: SiteScores, own: Units
) -> NDArray[np.int64]:
    """Single weights that a map keeps of a site, the first to be trained first; enough of them."""
    number = own.number(float(group["density"]))
    if group["smallest"]:
        if not site.whole:
            raise BackboneError(_lowest_unknown(str(group["score"])))
        return site.ascending()
    if number > len(site.weights):
        raise BackboneError(
            Fault(
                "importance",
                "",
                f"{number:,} weights of layer {place.layer}, {place.site}",
                f"at most {len(site.weights):,}, which the map keeps",
                f"lower the density, or let the map keep more: {KEEP_MORE}",
            )
        )
    return site.weights


def _lowest_unknown(score: str) -> Fault:
    return Fault(
        "configuration",
        "sparse.smallest",
        f"the single weights of the lowest `{score}`, of which the map keeps the highest",
        f"scores magnitude and random, another granularity, or a whole map: {KEEP_ALL}",
    )


def _not_diagonal(granularity: str) -> Fault:
    given = f"diagonal of granularity {granularity}"
    return Fault("configuration", "sparse.score", given, "granularity block")


def _no_heads(score: str) -> Fault:
    return Fault(
        "configuration", "sparse.score", f"{score} of heads", ", ".join(sorted(_ADDITIVE))
    )


def scores_at(importance: ImportanceMap | None, score: str, key: tuple[int, str]) -> SiteScores:
    """One site's measured scores.

    Raises:
        BackboneError: There is no map, or the score or the site is not in it.
    """
    if importance is None:
        raise not_measured()
    of: Mapping[tuple[int, str], SiteScores] = importance.of(score)
    if key not in of:
        layers = ", ".join(f"{layer}.{role}" for layer, role in sorted(of))
        raise BackboneError(Fault("importance", score, f"layer {key[0]}, {key[1]}", layers))
    return of[key]


def measured_units(own: Units, site: SiteScores, score: str, block: int) -> Scores:
    """Scores of rows, columns, heads and blocks of one site, [count].

    Args:
        own: What is scored; no single weights.
        site: What was measured there.
        score: Its name.
        block: Side of the map's blocks.

    Raises:
        BackboneError: Blocks that those of the map cannot make up.
    """
    if own.side:
        return _block_scores(own, site, score, block)
    lines = site.inputs if own.axis == "input" else site.outputs
    if score not in _ADDITIVE and own.lines > 1:
        raise BackboneError(_no_heads(score))
    sums: Scores = lines.astype(np.float64).reshape(own.count, own.lines).sum(1)
    return sums


def _block_scores(own: Units, site: SiteScores, score: str, block: int) -> Scores:
    times, rest = divmod(own.side, block)
    if rest or not times or (times > 1 and score not in _ADDITIVE):
        multiples, one = ("a multiple of ", "") if score in _ADDITIVE else ("", ", one of all")
        raise BackboneError(
            Fault(
                "configuration",
                "sparse.block",
                f"{own.side}, scored by {score}",
                f"{multiples}{block}, the side of the blocks that were measured",
                f"a study's `search.importance_block` says another{one}",
            )
        )
    rows, columns = (len(side) // own.side for side in (site.inputs, site.outputs))
    whole = site.blocks[: rows * times, : columns * times].astype(np.float64)
    sums: Scores = whole.reshape(rows, times, columns, times).sum((1, 3)).ravel()
    return sums


def _summed(own: Units, matrix: Scores) -> Scores:
    """Sums of a matrix's entries over each unit."""
    sums: Scores
    if own.granularity == "weight":
        return matrix.ravel()
    if own.side:
        b = own.side
        rows, columns = matrix.shape[0] // b, matrix.shape[1] // b
        whole = matrix[: rows * b, : columns * b].reshape(rows, b, columns, b)
        sums = whole.sum((1, 3)).ravel()
        return sums
    lines = matrix.sum(1 if own.axis == "input" else 0)
    sums = lines.reshape(own.count, own.lines).sum(1)
    return sums


def _nearness(own: Units, place: Place) -> Scores:
    """Minus a block's place among those of its line, the nearest to the diagonal first.

    Lines run along the shorter side, so that every one of the longer side has one block before
    any has two.
    """
    if not own.side:
        raise BackboneError(_not_diagonal(own.granularity))
    rows, columns = place.d_in // own.side, place.d_out // own.side
    # Twice the centres in units of 1 / (rows * columns), whole numbers: ties stay ties.
    down = (2 * np.arange(rows) + 1)[:, None] * columns
    across = (2 * np.arange(columns) + 1)[None, :] * rows
    along = 0 if columns >= rows else 1
    order = np.argsort(np.abs(down - across), axis=along, kind="stable")
    places: Scores = -np.argsort(order, axis=along).ravel().astype(np.float64)
    return places


def fixed_index(own: Units, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """What an operator is told of its units: every line's number, or the units' flat indices."""
    if own.lines == 1:
        return numbers
    lines: NDArray[np.int64] = numbers[:, None] * own.lines + np.arange(own.lines)
    return lines.ravel()


def weights_of(own: Units, place: Place, index: Tensor) -> Tensor:
    """Flat positions in W of all weights of the units that `index` names, in `values`' order."""
    if own.axis == "input":
        return (index[:, None] * place.d_out + index.new_tensor(range(place.d_out))).ravel()
    if own.axis == "output":
        rows = index.new_tensor(range(place.d_in))
        return (rows[:, None] * place.d_out + index[None, :]).ravel()
    if not own.side:
        return index
    inner = index.new_tensor(range(own.side))
    columns = place.d_out // own.side
    first = (index // columns) * own.side * place.d_out + (index % columns) * own.side
    square = inner[:, None] * place.d_out + inner[None, :]
    return (first[:, None, None] + square).ravel()
