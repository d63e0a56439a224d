"""One suite over the registry: every method has a reference, and trains as that does.

`references/NAME.py` writes its formula out, see `referenced_cases`; outputs, gradients and merged
maps of each form are held in `test_linear_maps`, `test_nonlinear` and `test_hidden_states`. Here
lanes take steps with their own AdamW, and torch's AdamW takes them with the reference. A reference
may say where a gradient is `STOPPED` on purpose, and is not the loss's slope.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from every_method import measured_backbone
from method_cases import configuration, variants
from reference_files import REFERENCES, reference
from referenced_cases import FORMS, ReferencedCase, form_of, referenced_case
from torch import Tensor
from torch.nn import functional

from autopeft.methods import registry
from autopeft.training.lanes.optimizer import LaneAdamW

FAMILIES = ("bert", "gpt2", "vit")
"""An encoder, a decoder and a vision transformer, none of which computes anything in float32."""
LAYERS = (0, 1)
"""Below the last layer, of which lanes run most on the first token alone where a head reads no
more: row losses are then of that token, and what edits other tokens is not trained."""
RATE, DECAY, CLIP, STEPS = 1e-2, 0.3, 0.05, 2


@pytest.mark.parametrize("name", registry.names())
def test_every_method_has_a_reference(name: str) -> None:
    path = REFERENCES / f"{name}.py"
    says = "; or ".join(", ".join(own) for own in FORMS.values())
    assert form_of(name), (
        f"no reference holds {name}: write tests/methods/references/{path.name} with functions of "
        f"one form, which are {says} (see tests/support/referenced_cases.py)"
    )


def test_every_reference_is_of_a_method() -> None:
    assert {path.stem for path in REFERENCES.glob("*.py")} == {*registry.names()}


def _every(name: str, architecture: str) -> list[dict[str, Any]]:
    """All variants on one architecture, the first elsewhere."""
    return variants(name) if architecture == "bert" else variants(name)[:1]


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", registry.names())
def test_training_steps_are_those_of_torch_on_the_reference(name: str, architecture: str) -> None:
    """With decay and a clip that acts; variants that train the same tensors once."""
    backbone, batch = measured_backbone(architecture), tiny.tiny_batch(architecture)
    seen = set()
    for given in _every(name, architecture):
        placed = configuration(name, backbone.anatomy, layers=LAYERS, **given)
        case = referenced_case(backbone, placed)
        own = {n: t for n, t in case.tensors.items() if t.requires_grad}
        kinds = frozenset((n.rpartition(".")[2], t.dim()) for n, t in own.items())
        if kinds in seen:
            continue
        seen.add(kinds)
        start = {n: t.detach().clone() for n, t in own.items()}
        ours = LaneAdamW(
            case.pack.stacked(), 1, learning_rates=[RATE], weight_decays=[DECAY],
            max_grad_norm=CLIP,
        )  # fmt: skip
        theirs = torch.optim.AdamW(_parameter_groups(case, own), betas=(0.9, 0.999), eps=1e-8)
        for _ in range(STEPS):
            ours.zero_grad()
            _lane_loss(case, batch).backward()
            ours.step(torch.ones(1))
            grads = torch.autograd.grad(
                _reference_loss(case, batch), list(own.values()),
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            for tensor, grad in zip(own.values(), grads, strict=True):
                tensor.grad = grad
            assert torch.nn.utils.clip_grad_norm_(own.values(), CLIP) > CLIP
            theirs.step()
        held = case.pack.lane_views(case.pack.parameters_by_name(), 0)
        assert held.keys() == own.keys()
        for tensor_name, view in held.items():
            off = float((view - own[tensor_name].detach()).abs().max())
            assert off < 1e-8, (given, tensor_name, off)
            assert not torch.equal(view, start[tensor_name]), (given, tensor_name)


def _lane_loss(case: ReferencedCase, batch: Any) -> Tensor:
    """Of the lane in training where it adds to its rows' losses; these come with gradients."""
    training = hasattr(reference(case.group.method), "row_losses")
    loss = functional.cross_entropy(case.logits(batch, training=training), batch.labels)
    added = case.pack.auxiliary_loss()
    return loss if added is None else loss + added


def _reference_loss(case: ReferencedCase, batch: Any) -> Tensor:
    loss = functional.cross_entropy(case.expected(batch, training=True), batch.labels)
    added = case.penalty()
    return loss if added is None else loss + added


def _parameter_groups(case: ReferencedCase, own: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Of torch's optimizer: matrices decay and biases do not; some have rates of their own."""
    said, settings = reference(case.group.method), dict(case.group.settings)
    groups = []
    for name, tensor in own.items():
        last = name.rpartition(".")[2]
        matrix = tensor.dim() > 1 or last in getattr(said, "MATRICES", ())
        rate = said.rate(settings, last) if hasattr(said, "rate") else 1.0
        decay = DECAY if matrix and not last.endswith("bias") else 0.0
        groups.append({"params": [tensor], "lr": RATE * rate, "weight_decay": decay})
    return groups


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", registry.names())
def test_gradient_is_the_slope_of_the_loss(name: str, architecture: str) -> None:
    """Along a random way, by central differences."""
    backbone, batch = measured_backbone(architecture), tiny.tiny_batch(architecture)
    stopped = getattr(reference(name), "STOPPED", ())
    for given in _every(name, architecture):
        if any(given.get(each) for each in stopped):
            continue
        case = referenced_case(backbone, configuration(name, backbone.anatomy, **given))
        trained = list(case.pack.operators.parameters())
        loss = functional.cross_entropy(case.logits(batch), batch.labels)
        grads = torch.autograd.grad(loss, trained)
        generator = torch.Generator().manual_seed(9)
        ways = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in grads]
        slope = sum(float((grad * way).sum()) for grad, way in zip(grads, ways, strict=True))
        step, losses = 1e-6, []
        with torch.no_grad():
            for factor in (step, -2 * step):
                for parameter, way in zip(trained, ways, strict=True):
                    parameter.add_(way, alpha=factor)
                losses.append(float(functional.cross_entropy(case.logits(batch), batch.labels)))
        measured = (losses[0] - losses[1]) / (2 * step)
        assert measured == pytest.approx(slope, rel=1e-5, abs=1e-9), given
