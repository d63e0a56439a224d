"""Quantised backbones: exact on dequantised weights, known by their true sizes, or refused."""

import importlib.util
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_causal as tiny
import torch
from torch import Tensor, nn

from autopeft.backbone import quantization
from autopeft.backbone.loading import (
    Backbone,
    BackboneRequest,
    config_anatomy,
    load_backbone,
)
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError
from autopeft.methods.lane_operator import Call
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

bnb = pytest.importorskip("bitsandbytes")
KINDS = ("int8", "nf4")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            made[name] = str(tiny.save(tiny.tiny_causal(name, torch.float32), place))
        return made[name]

    return folder


def load(folder: str, kind: str, **settings: Any) -> Backbone:
    settings = {"task": "causal-lm", "dtype": "float32"} | settings
    return load_backbone(BackboneRequest(folder, quantization=kind, **settings))


def dequantised(module: Any) -> Tensor:
    """A packed map's weight by bitsandbytes' own kernel, of nf4 in rows of whole blocks."""
    if isinstance(module, bnb.nn.Linear8bitLt):
        return bnb.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
    state = copy(module.weight.quant_state)
    shape, state.shape = state.shape, torch.Size((state.shape.numel() // 64, 64))
    return bnb.functional.dequantize_4bit(module.weight.data, state).reshape(shape)


def reference(folder: str, backbone: Backbone, **settings: Any) -> Backbone:
    """The same backbone in float32, with the dequantised weights in its maps."""
    plain = load(folder, "none", **settings)
    for name, module in backbone.model.named_modules():
        if quantization.is_packed(module):
            plain.model.get_submodule(name).weight.data = dequantised(module).float()
    return plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "opt-projected", "phi", "gemma3"])
