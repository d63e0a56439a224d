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
from torch.nn.functional import logsigmoid

from autopeft.backbone.devices import on_device, with_float64
from autopeft.space.schema import ParameterSchema, RuleSchema
from autopeft.sparsity.acting import Acting, Question, Subject
from autopeft.sparsity.base import Plain, rules
from autopeft.sparsity.sampling import (
    first_different,
    gumbels,
    weighted_subset,
    weighted_subsets,
)

MAX_DRAWS = 100
"""Of sets per candidate: where scores have become extreme, a different one may never come."""

_KEEP = ParameterSchema("keep", "float", default=0.25, minimum=0.0, maximum=1.0)


def updated_scores(
    scores: Tensor, sets: Tensor, losses: Tensor, step: float, counts: Tensor | None = None
) -> Tensor:
    """One round of the update above, without waiting for the device.

    Args:
        scores: s, [n].
        sets: What each candidate suppressed, bool [candidates, n].
        losses: Of the candidates, in the scores' type; where one is not finite, nothing is learnt.
        step: Its size.
        counts: Which candidates there are, bool [candidates]; None for all.
    """
    absent = torch.zeros_like(losses, dtype=torch.bool) if counts is None else ~counts
    rewards = torch.exp(-losses).masked_fill(absent, 0.0)
    mean = rewards.sum() / (~absent).sum()
    rewards = (rewards - mean).masked_fill(absent, 0.0)
    p = torch.sigmoid(scores)
    new = scores + step * (rewards.unsqueeze(1) * sets).sum(0) * p * (1.0 - p)
    return torch.where((torch.isfinite(losses) | absent).all(), new, scores)


def share_of(n: int, share: float) -> int:
    """A share of n layers, rounded down, at least 1."""
    return max(1, int(share * n))


class RandomLayers(Acting):
    """RST: the layers that train are drawn anew at every step, all alike."""

    def __init__(self, subject: Subject, keep: float) -> None:
        self._layers, self._n_layers = subject.layers, subject.n_layers
        self._draws = subject.draws
        self._kept = share_of(len(self._layers), keep)

    def schedule(self, step: int) -> Collection[int] | Tensor | None:
        """Layers drawn with equal weights."""
        if not self._layers:
            return None
        alike = np.zeros(len(self._layers))
        chosen = weighted_subset(alike, self._kept, self._uniforms("ist train", step)[0])
        return [self._layers[index] for index in chosen]

    def _uniforms(self, purpose: str, step: int, draws: int = 1) -> np.ndarray:
        """[draws, n] numbers, which depend on the layer and not on the others."""
        return self._draws(purpose, step).random((draws, self._n_layers))[:, list(self._layers)]


class ImportantLayers(RandomLayers):
    """IST: scores are learnt from losses with some layers suppressed.

    All of it is on the lane's device, but for the numbers that are drawn, since a step that asked
    for losses or scores would wait.

    Attributes:
        scores: float64 [n], of the layers that the configuration occupies.
    """

    def __init__(self, subject: Subject, settings: Mapping[str, float]) -> None:
        super().__init__(subject, settings["keep"])
        self._settings = settings
        n = len(self._layers)
        self._suppressed = share_of(n, settings["suppress"])
        possible = math.comb(n, self._suppressed) if n else 0
        self._candidates = min(int(settings["candidates"]), possible)
        self.period = int(settings["interval"]) if self._candidates > 1 else 0
        self._device = with_float64(subject.device)
        self._places = torch.tensor(self._layers, dtype=torch.long, device=self._device)
        self.scores = torch.zeros(n, dtype=torch.float64, device=self._device)
        self._sets = torch.zeros(0, n, dtype=torch.bool, device=self._device)
        self._counts = self._sets.any(1)

    def question(self, step: int) -> Question | None:
        """A pass per candidate at every `interval`-th step; none where there is but one set.

        Candidates that are no different sets, where these do not come, suppress nothing.
        """
        if not self.period or step == 0 or step % self.period:
            return None
        noise = self._noise("ist suppress", step, self._candidates * MAX_DRAWS)
        drawn = weighted_subsets(logsigmoid(self.scores), self._suppressed, noise)
        self._sets, self._counts = first_different(drawn, self._candidates)
        suppressed = self._by_layer(self._sets & self._counts.unsqueeze(1))
        gains = torch.ones_like(suppressed, dtype=torch.float32)
        gains.masked_fill_(suppressed, self._settings["beta"])
        return Question(int(self._settings["batch"]), step // self.period - 1, gains)

    def score_losses(self, step: int, losses: Tensor) -> None:
        """See the module."""
        own = losses.to(self._device).to(self.scores.dtype)
        size = self._settings["step"]
        self.scores = updated_scores(self.scores, self._sets, own, size, self._counts)

    def schedule(self, step: int) -> Collection[int] | Tensor | None:
        """Layers drawn with weights sigmoid(-s)."""
        if not self._layers:
            return None
        noise = self._noise("ist train", step)
        return self._by_layer(weighted_subsets(logsigmoid(-self.scores), self._kept, noise))[0]

    def _noise(self, purpose: str, step: int, draws: int = 1) -> Tensor:
        return on_device(gumbels(self._uniforms(purpose, step, draws)), self._device)

    def _by_layer(self, sets: Tensor) -> Tensor:
        """bool [m, n] -> of all layers of the backbone, [m, n_layers]."""
        return sets.new_zeros(len(sets), self._n_layers).index_copy_(1, self._places, sets)

    def state(self) -> dict[str, Tensor]:
        """The scores, float64 [n]."""
        return {"scores": self.scores.clone()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `state`."""
        self.scores = state["scores"].to(self._device, copy=True)


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
