"""Frozen maps as operators use them: products with slices, and decompositions that are kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from dense_models import frozen_maps

from autopeft.backbone import frozen_maps as module_under_test
from autopeft.backbone.anatomy import LINEAR_ROLES
from autopeft.backbone.frozen_maps import Decompositions, decomposed


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "modernbert"])
def test_products_are_those_of_the_site_s_own_slice_without_bias(architecture: str) -> None:
    backbone = tiny.tiny_backbone(architecture)
    linear = {at: own for at, own in frozen_maps(backbone).items() if at[1] in LINEAR_ROLES}
    for (layer, role), (weight, bias) in linear.items():
        found = backbone.frozen_map(layer, role)
        x = torch.randn(2, 5, weight.shape[0], dtype=torch.float64, requires_grad=True)
        product = found.product(x)
        assert torch.allclose(product, x @ weight, rtol=0.0, atol=1e-12)
        (grad,) = torch.autograd.grad(product.sum(), x)
        assert torch.allclose(grad, weight.sum(1).expand_as(x), rtol=0.0, atol=1e-12)
        assert found.weight.data_ptr() == weight.data_ptr(), "the weight was copied"
        assert (found.bias is None) == (bias is None)
        assert bias is None or torch.equal(found.bias, bias)


def test_a_product_in_float32_with_weights_in_bfloat16_runs_in_theirs() -> None:
    backbone = tiny.tiny_backbone("bert", torch.bfloat16)
    x = torch.randn(3, 32)
    found = backbone.frozen_map(0, "query")
    assert found.product(x).dtype == torch.float32
    expected = (x.bfloat16() @ found.weight).float()
    assert torch.equal(found.product(x), expected)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_an_svd_is_numpy_s_with_its_signs_fixed(shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = decomposed(weight)
    left, values, right = np.linalg.svd(weight.numpy(), full_matrices=False)
    assert np.allclose(found.values.numpy(), values, rtol=0.0, atol=1e-12)
    assert np.allclose(np.abs(found.inputs.numpy()), np.abs(left), rtol=0.0, atol=1e-10)
    assert np.allclose(np.abs(found.outputs.numpy().T), np.abs(right), rtol=0.0, atol=1e-10)
    whole = (found.inputs * found.values) @ found.outputs.T
    assert torch.allclose(whole, weight, rtol=0.0, atol=1e-12)
    largest = found.inputs.gather(0, found.inputs.abs().argmax(0, keepdim=True))
    assert bool((largest > 0.0).all())
    turned = decomposed(-weight)  # the same up to the sign of the outputs
    assert torch.allclose(turned.inputs, found.inputs, rtol=0.0, atol=1e-10)
    assert torch.allclose(turned.outputs, -found.outputs, rtol=0.0, atol=1e-10)


def test_a_float32_weight_is_decomposed_in_float64() -> None:
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(2))
    found, exact = decomposed(weight), decomposed(weight.double())
    assert found.inputs.dtype == torch.float32
    for one, other in ((found.inputs, exact.inputs), (found.outputs, exact.outputs)):
        assert float((one.double() - other).abs().max()) < 1e-7


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def counting(weight: torch.Tensor) -> Any:
        calls.append(tuple(weight.shape))
        return decomposed(weight)

    monkeypatch.setattr(module_under_test, "decomposed", counting)
    return calls


def test_each_weight_is_decomposed_once_per_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, backbone = _counted(monkeypatch), tiny.tiny_backbone("gpt2")
    measured = replace(backbone, name="the same model under another name")
    like = torch.zeros(1, dtype=torch.float64)
    for each in (backbone, measured):
        for role in ("query", "key"):
            each.frozen_map(0, role).svd(like)
            each.frozen_map(0, role).svd(like.float())
            each.frozen_map(0, role).svd_on_cpu()
    assert calls == [(32, 32), (32, 32)]


def test_a_folder_keeps_decompositions_for_other_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls, folder = _counted(monkeypatch), tmp_path / "not there yet"
    found = []
    for _ in range(2):
        backbone = replace(tiny.tiny_backbone("bert"), decompositions=Decompositions())
        backbone.decompositions.keep_in(folder, backbone.fingerprint)
        found.append(backbone.frozen_map(1, "up").svd_on_cpu())
    assert len(calls) == 1
    assert torch.equal(found[0].inputs, found[1].inputs)
    assert torch.equal(found[0].values, found[1].values)
    assert torch.equal(found[0].outputs, found[1].outputs)
    other = replace(tiny.tiny_backbone("bert"), decompositions=Decompositions())
    other.decompositions.keep_in(folder, "another fingerprint")
    other.frozen_map(1, "up").svd_on_cpu()
    assert len(calls) == 2
    (first, *_) = sorted(folder.iterdir())
    for file in folder.iterdir():
        file.write_bytes(first.read_bytes()[:100])
    backbone = replace(tiny.tiny_backbone("bert"), decompositions=Decompositions())
    backbone.decompositions.keep_in(folder, backbone.fingerprint)
    again = backbone.frozen_map(1, "up").svd_on_cpu()
    assert len(calls) == 3, "a damaged file was believed"
    assert torch.equal(again.inputs, found[0].inputs)
