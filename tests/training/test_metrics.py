import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import InputError
from autopeft.training.metrics import best_value, compute, constant_value

CLASSES = np.array([0, 0, 1, 1, 2])


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_closed_forms() -> None:
    truth, predicted = ints(1, 1, 0, 0), ints(1, 0, 0, 0)  # tp 1, fn 1, fp 0, tn 2
    assert compute("accuracy", predicted, truth, 2) == 0.75
    assert compute("f1", predicted, truth, 2) == pytest.approx(2 / 3)
    assert compute("matthews", predicted, truth, 2) == pytest.approx(2 / np.sqrt(12))


def test_f1_is_macro_beyond_two_classes() -> None:
    # F1 of class 0: 0.8, of class 1: 2/3, of class 2, never predicted: 0.
    predicted = ints(0, 0, 1, 0, 1)
    assert compute("f1", predicted, CLASSES, 3) == pytest.approx((0.8 + 0.5 + 0.0) / 3)


def test_correlations() -> None:
    truth, predicted = floats(1, 2, 3, 4), floats(1, 4, 9, 16)
    assert compute("spearman", predicted, truth, 0) == pytest.approx(1.0)
    expected = np.corrcoef(truth, predicted)[0, 1]
    assert compute("pearson", predicted, truth, 0) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["spearman", "pearson"])
def test_correlations_with_a_constant_are_zero(metric: str) -> None:
    assert compute(metric, floats(2, 2, 2), floats(1, 2, 3), 0) == 0.0
    assert compute(metric, floats(1, 2, 3), floats(2, 2, 2), 0) == 0.0
    assert compute(metric, floats(1), floats(2), 0) == 0.0
    nearly = 1.0 + np.array([0.0, 2.3e-16, 0.0])
    assert abs(compute(metric, nearly, floats(1, 2, 3), 0)) <= 1.0


def test_a_collapsed_classifier_is_defined_and_silent() -> None:
    constant, one_class = ints(0, 0, 0), ints(1, 1, 1)
    assert compute("matthews", constant, ints(0, 1, 0), 2) == 0.0
    assert compute("matthews", one_class, one_class, 2) == 0.0
    assert compute("f1", constant, one_class, 2) == 0.0
    assert compute("f1", constant, constant, 2) == 0.0


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [
        (floats(1, np.nan), floats(1, 2)),
        (floats(1, 2), floats(np.inf, 2)),
        (floats(1, 2, 3), floats(1, 2)),
        (floats(), floats()),
        (np.ones((2, 1)), np.ones((2, 1))),
    ],
)
def test_unusable_values_raise(predictions: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pearson of"):
        compute("pearson", predictions, labels, 0)


def test_unknown_metrics_list_the_known() -> None:
    with pytest.raises(InputError, match="'acuracy'; allowed: accuracy, f1, matthews"):
        compute("acuracy", ints(0), ints(0), 2)
    with pytest.raises(InputError, match="allowed: accuracy"):
        best_value("trainable_params")


def test_constant_predictor_of_classes() -> None:
    train, validation = ints(1, 1, 1, 0), ints(0, 1, 1, 0, 1)
    assert constant_value("accuracy", train, validation, 2) == pytest.approx(0.6)
    assert constant_value("f1", train, validation, 2) == pytest.approx(0.75)
    assert constant_value("matthews", train, validation, 2) == 0.0
    shares = np.array([2, 4]) / 6  # one example added to each class
    expected = -np.mean(np.log(shares[validation]))
    assert constant_value("loss", train, validation, 2) == pytest.approx(expected)


@given(st.integers(2, 9), st.integers(1, 20))
def test_loss_of_balanced_classes_is_the_log_of_their_number(n_classes: int, each: int) -> None:
    labels = np.tile(np.arange(n_classes), each)
    value = constant_value("loss", labels, labels, n_classes)
    assert value == pytest.approx(np.log(n_classes))


def test_loss_is_finite_where_train_lacks_a_class() -> None:
    assert np.isfinite(constant_value("loss", ints(0, 0), ints(1), 3))


def test_constant_predictor_of_numbers() -> None:
    train, validation = floats(0, 2), floats(1, 3)
    assert constant_value("loss", train, validation, 0) == pytest.approx(2.0)
    assert constant_value("spearman", train, validation, 0) == 0.0
    with pytest.raises(ValueError, match="needs training labels"):
        constant_value("loss", floats(), validation, 0)


def test_best_values() -> None:
    assert [best_value(name) for name in ("accuracy", "spearman", "loss")] == [1.0, 1.0, 0.0]
