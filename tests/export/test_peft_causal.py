"""Adapters of causal language models in HF peft's form: the same logits through `PeftModel`."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_causal as tiny
import torch
from passed_cases import passed_group
from peft import PeftModel
from peft_exports import HELD, exports, is_exported
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from autopeft.api.deploying import undeployable
from autopeft.backbone.loading import BackboneRequest, backbone_of, load_backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import ExportError
from autopeft.export.peft_config import peft_config, peft_faults
from autopeft.export.peft_weights import peft_adapter
from autopeft.methods.lane_operator import Call
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:fan_in_fan_out:UserWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",  # of peft's prefixes
)


def _no_draws(name: str, shape: Any) -> Any:
    raise AssertionError("random numbers in evaluation")


def _configuration() -> Configuration:
    settings = {"alpha": 6.0, "dropout": 0.0}
    groups = [
        Group.of("lora", [0, 1], ["query"], rank=2, **settings),
        Group.of("lora", [1], ["value", "output", "down"], rank=5, **settings),
    ]
    return Configuration.of(groups, training=TRAINING)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["llama", "llama-tied", "qwen3", "gemma3", "gpt2", "opt-projected", "phi", "phi3"]
)
def test_peft_gives_the_same_logits_on_the_causal_class(name: str, tmp_path: Path) -> None:
    ours, theirs, plain = _logits(name, _configuration(), tmp_path)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert (ours - plain).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_peft_gives_the_same_logits_behind_a_prompt(name: str, tmp_path: Path) -> None:
    group = Group.of("prompt", [0], length=3, initial="random")
    ours, theirs, plain = _logits(name, Configuration.of([group], training=TRAINING), tmp_path)
    torch.testing.assert_close(ours, theirs[:, 3:], rtol=0, atol=1e-5)  # turned in float32
    assert (ours - plain).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize(("name", "reparametrise"), [("llama", False), ("qwen3", True)])
def test_peft_gives_the_same_logits_behind_prefixes(
    name: str, reparametrise: bool, tmp_path: Path
) -> None:
    layers = range(len(backbone_of(tiny.tiny_causal(name)).anatomy.layers))
    own = {"reparametrise": True, "hidden": 6} if reparametrise else {"reparametrise": False}
    group = Group.of("prefix", layers, length=3, **own)
    ours, theirs, plain = _logits(name, Configuration.of([group], training=TRAINING), tmp_path)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # kept in float32
    assert (ours - plain).abs().max() > 0.01


@torch.no_grad()
def test_what_peft_holds_of_language_models_alone_gives_the_same_logits(tmp_path: Path) -> None:
    """All that `deploy: [peft]` lets a study propose: `test_peft` has what classifiers have."""
    anatomy = backbone_of(tiny.tiny_causal("llama")).anatomy
    alone = [name for name in HELD if not is_exported(name, causal=False)]
    assert "prompt" in alone
    for name in alone:
        found = list(exports(name, anatomy, causal=True))
        assert found, f"peft holds no variant of {name}, for whatever task"
        for number, configuration in enumerate(found):
            folder = tmp_path / f"{name}{number}"
            folder.mkdir()
            ours, theirs, plain = _logits("llama", configuration, folder)
            theirs = theirs[:, theirs.shape[1] - ours.shape[1] :]  # behind a prompt
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # turned in float32
            assert (ours - plain).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3"])
def test_peft_gives_the_same_logits_beside_a_shadow_network(name: str, tmp_path: Path) -> None:
    group = Group.of("peft:SHADOW", [0, 1], r=2, shadow_num_hidden_layers=2)
    ours, theirs, plain = _logits(name, Configuration.of([group], training=TRAINING), tmp_path)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert (ours - plain).abs().max() > 0.01


def test_prefixes_that_peft_would_have_otherwise_are_refused_all_at_once() -> None:
    anatomy = backbone_of(tiny.tiny_causal("gpt2")).anatomy
    groups = [
        Group.of("prefix", [layer], length=length, reparametrise=False)
        for layer, length in ((1, 2), (2, 3))
    ]
    faults = peft_faults(Configuration.of(groups, training=TRAINING), anatomy)
    assert [fault.key for fault in faults] == ["prefix.layers", "prefix.length", "prefix"]


@pytest.mark.parametrize(
    ("name", "layers", "match"), [("gpt2", [0], "gpt2"), ("llama", [0, 1], "layer 0 alone")]
)
def test_prompts_that_peft_would_put_elsewhere_are_refused(
    name: str, layers: list[int], match: str
) -> None:
    backbone = backbone_of(tiny.tiny_causal(name))
    group = Group.of("prompt", layers, length=3, initial="random")
    configuration = Configuration.of([group], training=TRAINING)
    with pytest.raises(ExportError, match=match):
        peft_config(configuration, backbone.anatomy, backbone.recipe(1), base_model="b")


def test_a_classifiers_prompt_is_refused_and_its_prefix_is_not() -> None:
    backbone = backbone_of(tiny.tiny_causal("llama"))
    layers = range(len(backbone.anatomy.layers))
    prompt = Group.of("prompt", [0], length=3, initial="random")
    configuration = Configuration.of([prompt], training=TRAINING)
    with pytest.raises(ExportError, match="causal-lm"):
        peft_config(configuration, backbone.anatomy, backbone.head(2), base_model="b")
    assert undeployable(configuration, backbone.anatomy, causal=False)
    assert not undeployable(configuration, backbone.anatomy, causal=True)
    prefix = Group.of("prefix", layers, length=3, reparametrise=False)
    configuration = Configuration.of([prefix], training=TRAINING)
    assert peft_config(configuration, backbone.anatomy, backbone.head(2), base_model="b")
    assert not undeployable(configuration, backbone.anatomy, causal=False)


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_a_language_models_tokens_are_refused(name: str) -> None:
    """`deploy: [peft]` and the export refuse the same."""
    backbone = backbone_of(tiny.tiny_causal(name))
    group = passed_group("peft:TRAINABLE_TOKENS", token_indices="3 5-7")
    configuration = Configuration.of([group], training=TRAINING)
    with pytest.raises(ExportError, match="tokens of a language model") as caught:
        peft_config(configuration, backbone.anatomy, backbone.recipe(1), base_model="b")
    faults = undeployable(configuration, backbone.anatomy, causal=True)
    assert list(caught.value.faults) == faults
    assert not undeployable(configuration, backbone.anatomy, causal=False)
    assert peft_config(configuration, backbone.anatomy, backbone.head(2), base_model="b")
    beside = Configuration.of([group, *_configuration().groups], training=TRAINING)
    (mixed,) = undeployable(beside, backbone.anatomy, causal=True)
    assert "3 adapters" in mixed.given


def _logits(name: str, configuration: Configuration, tmp_path: Path) -> tuple[torch.Tensor, ...]:
    """Ours, HF peft's through a folder, and the backbone's."""
    base = tiny.save(tiny.tiny_causal(name), tmp_path / "base")
    backbone = load_backbone(BackboneRequest(str(base), task="causal-lm"))
    recipe = backbone.recipe(1)
    pack = Pack(backbone, recipe, [Lane(0, configuration)], seeds=Seeds(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for item in pack.stacked():
        item.parameter.copy_(torch.randn(item.parameter.shape, generator=generator) * 0.2)
    views = pack.lane_views(pack.parameters_by_name(), 0) | pack.lane_fixed(0)
    adapter = peft_adapter(configuration, backbone, recipe, views)
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {**adapter.config, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(adapter.tensors, folder / "adapter_model.safetensors")
    inputs = tiny.tiny_inputs()
    batch = Batch(inputs, inputs["attention_mask"], torch.zeros(3, dtype=torch.long))
    with pack.running():
        hidden = pack(batch, Call(False, _no_draws))[0]
    assert backbone.lm_head is not None
    ours = backbone.lm_head.logits(hidden)
    causal = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    plain = causal(**inputs, use_cache=False).logits
    model = PeftModel.from_pretrained(causal, folder, autocast_adapter_dtype=False).double().eval()
    return ours, model(**inputs, use_cache=False).logits, plain


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_fused_maps_are_exported_from_packed_weights_too(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = tiny.save(tiny.tiny_causal("phi3", torch.float32), tmp_path / "base")
    configuration, tensors = _configuration(), []
    for quantization in ("none", kind):
        request = BackboneRequest(str(base), task="causal-lm", quantization=quantization)
        backbone = load_backbone(request)
        recipe = backbone.recipe(1)
        pack = Pack(backbone, recipe, [Lane(0, configuration)], seeds=Seeds(0))
        views = pack.lane_views(pack.parameters_by_name(), 0)
        tensors.append(peft_adapter(configuration, backbone, recipe, views).tensors)
    assert any("qkv_proj" in name for name in tensors[0])
    torch.testing.assert_close(tensors[1], tensors[0])


def test_the_config_says_causal_lm_and_saves_no_modules() -> None:
    backbone = backbone_of(tiny.tiny_causal("llama"))
    config = peft_config(
        _configuration(), backbone.anatomy, backbone.recipe(1), base_model="some/llama"
    )
    assert config["task_type"] == "CAUSAL_LM"
    assert config["modules_to_save"] is None
    assert config["target_modules"][:2] == ["layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"]
    assert json.loads(json.dumps(config)) == config
