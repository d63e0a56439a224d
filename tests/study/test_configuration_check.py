from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_rules import RULES

from autopeft.configuration import Configuration
from autopeft.space.schema import MethodSchema, Shape
from autopeft.study.configuration_check import check_configuration
from autopeft.study.configuration_form import complete_configuration

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.06}


def sound() -> dict[str, Any]:
    return {
        "lora": [
            {"layers": [0, 1], "sites": ["query"], "rank": 8, "alpha": 16, "dropout": 0.05},
            {"layers": [2], "rank": 4},
        ],
        "serial_adapter": [{"layers": [5], "size": 2, "activation": "gelu"}],
        "sparsity": {"rule": "none"},
        "training": dict(TRAINING),
    }


def changed(place: str, value: Any) -> dict[str, Any]:
    """The sound form with one value replaced."""
    plain: Any = sound()
    block = plain
    *above, last = place.split(".")
    for part in above:
        block = block[int(part)] if isinstance(block, list) else block.setdefault(part, {})
    if isinstance(block, list):
        block[int(last)] = value
    else:
        block[last] = value
    return dict(plain)


def test_a_sound_one_has_no_faults(schemas: Mapping[str, MethodSchema], shape: Shape) -> None:
    assert check_configuration(sound(), schemas, shape, "c.yaml", rules=RULES) == []
    assert check_configuration(sound(), schemas, None, "c.yaml", rules=RULES) == []


@pytest.mark.parametrize(
    ("place", "value", "key", "hint"),
    [
        ("lorra", [{"layers": [0]}], "lorra", "did you mean `lora`?"),
        ("prefix_tuning", [{"layers": [0]}], "prefix_tuning", "did you mean `prefix`?"),
        ("prefix", [{"layers": [0], "length": 5}], "prefix", ""),
        ("lora.0.layers", [0, 6, 99], "lora.0.layers", "layers are counted from 0"),
        ("lora.0.layers", [-1], "lora.0.layers", "layers are counted from 0"),
        ("lora.0.layers", [], "lora.0.layers", ""),
        ("lora.0.layers", [True], "lora.0.layers", ""),
        ("lora.0.layers", "all", "lora.0.layers", ""),
        ("lora.0.sites", ["q_proj"], "lora.0.sites", "did you mean `query`?"),
        ("lora.0.sites", ["valeu"], "lora.0.sites", "did you mean `value`?"),
        ("lora.0.sites", ["gate"], "lora.0.sites", "this backbone lacks it"),
        ("lora.0.sites", [], "lora.0.sites", ""),
        ("lora.0.rank", 0, "lora.0.rank", "leave the whole group out"),
        ("lora.0.rank", "8", "lora.0.rank", ""),
        ("lora.0.rank", True, "lora.0.rank", ""),
        ("lora.0.rank", 8.0, "lora.0.rank", ""),
        ("lora.0.rank", [8], "lora.0.rank", ""),
        ("lora.0.r", 8, "lora.0.r", "did you mean `rank`?"),
        ("lora.0.lora_alpha", 8, "lora.0.lora_alpha", "did you mean `alpha`?"),
        ("lora.0.dropout", 0.95, "lora.0.dropout", ""),
        ("lora.0.alpha", float("nan"), "lora.0.alpha", ""),
        ("lora.0.alpha", float("inf"), "lora.0.alpha", ""),
        ("lora.0.drop_out", 0.1, "lora.0.drop_out", "did you mean `dropout`?"),
        ("lora.1", {"layers": [3]}, "lora.1.rank", "it must be given"),
        ("lora.1", "all", "lora.1", ""),
        ("lora.1.layers", [1], "lora", ""),  # still on query of layer 1, through the default
        ("lora", {"layers": [0], "rank": 1}, "lora", "put the block into a list: [{...}]"),
        ("serial_adapter.0.activation", "swish", "serial_adapter.0.activation", ""),
        ("sparsity", {"rule": "spd"}, "sparsity.rule", "did you mean `spt`?"),
        ("sparsity", {"rule": "shira"}, "sparsity.rule", "did you mean `sparse`?"),
        ("sparsity", {"rule": ["none", "ist"]}, "sparsity.rule", ""),
        ("sparsity", {"rule": "none", "keep": 0.5}, "sparsity.keep", ""),
        ("sparsity", {"rule": "ist", "kept": 0.5}, "sparsity.kept", "did you mean `keep`?"),
        ("sparsity", {"rule": "ist", "keep": 1.5}, "sparsity.keep", ""),
        ("sparsity", {"rule": "ist", "interval": True}, "sparsity.interval", ""),
        ("sparsity", {"rule": "sparse", "smallest": True}, "sparsity.smallest",
         "it means something only with scope: global"),
        ("sparsity", 0.5, "sparsity", ""),
        ("training.lr", 1e-3, "training.lr", "did you mean `learning_rate`?"),
        ("training.learning_rate", 0, "training.learning_rate", ""),
        ("training.warmup_ratio", 1.0, "training.warmup_ratio", ""),
        ("training.weight_decay", False, "training.weight_decay", ""),
        ("training.ffn_masking", 0.95, "training.ffn_masking", ""),
        ("training.knowledge_dropping", 0.1, "training.knowledge_dropping",
         "did you mean `ffn_dropping`?"),
        ("training.density_epsilon", 0.1, "training.density_epsilon",
         "it means something only with density_weight above 0"),
    ],
)  # fmt: skip
def test_one_fault_per_wrong_value(
    place: str,
    value: Any,
    key: str,
    hint: str,
    schemas: Mapping[str, MethodSchema],
    shape: Shape,
) -> None:
    found = check_configuration(changed(place, value), schemas, shape, "c.yaml", rules=RULES)
    assert [(fault.key, fault.hint) for fault in found] == [(f"configuration.{key}", hint)]
    assert found[0].where == "c.yaml"


