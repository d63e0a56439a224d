"""What is written for HF peft: exact, also on fused maps, or refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from importance_maps import with_importance
from method_cases import configuration as case
from peft import PeftModel
from peft_exports import ARCHITECTURES, HELD, exports, is_exported
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from autopeft.configuration import Configuration, Group
from autopeft.errors import ExportError
from autopeft.export.peft_config import peft_config, peft_faults
from autopeft.export.peft_weights import peft_adapter
from autopeft.methods import registry
from autopeft.methods.lane_operator import Call
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:fan_in_fan_out:UserWarning",
    "ignore:Sparse invariant checks:UserWarning",  # of peft's SHiRA
)


def _no_draws(name: str, shape: Any) -> Any:
    raise AssertionError("random numbers in evaluation")


def _lora(layers: list[int], sites: list[str], rank: int, **settings: float | bool) -> Group:
    values = {"alpha": 3.0 * rank, "dropout": 0.0} | settings
    return Group.of("lora", layers, sites, rank=rank, **values)


CIRCULANT = {"structure": "circulant", "dropout": 0.0}
PLAIN = ("bert", "roberta", "distilbert", "gpt2", "llama", "modernbert")
OPTIONS = [(name, kind) for name in ("bert", "modernbert") for kind in ("rank_stabilised", "dora")]


@pytest.mark.parametrize(("name", "kind"), [*((name, "") for name in PLAIN), *OPTIONS])
def test_trained_adapters_give_the_same_logits_through_peft(
    name: str, kind: str, tmp_path: Path
) -> None:
    backbone = tiny.tiny_backbone(name, torch.float32)
    own = {kind: True} if kind else {}
    groups = [_lora([0, 2], ["query"], 2, **own), _lora([1, 2], ["value", "output"], 5, **own)]
    configuration = Configuration.of(groups, training=TRAINING)
    head = backbone.head(3)
    pack = Pack(backbone, head, [Lane(0, configuration)], seeds=Seeds(0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pack.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    views = pack.lane_views(pack.parameters_by_name(), 0)
    adapter = peft_adapter(configuration, backbone, head, views)
    backbone.model.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    config = {**adapter.config, "inference_mode": True}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(adapter.tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    batch = tiny.tiny_batch(name)
    with torch.no_grad(), pack.running():
        ours = pack(batch, Call(False, _no_draws))[0]
    pad = {"pad_token_id": 0} if name in ("gpt2", "llama") else {}
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, **pad
    )
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = theirs(**batch.inputs).logits
    assert torch.allclose(ours, expected, atol=2e-5)


def _sparse(layers: list[int], sites: list[str], density: float, **settings: Any) -> Group:
    values = {"granularity": "weight", "score": "random", "smallest": False} | settings
    return Group.of("sparse", layers, sites, density=density, **values)


def _trained_logits(
    name: str, configuration: Configuration, folder: Path
) -> tuple[torch.Tensor, torch.Tensor, PeftModel]:
    """Our logits and peft's of a configuration with random weights, and peft's model."""
    backbone = tiny.tiny_backbone(name, torch.float32)
    backbone = replace(backbone, anatomy=with_importance(backbone.anatomy))
    head = backbone.head(3)
    pack = Pack(backbone, head, [Lane(0, configuration)], seeds=Seeds(0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pack.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    views = pack.lane_views(pack.parameters_by_name(), 0) | pack.lane_fixed(0)
    adapter = peft_adapter(configuration, backbone, head, views)
    backbone.model.save_pretrained(folder / "base")
    (folder / "adapter").mkdir()
    config = {**adapter.config, "inference_mode": True}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(adapter.tensors, folder / "adapter" / "adapter_model.safetensors")
    batch = tiny.tiny_batch(name)
    with torch.no_grad(), pack.running():
        ours = pack(batch, Call(False, _no_draws))[0]
    pad = {} if name == "bert" else {"pad_token_id": 0}
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=3, **pad)
    theirs = PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        return ours, theirs(**batch.inputs).logits, theirs


@pytest.mark.parametrize("name", ["bert", "llama", "modernbert"])
def test_trained_sparse_weights_give_the_same_logits_through_shira(
    name: str, tmp_path: Path
) -> None:
    groups = [
        _sparse([0, 2], ["query", "down"], 0.03),
        _sparse([1], ["value", "output"], 0.1, granularity="output"),
        _sparse([2], ["up"], 0.2, granularity="block", block=5),
    ]
    configuration = Configuration.of(groups, training=TRAINING)
    ours, theirs, _ = _trained_logits(name, configuration, tmp_path)
    assert torch.allclose(ours, theirs, atol=2e-5)
    assert float(theirs.std()) > 0.01


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("road", {"variant": 4, "group_size": 8}),
        ("boft", {"block_size": 4, "factors": 1}),
        ("oft", {"block_size": 4, "share": False}),
        ("oft", {"block_size": 16, "share": True}),
    ],
)
def test_methods_that_say_how_peft_holds_them_give_the_same_logits_through_it(
    method: str,
    settings: dict[str, Any],
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # BOFT's layer would compile an extension for GPUs where it may.
    monkeypatch.setattr("peft.tuners.boft.layer._FBD_CUDA", False)
    groups = [
        Group.of(method, [0, 2], ["query", "down"], **settings),
        Group.of(method, [1], ["value", "up"], **settings),
    ]
    configuration = Configuration.of(groups, training=TRAINING)
    ours, theirs, model = _trained_logits(architecture, configuration, tmp_path)
    assert torch.allclose(ours, theirs, atol=2e-5)
    assert float(theirs.std()) > 0.01
    assert model.peft_config["default"].peft_type == method.upper()


SITES = ("query", "value", "output", "up", "down")
FACTORS = {"vera": 3, "melora": 3, "comp_lora": 3, "loretta_rep": 3, "vb_lora": 3}
DIRECTIONS = {"kasa": 3, "psoft": 3, "ether": 4, "ether_plus": 16, "vera": 3}


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_what_is_lora_once_trained_gives_the_same_logits_through_peft(
    architecture: str, tmp_path: Path
) -> None:
    """One method at every site of a layer, and LoRA itself beside one of them."""
    anatomy = tiny.tiny_backbone(architecture).anatomy
    groups = [
        case(name, anatomy, size, layers=layers, sites=[site]).groups[0]
        for names, layers in ((FACTORS, [0]), (FACTORS, [2]), (DIRECTIONS, [1]))
        for (name, size), site in zip(names.items(), SITES, strict=True)
    ]
    groups += case("msplora", anatomy, 2, layers=[0, 1, 2], sites=["key"]).groups
    groups.append(_lora([1, 2], ["query"], 5))
    configuration = Configuration.of(groups, training=TRAINING)
    ours, theirs, model = _trained_logits(architecture, configuration, tmp_path)
    assert torch.allclose(ours, theirs, atol=2e-5)
    assert float(theirs.std()) > 0.01
    assert model.peft_config["default"].peft_type == "LORA"
    with pytest.raises(ExportError, match="once it is trained"):
        peft_config(configuration, anatomy, tiny.tiny_backbone("bert").head(2), base_model="b")


@pytest.mark.parametrize(
    ("architecture", "method", "settings", "sites"),
    [
        ("bert", "hira", {"rank": 3, "dropout": 0.0}, "query down"),
        ("llama", "hira", {"rank": 3, "dropout": 0.0}, "query down"),
        ("gpt2", "hira", {"rank": 3, "dropout": 0.0}, "output up down"),
        ("gpt2", "hut", {"rank": 3, "alpha": 4.0, "dropout": 0.0}, "output up down"),
        ("bert", "hut", {"rank": 3, "alpha": 4.0, "dropout": 0.0}, "query down"),
        ("llama", "hut", {"rank": 3, "alpha": 3.0, "dropout": 0.0}, "query down"),
        ("bert", "surm", {"factored": True, "scale": 2.0} | CIRCULANT, "query output"),
        ("llama", "surm", {"factored": False, "scale": 1.0} | CIRCULANT, "query output"),
        ("bert", "bitfit", {}, "query down"),
        ("llama", "bitfit", {}, "query down"),
        ("bert", "ia3", {}, "key up down"),
        ("llama", "ia3", {}, "key up down"),
        ("modernbert", "ia3", {}, "key value down"),
        ("gpt2", "ia3", {}, "query value up down"),
        ("modernbert", "bitfit", {}, "query value"),
        ("bert", "norm", {"bias": True}, "attention_norm ffn_norm"),
        ("bert", "norm", {"bias": False}, "ffn_norm"),
        ("llama", "norm", {"bias": False}, "attention_norm ffn_norm"),
        ("gemma", "norm", {"bias": False}, "attention_norm"),
        ("bert", "ssf", {}, "value down"),
        ("opt", "ssf", {}, "query up"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Detected that the base layer has no bias:UserWarning",
    "ignore:Unsupported layer type:UserWarning",  # of norms, by peft itself
)
def test_one_set_of_settings_gives_the_same_logits_through_peft(
    architecture: str, method: str, settings: dict[str, Any], sites: str, tmp_path: Path
) -> None:
    groups = [Group.of(method, [0, 2], sites.split(), **settings)]
    configuration = Configuration.of(groups, training=TRAINING)
    ours, theirs, model = _trained_logits(architecture, configuration, tmp_path)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert float(theirs.std()) > 0.01
    assert model.peft_config["default"].peft_type == registry[method].peft_type


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")  # of peft
@pytest.mark.parametrize("reparametrise", [False, True])
def test_a_classifiers_prefixes_give_the_same_logits_through_peft(
    reparametrise: bool, tmp_path: Path
) -> None:
    own = {"reparametrise": True, "hidden": 6} if reparametrise else {"reparametrise": False}
    group = Group.of("prefix", [0, 1, 2], length=3, **own)
    configuration = Configuration.of([group], training=TRAINING)
    ours, theirs, model = _trained_logits("llama", configuration, tmp_path)
    assert torch.allclose(ours, theirs, atol=1e-5)
    with torch.no_grad():  # peft cannot disable it: the class does not generate
        bare = model.get_base_model()(**tiny.tiny_batch("llama").inputs).logits
    assert not torch.allclose(ours, bare, atol=1e-3)


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_waveft_has_numbers_of_coefficients_of_their_own_in_peft(
    architecture: str, tmp_path: Path
) -> None:
    first = "output" if architecture == "gpt2" else "query"  # not part of a fused map
    groups = [
        Group.of("waveft", layers, sites, coefficients=n, scale=2.0, places_seed=5)
        for layers, sites, n in (([0, 2], [first, "down"], 40), ([1], [first], 7))
    ]
    configuration = Configuration.of(groups, training=TRAINING)
    ours, theirs, model = _trained_logits(architecture, configuration, tmp_path)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, _untrained(model, architecture), atol=1e-3)
    assert len(model.peft_config["default"].n_frequency_pattern) == 1


@pytest.mark.parametrize("variants", ["one", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", HELD)
@pytest.mark.filterwarnings(
    "ignore:Detected that the base layer has no bias:UserWarning",
    "ignore:Unsupported layer type:UserWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
)
def test_every_method_that_peft_holds_gives_the_same_logits_through_it(
    name: str, architecture: str, variants: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `deploy: [peft]` lets a study propose of it, so that a new one is held as well."""
    monkeypatch.setattr("peft.tuners.boft.layer._FBD_CUDA", False)
    found = list(exports(name, tiny.tiny_backbone(architecture).anatomy, causal=False))
    if not found:  # what language models alone have is in `test_peft_causal`
        assert any(is_exported(name, causal=causal) for causal in (False, True)), (
            f"peft holds no variant of {name}, which says that {registry[name].peft_type} does"
        )
    for number, configuration in enumerate(found if variants == "all" else found[:1]):
        folder = tmp_path / str(number)
        folder.mkdir()
        ours, theirs, model = _trained_logits(architecture, configuration, folder)
        assert torch.allclose(ours, theirs, atol=2e-5), configuration.groups
        assert model.peft_config["default"].peft_type == registry[name].peft_type
        if name != "prefix":  # which peft cannot disable: the class does not generate
            assert not torch.allclose(ours, _untrained(model, architecture), atol=1e-3)


