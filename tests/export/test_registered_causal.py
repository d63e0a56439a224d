"""Prompts of language models through `PeftModel`, where transformers' own loop generates."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_causal as tiny
import torch
from method_cases import configuration as case
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import autopeft
from autopeft.backbone.loading import Backbone, BackboneRequest, backbone_of, load_backbone
from autopeft.configuration import Configuration
from autopeft.errors import BackboneError
from autopeft.export.peft_config import peft_faults
from autopeft.export.peft_groups import split
from autopeft.export.peft_weights import registered_adapter
from autopeft.methods.lane_operator import SILENT
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def _prompted(backbone: Backbone) -> Configuration:
    """A prompt, a deeper one in its place, and LoRA between."""
    anatomy = backbone.anatomy
    groups = [
        *case("prompt", anatomy, 3, layers=[0]).groups,
        *case("dept", anatomy, 2, layers=[1], positions=4, rank=2).groups,
        *case("lora", anatomy, 2, layers=[0, 1], sites=["query", "value"]).groups,
    ]
    return Configuration.of(groups, training=dict(case("lora", anatomy).training))


def _both(name: str, folder: Path) -> tuple[Backbone, Pack, Any, Any]:
    """A trained pack, its adapter around transformers' model, and that model alone."""
    base = tiny.save(tiny.tiny_causal(name, torch.float32), folder / "base")
    backbone = load_backbone(BackboneRequest(str(base), task="causal-lm"))
    configuration, recipe = _prompted(backbone), backbone.recipe(1)
    pack = Pack(backbone, recipe, [Lane(0, configuration)], seeds=Seeds(7))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in pack.stacked():
            noise = torch.randn(item.parameter.shape, generator=generator)
            item.parameter.add_(noise, alpha=0.3)
    views = pack.lane_views(pack.parameters_by_name(), 0)
    adapter = registered_adapter(configuration, recipe, views, base_model="tiny", seed=7)
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text(json.dumps(adapter.config))
    held = {tensor: value.clone().contiguous() for tensor, value in adapter.tensors.items()}
    save_file(held, folder / "adapter/adapter_model.safetensors")
    autopeft.register_with_peft()
    plain, own = (AutoModelForCausalLM.from_pretrained(base).eval() for _ in range(2))
    return backbone, pack, PeftModel.from_pretrained(own, folder / "adapter").eval(), plain


def _ours(backbone: Backbone, pack: Pack, inputs: dict[str, Tensor]) -> Tensor:
    rows = Batch(inputs, inputs["attention_mask"], torch.zeros(len(inputs["input_ids"])).long())
    assert backbone.lm_head is not None
    with torch.no_grad(), pack.running():
        return backbone.lm_head.logits(pack(rows, SILENT)[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_prompts_give_the_same_logits_and_the_same_text(name: str, tmp_path: Path) -> None:
    backbone, pack, theirs, plain = _both(name, tmp_path)
    inputs = tiny.tiny_inputs()
    found, expected = theirs(**inputs).logits, _ours(backbone, pack, inputs)
    real = inputs["attention_mask"] > 0
    assert torch.allclose(found[real], expected[real], atol=1e-5)
    bare = plain(**inputs).logits
    assert not torch.allclose(found[real], bare[real], atol=1e-3)
    with theirs.disable_adapter():
        assert torch.equal(theirs(**inputs).logits, bare)
        assert torch.equal(_generated(theirs, use_cache=True), _generated(plain, use_cache=True))
    ids = torch.tensor([[5, 9, 11]])
    for _ in range(4):
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        ids = torch.cat([ids, _ours(backbone, pack, given)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(_generated(theirs, use_cache=False), ids)
    with pytest.raises(BackboneError, match="use_cache=False"):
        _generated(theirs, use_cache=True)
    assert torch.allclose(theirs(**inputs).logits, found), "an error leaves it as it was"


def test_a_prefix_of_a_language_model_is_no_group_beside_lora() -> None:
    """`peft` would put it around the model that `load_adapter` gives back, where it got lost."""
    anatomy = backbone_of(tiny.tiny_causal("llama")).anatomy
    for name in ("prefix", "prompt"):
        layers = range(len(anatomy.layers)) if name == "prefix" else [0]
        own = case(name, anatomy, 3, layers=layers)
        assert not peft_faults(own, anatomy), "alone it is plain peft's"
        lora = case("lora", anatomy, 2, layers=[0], sites=["query"])
        both = Configuration.of([*own.groups, *lora.groups], training=dict(own.training))
        found = split(both, anatomy)
        assert found.parts == {}
        assert "from without" in found.faults[0].given


def _generated(model: Any, *, use_cache: bool) -> Tensor:
    ids = torch.tensor([[5, 9, 11]])
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    made: Tensor = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **options
    )
    return made
