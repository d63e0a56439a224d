from collections.abc import Mapping
from typing import Any

import pytest
from made_up_rules import RULES

from autopeft.errors import Fault, SpaceError
from autopeft.space.library import load_space
from autopeft.space.schema import MethodSchema

Schemas = Mapping[str, MethodSchema]


def faults_of(block: Any, schemas: Schemas) -> tuple[Fault, ...]:
    with pytest.raises(SpaceError) as caught:
        load_space(block, schemas=schemas, rules=RULES)
    return caught.value.faults


SWITCHED = {"choice": [True, False]}


def lora(**settings: Any) -> dict[str, Any]:
    return {"methods": {"lora": {"rank": {"choice": [4, 8]}, **settings}}}


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"rank": 0}, "methods.lora.rank", "0 means absent"),
        ({"rank": {"choice": [0]}}, "methods.lora.rank.choice", "0 means absent"),
        ({"rank": {"int": [0, 0]}}, "methods.lora.rank.int", "0 means absent"),
        ({"rank": -4}, "methods.lora.rank", "a whole number of at least 1"),
        ({"rank": 2.5}, "methods.lora.rank", "a whole number of at least 1"),
        ({"rank": True}, "methods.lora.rank", "a whole number of at least 1"),
        ({"rank": [4, 8]}, "methods.lora.rank", "write {choice: [4, 8]}"),
        ({"rank": {"choice": []}}, "methods.lora.rank.choice", "at least one value"),
        ({"rank": {"choice": [4, 8, 4]}}, "methods.lora.rank.choice", "each value once"),
        ({"rank": {"int": [8, 4]}}, "methods.lora.rank.int", "write [4, 8]"),
        ({"rank": {"int": [0, 8], "log": True}}, "methods.lora.rank.int", "low above 0"),
        ({"rank": {"int": [1]}}, "methods.lora.rank.int", "[low, high]"),
        ({"rank": {"int": [1, 8], "log": "yes"}}, "methods.lora.rank.log", "true or false"),
        ({"rank": {"int": [1, 8], "lgo": True}}, "methods.lora.rank.lgo", "write log"),
        ({"rank": {"float": [1, 8]}}, "methods.lora.rank", "{int: [low, high]}"),
        ({"rank": {"choose": [1, 8]}}, "methods.lora.rank", "{choice: [...]}"),
        ({"rank": {"choice": [1, -1], "of": "hidden_size"}}, "methods.lora.rank.choice", "1/128"),
        ({"rank": {"choice": ["1/0"], "of": "hidden_size"}}, "methods.lora.rank.choice", "1/128"),
        ({"dropout": -0.1}, "methods.lora.dropout", "a number from 0 to 0.9"),
        ({"dropout": float("nan")}, "methods.lora.dropout", "a number from 0 to 0.9"),
        ({"dropout": {"choice": [0.0], "of": "d"}}, "methods.lora.dropout.of", "a whole size"),
        ({"alpha": 8, "alpha_over_rank": 2}, "methods.lora.alpha_over_rank", "not both"),
        ({"alpha_over_rank": 0}, "methods.lora.alpha_over_rank", "at least 1e-06"),
        ({"sites": []}, "methods.lora.sites", "[query, value]"),
        ({"sites": "query"}, "methods.lora.sites", "{subset: [...]}"),
        ({"sites": "importance"}, "methods.lora.sites", "{mode: importance, of: sites}"),
        ({"sites": ["query", "query"]}, "methods.lora.sites", "each site once"),
        ({"sites": {"subset": ["qeury"]}}, "methods.lora.sites", "write query"),
        ({"sites": ["v_proj"]}, "methods.lora.sites", "write value"),
        ({"layers": {"mode": "importence"}}, "methods.lora.layers.mode", "write importance"),
        (
            {"layers": {"mode": "importance", "keep": 0}},
            "methods.lora.layers.keep",
            "a whole number of at least 1",
        ),
        (
            {"layers": {"mode": "importance", "score": "fischer"}},
            "methods.lora.layers.score",
            "write fisher",
        ),
        (
            {"layers": {"mode": "importance", "of": "site"}},
            "methods.lora.layers.of",
            "write sites",
        ),
        ({"layers": {"mode": "importance", "kept": 1}}, "methods.lora.layers.kept", "write keep"),
        ({"layers": {"mode": "last", "keep": 1}}, "methods.lora.layers.keep", "allowed: mode"),
        (
            {"sites": {"subset": ["up"]}, "layers": {"mode": "importance", "of": "sites"}},
            "methods.lora.layers.of",
            "write the sites as a list",
        ),
        ({"layers": {"mode": "bist"}}, "methods.lora.layers.mode", "write bits"),
        ({"layers": "all"}, "methods.lora.layers", "write {mode: all}"),
        ({"layers": {"mode": "bits", "n": 3}}, "methods.lora.layers.n", "mode"),
        ({"layers": [-1]}, "methods.lora.layers", "whole numbers from 0"),
        ({"layers": [True]}, "methods.lora.layers", "whole numbers from 0"),
        ({"layers": []}, "methods.lora.layers", "whole numbers from 0"),
        ({"layers": [1, 1]}, "methods.lora.layers", "each layer once"),
        ({"present": "maybe"}, "methods.lora.present", "true or false"),
    ],
)
def test_impossible_settings(
    schemas: Schemas, settings: dict[str, Any], key: str, words: str
) -> None:
    (fault,) = faults_of(lora(**settings), schemas)
    assert fault.key == key
    assert words in str(fault)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("r", "rank"),
        ("lora_r", "rank"),
        ("lora_alpha", "alpha"),
        ("lora_dropout", "dropout"),
        ("target_modules", "sites"),
        ("layers_to_transform", "layers"),
        ("rnak", "rank"),
    ],
)
def test_foreign_spellings_name_our_key(schemas: Schemas, theirs: str, ours: str) -> None:
    (fault,) = faults_of(lora(**{theirs: 8}), schemas)
    assert fault.key == f"methods.lora.{theirs}"
    assert fault.hint == f"write {ours}"