def _untrained(model: PeftModel, architecture: str) -> torch.Tensor:
    with torch.no_grad(), model.disable_adapter():
        logits: torch.Tensor = model(**tiny.tiny_batch(architecture).inputs).logits
    return logits


def test_what_one_configuration_of_peft_cannot_say_is_refused() -> None:
    backbone = tiny.tiny_backbone("bert")
    groups = [
        Group.of("road", [0], ["query"], variant=1, group_size=2),
        Group.of("road", [1], ["query"], variant=2, group_size=2),
    ]
    configuration = Configuration.of(groups, training=TRAINING)
    with pytest.raises(ExportError, match="one set of settings"):
        peft_config(configuration, backbone.anatomy, backbone.head(2), base_model="b")
    butterfly = Group.of("boft", [0], ["query"], block_size=4, factors=2)
    with pytest.raises(ExportError, match="several factors"):
        peft_config(
            Configuration.of([butterfly], training=TRAINING),
            backbone.anatomy,
            backbone.head(2),
            base_model="b",
        )
    for lacking in (
        Group.of("norm", [0], ["ffn_norm"], bias=True),
        Group.of("ssf", [1], ["value"]),
    ):
        with pytest.raises(ExportError, match=r"a shift of .*, which has no"):
            peft_config(
                Configuration.of([lacking], training=TRAINING),
                tiny.tiny_backbone("llama").anatomy,
                backbone.head(2),
                base_model="b",
            )
    toeplitz = Group.of("surm", [0], ["query"], structure="toeplitz", scale=1.0, dropout=0.0)
    (fault,) = peft_faults(Configuration.of([toeplitz], training=TRAINING), backbone.anatomy)
    assert fault.given == "structure toeplitz"
    fused = tiny.tiny_backbone("modernbert")
    with pytest.raises(ExportError, match="several sites in one map"):
        peft_config(
            Configuration.of(groups[:1], training=TRAINING),
            fused.anatomy,
            fused.head(2),
            base_model="b",
        )