def test_what_is_packed_is_known_by_its_true_size(name: str, kind: str, folders: Any) -> None:
    backbone, plain = load(folders(name), kind), load(folders(name), "none")
    request = BackboneRequest(folders(name), task="causal-lm", quantization=kind)
    assert backbone.anatomy == plain.anatomy == config_anatomy(request)
    assert backbone.anatomy.n_params == sum(p.numel() for p in plain.model.parameters())
    packed = {n for n, m in backbone.model.named_modules() if quantization.is_packed(m)}
    assert packed == {s.module for at in backbone.anatomy.layers for s in at.sites.values()}
    state = backbone.model.state_dict()
    for key, tensor in plain.model.state_dict().items():
        if key.removesuffix(".weight") not in packed:
            assert torch.equal(state[key], tensor)
    assert backbone.lm_head is not None
    assert plain.lm_head is not None
    assert torch.equal(backbone.lm_head.weight, plain.lm_head.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_near_those_of_the_checkpoint(kind: str, folders: Any) -> None:
    backbone, plain = load(folders("llama"), kind), load(folders("llama"), "none")
    for name, module in backbone.model.named_modules():
        if not quantization.is_packed(module):
            continue
        weight = plain.model.get_submodule(name).weight
        error = (dequantised(module).float() - weight).abs()
        if kind == "int8":  # half a step of 127, and float16's rounding of the weight
            assert (error <= weight.abs().amax(1, keepdim=True) * (0.5 / 127 + 1e-3)).all()
        else:  # half of nf4's widest gap, (1 - 0.6962) / 2, of a block's largest
            largest = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
            assert (error.reshape(-1, 64) <= largest * 0.16).all()
            assert error.max() > 0.05 * largest.max()


def outputs(backbone: Backbone, dtype: torch.dtype, *, autocast: bool) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a fixed combination of them to the input embeddings."""
    inputs = tiny.tiny_inputs()
    model: Any = backbone.model
    assert backbone.lm_head is not None
    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = model(
            inputs_embeds=embedded, attention_mask=inputs["attention_mask"]
        ).last_hidden_state
        logits = backbone.lm_head.logits(hidden)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7))
    (logits.float() * weight).sum().backward()
    assert hidden.dtype == dtype
    assert embedded.grad is not None
    return logits.detach().float(), embedded.grad.float()


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [("float32", False, 1e-5), ("bfloat16", False, 0.05), ("float32", True, 0.05)],
)
@pytest.mark.parametrize("name", ["llama", "phi"])
def test_outputs_and_gradients_are_those_of_the_dequantised_weights(
    name: str, dtype: str, autocast: bool, tolerance: float, kind: str, folders: Any
) -> None:
    backbone = load(folders(name), kind, dtype=dtype)
    expected = outputs(reference(folders(name), backbone), torch.float32, autocast=False)
    with torch.no_grad():  # a first pass without gradients, as the trunk makes it
        backbone.model(**tiny.tiny_inputs())
    actual = outputs(backbone, getattr(torch, dtype), autocast=autocast)
    for ours, theirs in zip(actual, expected, strict=True):
        assert distance(ours, theirs) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_train_on_packed_weights_as_on_the_dequantised(kind: str, folders: Any) -> None:
    backbone = load(folders("llama"), kind, task="sequence-classification")
    plain = reference(folders("llama"), backbone, task="sequence-classification")
    inputs = tiny.tiny_inputs()
    batch = Batch(inputs, inputs["attention_mask"], torch.zeros(3, dtype=torch.long))
    solo, packed = gradients(backbone, batch, [1]), gradients(backbone, batch, [0, 1])
    expected = gradients(plain, batch, [0, 1])
    for name, gradient in expected.items():
        assert distance(packed[name], gradient) < 1e-4
    for name, gradient in solo.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-4, atol=1e-7)


def gradients(backbone: Backbone, batch: Batch, numbers: list[int]) -> dict[str, Tensor]:
    """Gradients of one pass of LoRA lanes, by lane and tensor."""
    lanes = []
    for number in numbers:
        settings = {"rank": 2 + number, "alpha": 4.0, "dropout": 0.0}
        group = Group.of("lora", [number], ["query", "down"], **settings)
        training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
        lanes.append(Lane(number, Configuration.of([group], training=training)))
    pack = Pack(backbone, backbone.recipe(3), lanes, seeds=Seeds(0))
    with torch.no_grad():
        for parameter in pack.operators.parameters():
            parameter.add_(0.1)
    with pack.running():
        pack(batch, Call(True, no_draws)).square().sum().backward()
    grads = {item.name: item.parameter.grad for item in pack.stacked()}
    found = {}
    for position, lane in enumerate(pack.lanes):
        for name, view in pack.lane_views(grads, position).items():  # type: ignore[arg-type]
            found[f"{lane.number} {name}"] = view.clone()
    return found


def no_draws(name: str, shape: Any) -> Tensor:
    raise AssertionError("nothing is random here")


def test_the_fingerprint_tells_how_weights_are_kept(folders: Any) -> None:
    prints = {kind: load(folders("llama"), kind).fingerprint for kind in ("none", *KINDS)}
    assert len(set(prints.values())) == 3
    assert load(folders("llama"), "nf4").fingerprint == prints["nf4"]


def test_cpus_do_not_repack_weights_that_need_gradients(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    model = load(folders("llama"), "nf4").model
    maps = [module for module in model.modules() if quantization.is_packed(module)]
    assert maps
    assert not any(module.support_avx512bf16_for_cpu for module in maps)


def refused(folder: str, kind: str = "nf4") -> str:
    messages = set()
    for read in (load_backbone, config_anatomy):
        with pytest.raises(BackboneError) as caught:
            read(BackboneRequest(folder, quantization=kind))
        (fault,) = caught.value.faults
        assert (fault.where, fault.key) == ("model", "quantization")
        messages.add(str(caught.value))
    (message,) = messages
    return message


def test_models_that_are_not_quantised_are_refused(
    folders: Any, tmp_path: Path, by_name: Any
) -> None:
    assert "Conv1D" in refused(folders("gpt2"))
    deberta = tiny.save(by_name["deberta-v2"].base().float(), tmp_path / "deberta")
    assert "relative attention" in refused(str(deberta), "int8")


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_a_checkpoint_that_is_quantised_already_is_refused(
    kind: str, folders: Any, tmp_path: Path
) -> None:
    model: Any = load(folders("llama"), "int8").model
    folder = tiny.save(model, tmp_path / "packed")
    assert "quantised already" in refused(str(folder), kind)


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else there(name)
    )
    message = refused(folders("llama"))
    assert "nf4 without bitsandbytes" in message
    assert "pip install 'autopeft[quant]'" in message
    assert load_backbone(BackboneRequest(folders("llama"))).quantization == "none"


class _NoKernel(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("no kernel for 'abacus'\nsecond line")


class _NoGradient(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 0.0)


@pytest.mark.parametrize(
    ("layer", "reason"), [(_NoKernel, "no kernel for 'abacus'"), (_NoGradient, "no gradients")]
)
def test_a_device_that_cannot_run_it_is_found_out_by_running_it(
    layer: Any, reason: str, folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "_probe_layer", lambda kind: layer(64, 64))
    with pytest.raises(BackboneError) as caught:
        load(folders("llama"), "nf4")
    assert "where bitsandbytes cannot run it" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_is_one_fault_of_all() -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone(BackboneRequest("", quantization="int3"))
    assert [fault.key for fault in caught.value.faults] == ["quantization", "name_or_path"]
    assert caught.value.faults[0].allowed == "none, int8, nf4"
