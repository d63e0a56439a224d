"""Methods that no weights can stand for, against references hooked into the plain backbone.

`references/NAME.py` says in float64 what becomes of a site's output: `output(settings, tensors, x,
y)`, x [B, T, d_in] and y [B, T, d_out] of one lane; of a sub-layer, its input and its output
before the residual. `row_losses(settings, tensors, x, y, mask)` gives what it adds to the lane's
loss for every row, [B], where it adds anything. `settings` are the group's, with `site`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from dense_models import logits_of
from importance_maps import with_importance
from lane_training import Training, furthest, without_cache
from method_cases import configuration, sizes, variants
from reference_files import REFERENCES, reference
from torch import Tensor, nn
from torch.nn import functional

from autopeft.backbone.anatomy import ENTRANCE, EXIT, SUBLAYERS
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.export.adapter import folded_configuration, folded_weights
from autopeft.methods import registry
from autopeft.methods.base import Call
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.state import LaneState, take_state

NAMES = [
    name
    for name in registry.names()
    if (REFERENCES / f"{name}.py").exists() and hasattr(reference(name), "output")
]
STACKED = [*NAMES, "adapter_plus"]
"""Those, and one on hidden states that `test_hidden_states` holds against its reference."""
FAMILIES = ("bert", "gpt2", "llama", "vit", "t5", "modernbert")
ROUNDED = {"llama": 1e-6, "t5": 1e-6, "modernbert": 1e-6}
"""Where transformers computes norms or rotations in float32, which makes 1e-7 of a last bit."""
RATE, STEPS = 1e-3, 4
LAYERS = (0, 1)
"""Below the last layer, of which lanes run most on the first token alone where a head reads no
more: row losses are then of that token."""


@dataclass
class Case:
    """A solo pack in float64 whose trained tensors were moved, with what it is compared by."""

    backbone: Backbone
    group: Group
    pack: Pack
    tensors: Mapping[str, Tensor]
    row_losses: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, backbone: Backbone, case: Configuration) -> "Case":
        """Every trained tensor moved by N(0, 0.1) from where it starts."""
        pack = Pack(
            backbone, backbone.head(3), [Lane(0, case)], seeds=Seeds(3), dtype=torch.float64
        )
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in pack.operators.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise, alpha=0.1)
        views = pack.lane_views(pack.parameters_by_name(), 0)
        tensors = {name: view.clone().requires_grad_() for name, view in views.items()}
        return cls(backbone, case.groups[0], pack, tensors | pack.lane_fixed(0))

    def logits(self, batch: Batch, *, training: bool = False) -> Tensor:
        """The lane's; in training, its row losses hang on it."""
        draws = StepUniform(Seeds(0), 0, 0, len(batch), torch.device("cpu"))
        share = torch.tensor(1.0 / len(batch)) if training else None
        with self.pack.running():
            return self.pack(batch, Call(training, draws, row_share=share))[0]

    def reference_logits(self, batch: Batch, *, training: bool = False) -> Tensor:
        """The plain backbone's with the reference at every site; in training, notes row losses."""
        with self._hooked(batch.mask if training else None):
            return logits_of(self.backbone, {}, batch, self.backbone.head(3), self.tensors)

    @contextmanager
    def _hooked(self, mask: Tensor | None) -> Iterator[None]:
        self.row_losses, handles = [], []
        method, anatomy = registry[self.group.method], self.backbone.anatomy
        for place in method.places(self.group, anatomy):
            sublayer = place.site in SUBLAYERS
            role = EXIT[place.site] if sublayer else place.site
            site = anatomy.site(place.layer, role)
            first = ENTRANCE[place.site] if sublayer else role
            kept: dict[str, Tensor] = {}
            entrance = self.backbone.model.get_submodule(anatomy.site(place.layer, first).module)
            handles.append(entrance.register_forward_pre_hook(_keeping(kept)))
            columns = slice(site.start, site.start + site.out_features)
            changed = self._changed(place.layer, place.site, kept, columns, mask)
            module = self.backbone.model.get_submodule(site.module)
            handles.append(module.register_forward_hook(changed))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _changed(
        self, layer: int, site: str, kept: dict[str, Tensor], columns: slice, mask: Tensor | None
    ) -> Callable[..., Tensor]:
        own, module = self.at(layer, site), reference(self.group.method)
        settings = dict(self.group.settings) | {"site": site}

        def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            x, y = kept.pop("x"), output[..., columns]
            if mask is not None:
                self.row_losses.append(module.row_losses(settings, own, x, y, mask))
            total = output.clone()
            total[..., columns] = module.output(settings, own, x, y)
            return total

        return hook

    def at(self, layer: int, site: str) -> dict[str, Tensor]:
        """The tensors of one place, with those that it shares."""
        method = registry[self.group.method]
        places = method.places(self.group, self.backbone.anatomy)
        place = next(each for each in places if (each.layer, each.site) == (layer, site))
        held = {name: (layer, site, name) for name in self._names(layer, site)}
        held |= {name: (*at, name) for name, at in method.owners(self.group, place).items()}
        start = self.group.method
        return {name: self.tensors[f"{start}.{a}.{b}.{c}"] for name, (a, b, c) in held.items()}

    def _names(self, layer: int, site: str) -> list[str]:
        start = f"{self.group.method}.{layer}.{site}."
        return [name.removeprefix(start) for name in self.tensors if name.startswith(start)]