def test_what_peft_would_train_otherwise_is_refused_before_it_is_trained() -> None:
    backbone = tiny.tiny_backbone("bert")
    for group in (
        Group.of("norm", [0], ["ffn_norm"], bias=False),
        Group.of("ssf", [1], ["value"]),
        Group.of("surm", [1], ["value"], factored=False, scale=1.0, **CIRCULANT),
        Group.of("hut", [1], ["value"], rank=2, alpha=4.0, dropout=0.0),
        Group.of("ia3", [1], ["value"]),
    ):
        if group.method == "ia3":
            backbone = tiny.tiny_backbone("gpt2")
        configuration = Configuration.of([group], training=TRAINING)
        assert peft_faults(configuration, backbone.anatomy) == []
        with pytest.raises(ExportError, match="what peft trains as well"):
            peft_config(configuration, backbone.anatomy, backbone.head(2), base_model="b")


def test_what_reflects_an_output_that_another_made_is_no_lora() -> None:
    anatomy = tiny.tiny_backbone("bert").anatomy
    own = case("ether_plus", anatomy, 2, layers=[0], sites=["query"]).groups
    beside = case("comp_lora", anatomy, 2, layers=[0], sites=["query"]).groups
    behind = [_lora([0], ["query"], 2)]
    (fault,) = peft_faults(Configuration.of([*own, *beside], training=TRAINING), anatomy)
    assert fault.given == "behind another method at layer 0, query"
    assert peft_faults(Configuration.of([*own, *behind], training=TRAINING), anatomy) == []