@pytest.mark.parametrize(
    ("block", "key", "words"),
    [
        ({"methods": {"loar": {}}}, "methods.loar", "write lora"),
        ({"methods": {"prefix_tuning": {}}}, "methods.prefix_tuning", "write prefix"),
        ({"methods": {"lora": 8}}, "methods.lora", "a mapping such as {rank: {choice: [0, 8]}}"),
        (
            {"methods": {"vectors": 1}},
            "methods.vectors",
            "a mapping such as {}, or {present: true}",
        ),
        ({"methods": {}}, "methods", "at least one method"),
        ({}, "methods", "at least one method"),
        ({"methods": {"lora": {}}}, "methods.lora.rank", "no default"),
        (lora() | {"metods": {}}, "metods", "write methods"),
        (lora() | {"one_of": "lora"}, "one_of", "all, or a list of the space's methods"),
        (lora() | {"one_of": ["lora"]}, "one_of", "two methods or more"),
        (
            {
                "methods": {"lora": {"rank": 8}, "prefix": {"length": 2}},
                "one_of": ["lora", "loar"],
            },
            "one_of",
            "write lora",
        ),
        (
            {"methods": {"lora": {"rank": {"choice": [0, 8]}}, "vectors": {}}, "one_of": "all"},
            "methods.lora.rank",
            "sizes above 0",
        ),
        (
            {
                "methods": {
                    "lora": {"rank": 8},
                    "vectors": {"present": SWITCHED},
                },
                "one_of": "all",
            },
            "methods.vectors.present",
            "`one_of` says whether the method is on",
        ),
        (
            lora(training={"learning_rate": 1e-3}),
            "methods.lora.training.learning_rate",
            "write `one_of: all`",
        ),
        (
            {
                "methods": {
                    "lora": {"rank": 8, "training": {"learning_rate": 1e-3}},
                    "vectors": {"training": {"learning_rat": 1e-3}},
                },
                "one_of": "all",
            },
            "methods.vectors.training.learning_rat",
            "write learning_rate",
        ),
        (
            {
                "methods": {
                    "lora": {"rank": 8, "training": {"learning_rate": 1e-3}},
                    "vectors": {},
                },
                "one_of": "all",
                "training": {"learning_rate": 1e-2},
            },
            "methods.lora.training.learning_rate",
            "remove it from the space's own",
        ),
        (lora() | {"sparsity": {}}, "sparsity", "{rule: ...} with none, ist, spt, sparse"),
        (lora() | {"sparsity": "spt"}, "sparsity", "write {rule: spt}"),
        (lora() | {"sparsity": {"rule": "spd"}}, "sparsity.rule", "write spt"),
        (lora() | {"sparsity": {"rule": "shira"}}, "sparsity.rule", "write sparse"),
        (lora() | {"sparsity": {"rule": ["spt"]}}, "sparsity.rule", "write {choice: [spt]}"),
        (lora() | {"sparsity": {"rule": "ist", "kept": 1}}, "sparsity.kept", "write keep"),
        (
            lora() | {"sparsity": {"rule": {"choice": ["none", "ist"]}, "budget": 1}},
            "sparsity.budget",
            "it belongs to spt, which sparsity.rule does not list",
        ),
        (
            lora() | {"sparsity": {"rule": "ist", "keep": {"choice": [0.5, 2]}}},
            "sparsity.keep.choice",
            "a number from 0.01 to 1",
        ),
        (
            lora() | {"sparsity": {"rule": "sparse", "smallest": True}},
            "sparsity.smallest",
            "let scope be global",
        ),
        (
            {"methods": {"prefix": {"length": 4}}, "sparsity": {"rule": "spt"}},
            "sparsity.rule",
            "give the space one of lora, serial_adapter",
        ),
        (
            {
                "methods": {
                    "prefix": {"length": 4, "layers": {"mode": "importance", "of": "sites"}}
                }
            },
            "methods.prefix.layers.of",
            "prefix has its own place",
        ),
        (
            lora() | {"layers": {"mode": "importance", "of": "sites"}},
            "layers.of",
            "give each method",
        ),
        (
            {"methods": {"sparse": {"density": {"float": [0, 0.1]}}}},
            "methods.sparse.density.float",
            "low above 0",
        ),
        (
            {"methods": {"sparse": {"density": {"choice": ["1/8"], "of": "hidden_size"}}}},
            "methods.sparse.density.of",
            "a whole size",
        ),
        ({"methods": {"sparse": {"density": 1.5}}}, "methods.sparse.density", "from 1e-06 to 1"),
        (lora() | {"schema": "autopeft/v1"}, "schema", "autopeft/space/v1"),
        (lora() | {"description": 3}, "description", "text"),
        (lora() | {"layers": {"mode": "shared"}}, "layers.mode", "all, bits, range, last"),
        (lora() | {"training": [1]}, "training", "a mapping"),
        (lora() | {"training": {"lr": 1e-3}}, "training.lr", "write learning_rate"),
        (lora() | {"training": {"learning_rate": 0}}, "training.learning_rate", "1e-08 to 10"),
        (
            lora(layers=[0]) | {"layers": {"mode": "bits"}},
            "layers",
            "give a method `layers: {mode: shared}`",
        ),
        (
            {"methods": {"prefix": {"length": 4, "hidden": 64}}},
            "methods.prefix.hidden",
            "let reparametrise be true",
        ),
        (
            {"methods": {"serial_adapter": {"size": 4, "activation": "rleu"}}},
            "methods.serial_adapter.activation",
            "one of relu, gelu, tanh, silu",
        ),
        ({"methods": {"prefix": {"length": 4, "sites": []}}}, "methods.prefix.sites", "layers"),
    ],
)
def test_faults_of_the_block(schemas: Schemas, block: Any, key: str, words: str) -> None:
    (fault,) = faults_of(block, schemas)
    assert fault.key == key
    assert words in str(fault)


