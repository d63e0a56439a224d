"""SPT against a hand count, and against trying every number of weights."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import tiny_backbones as tiny
from importance_maps import importance_map, site_scores, with_importance

from autopeft import counting
from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.importance import ImportanceMap, Key
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError
from autopeft.methods import registry
from autopeft.methods.lane_operator import Place
from autopeft.sparsity.spt import promoted_at
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
PREFIX = Group.of("prefix", [1], length=2, reparametrise=False)


def _lora(layers: list[int], sites: list[str], rank: int) -> Group:
    return Group.of("lora", layers, sites, rank=rank, alpha=2.0 * rank, dropout=0.0)


def _adapter(method: str, layers: list[int], sites: list[str], size: int) -> Group:
    settings = {"activation": "relu", "scale": 1.0, "dropout": 0.0}
    return Group.of(method, layers, sites, size=size, **settings)


def _spt(groups: list[Group], budget: float, threshold: float = 10.0) -> Configuration:
    settings = {"rule": "spt", "budget": budget, "threshold": threshold, "score": "sensitivity"}
    return Configuration.of(groups, training=TRAINING, sparsity=settings)


def _anatomy() -> Anatomy:
    return tiny.tiny_backbone("bert").anatomy


def test_thresholds_of_the_released_code() -> None:
    lora = registry["lora"]
    eight = _lora([0], ["query"], 8)
    square = lora.count(eight, Place(0, "query", 768, 768))
    assert (square, promoted_at(square, Fraction(10))) == (12_288, 1_229)
    wide = lora.count(eight, Place(0, "up", 768, 3072))
    assert (wide, promoted_at(wide, Fraction(10))) == (30_720, 3_072)
    adapter = _adapter("serial_adapter", [0], ["ffn"], 8)
    bottleneck = registry["serial_adapter"].count(adapter, Place(0, "ffn", 768, 768))
    assert (bottleneck, promoted_at(bottleneck, Fraction(10))) == (13_064, 1_307)


def test_promotion_by_hand() -> None:
    """Query holds the 7 highest weights and is promoted; value holds the next 3 and is not.

    LoRA of rank 1 has 64 parameters on a 32 x 32 map: 7 weights are more than 64 / 10.
    """
    anatomy = _anatomy()
    matrices = {
        (layer.index, role): np.full((site.in_features, site.out_features), 1e-6)
        for layer in anatomy.layers
        for role, site in layer.sites.items()
    }
    matrices[0, "query"].ravel()[[3, 40, 77, 101, 500, 700, 1001]] = [20, 19, 18, 17, 16, 15, 14]
    matrices[0, "value"].ravel()[[8, 9, 1020]] = [13, 12, 11]
    scores = {key: site_scores(matrix) for key, matrix in matrices.items()}
    measured = ImportanceMap({"sensitivity": scores}, 4, 1, "by hand")
    anatomy = replace(anatomy, importance=measured)
    groups = [_lora([0], ["query", "value"], 1)]
    found = counting.resolved(_spt(groups, 67 / 128), anatomy)
    assert found.sparsity == (("rule", "none"),)
    lora, sparse = found.groups
    assert (lora.method, lora.sites, lora["rank"]) == ("lora", ("query",), 1)
    assert (sparse.method, sparse.sites, sparse["score"]) == ("sparse", ("value",), "sensitivity")
    assert counting.site_params(found, anatomy) == {(0, "query"): 64, (0, "value"): 3}
    # One parameter less pays two of value's weights, and 63 do not pay the promotion.
    for budget, query, value in ((66, 64, 2), (64, 64, 0), (63, 6, 0), (6, 6, 0), (5, 5, 0)):
        configuration = _spt(groups, budget / 128)
        wanted = {(0, "query"): query, (0, "value"): value}
        counts = counting.site_params(configuration, anatomy)
        assert counts == {key: n for key, n in wanted.items() if n}, budget
        assert counting.trainable_params(configuration, anatomy) <= budget


def _tried(
    structured: Mapping[Key, int], measured: ImportanceMap, budget: int, threshold: float
) -> dict[Key, int]:
    """Every tau in turn: the largest whose parameters are within the budget."""
    keys = sorted(structured)
    rows = [
        (-float(value), position, index)
        for position, key in enumerate(keys)
        for index, value in enumerate(measured.of("sensitivity")[key].values)
    ]
    rows.sort()
    up, down = Fraction(str(threshold)).as_integer_ratio()
    counts = [0] * len(keys)
    best = counts
    for _, position, _ in rows:
        counts[position] += 1
        params = [
            structured[key] if number * up >= structured[key] * down else number
            for key, number in zip(keys, counts, strict=True)
        ]
        if sum(params) <= budget:
            best = params
    return {key: number for key, number in zip(keys, best, strict=True) if number}


@pytest.mark.parametrize("threshold", [0.4, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_tau_is_the_largest_that_keeps_the_budget(threshold: float, seed: int) -> None:
    anatomy = with_importance(_anatomy(), seed=seed)
    groups = [
        _lora([0, 2], ["query"], 1 + seed),
        _lora([2], ["down"], 2),
        _adapter("serial_adapter", [1], ["attention"], 2),
        _adapter("parallel_adapter", [0], ["ffn"], 1),
        _adapter("serial_adapter", [2], ["ffn"], 1),
        PREFIX,
    ]
    plain = counting.site_params(Configuration.of(groups, training=TRAINING), anatomy)
    prefix = plain.pop((1, "prefix"))
    exits = {"attention": "output", "ffn": "down"}
    structured: dict[Key, int] = {}
    for (layer, site), params in plain.items():
        key = layer, exits.get(site, site)
        structured[key] = structured.get(key, 0) + params
    assert structured[2, "down"] > plain[2, "down"], "two methods answer for one matrix"
    total = sum(structured.values())
    for budget in (0.02, 0.3, 0.77, 1.0):
        configuration = _spt(groups, budget, threshold)
        wanted = _tried(structured, anatomy.measured(), int(total * budget), threshold)
        found: dict[Key, int] = {}
        for (layer, site), params in counting.site_params(configuration, anatomy).items():
            key = layer, exits.get(site, site)
            found[key] = found.get(key, 0) + params
        assert found.pop((1, "prefix")) == prefix
        assert found == wanted
        assert sum(found.values()) <= total * budget


@pytest.mark.parametrize("kept", [5, 20, 60])
def test_no_matrix_gives_more_single_weights_than_the_map_keeps(kept: int) -> None:
    plain = _anatomy()
    anatomy = replace(plain, importance=importance_map(plain, seed=4, kept=kept))
    groups = [_lora([0, 1, 2], ["query", "value", "down"], 2)]
    whole = counting.site_params(Configuration.of(groups, training=TRAINING), plain)
    for budget in (0.05, 0.5, 1.0):
        counts = counting.site_params(_spt(groups, budget, 0.1), anatomy)
        assert 0 < sum(counts.values()) <= budget * sum(whole.values())
        assert all(n < kept or n == whole[key] for key, n in counts.items()), "or promoted"
    assert counts == whole, "with the whole budget every matrix is promoted when it has run out"


def test_what_is_resolved_is_remembered_per_map() -> None:
    groups = [_lora([0, 1, 2], ["query"], 2)]
    configuration = _spt(groups, 0.4)
    one, other = (with_importance(_anatomy(), seed=seed) for seed in (1, 2))
    assert counting.resolved(configuration, one) is counting.resolved(configuration, one)
    assert counting.resolved(configuration, one) != counting.resolved(configuration, other)
    with pytest.raises(BackboneError, match="no importance map"):
        counting.resolved(configuration, _anatomy())


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "vit"])
def test_packs_train_what_the_rule_left(architecture: str) -> None:
    backbone = tiny.tiny_backbone(architecture)
    backbone = replace(backbone, anatomy=with_importance(backbone.anatomy))
    groups = [_lora([0, 1, 2], ["query", "value", "up"], 2)]
    configuration = _spt(groups, 0.5)
    pack = Pack(backbone, backbone.head(3), [Lane(0, configuration)], seeds=Seeds(0))
    trained = sum(parameter.numel() for parameter in pack.operators.parameters())
    assert trained == counting.trainable_params(configuration, backbone.anatomy)
    whole = counting.trainable_params(
        Configuration.of(groups, training=TRAINING), backbone.anatomy
    )
    assert 0.4 * whole < trained <= 0.5 * whole
    assert {name.split(".")[0] for name in pack.lane_views(pack.parameters_by_name(), 0)} == {
        "head",
        "lora",
        "sparse",
    }