def test_where_the_numbers_agree_shira_holds_no_weight_more(tmp_path: Path) -> None:
    density = 2 * (32 + 32) / (32 * 32)
    configuration = Configuration.of(
        [_sparse([0, 1], ["query", "value"], density)], training=TRAINING
    )
    ours, theirs, model = _trained_logits("bert", configuration, tmp_path)
    assert torch.allclose(ours, theirs, atol=2e-5)
    held = [p for n, p in model.named_parameters() if "shira_weight" in n]
    assert [int((parameter != 0).sum()) for parameter in held] == [2 * 64] * 4
    assert model.peft_config["default"].r == 2


def test_shira_is_refused_where_it_cannot_hold_the_weights(tmp_path: Path) -> None:
    groups = [_sparse([0], ["up"], 0.95), _sparse([0], ["query"], 0.01)]
    dense = Configuration.of(groups, training=TRAINING)
    with pytest.raises(ExportError, match="r = 19 in SHiRA") as caught:
        _trained_logits("bert", dense, tmp_path)
    (fault,) = caught.value.faults
    assert "query" in fault.given
    backbone = tiny.tiny_backbone("gpt2")
    mixed = Configuration.of([_lora([0], ["query"], 2), *dense.groups], training=TRAINING)
    faults = peft_faults(mixed, backbone.anatomy)
    assert [fault.given for fault in faults] == ["beside lora", "on transformers' Conv1D maps"]
    with pytest.raises(ExportError, match="autopeft train"):
        peft_config(dense, tiny.tiny_backbone("bert").anatomy, backbone.head(2), base_model="b")


