"""One suite over the registry: a new method is tested by existing."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from importance_maps import with_importance
from method_cases import REFUSED, TRAINING, every_setting, fits, sizes
from method_cases import configuration as case

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.export.adapter import folded_configuration, folded_weights
from autopeft.methods import inherited, registry
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

FAMILIES = ("bert", "gpt2", "llama", "vit", "t5", "modernbert")
NEAR, FARTHER = 0.05, {"kasa": 0.8, "salient_channels": 0.1, "snell": 0.2, "snell, dense": 0.8}
"""How far outputs of a method that starts near the backbone may be, in their own deviations; at
these tiny widths a weight's smallest components, for one, are a large part of it."""


@pytest.mark.parametrize("name", registry.names())
def test_every_setting_is_tried_at_another_value(name: str) -> None:
    """On a BERT, which carries all methods, so that nothing of one goes unheld here."""
    anatomy = _measured_backbone("bert").anatomy
    schema, every = registry[name].schema, every_setting(name)
    assert all(fits(name, anatomy, **given) for given in every)
    for parameter in schema.parameters:
        if parameter.name == schema.size:
            assert len(sizes(name, anatomy)) > 1
        else:
            tried = {given.get(parameter.name, parameter.default) for given in every}
            assert tried - {parameter.default}, parameter.name


def _measured_backbone(architecture: str) -> Backbone:
    backbone = tiny.tiny_backbone(architecture)
    return replace(backbone, anatomy=with_importance(backbone.anatomy))


@pytest.mark.parametrize("name", registry.names())
def test_what_a_method_refuses_is_told_with_what_it_allows(name: str) -> None:
    """A method with rules of its own has a value that they refuse in `REFUSED`.

    Values that widths alone restrict are tried in `test_linear_maps`.
    """
    anatomy = _measured_backbone("vit").anatomy
    if name not in REFUSED:
        assert type(registry[name]).faults.__module__ == inherited.__name__, "put it there"
        return
    given, key, allowed = REFUSED[name]
    found = counting.faults(case(name, anatomy, **given), anatomy)
    assert found
    assert {fault.key for fault in found} == {key}
    assert allowed in {fault.allowed for fault in found}
    assert all(fault.given for fault in found)
    assert not counting.faults(case(name, anatomy), anatomy)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", registry.names())
def test_counts_are_those_of_the_tensors(name: str, architecture: str) -> None:
    backbone = _measured_backbone(architecture)
    method = registry[name]
    for size, given in _sized(name, backbone, everything=architecture == "bert"):
        configuration = case(name, backbone.anatomy, size, **given)
        lane = Lane(0, configuration)
        pack = Pack(backbone, backbone.head(3), [lane], seeds=Seeds(0))
        trained = sum(parameter.numel() for parameter in pack.operators.parameters())
        assert counting.training_params(configuration, backbone.anatomy) == trained
        (group,) = configuration.groups
        folded = _folded(pack, group)
        kept = sum(tensor.numel() for tensor in folded.values() if tensor.is_floating_point())
        fixed = sum(tensor.numel() for tensor in pack.lane_fixed(0).values())
        places = method.places(group, backbone.anatomy)
        assert fixed == sum(method.fixed_count(group, place) for place in places)
        stored, whole = method.folded_group(group), sum(t.numel() for t in folded.values())
        assert whole - kept == sum(method.fixed_count(stored, place) for place in places)
        assert counting.trainable_params(configuration, backbone.anatomy) == kept
        per_site = counting.site_params(configuration, backbone.anatomy)
        assert sum(per_site.values()) == kept


