"""From a site's sums to its scores: of single weights first, then of the units that they form.

Notation as in `sums`; G is the gradient of the mean loss over all examples, B the batches with
gradients G_b, E the examples, n_i the L2 norm of input channel i over all real tokens.

  gradient      |G_ij|               SPEFT (arXiv 2412.13488)
  gradient_sum  |G_ij|; of a unit |sum of G_ij|, SMT's mean_abs (arXiv 2405.15525)
  sensitivity   sum_b (G_b)_ij^2     SPT (arXiv 2303.08566)
  snip          |W_ij G_ij|          SNIP (arXiv 1810.02340)
  fisher        mean_e (g_e)_ij^2    the diagonal of the empirical Fisher matrix
  taylor        (W_ij G_ij)^2        first-order Taylor (arXiv 1906.10771)
  magnitude     |W_ij|
  activation    |W_ij| n_i           Wanda (arXiv 2306.11695)

A unit's score is the sum over its weights, but for `gradient_sum` (the absolute value of a sum,
taken for inputs, outputs and blocks apart) and for the inputs of `activation`, which are n_i
itself. For answers of a language model, an example's loss l_e is the sum over its tokens: the
likelihood of the answer as a whole.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from autopeft.backbone.importance import Floats, Indices, SiteScores
from autopeft.importance.settings import SHARED
from autopeft.importance.sums import SiteSums


def site_scores(
    sums: SiteSums, weight: Tensor, *, total_weight: int, examples: int, block: int, keep: int
) -> dict[str, SiteScores]:
    """All measured scores of one site.

    Args:
        sums: Of all examples.
        weight: The site's weight [d_in, d_out].
        total_weight: What the mean loss over all examples is a mean over.
        examples: How many there were.
        block: Side of the blocks.
        keep: Single weights to keep.
    """
    mean, weight = sums.gradient / total_weight, weight.to(sums.gradient)
    norms = sums.squared_inputs.sqrt().to(weight.dtype)
    snip = (weight * mean).abs()
    found = {
        "gradient": reduced(mean.abs(), block, keep),
        "sensitivity": reduced(sums.squared_batches, block, keep),
        "snip": reduced(snip, block, keep),
        "fisher": reduced(sums.squared_examples / examples, block, keep),
        "magnitude": reduced(weight.abs(), block, keep),
        "activation": reduced(weight.abs() * norms.unsqueeze(1), block, keep),
    }
    found["activation"] = replace(found["activation"], inputs=_floats(norms))
    lists = found[SHARED["taylor"]]  # squares are ordered as what they are squares of
    found["taylor"] = _summed(snip.square(), block, lists.weights, lists.values * lists.values)
    lists = found[SHARED["gradient_sum"]]
    found["gradient_sum"] = SiteScores(
        inputs=_floats(mean.sum(1).abs()),
        outputs=_floats(mean.sum(0).abs()),
        blocks=_floats(block_sums(mean, block).abs()),
        weights=lists.weights,
        values=lists.values,
    )
    return found


def reduced(scores: Tensor, block: int, keep: int) -> SiteScores:
    """Scores of weights [d_in, d_out], none negative, summed into units; the `keep` largest."""
    scores = scores.float()
    return _summed(scores, block, *largest(scores.flatten(), keep))


def _summed(scores: Tensor, block: int, weights: Indices, values: Floats) -> SiteScores:
    return SiteScores(
        inputs=_floats(scores.sum(1)),
        outputs=_floats(scores.sum(0)),
        blocks=_floats(block_sums(scores, block)),
        weights=weights,
        values=values,
    )


def largest(flat: Tensor, keep: int) -> tuple[Indices, Floats]:
    """Indices and values of the `keep` largest, largest first; of equal ones the first."""
    least = torch.topk(flat, keep, sorted=False).values.min()
    above = (flat > least).nonzero().squeeze(1)
    equal = (flat == least).nonzero().squeeze(1)[: keep - len(above)]
    indices = torch.cat([above, equal])
    values = flat[indices].cpu().numpy()
    places = indices.cpu().numpy()
    order = np.lexsort((places, -values))
    return places[order].astype(np.int64), values[order].astype(np.float32)


def block_sums(scores: Tensor, block: int) -> Tensor:
    """[d_in, d_out] -> [ceil(d_in / b), ceil(d_out / b)], sums over b x b blocks."""
    rows, columns = (-(-size // block) for size in scores.shape)
    padded = scores.new_zeros(rows * block, columns * block)
    padded[: scores.shape[0], : scores.shape[1]] = scores
    return padded.view(rows, block, columns, block).sum((1, 3))


def _floats(tensor: Tensor) -> Floats:
    array: Floats = tensor.float().cpu().numpy()
    return array
