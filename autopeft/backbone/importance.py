"""What data say of a backbone's sites: one importance map per backbone, data set and task.

Plain data, measured once by `autopeft.importance` and then trusted; it hangs on the anatomy, so
that whatever knows where something can sit also knows how much it matters there. Scores are kept
as sums over the weights of a unit (a row, a column, a site, a layer ...); of single weights, only
the largest of every site are kept, unless all are asked for.

Notation: a site's weight is W [d_in, d_out], as the operators see it (y = x W), whatever the
checkpoint's own layout; row i belongs to input i, column j to output j.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import BackboneError, Fault

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Key = tuple[int, str]
"""A site: layer and role."""


def not_measured() -> BackboneError:
    """Something needs an importance map, and there is none."""
    return BackboneError(
        Fault(
            "importance",
            "",
            "no importance map of this backbone and these data",
            "a measured one",
            "`autopeft importance STUDY.yaml` measures it; a search does so by itself",
        )
    )


@dataclass(frozen=True)
class SiteScores:
    """One score of one site.

    Attributes:
        inputs: [d_in] sums over W's rows, one per input channel; of `activation`, the norms of
            the inputs themselves.
        outputs: [d_out] sums over W's columns, one per output channel.
        blocks: [ceil(d_in / b), ceil(d_out / b)] sums over b x b blocks, see
            `ImportanceMap.block`.
        weights: int64 [n] flat indices (i * d_out + j) of the n largest weights, largest first.
        values: [n] their scores.
    """

    inputs: Floats
    outputs: Floats
    blocks: Floats
    weights: Indices
    values: Floats

    @cached_property
    def total(self) -> float:
        """Sum over all weights, by columns: rows hold a norm where activations are scored."""
        return float(self.outputs.sum(dtype=np.float64))

    @property
    def whole(self) -> bool:
        """Whether all single weights are there, so that the lowest are known too."""
        return len(self.weights) == len(self.inputs) * len(self.outputs)

    def ascending(self) -> Indices:
        """`weights` by ascending score; of equal ones the last."""
        return self.weights[::-1]

    def output_heads(self, head_dim: int) -> Floats:
        """[d_out / head_dim] sums over the output channels of each head (query, key, value)."""
        return np.asarray(self.outputs.reshape(-1, head_dim).sum(1), dtype=np.float32)

    def input_heads(self, head_dim: int) -> Floats:
        """[d_in / head_dim] sums over the input channels of each head (output)."""
        return np.asarray(self.inputs.reshape(-1, head_dim).sum(1), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class ImportanceMap:
    """Scores of all sites of a backbone, by the score's name.

    Attributes:
        scores: Site scores by score and by (layer, role).
        block: Side of the blocks.
        examples: Training examples that were read.
        fingerprint: Of backbone, data, head and everything else that the scores depend on.
        facts: What was measured on what, for people.
    """

    scores: Mapping[str, Mapping[Key, SiteScores]]
    block: int
    examples: int
    fingerprint: str
    facts: Mapping[str, str] = field(default_factory=dict)

    def of(self, score: str) -> Mapping[Key, SiteScores]:
        """All sites' scores; BackboneError where the score was not measured."""
        if score not in self.scores:
            allowed = ", ".join(sorted(self.scores)) or "none"
            raise BackboneError(Fault("importance", "score", score, allowed))
        return self.scores[score]

    @property
    def fine(self) -> bool:
        """Whether blocks and single weights are there: maps that are listed come without."""
        return all(own.blocks.size for sites in self.scores.values() for own in sites.values())

    def sites(self, score: str) -> dict[Key, float]:
        """Total score of every site."""
        return {key: own.total for key, own in self.of(score).items()}

    def layers(self, score: str) -> dict[int, float]:
        """Total score of every layer."""
        totals: dict[int, float] = {}
        for (layer, _), total in self.sites(score).items():
            totals[layer] = totals.get(layer, 0.0) + total
        return totals

    def layer_ranking(self, score: str) -> tuple[int, ...]:
        """Layers, the most important first; of equal ones the higher first."""
        totals = self.layers(score)
        return tuple(sorted(totals, key=lambda layer: (-totals[layer], -layer)))

    def site_ranking(self, score: str, roles: Collection[str]) -> tuple[Key, ...]:
        """Sites of these roles, the most important (per weight) first.

        Per weight, since a large matrix has a large sum whatever its weights are worth.
        """
        means = {
            key: own.total / (len(own.inputs) * len(own.outputs))
            for key, own in self.of(score).items()
            if key[1] in roles
        }
        return tuple(sorted(means, key=lambda key: (-means[key], -key[0], key[1])))

    def sensitive(self, score: str, keys: Sequence[Key], n: int) -> dict[Key, int]:
        """How many of the `n` weights with the highest scores lie at each of these sites.

        Raises:
            BackboneError: More weights are asked for than the map keeps.
        """
        own = self.of(score)
        values = np.concatenate([own[key].values for key in keys])
        if n > len(values):
            given = f"{n:,} weights"
            raise BackboneError(
                Fault("importance", "", given, f"at most {len(values):,}, which the map keeps")
            )
        owners = np.repeat(np.arange(len(keys)), [len(own[key].values) for key in keys])
        order = np.argsort(-values, kind="stable")[:n]
        counts = np.bincount(owners[order], minlength=len(keys))
        return {key: int(count) for key, count in zip(keys, counts, strict=True)}
