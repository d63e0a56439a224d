"""Known costs under sparsity rules, with and without an importance map."""

from dataclasses import replace

from importance_spaces import measured_anatomy

from autopeft.api.costs import Costs
from autopeft.configuration import Configuration, Group
from autopeft.counting import site_params

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}
SPT = {"rule": "spt", "budget": 0.5, "threshold": 10.0, "score": "sensitivity"}


def test_a_rule_that_needs_a_map_counts_as_none_without_one() -> None:
    group = Group.of("lora", range(6), ["query"], rank=2, alpha=4.0, dropout=0.0)
    ruled = Configuration.of([group], training=TRAINING, sparsity=SPT)
    plain = Configuration.of([group], training=TRAINING)
    measured = measured_anatomy()
    with_map = Costs(measured, head_params=10, train_tokens=100)
    without = Costs(replace(measured, importance=None), head_params=10, train_tokens=100)
    assert without.known(ruled) == with_map.known(plain)
    assert without.site_params(ruled) == with_map.site_params(plain)
    assert without.trunk_flops(ruled) == with_map.trunk_flops(plain)
    assert with_map.site_params(ruled) == site_params(ruled, measured)
    assert with_map.known(ruled)["trainable_params"] < with_map.known(plain)["trainable_params"]