@pytest.mark.parametrize(
    ("theirs", "section"),
    [
        ("batch_size", "training"),
        ("epochs", "training"),
        ("per_device_train_batch_size", "training"),
        ("max_length", "data"),
    ],
)
def test_what_belongs_to_the_study(schemas: Schemas, theirs: str, section: str) -> None:
    (fault,) = faults_of(lora() | {"training": {theirs: {"choice": [16, 32]}}}, schemas)
    assert fault.key == f"training.{theirs}"
    assert f"belongs to the study's `{section}` block" in fault.hint


def test_all_faults_at_once_in_the_order_of_the_block(schemas: Schemas) -> None:
    block = {
        "methods": {"lora": {"rank": 0, "lora_alpha": 16}, "adaptor": {}},
        "layers": {"mode": "importance", "score": "x"},
        "sparsity": {"rule": {"choice": ["ist", "spd"]}, "keep": 7},
        "training": {"batch_size": 32},
        "extra": 1,
    }
    keys = [fault.key for fault in faults_of(block, schemas)]
    assert sorted(keys) == sorted(
        [
            "extra",
            "layers.score",
            "sparsity.rule",
            "sparsity.keep",
            "methods.lora.lora_alpha",
            "methods.lora.rank",
            "methods.adaptor",
            "training.batch_size",
        ]
    )


