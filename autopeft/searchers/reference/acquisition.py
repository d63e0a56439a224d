"""The reference's acquisition: noisy expected hypervolume improvement over mixtures of GPs.

qNEHVI (Daulton et al., arXiv 2105.08195), not its logarithm, averaged over the draws of the
hyper-parameters. BoTorch has it; but it predicts the measured points anew for every candidate,
which over thousands of candidates, 16 draws and 128 samples takes minutes. Here the measured
points are sampled once, and a candidate's samples are drawn given theirs (the same conditional
normal); checked against BoTorch's in the tests.

Notation: S draws of hyper-parameters, M Monte-Carlo samples, P points whose gain is had already
(measured or chosen), m objectives, b candidates; all maximised.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from autopeft.searchers.bo import (
    FastNondominatedPartitioning,
    draw_sobol_normal_samples,
    is_non_dominated,
)
from autopeft.searchers.reference.saas import SaasGP, rooted

CELLS_3D = 8
"""Samples per draw of the hyper-parameters where there are more than two objectives: each sample
of each draw then needs a partitioning of its own, in Python."""


class _Sampled:
    """One objective at the P points, and at candidates given these."""

    def __init__(self, model: SaasGP, X: Tensor, normal: Tensor) -> None:
        """Sample the points.

        Args:
            model: The objective's surrogate.
            X: `[P, d]`.
            normal: `[M, P + 1]` standard normal; the last column is the candidates'.
        """
        self._model, self._X, self._normal = model, X, normal
        mean, self._projected = model.project(X)
        covariance = model.kernel(X, X) - self._projected.mT @ self._projected
        self._root = rooted(covariance)
        self.values = mean.unsqueeze(1) + normal[:, :-1] @ self._root.mT

    def at(self, X: Tensor) -> Tensor:
        """`[S, M, b]` samples at the `[b, d]` candidates."""
        mean, projected = self._model.project(X)
        cross = self._model.kernel(self._X, X) - self._projected.mT @ projected
        lean: Tensor = torch.linalg.solve_triangular(self._root, cross, upper=False)
        own = self._model.scale.unsqueeze(-1) - (projected**2).sum(-2) - (lean**2).sum(-2)
        spread = own.clamp_min(0.0).sqrt().unsqueeze(1)
        return mean.unsqueeze(1) + self._normal[:, :-1] @ lean + self._normal[:, -1:] * spread


class NoisyImprovement:
    """Scores candidates one at a time, given what is measured, pending or chosen already."""

    def __init__(
        self,
        models: Sequence[SaasGP],
        reference: Sequence[float],
        measured: Tensor,
        pending: Tensor,
        *,
        samples: int,
        seed: int,
    ) -> None:
        """Prepare the acquisition.

        Args:
            models: One per objective.
            reference: The reference point, in the models' outputs.
            measured: `[n, d]`, n >= 1; those that are on no sampled front are left out.
            pending: `[p, d]`; may be empty.
            samples: M; fewer with more than two objectives.
            seed: Decides the samples.
        """
        self._models, self._reference, self._seed = models, reference, seed
        self._samples = samples if len(models) <= 2 else min(samples, CELLS_3D)
        X = torch.cat([self._contenders(measured), pending])
        self._X, self._sampled, self._front = X, *self._prepared(X)

    def choose(self, x: Tensor) -> None:
        """Take the `[d]` point as chosen: its gain is had."""
        self._X = torch.cat([self._X, x.unsqueeze(0)])
        self._sampled, self._front = self._prepared(self._X)

    def score(self, X: Tensor) -> Tensor:
        """The expected improvement in hypervolume of each of the `[b, d]` candidates."""
        gains = self._front.gains(torch.stack([each.at(X) for each in self._sampled], dim=-1))
        return gains.mean((0, 1)).nan_to_num(nan=0.0)

    def _prepared(self, X: Tensor) -> tuple[list[_Sampled], "_Staircase | _Cells"]:
        sampled = self._sample(X)
        values = torch.stack([each.values for each in sampled], dim=-1)
        floor = values.new_tensor(self._reference)
        return sampled, (_Staircase if len(self._models) == 2 else _Cells)(values, floor)

    def _sample(self, X: Tensor) -> list[_Sampled]:
        """One sequence for all objectives: of two, however seeded, a column's signs agree."""
        width = len(X) + 1
        normal = draw_sobol_normal_samples(
            width * len(self._models), self._samples, dtype=X.dtype, seed=self._seed
        )
        columns = normal.split(width, dim=-1)
        return [_Sampled(model, X, own) for model, own in zip(self._models, columns, strict=True)]

    def _contenders(self, X: Tensor) -> Tensor:
        """The points that are on the front in some sample (BoTorch's `prune_baseline`)."""
        values = torch.stack([each.values for each in self._sample(X)], dim=-1)
        kept = torch.zeros(len(X), dtype=torch.bool)
        for drawn in values:
            kept |= is_non_dominated(drawn).any(0)
        return X[kept]


class _Staircase:
    """What two objectives' samples dominate already, as columns under a staircase."""

    def __init__(self, values: Tensor, reference: Tensor) -> None:
        """Sort the points of every sample by the first objective.

        Args:
            values: `[S, M, P, 2]`.
            reference: `[2]`.
        """
        values = torch.maximum(values, reference)
        first, order = values[..., 0].sort(dim=-1)
        second = values[..., 1].gather(-1, order)
        heights = second.flip(-1).cummax(-1).values.flip(-1)
        self._ends = torch.cat([reference[0].expand_as(first[..., :1]), first], dim=-1)
        self._heights = torch.cat([heights, reference[1].expand_as(first[..., :1])], dim=-1)

    def gains(self, values: Tensor) -> Tensor:
        """`[S, M, b]`: what `[S, M, b, 2]` points would add, a column at a time."""
        first, second = values.unbind(-1)
        gained = torch.zeros_like(first)
        for column in range(self._ends.shape[-1]):
            width = first - self._ends[..., column : column + 1]
            if column + 1 < self._ends.shape[-1]:
                own = (
                    self._ends[..., column + 1 : column + 2] - self._ends[..., column : column + 1]
                )
                width = torch.minimum(width, own)
            height = second - self._heights[..., column : column + 1]
            gained.addcmul_(width.clamp_min_(0.0), height.clamp_min_(0.0))
        return gained


class _Cells:
    """What any number of objectives' samples do not dominate yet, as boxes."""

    def __init__(self, values: Tensor, reference: Tensor) -> None:
        """Partition every sample on its own.

        Args:
            values: `[S, M, P, m]`.
            reference: `[m]`.
        """
        self._boxes = [
            [self._partition(sample, reference) for sample in drawn] for drawn in values
        ]

    @staticmethod
    def _partition(points: Tensor, reference: Tensor) -> Tensor:
        if points.shape[-1] == 1:
            best = torch.maximum(points.amax(0), reference)
            return torch.stack([best, torch.full_like(best, torch.inf)]).unsqueeze(1)
        partition = FastNondominatedPartitioning(ref_point=reference, Y=points)
        boxes: Tensor = partition.get_hypercell_bounds()
        return boxes

    def gains(self, values: Tensor) -> Tensor:
        """`[S, M, b]`: what `[S, M, b, m]` points would add."""
        gained = values.new_zeros(values.shape[:-1])
        for draw, samples in enumerate(self._boxes):
            for index, (lower, upper) in enumerate(samples):
                points = values[draw, index].unsqueeze(-2)
                sides = (torch.minimum(points, upper) - lower).clamp_min_(0.0)
                gained[draw, index] = sides.prod(-1).sum(-1)
        return gained
