"""IST and its control RST: at every step, a few layers train (arXiv 2410.11772).

IST learns which. Scores s are *un-importance*: a layer with a high one is safe to suppress. Every
`interval` steps (not at step 0), `candidates` different sets of layers are drawn with weights
sigmoid(s); for each, what the methods add in its layers is shrunk to `beta`, and the loss l on
`batch` training examples is measured. With r = exp(-l), centred over the candidates, and
p = sigmoid(s) from before:

    s_i <- s_i + step * r * p_i (1 - p_i)      for every i in the set

At every step, the layers that train are drawn with weights sigmoid(-s). As the released code
(antgroup/importance-aware-sparse-tuning-IST-paper) has it, with two differences: layers are those
that the configuration occupies, not all of the backbone; and shares of them are rounded down, but
never to nothing. RST draws with all s = 0; the released control is absent from the repository.
"""

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from autopeft.space.schema import ParameterSchema, RuleSchema
from autopeft.sparsity.acting import Acting, Question, Subject
from autopeft.sparsity.base import Plain, rules
from autopeft.sparsity.sampling import log_sigmoid, weighted_subset

MAX_DRAWS = 100
"""Of sets per candidate: where scores have become extreme, a different one may never come."""

_KEEP = ParameterSchema("keep", "float", default=0.25, minimum=0.0, maximum=1.0)


def updated_scores(
    scores: np.ndarray, sets: list[tuple[int, ...]], losses: np.ndarray, step: float
) -> np.ndarray:
    """One round of the update above.

    Args:
        scores: s, [n].
        sets: Positions that each candidate suppressed.
        losses: Of the candidates; where one is not finite, nothing is learnt.
        step: Its size.
    """
    if not np.isfinite(losses).all():
        return scores
    rewards = np.exp(-losses)
    rewards = rewards - rewards.mean()
    p = 1.0 / (1.0 + np.exp(-scores))
    new = scores.copy()
    for positions, reward in zip(sets, rewards, strict=True):
        chosen = list(positions)
        new[chosen] += step * reward * p[chosen] * (1.0 - p[chosen])
    return new


def share_of(n: int, share: float) -> int:
    """A share of n layers, rounded down, at least 1."""
    return max(1, int(share * n))


class RandomLayers(Acting):
    """RST: the layers that train are drawn anew at every step, all alike."""

    def __init__(self, subject: Subject, keep: float) -> None:
        self._layers, self._n_layers = subject.layers, subject.n_layers
        self._draws = subject.draws
        self._kept = share_of(len(self._layers), keep)
        self.scores = np.zeros(len(self._layers))

    def schedule(self, step: int) -> Collection[int] | None:
        """Layers drawn with weights sigmoid(-s)."""
        if not self._layers:
            return None
        uniforms = self._uniforms(self._draws("ist train", step))
        chosen = weighted_subset(log_sigmoid(-self.scores), self._kept, uniforms)
        return [self._layers[index] for index in chosen]

    def _uniforms(self, generator: np.random.Generator) -> np.ndarray:
        """One number per occupied layer, which depends on the layer and not on the others."""
        return generator.random(self._n_layers)[list(self._layers)]


class ImportantLayers(RandomLayers):
    """IST: scores are learnt from losses with some layers suppressed."""

    def __init__(self, subject: Subject, settings: Mapping[str, float]) -> None:
        super().__init__(subject, settings["keep"])
        self._settings = settings
        n = len(self._layers)
        self._suppressed = share_of(n, settings["suppress"])
        possible = math.comb(n, self._suppressed) if n else 0
        self._candidates = min(int(settings["candidates"]), possible)
        self.period = int(settings["interval"]) if self._candidates > 1 else 0
        self._sets: list[tuple[int, ...]] = []

    def question(self, step: int) -> Question | None:
        """A pass per candidate at every `interval`-th step; none where there is but one set."""
        if not self.period or step == 0 or step % self.period:
            return None
        self._sets = self._different_sets(step)
        if len(self._sets) < 2:
            return None
        gains = np.ones((len(self._sets), self._n_layers))
        for row, positions in zip(gains, self._sets, strict=True):
            row[[self._layers[index] for index in positions]] = self._settings["beta"]
        return Question(int(self._settings["batch"]), step // self.period - 1, gains)

    def _different_sets(self, step: int) -> list[tuple[int, ...]]:
        generator = self._draws("ist suppress", step)
        sets: list[tuple[int, ...]] = []
        for _ in range(self._candidates * MAX_DRAWS):
            if len(sets) == self._candidates:
                break
            uniforms = self._uniforms(generator)
            drawn = weighted_subset(log_sigmoid(self.scores), self._suppressed, uniforms)
            if drawn not in sets:
                sets.append(drawn)
        return sets

    def score_losses(self, step: int, losses: np.ndarray) -> None:
        """See the module."""
        self.scores = updated_scores(self.scores, self._sets, losses, self._settings["step"])

    def state(self) -> dict[str, Tensor]:
        """The scores, float64 [n]."""
        return {"scores": torch.from_numpy(self.scores.copy())}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `state`."""
        self.scores = state["scores"].numpy().copy()


class Ist(Plain):
    """The rule `ist`."""

    schema = RuleSchema(
        "ist",
        (
            ParameterSchema("interval", "int", default=10, minimum=1),
            _KEEP,
            ParameterSchema("suppress", "float", default=0.5, minimum=0.0, maximum=1.0),
            ParameterSchema("step", "float", default=10.0, minimum=0.0),
            ParameterSchema("beta", "float", default=0.25, minimum=0.0, maximum=1.0),
            ParameterSchema("candidates", "int", default=3, minimum=2),
            ParameterSchema("batch", "int", default=16, minimum=1),
        ),
    )
    source = "Yao et al. 2024, Layer-wise Importance Matters (IST), arXiv 2410.11772; its code"
    by_layer = True

    def acting(self, subject: Subject) -> Acting:
        """See `ImportantLayers`."""
        return ImportantLayers(subject, self.numbers(subject.configuration))


class Rst(Plain):
    """The rule `rst`."""

    schema = RuleSchema("rst", (_KEEP,))
    source = "the random control of IST, arXiv 2410.11772"
    by_layer = True

    def acting(self, subject: Subject) -> Acting:
        """See `RandomLayers`."""
        return RandomLayers(subject, self.numbers(subject.configuration)["keep"])


rules.register(Ist())
rules.register(Rst())