def test_numbers_may_be_text(schemas: Schemas) -> None:
    block = lora() | {"training": {"learning_rate": {"float": ["3e-5", "1e-3"], "log": True}}}
    ((_, leaf),) = load_space(block, schemas=schemas, rules=RULES).parts.training
    assert leaf.to_dict() == {"float": [3e-5, 1e-3], "log": True}


def test_the_block_loads_as_the_same_space(schemas: Schemas) -> None:
    space = load_space("mixed", schemas=schemas, rules=RULES)
    again = load_space(space.block, schemas=schemas, rules=RULES)
    assert again.parts == space.parts


@pytest.mark.parametrize("start", [True, False, "flat", "steep_0", {"choice": [False, "flat"]}])
def test_names_beside_true_and_false(schemas: Schemas, start: Any) -> None:
    block = {"methods": {"vectors": {"start": start}}}
    (method,) = load_space(block, schemas=schemas, rules=RULES).parts.methods
    assert dict(method.leaves)["start"].to_dict() == start


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("eva", "it needs the data"),
        ({"choice": [True, "eva"]}, "it needs the data"),
        ("flat_3", "it has no numbers"),
        ("Flat", "one of true, false, flat, steep, steep_N"),
        ("steep_", "steep_N"),
        ("steep_03", "steep_N"),
        ("steep_3x", "steep_N"),
        (1, "steep_N"),
        (0, "steep_N"),
        ({"int": [0, 1]}, "true, false, a name or {choice: [...]}"),
        ({"choice": [True, True]}, "each value once"),
    ],
)
def test_other_names_beside_true_and_false(schemas: Schemas, start: Any, words: str) -> None:
    (fault,) = faults_of({"methods": {"vectors": {"start": start}}}, schemas)
    assert fault.key.startswith("methods.vectors.start")
    assert words in str(fault)


def test_values_have_their_parameters_types(schemas: Schemas) -> None:
    space = load_space(lora(rank=8.0, alpha=16, dropout=0), schemas=schemas, rules=RULES)
    leaves = {name: leaf.to_dict() for name, leaf in space.parts.methods[0].leaves}
    assert leaves == {"rank": 8, "alpha": 16.0, "dropout": 0.0}
    assert [type(value) for value in leaves.values()] == [int, float, float]
