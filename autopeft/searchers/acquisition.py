"""The acquisition: expected gain in hypervolume, scored over a discrete set of candidates.

qLogNEHVI (Daulton et al., arXiv 2105.08195; Ament et al., arXiv 2310.20708) against the reference
point 0 in utility space. Known objectives enter as deterministic models that read their exact
utilities from columns of `X`. With a single objective it is qLogNEI.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autopeft.searchers.bo import (
    GenericDeterministicModel,
    ModelList,
    SingleTaskGP,
    get_sampler,
    is_non_dominated,
    qLogNoisyExpectedHypervolumeImprovement,
    qLogNoisyExpectedImprovement,
)

SAMPLES = 64
SAMPLES_3D = 32
"""Monte-Carlo samples with two objectives and with more, where each sample needs a partitioning
of its own in Python."""

CHUNK = 256
"""Candidates scored at once: bounds memory, and is as fast as more."""

MARGIN = 2.0
"""Standard deviations by which a told point must be dominated to be left out of account."""


def joint_model(surrogates: Sequence[SingleTaskGP | int]) -> ModelList:
    """One model of all objectives: a GP, or the column of `X` that holds a known utility."""
    return ModelList(*(_column(each) if isinstance(each, int) else each for each in surrogates))


def _column(index: int) -> GenericDeterministicModel:
    return GenericDeterministicModel(lambda X: X[..., index : index + 1], num_outputs=1)


class Acquisition:
    """Scores candidates one at a time, given those that are pending or chosen already."""

    def __init__(self, model: ModelList, baseline: Tensor, pending: Tensor, seed: int) -> None:
        """Prepare the acquisition.

        Args:
            model: The joint model of m objectives.
            baseline: `[b, D]` points measured at the full budget; may be empty.
            pending: `[p, D]` points in training; may be empty.
            seed: Seeds the Monte-Carlo samples.
        """
        self._model = model
        self._n_objectives = model.num_outputs
        self._baseline = contenders(model, baseline)
        self._pending = pending
        self._seed = seed
        self._function = self._built()

    def choose(self, x: Tensor) -> None:
        """Take the `[D]` point as chosen: what it is expected to gain is gained."""
        self._pending = torch.cat([self._pending, x.unsqueeze(0)])
        self._function = self._built()

    def score(self, X: Tensor) -> NDArray[np.float64]:
        """The logarithm of the expected gain of each of the `[n, D]` candidates; `[n]`."""
        with torch.no_grad():
            scores = [self._function(chunk.unsqueeze(1)) for chunk in torch.split(X, CHUNK)]
        found: NDArray[np.float64] = torch.cat(scores).nan_to_num(nan=-torch.inf).numpy()
        return found

    def _built(self) -> Callable[[Tensor], Tensor]:
        X = torch.cat([self._baseline, self._pending])
        n_samples = SAMPLES if self._n_objectives <= 2 else SAMPLES_3D
        with torch.no_grad():
            one = self._model.posterior(X.new_zeros(1, X.shape[-1]))
        sampler = get_sampler(one, sample_shape=torch.Size([n_samples]), seed=self._seed)
        if self._n_objectives == 1:
            # Without a measurement to improve on, anything would be an improvement.
            X = X if len(X) else X.new_zeros(1, X.shape[-1])
            gain: Callable[[Tensor], Tensor] = qLogNoisyExpectedImprovement(
                self._model, X, sampler=sampler, prune_baseline=False, cache_root=False
            )
        else:
            gain = qLogNoisyExpectedHypervolumeImprovement(
                self._model,
                [0.0] * self._n_objectives,
                X,
                sampler=sampler,
                prune_baseline=False,
                cache_root=False,
            )
        return gain


def contenders(model: ModelList, X: Tensor) -> Tensor:
    """The points of `X` that may be on the front: those that no other surely dominates.

    Cheaper than BoTorch's sampling, and without memory quadratic in the points.
    """
    if not len(X):
        return X
    with torch.no_grad():
        posteriors = [each.posterior(X) for each in model.models]
    mean = torch.cat([posterior.mean for posterior in posteriors], dim=-1)
    margin = MARGIN * torch.cat([p.variance.clamp_min(0.0).sqrt() for p in posteriors], dim=-1)
    upper, lower = mean + margin, mean - margin
    sure = lower[is_non_dominated(lower)]
    worse = (sure.unsqueeze(0) >= upper.unsqueeze(1)).all(-1)
    strictly = (sure.unsqueeze(0) > upper.unsqueeze(1)).any(-1)
    return X[~(worse & strictly).any(-1)]
