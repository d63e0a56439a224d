"""The rule `sparse`: as many parameters as LoRA had, where the score says."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_backbones as tiny
from importance_maps import with_importance

from autopeft import counting
from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError
from autopeft.space.schema import Scalar

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
LORA = Group.of("lora", [0, 2], ["query", "down"], rank=2, alpha=4.0, dropout=0.1)
ADAPTER = Group.of(
    "serial_adapter", [1], ["ffn"], size=2, activation="relu", scale=1.0, dropout=0.0
)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return with_importance(tiny.tiny_backbone("llama").anatomy)


def _sparse(*groups: Group, **given: Scalar) -> Configuration:
    settings = {"scope": "global", "score": "gradient", "granularity": "weight"} | given
    settings = {"rule": "sparse", "smallest": False} | settings
    return Configuration.of(groups, training=TRAINING, sparsity=settings)


def _densities(configuration: Configuration, anatomy: Anatomy) -> dict[tuple[int, str], float]:
    return {
        (layer, site): float(group["density"])
        for group in counting.resolved(configuration, anatomy).groups
        if group.method == "sparse"
        for layer in group.layers
        for site in group.sites
    }


def test_every_map_trains_as_many_weights_as_its_lora_had(anatomy: Anatomy) -> None:
    configuration = _sparse(LORA, ADAPTER, scope="site", score="random")
    plain = Configuration.of([LORA, ADAPTER], training=TRAINING)
    assert counting.site_params(configuration, anatomy) == counting.site_params(plain, anatomy)
    assert counting.resolved(configuration, anatomy).methods == ("serial_adapter", "sparse")
    unmeasured = replace(anatomy, importance=None)
    assert counting.site_params(configuration, unmeasured) == counting.site_params(plain, anatomy)


def test_global_weights_are_the_highest_of_all_maps(anatomy: Anatomy) -> None:
    found = counting.site_params(_sparse(LORA), anatomy)
    total = counting.trainable_params(Configuration.of([LORA], training=TRAINING), anatomy)
    keys = [(layer, site) for layer in (0, 2) for site in ("down", "query")]
    scores = anatomy.measured().of("gradient")
    values = np.concatenate([scores[key].values for key in keys])
    least = np.sort(values)[-total]
    assert found == {key: int((scores[key].values >= least).sum()) for key in keys}
    assert sum(found.values()) == total


@pytest.mark.parametrize("smallest", [False, True])
def test_global_blocks_and_rows_follow_their_mean_score(smallest: bool, anatomy: Anatomy) -> None:
    total = counting.trainable_params(Configuration.of([LORA], training=TRAINING), anatomy)
    scores = anatomy.measured().of("gradient")
    for given, size_of in (
        ({"granularity": "block", "block": 4}, lambda key: 16),
        ({"granularity": "input"}, lambda key: len(scores[key].outputs)),
    ):
        found = _densities(_sparse(LORA, smallest=smallest, **given), anatomy)  # type: ignore[arg-type]
        counts = counting.site_params(_sparse(LORA, smallest=smallest, **given), anatomy)  # type: ignore[arg-type]
        assert total - 48 <= sum(counts.values()) <= total
        rows = []
        for layer in (0, 2):
            for site in ("down", "query"):
                key = layer, site
                own = scores[key].blocks if "block" in given else scores[key].inputs
                means = np.sort(own.ravel() / size_of(key))
                number = round(found.get(key, 0.0) * own.size)
                rows.append((means, number))
        if smallest:
            taken = max(means[n - 1] for means, n in rows if n)
            left = min(means[n] for means, n in rows if n < len(means))
            assert taken <= left
        else:
            taken = min(means[-n] for means, n in rows if n)
            left = max(means[-n - 1] for means, n in rows if n < len(means))
            assert taken >= left


def test_scores_without_data_share_the_budget_evenly(anatomy: Anatomy) -> None:
    total = counting.trainable_params(Configuration.of([LORA], training=TRAINING), anatomy)
    configuration = _sparse(LORA, score="random")
    counts = counting.site_params(configuration, replace(anatomy, importance=None))
    assert sum(counts.values()) == total
    sizes = {(0, "query"): 1024, (2, "query"): 1024, (0, "down"): 1536, (2, "down"): 1536}
    for key, size in sizes.items():
        assert abs(counts[key] - total * size / 5120) < 1.0


def test_maps_that_train_sparse_weights_already_stay_as_they_are(anatomy: Anatomy) -> None:
    own = Group.of(
        "sparse", [0], ["query"], density=0.5, granularity="weight", score="random", smallest=False
    )
    found = counting.site_params(_sparse(LORA, own, scope="site"), anatomy)
    assert found[0, "query"] == 512 + 2 * 64
    assert found[2, "query"] == 2 * 64
    assert counting.resolved(_sparse(LORA, own), anatomy).methods == ("lora", "sparse")


def test_what_cannot_be_told_is_refused(anatomy: Anatomy) -> None:
    for given, text in (
        ({"granularity": "head"}, "head at layer"),
        ({"granularity": "block", "block": 100}, "1 to 32"),
        ({"granularity": "block", "block": 6, "score": "fisher"}, "a multiple of 4"),
        ({"score": "snip"}, "snip"),
        ({"score": "activation", "granularity": "head"}, "head at layer"),
    ):
        with pytest.raises(BackboneError, match=text):
            counting.resolved(_sparse(LORA, **given), anatomy)
    with pytest.raises(BackboneError, match="no importance map"):
        counting.resolved(_sparse(LORA), replace(anatomy, importance=None))
    with pytest.raises(BackboneError, match=r"keeps the highest.*importance_keep: 1`"):
        counting.resolved(_sparse(LORA, smallest=True), with_importance(anatomy, kept=1000))


def test_global_weights_are_the_lowest_of_all_where_the_map_is_whole(anatomy: Anatomy) -> None:
    found = counting.site_params(_sparse(LORA, smallest=True), anatomy)
    total = counting.trainable_params(Configuration.of([LORA], training=TRAINING), anatomy)
    keys = [(layer, site) for layer in (0, 2) for site in ("down", "query")]
    scores = anatomy.measured().of("gradient")
    most = np.sort(np.concatenate([scores[key].values for key in keys]))[total - 1]
    assert found == {key: int((scores[key].values <= most).sum()) for key in keys}
    assert sum(found.values()) == total
    groups = counting.resolved(_sparse(LORA, smallest=True), anatomy).groups
    assert all(group["smallest"] for group in groups)


def test_more_single_weights_than_the_map_keeps_are_refused(anatomy: Anatomy) -> None:
    """All of the budget or an error that says how much there is, never less in silence."""
    total = counting.trainable_params(Configuration.of([LORA], training=TRAINING), anatomy)
    enough, short = -(-total // 4), total // 4 - 1  # of each of four matrices
    scarce = with_importance(anatomy, kept=enough)
    assert sum(counting.site_params(_sparse(LORA), scarce).values()) == total
    with pytest.raises(
        BackboneError, match=rf"{total:,} single weights of 4 matrices.*{4 * short:,}"
    ):
        counting.resolved(_sparse(LORA), with_importance(anatomy, kept=short))
    configuration, needed = _sparse(LORA, scope="site"), 2 * (32 + 48)  # rank 2, at `down`
    assert counting.faults(configuration, with_importance(anatomy, kept=needed)) == []
    scarce = with_importance(anatomy, kept=needed - 1)
    (fault, *_) = counting.faults(configuration, scarce)
    assert fault.given == f"{needed} weights of layer 0, down"
    assert fault.allowed == f"at most {needed - 1}, which the map keeps"
    assert counting.faults(_sparse(LORA, score="random"), scarce) == []


def test_rows_are_compared_by_what_their_activations_are(anatomy: Anatomy) -> None:
    """`activation` scores a row by its input's norm alone, however wide the matrix is."""
    scores = anatomy.measured().of("activation")
    keys = [(0, "query"), (2, "query"), (0, "up"), (2, "up")]
    lora = Group.of("lora", [0, 2], ["query", "up"], rank=2, alpha=4.0, dropout=0.0)
    found = _densities(_sparse(lora, score="activation", granularity="input"), anatomy)
    taken = {key: round(found.get(key, 0.0) * len(scores[key].inputs)) for key in keys}
    best = {key: np.sort(scores[key].inputs)[::-1] for key in keys}
    least = min(best[key][n - 1] for key, n in taken.items() if n)
    assert least >= max(best[key][n] for key, n in taken.items() if n < len(best[key]))
    assert len(anatomy.measured().of("activation")[0, "up"].outputs) != 32


def test_activations_of_heads_that_are_not_comparable_are_refused(anatomy: Anatomy) -> None:
    """Rows of `output` hold norms of inputs, columns of `query` sums over weights."""

    def sparse(*sites: str) -> Configuration:
        lora = Group.of("lora", [0, 2], sites, rank=4, alpha=8.0, dropout=0.0)
        return _sparse(lora, score="activation", granularity="head")

    for sites in (("query",), ("output",)):
        assert counting.site_params(sparse(*sites), anatomy)
    with pytest.raises(BackboneError, match="activation of heads of output"):
        counting.resolved(sparse("query", "output"), anatomy)
