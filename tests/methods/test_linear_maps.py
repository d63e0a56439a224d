"""Methods on linear maps and norms against float64 weights that share no code with the lanes.

`references/NAME.py` writes a method's formula out: `dense` gives the weight and bias that a lane's
tensors make of a frozen map, see `referenced_cases`, and where HF `peft` has the method,
`peft_config` and `fill` put the same tensors into its layers. It may say that `peft` is the same
on `PEFT_SITES` or `PEFT_ARCHITECTURES` alone, or has no such thing as `PEFT_LACKS`.
"""

import re
from dataclasses import replace

import pytest
import tiny_backbones as tiny
import torch
from dense_models import frozen_maps, logits_of, module_of
from importance_maps import with_importance
from method_cases import configuration, illegal, variants
from reference_files import reference
from referenced_cases import DenseCase, named, role_of
from torch import Tensor
from torch.nn import functional

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.methods import registry
from autopeft.methods.base import DenseMap
from autopeft.training.lanes.optimizer import LaneAdamW

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:Detected that the base layer has no bias:UserWarning",  # of peft's BEFT
    "ignore:Unsupported layer type .*LayerNorm:UserWarning",  # of peft's LN_TUNING
)

NAMES = named("dense")
FAMILIES = ("bert", "gpt2", "llama", "vit", "t5", "modernbert")
WITH_PEFT = [name for name in NAMES if hasattr(reference(name), "fill")]
PEFT_ARCHITECTURES = ("bert", "llama")
ROUNDED = {"llama": 1e-6, "t5": 1e-6, "modernbert": 1e-6}
"""Where transformers computes norms or rotations in float32, which makes 1e-7 of a last bit."""
RATE = 1e-3


def _backbone(architecture: str) -> Backbone:
    backbone = tiny.tiny_backbone(architecture)
    return replace(backbone, anatomy=with_importance(backbone.anatomy))


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_gradients_and_merged_maps_are_those_of_dense_weights(
    name: str, architecture: str
) -> None:
    backbone = _backbone(architecture)
    batch = tiny.tiny_batch(architecture)
    every = variants(name) if architecture == "bert" else variants(name)[:1]
    for given in every:
        case = DenseCase.of(backbone, configuration(name, backbone.anatomy, **given))
        found, expected = case.logits(batch), case.expected(batch)
        near = ROUNDED.get(architecture, 1e-9)
        assert torch.allclose(found, expected, rtol=0.0, atol=near), given
        assert not torch.allclose(found, case.plain(batch), rtol=0.0, atol=1e-5), (
            f"{given}: it had no effect"
        )
        losses = _loss(found, batch.labels), _loss(expected, batch.labels)
        _compare_gradients(case, *losses, near=near)
        _compare_merged(case)
        _compare_auxiliary_losses(case)


def _compare_auxiliary_losses(case: DenseCase) -> None:
    """What operators add to the loss, with gradients; nothing where the reference has none."""
    found, expected = case.pack.auxiliary_loss(), case.penalty()
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert torch.allclose(found, expected, rtol=0.0, atol=1e-12)
    for item in case.pack.stacked():
        item.parameter.grad = torch.zeros_like(item.parameter)
    _compare_gradients(case, found, expected, near=1e-9)


