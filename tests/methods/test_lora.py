"""LoRA's options: who knows nothing of them is not changed by them."""

from dataclasses import replace
from typing import Any

import pytest
import tiny_backbones as tiny

from autopeft import counting
from autopeft.configuration import Configuration, Group
from autopeft.methods import registry
from autopeft.methods.lora import scaling
from autopeft.space.library import load_space
from autopeft.sparsity import rules
from autopeft.sparsity.adalora import _resized
from autopeft.study.configuration_form import complete_configuration

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}


def _complete(**settings: Any) -> Configuration:
    plain = {"lora": [{"layers": [0], "rank": 4, **settings}]}
    return complete_configuration(plain, registry.schemas(), TRAINING, rules=rules.schemas())


def test_configurations_of_before_dora_are_what_they_were() -> None:
    before = Group.of("lora", [0], ["query", "value"], rank=4, alpha=16.0, dropout=0.0)
    assert _complete().groups == (before,)
    assert _complete(dora=False, rank_stabilised=False).hash == _complete().hash
    assert _complete(dora=True).hash != _complete().hash


def test_spaces_of_before_dora_are_what_they_were() -> None:
    shape = tiny.tiny_backbone("bert").anatomy.shape(frozenset(registry.names()))

    def bound(**settings: Any) -> Any:
        block = {"methods": {"lora": {"rank": {"choice": [2, 4]}, **settings}}}
        return load_space(block, schemas=registry.schemas(), rules=rules.schemas()).bind(shape)

    assert "dora" not in str(bound().to_dict())
    assert bound(dora=False).hash == bound().hash
    chosen = bound(dora={"choice": [True, False]})
    assert chosen.hash != bound().hash
    assert chosen.distinct == 2 * bound().distinct
    points = [chosen.decode([0.0, u]) for u in (0.0, 1.0)]
    groups = [chosen.assignment(point)["lora"][0] for point in points]
    assert {group.get("dora") for group in groups} == {None, True}


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_scales_survive_a_matrix_that_loses_ranks(rank_stabilised: bool) -> None:
    settings = {"alpha": 12.0, "dropout": 0.0, "rank_stabilised": rank_stabilised}
    group = Group.of("lora", [0], ["query"], rank=9, **settings)
    assert scaling(group) == pytest.approx(12.0 / (3.0 if rank_stabilised else 9.0))
    assert scaling(_resized(group, 0, "query", 4)) == pytest.approx(scaling(group))


def test_adalora_refuses_lengths_that_would_outlive_their_matrix() -> None:
    anatomy = tiny.tiny_backbone("bert").anatomy
    ruled = replace(_complete(dora=True), sparsity=(("rule", "adalora"),))
    (fault,) = counting.faults(ruled, anatomy)
    assert (fault.key, fault.allowed) == ("lora.dora", "false")
    assert not counting.faults(replace(_complete(), sparsity=(("rule", "adalora"),)), anatomy)
