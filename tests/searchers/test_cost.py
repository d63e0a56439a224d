from dataclasses import replace

import pytest

from autopeft.configuration import Configuration, Group
from autopeft.searchers.cost import PackCost

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}


def lora(*layers: int) -> Configuration:
    group = Group.of("lora", layers, ["query"], rank=4, alpha=8, dropout=0.0)
    return Configuration.of([group], training=TRAINING)


@pytest.fixture
def cost(make_problem) -> PackCost:
    """10 FLOPs a layer forward, as many backward from the branch point on; 6 layers."""

    def branch(configuration) -> int:
        return min(configuration.layers)

    problem = replace(
        make_problem(),
        flops=lambda c: 10.0 * 6 + 10.0 * (6 - branch(c)),
        trunk_flops=lambda c: 10.0 * branch(c),
    )
    return PackCost(problem, unit=10.0)


def test_the_first_lane_pays_for_all_of_its_trunk(cost) -> None:
    assert cost(lora(4)) == cost.alone(lora(4)) == pytest.approx(8.0)


def test_later_lanes_pay_for_what_is_not_shared(cost) -> None:
    cost.choose(lora(2))
    assert cost(lora(2)) == pytest.approx(8.0)  # 4 layers forward and backward
    assert cost(lora(4)) == pytest.approx(8.0 - 2.0)  # two trunk layers are there already
    assert cost(lora(0)) == cost.alone(lora(0)) == pytest.approx(12.0)
    cost.choose(lora(4))
    assert cost(lora(4)) == pytest.approx(4.0)
    cost.choose(lora(1))
    assert cost(lora(4)) == pytest.approx(4.0)  # the deepest trunk counts


def test_no_cost_is_zero(make_problem) -> None:
    nothing = PackCost(replace(make_problem(), flops=lambda c: 0.0), unit=0.0)
    assert nothing(lora(0)) > 0.0
