import math

import numpy as np
import pytest

from autopeft.configuration import Configuration, Group
from autopeft.searchers.encoding import SINGLE, Encoding
from autopeft.searchers.features import Features, describe
from autopeft.searchers.front import utility


def lora(layers, sites=("query",), rank=4, rate=1e-3, **extra) -> Configuration:
    groups = [Group.of("lora", layers, sites, rank=rank, alpha=2 * rank, dropout=0.05)]
    training = {"learning_rate": rate, "weight_decay": 0.0, "warmup_ratio": 0.06}
    return Configuration.of([*groups, *extra.get("groups", [])], training=training)


def test_features_count_what_is_there(make_problem) -> None:
    features = describe(make_problem(), lora([1, 3], ("query", "down"), rate=1e-2))
    each = 2 * 64 * 4
    assert features["params"] == pytest.approx(math.log10(1 + 4 * each))
    assert features["layer 1"] == features["role query"] == pytest.approx(math.log1p(2 * each))
    assert features["method lora"] == pytest.approx(math.log1p(4 * each))
    assert "layer 0" not in features
    assert "method prefix" not in features
    assert features["reach"] == pytest.approx(5 / 6)
    assert features["layers"] == pytest.approx(2 / 6)
    assert features["lora alpha"] == pytest.approx(1.0)
    assert features["lora dropout"] == pytest.approx(0.05)
    assert features["learning rate"] == pytest.approx(1.0)


def test_what_is_absent_is_zero(make_problem) -> None:
    features = Features(make_problem())
    small, large = lora([0]), lora([5], groups=[Group.of("prefix", [5], length=4)])
    columns = features.columns([small, large])
    row = dict(zip(columns, features.vector(small, columns), strict=True))
    assert row["method prefix"] == row["prefix length"] == row["layer 5"] == 0.0
    assert row["layer 0"] > 0.0


def test_a_configuration_without_groups_has_features(make_problem) -> None:
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    features = describe(make_problem(), Configuration.of([], training=training))
    assert features["params"] == 0.0


def test_words_become_flags(make_problem) -> None:
    groups = [Group.of("serial_adapter", [1], size=4, activation="relu", bias=True)]
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    features = describe(make_problem(), Configuration.of(groups, training=training))
    assert features["serial_adapter activation relu"] == 1.0
    assert features["serial_adapter bias"] == 1.0


def test_the_encoding_scales_and_drops_constants(make_problem) -> None:
    problem = make_problem()
    every = [lora([0]), lora([3], rate=1e-2), lora([0, 3], rank=32)]
    encoding = Encoding.of(problem, Features(problem), every)
    F = encoding.rows(every)
    assert F.dtype == np.float64
    assert F.shape == (3, len(encoding.columns))
    assert F.min(axis=0) == pytest.approx(0.0)
    largest = dict(zip(encoding.columns, F.max(axis=0), strict=True))
    assert largest["learning rate"] == pytest.approx(1.0)
    assert largest["layer 0"] == pytest.approx(1 / math.sqrt(2))
    assert "lora dropout" not in encoding.columns
    assert "warm-up" not in encoding.columns
    coarse, fine = encoding.columns[: encoding.n_coarse], encoding.columns[encoding.n_coarse :]
    assert "learning rate" in coarse
    assert set(coarse) <= SINGLE
    assert not set(fine) & SINGLE
    assert encoding.known == (1,)
    assert encoding.costs(every) == pytest.approx(
        np.array(
            [
                [utility(problem.frame[1], problem.known(each)["trainable_params"])]
                for each in every
            ]
        )
    )
    assert encoding.rows([]).shape == (0, F.shape[1])
