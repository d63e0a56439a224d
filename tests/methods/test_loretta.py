"""LoRETTA: its adapters against their formula behind a sub-layer's last map, and its trains."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from dense_models import logits_of
from lane_training import Training, furthest, without_cache
from method_cases import configuration, variants
from torch import Tensor, nn
from torch.nn import functional

from autopeft.backbone.anatomy import EXIT
from autopeft.backbone.loading import Backbone
from autopeft.methods.lane_operator import Call
from autopeft.methods.tensor_train import factors, initial_cores, product
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform

BOTTLENECK = 6


def _matrix(tensors: dict[str, Tensor], name: str) -> Tensor:
    """All cores contracted in one sum, [d, m] or [m, d], m the bottleneck."""
    cores = [
        tensors[key] for key in sorted(tensors) if key.startswith(f"{name}_") and "bias" not in key
    ]
    inner, own = "abcdefghij", "ABCDEFGHIJ"
    terms = ",".join(f"{inner[j]}{own[j]}{inner[j + 1]}" for j in range(len(cores)))
    flat = torch.einsum(f"{terms}->{own[: len(cores)]}", *cores).flatten()
    bottleneck = len(tensors["down_bias"])
    return flat.view(-1, bottleneck) if name == "down" else flat.view(bottleneck, -1)


def _adapter(tensors: dict[str, Tensor], activation: str) -> Callable[..., Tensor]:
    down, up = _matrix(tensors, "down"), _matrix(tensors, "up")
    act = {
        "relu": torch.relu,
        "gelu": functional.gelu,
        "tanh": torch.tanh,
        "silu": functional.silu,
    }

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        inner = act[activation](output @ down + tensors["down_bias"])
        return output + inner @ up + tensors["up_bias"]

    return hook


@pytest.mark.parametrize("architecture", ["bert", "llama", "vit"])
def test_outputs_and_gradients_are_those_of_written_out_adapters(architecture: str) -> None:
    backbone, batch = tiny.tiny_backbone(architecture), tiny.tiny_batch(architecture)
    for given in variants("loretta_adp"):
        case = configuration(
            "loretta_adp", backbone.anatomy, **({"bottleneck": BOTTLENECK} | given)
        )
        pack = Pack(
            backbone, backbone.head(3), [Lane(0, case)], seeds=Seeds(1), dtype=torch.float64
        )
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in pack.operators.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        with pack.running():
            uniform = StepUniform(Seeds(0), 0, 0, len(batch), torch.device("cpu"))
            found = pack(batch, Call(False, uniform))[0]
        views = pack.lane_views(pack.parameters_by_name(), 0)
        leaves = {name: view.clone().requires_grad_() for name, view in views.items()}
        expected = _written_out(backbone, leaves, str(case.groups[0]["activation"]), batch)
        assert torch.allclose(found, expected, rtol=0.0, atol=1e-9), given
        functional.cross_entropy(found, batch.labels).backward()
        loss = functional.cross_entropy(expected, batch.labels)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        own = pack.lane_views({i.name: i.parameter.grad for i in pack.stacked()}, 0)
        for name, grad in zip(leaves, grads, strict=True):
            assert torch.allclose(own[name], grad, rtol=0.0, atol=1e-9), name


def _written_out(
    backbone: Backbone, leaves: dict[str, Tensor], activation: str, batch: Any
) -> Tensor:
    handles = []
    places = sorted({name.rpartition(".")[0] for name in leaves if name.startswith("loretta_adp")})
    for place in places:
        _, layer, sublayer = place.split(".")
        own = {
            n.removeprefix(f"{place}."): t for n, t in leaves.items() if n.startswith(f"{place}.")
        }
        site = backbone.anatomy.site(int(layer), EXIT[sublayer])
        module = backbone.model.get_submodule(site.module)
        handles.append(module.register_forward_hook(_adapter(own, activation)))
    logits = logits_of(backbone, {}, batch, backbone.head(3), leaves)
    for handle in handles:
        handle.remove()
    return logits


def test_packed_equals_solo() -> None:
    backbone = tiny.tiny_backbone("bert")
    lanes = [
        Lane(number, configuration("loretta_adp", backbone.anatomy, size, dropout=0.2, **given))
        for number, (size, given) in enumerate([(3, {}), (4, {}), (5, {}), (4, {"bottleneck": 8})])
    ]
    batches = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
    packed = Training(backbone, lanes).run(batches, 0, 6)
    for lane in lanes:
        solo = Training(backbone, [lane]).run(batches, 0, 6)[lane.number]
        assert furthest(solo, packed[lane.number]) < 1e-9


def test_widths_are_cut_as_released() -> None:
    assert [factors(width) for width in (768, 64, 4096, 8, 1)] == [
        (8, 8, 12),
        (8, 8),
        (8, 8, 8, 8),
        (8,),
        (1,),
    ]
    assert factors(7 * 11 * 13) == (7, 11, 13)


def test_a_train_that_starts_has_entries_of_the_released_variance() -> None:
    draws = []
    for seed in range(100):
        cores = initial_cores("A", 768, 64, 5, Seeds(seed).generator, zero=False)
        draws.append(product(list(cores.values()), 768))
    matrices = torch.stack(draws)
    assert matrices.shape == (100, 768, 64)
    assert float(matrices.var()) == pytest.approx(1.0 / (768 + 64), rel=0.3)
    zero = initial_cores("A", 768, 64, 5, Seeds(0).generator, zero=True)
    assert not product(list(zero.values()), 768).any()
