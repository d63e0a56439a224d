"""LoRETTA: lanes of several ranks and bottlenecks, and its trains."""

import pytest
import tiny_backbones as tiny
import torch
from lane_training import Training, furthest, without_cache
from method_cases import configuration

from autopeft.methods.tensor_train import factors, initial_cores, product
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.seeds import Seeds


def test_packed_equals_solo() -> None:
    backbone = tiny.tiny_backbone("bert")
    lanes = [
        Lane(number, configuration("loretta_adp", backbone.anatomy, size, dropout=0.2, **given))
        for number, (size, given) in enumerate([(3, {}), (4, {}), (5, {}), (4, {"bottleneck": 8})])
    ]
    batches = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
    packed = Training(backbone, lanes).run(batches, 0, 6)
    for lane in lanes:
        solo = Training(backbone, [lane]).run(batches, 0, 6)[lane.number]
        assert furthest(solo, packed[lane.number]) < 1e-9


def test_widths_are_cut_as_released() -> None:
    assert [factors(width) for width in (768, 64, 4096, 8, 1)] == [
        (8, 8, 12),
        (8, 8),
        (8, 8, 8, 8),
        (8,),
        (1,),
    ]
    assert factors(7 * 11 * 13) == (7, 11, 13)


def test_a_train_that_starts_has_entries_of_the_released_variance() -> None:
    draws = []
    for seed in range(100):
        cores = initial_cores("A", 768, 64, 5, Seeds(seed).generator, zero=False)
        draws.append(product(list(cores.values()), 768))
    matrices = torch.stack(draws)
    assert matrices.shape == (100, 768, 64)
    assert float(matrices.var()) == pytest.approx(1.0 / (768 + 64), rel=0.3)
    zero = initial_cores("A", 768, 64, 5, Seeds(0).generator, zero=True)
    assert not product(list(zero.values()), 768).any()
