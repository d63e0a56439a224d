"""Why some types of `peft` are not passed through: what plain `peft` does of them is as told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, XLoraConfig, get_peft_model
from peft.tuners.cpt.config import CPTConfig
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

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


def _experts(folder: Path, model: Any = _model, at: str = "q_proj", **given: Any) -> Any:
    """The configuration of a router over two LoRA adapters, which are written first."""
    adapters = {name: str(folder / name) for name in ("0", "1")}
    for path in adapters.values():
        lora = LoraConfig(r=2, target_modules=[at], **given)
        get_peft_model(model(), lora).save_pretrained(path)
    return XLoraConfig(task_type="SEQ_CLS", hidden_size=32, adapters=adapters)


def test_xlora_trains_a_router_over_adapters_on_disk(tmp_path: Path) -> None:
    names = _trained(get_peft_model(_model(), _experts(tmp_path)))
    assert names
    assert all("internal_xlora_classifier" in name for name in names)
    missing = XLoraConfig(
        task_type="SEQ_CLS", hidden_size=32, adapters={"0": str(tmp_path / "none")}
    )
    with pytest.raises(Exception, match="none"):
        get_peft_model(_model(), missing)
    assert "LoRA adapters that are trained" in NOT_PASSED["XLORA"]


def test_xlora_leaves_a_classifiers_head_and_saves_nothing(tmp_path: Path) -> None:
    model = get_peft_model(_model(), _experts(tmp_path))
    heads = [p for n, p in model.named_parameters() if "score" in n]
    assert heads
    assert not any(parameter.requires_grad for parameter in heads)
    model.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "adapter_model.safetensors") == {}
    assert "saves neither" in NOT_PASSED["XLORA"]


def test_xlora_takes_no_classifiers_adapters_and_none_of_a_bert(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="score"):
        get_peft_model(_model(), _experts(tmp_path, task_type="SEQ_CLS"))

    def bert() -> Any:
        config = BertConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_labels=3, use_cache=False,
        )  # fmt: skip
        return BertForSequenceClassification(config)

    with pytest.raises(ValueError, match="unexpected keys"):
        get_peft_model(bert(), _experts(tmp_path, bert, "query"))