def _keeping(kept: dict[str, Tensor]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept.setdefault("x", args[0])

    return hook


def _backbone(architecture: str) -> Backbone:
    backbone = tiny.tiny_backbone(architecture)
    return replace(backbone, anatomy=with_importance(backbone.anatomy))


def _cases(name: str, architecture: str) -> list[dict[str, Any]]:
    """All variants on one architecture, the first elsewhere."""
    return variants(name) if architecture == "bert" else variants(name)[:1]


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_the_references(name: str, architecture: str) -> None:
    backbone, batch = _backbone(architecture), tiny.tiny_batch(architecture)
    near = ROUNDED.get(architecture, 1e-9)
    for given in _cases(name, architecture):
        case = Case.of(backbone, configuration(name, backbone.anatomy, **given))
        found, expected = case.logits(batch), case.reference_logits(batch)
        assert torch.allclose(found, expected, rtol=0.0, atol=near), given
        plain = logits_of(backbone, {}, batch, backbone.head(3), case.tensors)
        assert not torch.allclose(found, plain, rtol=0.0, atol=1e-5), f"{given}: it had no effect"
        _compare(case, *(functional.cross_entropy(o, batch.labels) for o in (found, expected)))
        for place in registry[name].places(case.group, backbone.anatomy):
            own = case.at(place.layer, place.site)
            assert registry[name].merged(case.group, place, own, None) is None  # type: ignore[arg-type]


def _compare(case: Case, found: Tensor, expected: Tensor) -> None:
    for item in case.pack.stacked():
        item.parameter.grad = None
    found.backward()
    stacked = case.pack.stacked()
    grads = {i.name: i.parameter.grad for i in stacked if i.parameter.grad is not None}
    own = case.pack.lane_views(grads, 0)
    leaves = {name: tensor for name, tensor in case.tensors.items() if tensor.requires_grad}
    theirs = torch.autograd.grad(
        expected, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    for name, grad in zip(leaves, theirs, strict=True):
        mine = own.get(name, torch.zeros_like(grad))
        assert torch.allclose(mine, grad, rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(reference(n), "row_losses")])
def test_row_losses_join_the_gradients(name: str, architecture: str) -> None:
    backbone, batch = _backbone(architecture), tiny.tiny_batch(architecture)
    for given in _cases(name, architecture):
        own = configuration(name, backbone.anatomy, layers=LAYERS, **given)
        case = Case.of(backbone, own)
        found = functional.cross_entropy(case.logits(batch, training=True), batch.labels)
        task = functional.cross_entropy(case.reference_logits(batch, training=True), batch.labels)
        penalty = torch.stack(case.row_losses).sum(0).mean()
        assert torch.allclose(found, task, rtol=0.0, atol=ROUNDED.get(architecture, 1e-9))
        assert float(penalty.detach()) > 0.0
        _compare(case, found, task + penalty)


@pytest.mark.parametrize("name", STACKED)
def test_packed_equals_solo_and_a_file_goes_on(name: str, tmp_path: Path) -> None:
    """Every size and choice at once, with dropout and decay, on two layers and on the last."""
    backbone = _backbone("bert")
    cases = [{"size": size} for size in sizes(name, backbone.anatomy)] + variants(name)
    training = {"learning_rate": RATE, "weight_decay": 0.01, "warmup_ratio": 0.1}
    lanes = [
        Lane(
            number,
            configuration(
                name,
                backbone.anatomy,
                layers=(0, 2) if number % 2 else (2,),
                training=training,
                **(_few_sites(name) | _dropout(name) | given),
            ),
        )
        for number, given in enumerate(cases)
    ]
    batches = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
    packed = Training(backbone, lanes).run(batches, 0, STEPS)
    for lane in lanes:
        solo = Training(backbone, [lane])
        before = take_state(solo.pack, solo.optimizer, 0)[lane.number]
        half = solo.run(batches, 0, STEPS // 2)[lane.number]
        half.save(tmp_path / "lane.safetensors")
        loaded = LaneState.load(tmp_path / "lane.safetensors")
        resumed = Training(
            backbone, [lane], saved={lane.number: loaded.kept()}, checkpointing=True
        )
        resumed.put({lane.number: loaded})
        after = resumed.run(batches, STEPS // 2, STEPS)[lane.number]
        assert furthest(after, packed[lane.number]) < 1e-9, lane
        for tensor_name, tensor in before.weights().items():
            if not tensor_name.startswith("head."):
                assert not torch.equal(tensor, after.weights()[tensor_name]), tensor_name


@pytest.mark.parametrize("name", STACKED)
def test_packed_equals_solo_in_float32(name: str) -> None:
    backbone = tiny.tiny_backbone("bert", torch.float32)
    backbone = replace(backbone, anatomy=with_importance(backbone.anatomy))
    given = _few_sites(name) | _dropout(name)
    lanes = [
        Lane(number, configuration(name, backbone.anatomy, size, **given))
        for number, size in enumerate(sizes(name, backbone.anatomy))
    ]
    batches = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
    packed = Training(backbone, lanes, torch.float32).run(batches, 0, STEPS)
    for lane in lanes:
        solo = Training(backbone, [lane], torch.float32).run(batches, 0, STEPS)[lane.number]
        together = packed[lane.number].weights()
        for tensor_name, tensor in solo.weights().items():
            apart = float((tensor - together[tensor_name]).abs().max())
            assert apart < 1e-5, (lane, tensor_name)


@pytest.mark.parametrize("name", STACKED)
def test_what_an_adapter_stores_runs_alike_on_another_start(name: str) -> None:
    backbone, batch = _backbone("bert"), tiny.tiny_batch("bert")
    for given in variants(name):
        lane = configuration(name, backbone.anatomy, **given)
        case = Case.of(backbone, lane)
        stored = {n: t.detach() for n, t in folded_weights(lane, case.tensors).items()}
        folded = Lane(0, folded_configuration(lane))
        seeds = Seeds(99)
        loaded = Pack(backbone, backbone.head(3), [folded], seeds=seeds, dtype=torch.float64)
        views = loaded.lane_views(loaded.parameters_by_name(), 0)
        assert stored.keys() == views.keys()
        with torch.no_grad():
            for tensor_name, view in views.items():
                view.copy_(stored[tensor_name])
        again = replace(case, pack=loaded)
        assert torch.allclose(again.logits(batch), case.logits(batch), rtol=0.0, atol=1e-12), given


def _few_sites(name: str) -> dict[str, Any]:
    """Maps of three shapes are enough to be packed."""
    few = [site for site in ("query", "up", "down") if site in registry[name].schema.sites]
    return {"sites": few} if few else {}


def _dropout(name: str) -> dict[str, Any]:
    has = any(each.name == "dropout" for each in registry[name].schema.parameters)
    return {"dropout": 0.2} if has else {}