def _compare_gradients(case: DenseCase, found: Tensor, expected: Tensor, *, near: float) -> None:
    found.backward()
    grads = {i.name: i.parameter.grad for i in case.pack.stacked() if i.parameter.grad is not None}
    own = case.pack.lane_views(grads, 0)
    trained = {name: case.tensors[name] for name in own}
    leaves = list(trained.values())
    theirs = torch.autograd.grad(
        expected, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    for tensor_name, grad in zip(trained, theirs, strict=True):
        assert torch.allclose(own[tensor_name], grad, rtol=0.0, atol=near), tensor_name


def _compare_merged(case: DenseCase) -> None:
    method, frozen = registry[case.group.method], frozen_maps(case.backbone)
    dense = case.dense_maps()
    for place in method.places(case.group, case.backbone.anatomy):
        at = place.layer, role_of(place.site)
        own = case.at(place.layer, place.site)
        merged = method.merged(case.group, place, own, DenseMap(*frozen[at]))
        assert merged is not None
        weight, bias = dense[at]
        assert torch.allclose(merged.weight, weight, rtol=0.0, atol=1e-9), at
        assert (merged.bias is None) == (bias is None), at
        assert bias is None or torch.allclose(merged.bias, bias, rtol=0.0, atol=1e-9), at


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        (name, each)
        for name in WITH_PEFT
        for each in getattr(reference(name), "PEFT_ARCHITECTURES", PEFT_ARCHITECTURES)
    ],
)
def test_outputs_and_a_training_step_are_those_of_peft(name: str, architecture: str) -> None:
    from peft import get_peft_model

    own, batch = reference(name), tiny.tiny_batch(architecture)
    only = {"sites": own.PEFT_SITES} if hasattr(own, "PEFT_SITES") else {}
    only |= getattr(own, "PEFT_GIVEN", {})
    for given in variants(name):
        if any(given.get(each) for each in getattr(own, "PEFT_LACKS", ())):
            continue
        backbone = _backbone(architecture)
        case = DenseCase.of(backbone, configuration(name, backbone.anatomy, **(given | only)))
        theirs = tiny.tiny_backbone(architecture, getattr(own, "PEFT_DTYPE", torch.float64))
        sites = {
            module_of(theirs.anatomy, layer, site): (layer, site)
            for layer in case.group.layers
            for site in case.group.sites
        }
        config = own.peft_config(dict(case.group.settings), sorted(sites))
        model = get_peft_model(theirs.model, config, autocast_adapter_dtype=False).double()
        for module, at in sites.items():
            settings = case.settings(at[1])
            own.fill(theirs.model.get_submodule(module), settings, case.at(*at))
        head = {
            n: t.detach().clone().requires_grad_() for n, t in case.tensors.items() if "head." in n
        }
        trained = [p for p in model.parameters() if p.requires_grad] + list(head.values())
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
        ours = LaneAdamW(
            case.pack.stacked(), 1, learning_rates=[RATE], weight_decays=[0.0], max_grad_norm=1.0
        )
        for _ in range(2):
            found = case.logits(batch)
            expected = logits_of(theirs, {}, batch, theirs.head(3), head)
            near = max(ROUNDED.get(architecture, 1e-8), getattr(own, "PEFT_WITHIN", 0.0))
            assert torch.allclose(found, expected, rtol=0.0, atol=near), given
            ours.zero_grad()
            _loss(found, batch.labels).backward()
            ours.step(torch.ones(1))
            optimizer.zero_grad()
            _loss(expected, batch.labels).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "vit"])
@pytest.mark.parametrize("name", NAMES)
def test_values_that_the_widths_do_not_allow_are_told_with_those_that_they_do(
    name: str, architecture: str
) -> None:
    anatomy = tiny.tiny_backbone(architecture).anatomy
    assert not counting.faults(configuration(name, anatomy), anatomy)
    for parameter, value in illegal(name, anatomy):
        wrong = configuration(name, anatomy, **{parameter: value})
        places = registry[name].places(wrong.groups[0], anatomy)
        legal = [registry[name].legal(parameter, place) or () for place in places]
        faults = [f for f in counting.faults(wrong, anatomy) if f.key == f"{name}.{parameter}"]
        alike = {
            (place.d_in, place.d_out, *map(str, allowed))
            for place, allowed in zip(places, legal, strict=True)
            if value not in allowed
        }
        assert len(faults) == len(alike) > 0, "one for all places of the same widths"
        for fault in faults:
            assert fault.given.startswith(f"{value} at layer")
            if isinstance(value, str):
                assert value not in fault.allowed.split(", ")
                assert fault.allowed in {", ".join(map(str, allowed)) for allowed in legal}
                continue
            numbers = {int(number) for number in re.findall(r"\d+", fault.allowed)}
            assert numbers
            assert any(numbers <= set(allowed) and value not in numbers for allowed in legal)


def test_words_that_some_widths_refuse_are_among_what_is_tried() -> None:
    """Else the test above would try none, and hold."""
    anatomy = tiny.tiny_backbone("bert").anatomy
    tried = {(name, value) for name in NAMES for _, value in illegal(name, anatomy)}
    assert {("surm", "circulant"), ("surm", "ldr"), ("svft", "top_k")} <= tried
