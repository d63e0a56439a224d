import math

import numpy as np
import pytest
from bound_problems import anatomy, bound_problem
from importance_maps import with_importance
from importance_spaces import RANKING, importance_problem, measured_anatomy

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


def placed(method, layers, sites, rule="none", **settings) -> Configuration:
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}
    sparsity = {"rule": rule} if isinstance(rule, str) else rule
    group = Group.of(method, layers, sites, **settings)
    return Configuration.of([group], training=training, sparsity=sparsity)


RANK_ONE = {"rank": 1, "alpha": 1.0, "dropout": 0.0}
ADAPTER = {"size": 3, "activation": "relu", "scale": 1.0, "dropout": 0.0}


def test_coverage_weighs_parameters_by_importance() -> None:
    body = with_importance(anatomy(24), scores=("sensitivity", "activation"), ranking=RANKING)
    problem = bound_problem("lora", body)
    total = sum(body.importance.sites("sensitivity").values())

    def share(layer: int, *roles: str) -> float:
        sites = body.importance.sites("sensitivity")
        return sum(sites[layer, role] for role in roles) / total

    features = describe(problem, placed("lora", [1, 3], ["query", "up"], **RANK_ONE))
    query, up = 2 * 24, 24 + 4 * 24
    assert features["covered"] == pytest.approx(share(1, "query", "up") + share(3, "query", "up"))
    assert features["coverage"] == pytest.approx(
        (share(1, "query") + share(3, "query")) * math.log1p(query)
        + (share(1, "up") + share(3, "up")) * math.log1p(up)
    )
    assert 0.0 < features["activation covered"] < 1.0
    more = describe(problem, placed("lora", [3, 5], ["query", "up"], **RANK_ONE))
    less = describe(problem, placed("lora", [0, 2], ["query", "up"], **RANK_ONE))
    assert more["coverage"] > less["coverage"]
    everything = placed("lora", range(6), tuple(body.roles), **RANK_ONE)
    assert describe(problem, everything)["covered"] == pytest.approx(1.0)
    adapter = describe(problem, placed("serial_adapter", [2], ["ffn"], **ADAPTER))
    n = problem.site_params(placed("serial_adapter", [2], ["ffn"], **ADAPTER))[2, "ffn"]
    assert adapter["covered"] == pytest.approx(share(2, "up", "down"))
    assert adapter["coverage"] == pytest.approx(share(2, "up", "down") * math.log1p(n / 2))
    prefix = placed("prefix", [2], [], length=4, reparametrise=False)
    assert describe(problem, prefix)["covered"] == pytest.approx(share(2, "key", "value"))


def test_without_a_map_nothing_is_covered() -> None:
    features = describe(bound_problem("lora"), placed("lora", [1], ["query"], **RANK_ONE))
    assert not [name for name in features if "cover" in name]


def test_what_a_rule_leaves_is_what_counts() -> None:
    problem = importance_problem()
    rule = {"rule": "spt", "budget": 1.0, "threshold": 10.0, "score": "sensitivity"}
    ruled = placed("lora", range(6), ["query"], rule, **RANK_ONE)
    features = describe(problem, ruled)
    counts = problem.site_params(ruled)
    assert features["params"] == pytest.approx(math.log10(1 + sum(counts.values())))
    assert features["method lora"] == pytest.approx(math.log1p(sum(counts.values())))
    assert features["sparsity rule spt"] == 1.0
    assert features["layers"] == pytest.approx(len({layer for layer, _ in counts}) / 6)


def test_a_method_alone_has_no_rule_of_others() -> None:
    problem = importance_problem()
    lora = placed("lora", range(6), ["query"], **RANK_ONE)
    prefix = Group.of("prefix", range(6), length=4, reparametrise=False)
    rule = {"rule": "spt", "budget": 1.0, "threshold": 10.0, "score": "sensitivity"}
    both = Configuration.of([*lora.groups, prefix], training=dict(lora.training), sparsity=rule)
    features = describe(problem, both)
    assert features["method prefix"] == pytest.approx(math.log1p(6 * 2 * 4 * 48))


def test_the_coverage_is_coarse() -> None:
    problem = importance_problem()
    rng = np.random.default_rng(0)
    every = [problem.build(problem.space.sample(rng)) for _ in range(40)]
    encoding = Encoding.of(problem, Features(problem), every)
    assert measured_anatomy().importance is not None
    assert {"coverage", "covered"} <= set(encoding.columns[: encoding.n_coarse])
