"""SVFT's patterns by the names that the paper gives them."""

import pytest
import tiny_backbones as tiny
import torch
from lane_training import Training, without_cache
from method_cases import configuration

from autopeft import counting
from autopeft.api import checks
from autopeft.configuration import Configuration, Group
from autopeft.training.lanes.pack import Lane


def _on_maps(pattern: str) -> Configuration:
    anatomy = tiny.tiny_backbone("bert").anatomy
    return configuration("svft", anatomy, 1, sites=["query", "up"], pattern=pattern)


def test_plain_is_one_band() -> None:
    """The same parameters, and the same bits after training beside it."""
    plain, banded = (_on_maps(pattern) for pattern in ("plain", "banded"))
    backbone = tiny.tiny_backbone("bert")
    d = tiny.HIDDEN
    stored = counting.site_params(plain, backbone.anatomy)
    assert stored == counting.site_params(banded, backbone.anatomy)
    assert set(stored.values()) == {d + 1}, "singular values and a gate"
    batches = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
    run = Training(backbone, [Lane(0, plain), Lane(1, banded)])
    assert len(run.pack.operators) == len(stored), "they are stacked"
    trained = run.run(batches, 0, 3)
    own, other = (trained[number].weights() for number in (0, 1))
    values = [name for name in own if name.endswith("values")]
    assert all(torch.equal(own[name], other[name]) for name in values)
    assert all(float(own[name].abs().max()) > 0 for name in values)


def test_plain_with_more_bands_is_refused() -> None:
    anatomy = tiny.tiny_backbone("bert").anatomy
    group = Group.of("svft", [0], ["query"], bands=3, pattern="plain")
    (fault,) = counting.faults(
        Configuration.of([group], training=dict(_on_maps("plain").training)), anatomy
    )
    assert (fault.key, fault.given, fault.allowed) == ("svft.bands", "3 with pattern plain", "1")
    assert "banded" in fault.hint


@pytest.mark.parametrize("block", [{"pattern": "plain"}, {}])
def test_a_space_need_not_name_the_one_band(block: dict[str, str]) -> None:
    assert not checks.space_faults({"methods": {"svft": block}}, where="s")
