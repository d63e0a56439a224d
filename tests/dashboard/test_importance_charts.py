"""The importance map as a figure."""

import numpy as np
import pytest
import tiny_backbones as tiny
from importance_maps import importance_map

from autopeft.configuration import Configuration, Group
from dashboard import importance_charts as charts

FOUND = importance_map(tiny.tiny_backbone("llama").anatomy, ranking=(2, 0, 1))
TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}


def test_a_cell_is_a_sites_mean_weight_relative_to_the_largest() -> None:
    figure = charts.importance_heatmap(FOUND, "fisher")
    (heat,) = figure.data
    assert list(heat.y) == ["query", "key", "value", "output", "up", "gate", "down"]
    own = FOUND.of("fisher")[1, "key"]
    means = {
        key: each.total / (len(each.inputs) * len(each.outputs))
        for key, each in FOUND.of("fisher").items()
    }
    assert heat.z[1][1] == pytest.approx(means[1, "key"] / max(means.values()))
    assert heat.customdata[1][1] == f"{own.total / (len(own.inputs) * len(own.outputs)):.4g}"
    assert np.max(heat.z) == 1.0


def test_sums_favour_large_matrices() -> None:
    by_sum = charts.importance_heatmap(FOUND, "fisher", measure=charts.SUM).data[0].z
    by_mean = charts.importance_heatmap(FOUND, "fisher").data[0].z
    down, key = 6, 1
    assert by_sum[down][0] / by_sum[key][0] > 2 * by_mean[down][0] / by_mean[key][0]


def test_layers_have_their_share_of_the_whole() -> None:
    (bars,) = charts.layer_bars(FOUND, "fisher").data
    assert list(bars.y) == pytest.approx([2 / 6, 1 / 6, 3 / 6], rel=1e-5)


def test_what_sits_on_no_map_is_drawn_where_it_is_added() -> None:
    groups = [
        Group.of("lora", [0], ["query"], rank=2, alpha=4.0, dropout=0.0),
        Group.of("serial_adapter", [0, 2], ["attention", "ffn"], size=4),
        Group.of("prefix", [1], length=2),
        Group.of("parallel_adapter", [2], ["ffn"], size=4),
        Group.of("aligner", [0], length=2),
        Group.of("norm", [1], ["ffn_norm"], bias=True),
    ]
    placed = charts.placed_at(Configuration.of(groups, training=TRAINING))
    assert placed == {
        (0, "query"): "lora",
        (0, "output"): "serial_adapter",
        (0, "down"): "serial_adapter",
        (2, "output"): "serial_adapter",
        (2, "down"): "parallel_adapter, serial_adapter",
        (1, "key"): "prefix",
        (1, "value"): "prefix",
        (0, "key"): "aligner",
        (0, "value"): "aligner",
        (1, "up"): "norm",
        (1, "gate"): "norm",
    }
    squares = charts.importance_heatmap(FOUND, "fisher", placed=placed).data[1]
    assert set(zip(squares.y, squares.x, strict=True)) == {(r, str(n)) for n, r in placed}