def test_what_peft_cannot_carry_is_refused_all_at_once() -> None:
    backbone = tiny.tiny_backbone("bert")
    adapter = Group.of(
        "serial_adapter", [0], ["ffn"], size=2, activation="relu", scale=1.0, dropout=0.0
    )
    groups = [
        _lora([0], ["query"], 2),
        _lora([1], ["query"], 2, dropout=0.1),
        adapter,
        Group.of("prefix", [1], length=2, reparametrise=False),
    ]
    configuration = Configuration.of(groups, training=TRAINING)
    with pytest.raises(ExportError) as caught:
        peft_config(configuration, backbone.anatomy, backbone.head(2), base_model="b")
    assert [fault.key for fault in caught.value.faults] == [
        "serial_adapter",
        "prefix",
        "lora.dropout",
        "prefix.layers",
        "prefix",
    ]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Group.of("ia3", [0], ["query"]), "lora; got beside ia3; allowed: one of the two alone"),
        (Group.of("peft:VERA", [0], ["query"], r=4), "2 adapters: lora, peft:VERA; allowed: one"),
    ],
    ids=lambda given: getattr(given, "method", ""),
)
def test_types_that_meet_at_one_map_are_sent_to_what_training_writes(
    other: Group, reason: str
) -> None:
    backbone = tiny.tiny_backbone("bert")
    both = Configuration.of([_lora([0], ["query"], 2), other], training=TRAINING)
    with pytest.raises(ExportError) as caught:
        peft_config(both, backbone.anatomy, backbone.head(2), base_model="b")
    assert reason in str(caught.value)
    assert "use --format yaml: what autopeft train makes of it loads" in str(caught.value)


def test_part_of_a_fused_map_cannot_be_trained_by_peft() -> None:
    backbone = tiny.tiny_backbone("gpt2")
    configuration = Configuration.of([_lora([0], ["query"], 2)], training=TRAINING)
    with pytest.raises(ExportError, match="whole maps"):
        peft_config(configuration, backbone.anatomy, backbone.head(2), base_model="b")


def test_the_config_names_every_module_with_its_own_rank() -> None:
    backbone = tiny.tiny_backbone("bert")
    groups = [_lora([0, 1], ["query"], 2), _lora([2], ["query"], 8)]
    configuration = Configuration.of(groups, training=TRAINING)
    config = peft_config(configuration, backbone.anatomy, backbone.head(2), base_model="b")
    names = [f"encoder.layer.{i}.attention.self.query" for i in range(3)]
    assert config["target_modules"] == names
    assert (config["r"], config["lora_alpha"]) == (2, 6)
    assert config["rank_pattern"] == {r"encoder\.layer\.2\.attention\.self\.query": 8}
    assert config["alpha_pattern"] == {r"encoder\.layer\.2\.attention\.self\.query": 24}
    assert config["modules_to_save"] == ["classifier"]
    assert json.loads(json.dumps(config)) == config
    demo = peft_config(
        configuration, backbone.anatomy, backbone.head(2), base_model="builtin:minilm"
    )
    assert demo["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