def _sized(name: str, backbone: Backbone, *, everything: bool) -> Iterator[tuple[Any, Any]]:
    """Sizes with settings that the backbone allows: all with all, or the middle size with all."""
    offered, every = sizes(name, backbone.anatomy), every_setting(name)
    middle = offered[len(offered) // 2]
    for size, given in product(offered, every):
        tried = everything or size == middle or given == every[0]
        if tried and fits(name, backbone.anatomy, size, **given):
            yield size, given


def _folded(pack: Pack, group: Group) -> dict[str, torch.Tensor]:
    """A solo pack's tensors as an adapter stores them, by saved name."""
    method = registry[group.method]
    held = pack.lane_views(pack.parameters_by_name(), 0) | pack.lane_fixed(0)
    folded = {}
    for layer, site in product(group.layers, group.sites or (group.method,)):
        start = f"{group.method}.{layer}.{site}."
        own = {n.removeprefix(start): t for n, t in held.items() if n.startswith(start)}
        own = method.folded_tensors(group, own)
        folded |= {f"{start}{tensor_name}": tensor for tensor_name, tensor in own.items()}
    return folded


def _solo(backbone: Backbone, configuration: Configuration, seed: int, **settings: Any) -> Pack:
    lanes, seeds = [Lane(0, configuration)], Seeds(seed)
    return Pack(backbone, backbone.head(3), lanes, seeds=seeds, dtype=torch.float64, **settings)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "vit"])
@pytest.mark.parametrize("name", registry.names())
def test_what_an_adapter_stores_runs_alike_on_another_start(name: str, architecture: str) -> None:
    """Re-parametrisations folded, indices in int32, where another seed would have begun."""
    backbone, batch = _measured_backbone(architecture), tiny.tiny_batch(architecture)
    every = every_setting(name)
    for given in every if architecture == "bert" else every[:1]:
        configuration = case(name, backbone.anatomy, **given)
        trained = _solo(backbone, configuration, 0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in trained.operators.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        tensors = trained.lane_views(trained.parameters_by_name(), 0) | trained.lane_fixed(0)
        stored = {
            each: tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor.detach()
            for each, tensor in folded_weights(configuration, tensors).items()
        }
        folded = folded_configuration(configuration)
        assert folded_configuration(folded) == folded
        loaded = _solo(backbone, folded, 99, saved={0: stored})
        held = loaded.lane_views(loaded.parameters_by_name(), 0)
        assert stored.keys() == held.keys() | loaded.lane_fixed(0).keys()
        outputs = []
        with torch.no_grad():
            for tensor_name, view in held.items():
                view.copy_(stored[tensor_name])
            for pack in (trained, loaded):
                with pack.running():
                    outputs.append(pack(batch, tiny_call()))
        assert torch.allclose(*outputs, rtol=0.0, atol=1e-12), given


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", registry.names())
def test_identity_at_initialisation_is_what_the_method_says(name: str, architecture: str) -> None:
    backbone = _measured_backbone(architecture)
    plain = _outputs(backbone, Configuration.of([], training=TRAINING))
    every = every_setting(name)
    for given in every if architecture == "bert" else every[:1]:
        found = _outputs(backbone, case(name, backbone.anatomy, **given))
        distance = float((found - plain).abs().max())
        if registry[name].identity == "exact":
            assert distance < 1e-12, given
        else:
            assert distance > 1e-9, given
        if registry[name].identity.startswith("near:"):
            kind = "snell, dense" if given.get("sparsity") == 0.0 else name
            assert distance < FARTHER.get(kind, NEAR) * float(plain.std()), given


def _outputs(backbone: Backbone, configuration: Configuration) -> torch.Tensor:
    pack = _solo(backbone, configuration, 0)
    with torch.no_grad(), pack.running():
        return pack(tiny.tiny_batch(backbone.anatomy.architecture), tiny_call())


def tiny_call() -> Any:
    """A call without dropout."""
    from autopeft.methods.lane_operator import Call

    def refuse(name: str, shape: Any) -> Any:
        raise AssertionError("random numbers in evaluation")

    return Call(training=False, uniform=refuse)


def test_unknown_and_duplicate_names_raise_with_the_known_list() -> None:
    with pytest.raises(ValueError, match="serial_adapter"):
        registry["loar"]
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(registry["lora"])
