"""Qualities of predictions: how each is computed, and what the constant predictor reaches.

Which metrics there are, their goals and best values stand in `autopeft.study.metrics`; `loss`
comes from the training loop; those of answers are in `autopeft.training.answer_metrics`. A metric
that is undefined (a correlation with a constant) is 0.0, the value of knowing nothing, so that a
collapsed trial has a place on the scale. scipy and sklearn are imported by the metrics that need
them: a machine that trains needs neither for accuracy.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np

from autopeft.errors import Fault, InputError
from autopeft.study.metrics import METRICS, metrics_of


def compute(metric: str, predictions: np.ndarray, labels: np.ndarray, n_classes: int) -> float:
    """The value of a metric.

    - `accuracy`: share of correct classes.
    - `f1`: of class 1 where there are two classes; beyond that the plain mean over the classes
      that occur in labels or predictions. A class never predicted counts 0.
    - `matthews`: Matthews' correlation coefficient, Gorodkin's R_K beyond two classes
      (doi:10.1016/j.compbiolchem.2004.09.006).
    - `spearman`, `pearson`: rank and linear correlation.

    Args:
        metric: One of the names above.
        predictions: int64 [n] classes, or float [n] values.
        labels: Same shape and kind.
        n_classes: Classes of the task; 0 for regression.

    Raises:
        InputError: An unknown metric.
        ValueError: No examples, different lengths, or values that are not finite.
    """
    if metric not in _COMPUTED:
        given, allowed = f"'{metric}'", ", ".join(_COMPUTED)
        raise InputError(Fault("metrics", "metric", given, allowed))
    if predictions.shape != labels.shape or labels.ndim != 1 or not len(labels):
        shapes = f"predictions {predictions.shape} and labels {labels.shape}"
        raise ValueError(f"{metric} of {shapes}; both must be [n], n >= 1")
    if not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        raise ValueError(f"{metric} of values that are not finite")
    return float(_COMPUTED[metric](predictions, labels, n_classes))


def constant_value(
    metric: str, train_labels: np.ndarray, validation_labels: np.ndarray, n_classes: int
) -> float:
    """What a predictor that ignores its input reaches on validation: utility 0 of an objective.

    It predicts train's most frequent class (the lowest of equals) or train's mean. Correlations
    are 0.0. `loss` is the cross-entropy, in nats, of train's class frequencies (with one example
    added to each class, so that it is finite) or the mean squared error of train's mean.

    Args:
        metric: As for `compute`, or `loss`.
        train_labels: int64 [n] or float32 [n].
        validation_labels: int64 [m] or float32 [m].
        n_classes: Classes of the task; 0 for regression.

    Raises:
        InputError: An unknown metric.
        ValueError: No examples, or labels that are not finite.
    """
    if not len(train_labels):
        raise ValueError("the constant predictor needs training labels")
    if n_classes == 0:
        mean = float(np.mean(train_labels, dtype=np.float64))
        if metric == "loss":
            return float(np.mean((validation_labels.astype(np.float64) - mean) ** 2))
        return compute(metric, np.full(len(validation_labels), mean), validation_labels, 0)
    counts = np.bincount(train_labels, minlength=n_classes)
    if metric == "loss":
        log_shares = np.log((counts + 1) / (counts + 1).sum())
        return float(-log_shares[validation_labels].mean())
    constant = np.full_like(validation_labels, counts.argmax())
    return compute(metric, constant, validation_labels, n_classes)


def best_value(metric: str) -> float:
    """The best value that a quality metric can take: 1.0, or 0.0 for `loss`.

    Raises:
        InputError: Not a quality metric.
    """
    best = METRICS[metric].best if metric in METRICS else None
    if best is None:
        allowed = ", ".join(metrics_of("quality"))
        raise InputError(Fault("metrics", "metric", f"'{metric}'", allowed))
    return best


def _accuracy(predictions: np.ndarray, labels: np.ndarray, n_classes: int) -> float:
    return float(np.mean(predictions == labels))


def _f1(predictions: np.ndarray, labels: np.ndarray, n_classes: int) -> float:
    from sklearn.metrics import f1_score

    counted = [1] if n_classes == 2 else np.union1d(labels, predictions)
    return float(f1_score(labels, predictions, labels=counted, average="macro", zero_division=0.0))


def _matthews(predictions: np.ndarray, labels: np.ndarray, n_classes: int) -> float:
    if _constant(predictions) or _constant(labels):
        return 0.0
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _spearman(predictions: np.ndarray, labels: np.ndarray, n_classes: int) -> float:
    return _correlation("spearmanr", predictions, labels)


def _pearson(predictions: np.ndarray, labels: np.ndarray, n_classes: int) -> float:
    return _correlation("pearsonr", predictions, labels)


def _correlation(function: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    if _constant(predictions) or _constant(labels):
        return 0.0
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        found = getattr(stats, function)(predictions.astype(np.float64), labels.astype(np.float64))
    value = float(found.statistic)
    return value if np.isfinite(value) else 0.0


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


_COMPUTED: Mapping[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "spearman": _spearman,
    "pearson": _pearson,
}
