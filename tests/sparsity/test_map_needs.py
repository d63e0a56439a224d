"""What a configuration that stands alone needs of an importance map."""

from typing import Any

import pytest
import tiny_backbones as tiny
from importance_maps import with_importance

from autopeft import counting
from autopeft.api.importance_need import settings_needed
from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration, Group
from autopeft.importance import settings as importance_settings
from autopeft.importance.settings import ImportanceSettings
from autopeft.sparsity.map_needs import share_needed

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return tiny.tiny_backbone("llama").anatomy


def _weights(density: float, **given: Any) -> Configuration:
    settings = {"granularity": "weight", "score": "fisher", "smallest": False} | given
    group = Group.of("sparse", [0, 2], ["query", "down"], density=density, **settings)
    return Configuration.of([group], training=TRAINING)


def _rule(rank: int, **given: Any) -> Configuration:
    lora = Group.of("lora", [0, 2], ["query", "down"], rank=rank, alpha=4.0, dropout=0.0)
    settings = {
        "rule": "sparse", "scope": "global", "score": "gradient", "granularity": "weight",
        "smallest": False,
    }  # fmt: skip
    return Configuration.of([lora], training=TRAINING, sparsity=settings | given)


def _needed(configuration: Configuration, anatomy: Anatomy, **before: str) -> ImportanceSettings:
    return settings_needed(configuration, anatomy, before)


@pytest.mark.parametrize(
    "configuration",
    [
        _weights(0.05), _weights(0.3), _weights(1.0), _weights(0.2, smallest=True),
        _rule(1), _rule(8), _rule(1, smallest=True), _rule(1, score="magnitude", smallest=True),
        _rule(1, scope="site"), _rule(8, scope="site"),
    ],
    ids=str,
)  # fmt: skip
def test_a_map_of_what_is_needed_is_enough(configuration: Configuration, anatomy: Anatomy) -> None:
    """And of less, where more than the usual is needed, it is not."""
    shapes = anatomy.shapes()
    settings = _needed(configuration, anatomy)
    kept = dict(zip(shapes, settings.kept(list(shapes.values())), strict=True))
    assert counting.faults(configuration, _measured(anatomy, kept)) == []
    usual = dict(zip(shapes, ImportanceSettings().kept(list(shapes.values())), strict=True))
    assert (settings.keep is not None) == bool(
        counting.faults(configuration, _measured(anatomy, usual))
    )


def _measured(anatomy: Anatomy, kept: dict[tuple[int, str], int]) -> Anatomy:
    """With a map that keeps so many weights of each site."""
    from dataclasses import replace

    found = with_importance(anatomy, scores=("fisher", "gradient", "magnitude")).measured()
    cut = {
        score: {
            key: replace(own, weights=own.weights[: kept[key]], values=own.values[: kept[key]])
            for key, own in sites.items()
        }
        for score, sites in found.scores.items()
    }
    return replace(anatomy, importance=replace(found, scores=cut))


def test_what_the_usual_map_keeps_of_a_large_backbone_counts(
    anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where less than a tenth is kept, a density of less than a tenth asks for more."""
    assert _needed(_weights(0.05), anatomy).keep is None
    monkeypatch.setattr(importance_settings, "MOST_WEIGHTS", 500)
    assert _needed(_weights(0.05), anatomy).keep == pytest.approx(0.05, abs=1e-3)


def test_what_decided_before_is_asked_for_again_or_more(anatomy: Anatomy) -> None:
    assert _needed(_weights(0.05), anatomy, kept_share="0.3").keep == 0.3
    assert _needed(_weights(0.6), anatomy, kept_share="0.3").keep == pytest.approx(0.6, abs=1e-3)
    assert _needed(_weights(0.05), anatomy, kept_share="0.02").keep == pytest.approx(
        0.05, abs=1e-3
    )
    assert _needed(_rule(1), anatomy, kept_share="0.001").keep == 1.0


def test_blocks_are_measured_at_the_side_that_all_are_multiples_of(anatomy: Anatomy) -> None:
    def side(*sides: int, score: str = "fisher", **before: str) -> int:
        groups = [
            Group.of(
                "sparse", [layer], ["query"], density=0.1, granularity="block", block=each,
                score=score, smallest=False,
            )
            for layer, each in enumerate(sides)
        ]  # fmt: skip
        configuration = Configuration.of(groups, training=TRAINING)
        return _needed(configuration, anatomy, **before).block

    assert side(32, 64) == 32
    assert side(16, 24) == 8
    assert side(16, 16, block="4") == 4
    assert side(64, score="gradient_sum") == 64
    assert side(8, score="random") == 32
    assert side(8, score="magnitude") == 32
    rule = _rule(2, granularity="block", block=12)
    assert _needed(rule, anatomy).block == 12


def test_nothing_is_needed_where_no_map_decides(anatomy: Anatomy) -> None:
    for configuration in (
        _weights(0.9, score="random"),
        _weights(0.9, score="magnitude", smallest=True),
        _rule(8, score="random"),
        _rule(8, granularity="input"),
        _weights(0.9, granularity="input"),
    ):
        usual = dict.fromkeys(anatomy.shapes(), 1)
        assert share_needed(configuration, anatomy, usual) is None