def test_all_faults_at_once(schemas: Mapping[str, MethodSchema], shape: Shape) -> None:
    plain = {
        "lora": [{"layers": [9], "sites": ["qurey"], "rank": 0, "alhpa": 1}],
        "prefx": [{"layers": [0]}, {"layers": [1]}],
        "sparsity": {"rule": "x"},
    }
    found = check_configuration(
        plain, schemas, shape, "c.yaml", rules=RULES, key="search.enqueue.0"
    )
    assert [fault.key.removeprefix("search.enqueue.0.") for fault in found] == [
        "lora.0.layers",
        "lora.0.sites",
        "lora.0.alhpa",
        "lora.0.rank",
        "prefx",
        "sparsity.rule",
    ]


def test_a_parameter_without_meaning_is_a_fault(schemas: Mapping[str, MethodSchema]) -> None:
    idle = {"prefix": [{"layers": [0], "length": 5, "hidden": 8}]}
    found = check_configuration(idle, schemas, None, "c.yaml", rules=RULES, key="")
    assert [fault.key for fault in found] == ["prefix.0.hidden"]
    idle["prefix"][0]["reparametrise"] = True
    assert check_configuration(idle, schemas, None, "c.yaml", rules=RULES) == []


def test_sites_must_be_named_where_the_default_does_not_fit(
    schemas: Mapping[str, MethodSchema], shape: Shape
) -> None:
    fused = replace(shape, roles=frozenset({"up", "down"}))
    plain = {"lora": [{"layers": [0], "rank": 1}]}
    found = check_configuration(plain, schemas, fused, "c.yaml", rules=RULES)
    assert [(fault.key, fault.hint) for fault in found] == [
        ("configuration.lora.0.sites", "name the sites")
    ]


def test_completion_fills_in_defaults(schemas: Mapping[str, MethodSchema]) -> None:
    plain = {
        "lora": [{"layers": [2], "rank": 4, "alpha": 8}],
        "prefix": [{"layers": [0], "length": 5}],
        "training": {"learning_rate": 1},
    }
    assert complete_configuration(plain, schemas, TRAINING, rules=RULES).to_dict() == {
        "lora": [
            {"layers": [2], "sites": ["query", "value"], "alpha": 8.0, "dropout": 0.0, "rank": 4}
        ],
        "prefix": [{"layers": [0], "length": 5, "reparametrise": False}],
        "sparsity": {"rule": "none"},
        "training": TRAINING | {"learning_rate": 1.0},
    }


def test_a_rule_needs_a_method_that_it_is_for(schemas: Mapping[str, MethodSchema]) -> None:
    plain = {"prefix": [{"layers": [0], "length": 5}], "sparsity": {"rule": "spt"}}
    (fault,) = check_configuration(plain, schemas, None, "c.yaml", rules=RULES)
    assert fault.key == "configuration.sparsity.rule"
    assert fault.hint == "it is for lora, serial_adapter alone"


def test_completion_fills_in_a_rules_defaults(schemas: Mapping[str, MethodSchema]) -> None:
    group = {"lora": [{"layers": [2], "rank": 4}]}

    def completed(**block: Any) -> dict[str, Any]:
        plain = group | {"sparsity": block}
        assert check_configuration(plain, schemas, None, "c.yaml", rules=RULES) == []
        return dict(complete_configuration(plain, schemas, TRAINING, rules=RULES).sparsity)

    assert completed(rule="ist", keep=1) == {"rule": "ist", "interval": 10, "keep": 1}
    assert completed(rule="sparse") == {"rule": "sparse", "scope": "site", "score": "fisher"}
    assert completed(rule="sparse", scope="global")["smallest"] is False
    assert completed(rule="spt") == completed(rule="spt", threshold=10, score="sensitivity")


@given(alpha=st.integers(1, 64), layers=st.sets(st.integers(0, 5), min_size=1))
def test_completion_is_stable_and_has_one_hash(
    alpha: int, layers: set[int], schemas: Mapping[str, MethodSchema]
) -> None:
    short = {"lora": [{"layers": sorted(layers), "rank": 1, "alpha": alpha}]}
    long = {"lora": [short["lora"][0] | {"alpha": float(alpha), "sites": ["value", "query"]}]}
    first = complete_configuration(short, schemas, TRAINING, rules=RULES)
    assert complete_configuration(long, schemas, TRAINING, rules=RULES).hash == first.hash
    again = complete_configuration(first.to_dict(), schemas, {}, rules=RULES)
    assert isinstance(again, Configuration)
    assert again == first
