"""The language model head: equal to the causal class's own, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_causal as tiny
import torch
import transformers

from autopeft.backbone import lm_head
from autopeft.backbone.discovery import discover
from autopeft.backbone.heads import HeadRecipe, pool_rows
from autopeft.backbone.loading import (
    Backbone,
    BackboneRequest,
    backbone_of,
    config_anatomy,
    load_backbone,
)
from autopeft.errors import BackboneError


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], str]:
    return lambda model: str(tiny.save(model, tmp_path / "model"))


def logits_of(backbone: Backbone, inputs: Any) -> torch.Tensor:
    assert backbone.lm_head is not None
    return backbone.lm_head.logits(backbone.model(**inputs).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_logits_are_those_of_the_causal_class(name: str) -> None:
    theirs = tiny.tiny_causal(name)
    inputs = tiny.tiny_inputs()
    expected = theirs(**inputs, use_cache=False).logits
    backbone = backbone_of(tiny.tiny_causal(name))
    torch.testing.assert_close(logits_of(backbone, inputs), expected, rtol=0, atol=1e-10)
    assert expected.std() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma3", "gpt2", "opt-projected", "phi"])
def test_a_checkpoint_gives_base_model_and_head(name: str, saved: Any) -> None:
    causal = tiny.tiny_causal(name, torch.float32)
    inputs = tiny.tiny_inputs()
    expected = causal(**inputs, use_cache=False).logits
    request = BackboneRequest(saved(causal), task="causal-lm")
    backbone = load_backbone(request)
    torch.testing.assert_close(logits_of(backbone, inputs), expected, rtol=0, atol=1e-5)
    assert type(backbone.model) is type(causal.base_model)
    assert backbone.anatomy == config_anatomy(request)
    assert backbone.anatomy == discover(causal.base_model, causal.config)
    assert backbone.recipe(7) == HeadRecipe("all", (), native=True)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert backbone.lm_head is not None
    assert not backbone.lm_head.weight.requires_grad
    embeddings = backbone.model.get_input_embeddings().weight
    tied = backbone.lm_head.weight.data_ptr() == embeddings.data_ptr()
    assert tied == bool(causal.config.tie_word_embeddings)


def test_gradients_reach_the_hidden_states_alone() -> None:
    backbone = backbone_of(tiny.tiny_causal("gemma3"))
    head = backbone.lm_head
    assert head is not None
    hidden = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    head.logits(hidden).sum().backward()
    weight = head.weight
    slope = 1 - torch.tanh(hidden.detach() @ weight.T / 2.0).square()
    torch.testing.assert_close(hidden.grad, slope @ weight)
    assert weight.grad is None


def test_the_task_decides_whether_there_is_a_head(saved: Any) -> None:
    folder = saved(tiny.tiny_causal("llama", torch.float32))
    backbone = load_backbone(BackboneRequest(folder))
    assert backbone.lm_head is None
    assert backbone.recipe(2).steps[0].name == "score"
    causal = load_backbone(BackboneRequest(folder, task="causal-lm"))
    assert causal.fingerprint == backbone.fingerprint
    assert causal.anatomy == backbone.anatomy


def test_a_checkpoint_without_the_head_is_refused(saved: Any) -> None:
    folder = saved(tiny.tiny_causal("llama", torch.float32).base_model)
    with pytest.raises(BackboneError, match=r"lacks 1 weights \(lm_head.weight\)"):
        load_backbone(BackboneRequest(folder, task="causal-lm"))


@torch.no_grad()
def test_a_base_model_alone_has_a_tied_head(saved: Any) -> None:
    causal = tiny.tiny_causal("llama-tied", torch.float32)
    backbone = load_backbone(BackboneRequest(saved(causal.base_model), task="causal-lm"))
    inputs = tiny.tiny_inputs()
    torch.testing.assert_close(logits_of(backbone, inputs), causal(**inputs).logits)


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "vit", "deberta-v2"])
def test_encoders_are_no_causal_language_models(name: str, saved: Any, by_name: Any) -> None:
    request = BackboneRequest(saved(by_name[name].base().float()), task="causal-lm")
    for read in (load_backbone, config_anatomy):
        with pytest.raises(BackboneError, match="reads both ways") as caught:
            read(request)
        (fault,) = caught.value.faults
        assert fault.key == "task"
        assert "task: sequence-classification" in fault.hint


def test_an_encoder_in_memory_is_none_either(by_name: Any) -> None:
    model = transformers.BertLMHeadModel(by_name["bert"].config())
    with pytest.raises(BackboneError, match="reads both ways"):
        backbone_of(model)


class _Changed(transformers.LlamaForCausalLM):
    """A causal class that does what no table knows."""

    what = ""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "shift": lambda x: x + 1e-3,
            "scale": lambda x: x * 1.001,
            "cap": lambda x: 100.0 * torch.tanh(x / 100.0),
            "cut": lambda x: x[..., :60],
            "softmax": lambda x: x.log_softmax(-1),
            "nothing": lambda x: x,
        }
        out.logits = changes[self.what](out.logits)
        return out


@pytest.mark.parametrize("what", ["shift", "scale", "cap", "cut", "softmax", "nothing"])
def test_what_is_not_understood_of_a_head_is_refused(what: str) -> None:
    model = _Changed(transformers.LlamaConfig(**tiny.SIZES))
    model.what = what
    if what == "nothing":
        assert backbone_of(model).lm_head is not None
        return
    with pytest.raises(BackboneError, match=r"_Changed does more to its logits"):
        backbone_of(model)


def test_work_between_base_model_and_head_is_refused() -> None:
    model = tiny.tiny_causal("llama")
    model.lm_head = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(32, 64).double())
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] * 2.0,))
    with pytest.raises(BackboneError, match="transforms the hidden states"):
        backbone_of(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "table", "nothing"),
    [("gemma2", "SOFTCAP", "absent"), ("cohere", "SCALES", {}), ("granite", "SCALES", {})],
)
def test_an_unknown_cap_or_scale_shows_in_every_dtype(
    name: str, table: str, nothing: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backbone_of(tiny.tiny_causal(name, dtype)).lm_head is not None
    monkeypatch.setattr(lm_head, table, nothing)
    with pytest.raises(BackboneError, match="does more to its logits"):
        backbone_of(tiny.tiny_causal(name, dtype))


def test_nothing_is_pooled() -> None:
    with pytest.raises(ValueError, match="not pooled"):
        pool_rows(torch.zeros(1, 2, 3), torch.ones(1, 2), "all")
