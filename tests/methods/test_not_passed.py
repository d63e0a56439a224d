"""Why some types of `peft` are not passed through: what plain `peft` does of them is as told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, ShadowConfig, XLoraConfig, get_peft_model
from peft.tuners.cpt.config import CPTConfig
from transformers import LlamaConfig, LlamaForSequenceClassification

from autopeft.space.method_names import NOT_PASSED

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:.past_key_values.:FutureWarning",
)


def _model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        use_cache=False,
    )  # fmt: skip
    return LlamaForSequenceClassification(config).eval()


def _trained(model: Any) -> list[str]:
    """Names of what a step of the task's loss gives gradients."""
    ids = torch.randint(4, 64, (2, 5), generator=torch.Generator().manual_seed(1))
    model(
        input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 1])
    ).loss.backward()
    return [n for n, p in model.named_parameters() if p.grad is not None]


def test_cpt_refuses_classifiers() -> None:
    with pytest.raises(ValueError, match="CAUSAL_LM"):
        CPTConfig(cpt_token_ids=[4], cpt_mask=[1], cpt_tokens_type_mask=[1], task_type="SEQ_CLS")
    assert "language modelling" in NOT_PASSED["CPT"]


def test_shadow_is_a_second_network_with_a_head_and_a_loss() -> None:
    model = get_peft_model(_model(), ShadowConfig(r=4, task_type="SEQ_CLS"))
    names = _trained(model)
    inner = "base_model.shadow_backbone.default.layers.0.self_attn.q_proj.weight"
    assert inner in names
    assert any("shadow_head" in name for name in names)  # by its own loss
    own = sum(p.numel() for n, p in model.named_parameters() if "shadow_backbone" in n)
    layer = sum(parameter.numel() for parameter in _model().model.layers[0].parameters())
    assert own == layer + 32  # and the last norm
    assert "a head and a loss" in NOT_PASSED["SHADOW"]


def test_xlora_trains_a_router_over_adapters_on_disk(tmp_path: Path) -> None:
    for name in ("0", "1"):
        lora = LoraConfig(r=2, target_modules=["q_proj"])
        get_peft_model(_model(), lora).save_pretrained(tmp_path / name)
    adapters = {name: str(tmp_path / name) for name in ("0", "1")}
    config = XLoraConfig(task_type="SEQ_CLS", hidden_size=32, adapters=adapters)
    names = _trained(get_peft_model(_model(), config))
    assert names
    assert all("internal_xlora_classifier" in name for name in names)
    missing = XLoraConfig(
        task_type="SEQ_CLS", hidden_size=32, adapters={"0": str(tmp_path / "none")}
    )
    with pytest.raises(Exception, match="none"):
        get_peft_model(_model(), missing)
    assert "trained LoRA adapters" in NOT_PASSED["XLORA"]
