"""Training options at the FFN: against hooks that the test puts on a backbone, and packed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from lane_training import Training, furthest, without_cache
from torch import Tensor
from torch.nn import functional

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError
from autopeft.methods.lane_operator import Call
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.seeds import Seeds, StepUniform

STEPS = 6
BOTH = {"ffn_masking": 0.2, "ffn_dropping": 0.3}
OPTIONS: dict[int, dict[str, float]] = {
    0: {},
    1: BOTH,
    2: {"density_weight": 1.0, "density_epsilon": 0.05},
    3: {"ffn_masking": 0.5, "density_weight": 0.3},
    4: {"ffn_dropping": 0.6},
    5: {"density_weight": 0.5, "density_epsilon": 0.02},
}
"""By the number of a lane, which is also its layout in `_lane`."""


class Replayed:
    """Runs again what it is given, on the buffers it was given it with."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """`run` itself."""
        return run


def _lane(number: int, options: dict[str, float], *, sites: tuple[str, ...] = ()) -> Lane:
    """LoRA, an adapter or prompts, beginning at one of three layers."""
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0} | options
    if number == 5:  # its slots lengthen the rows of all lanes, by more than it uses in one layer
        prompts = [
            Group.of("prompt", [0], length=5, initial="random"),
            Group.of(
                "dept",
                [1],
                length=2,
                rank=2,
                positions=4,
                alpha=8.0,
                prompt_rate=60.0,
                initial="random",
            ),
        ]
        return Lane(number, Configuration.of(prompts, training=training))
    layers = [[1, 2], [0, 2], [1], [0, 1, 2], [2]][number]
    sites = sites or (("query", "down"), ("value", "up"))[number % 2]
    group = Group.of("lora", layers, sites, rank=2 + number, alpha=8.0, dropout=0.1)
    if number == 4:
        group = Group.of(
            "serial_adapter", layers, ["ffn"], size=4, activation="gelu", scale=1.0, dropout=0.1
        )
    return Lane(number, Configuration.of([group], training=training))


def _lanes() -> list[Lane]:
    return [_lane(number, options) for number, options in OPTIONS.items()]


def _make(architecture: str) -> Any:
    return without_cache(lambda step: tiny.tiny_batch(architecture, seed=step))


# -- packed is solo -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "checkpointing"),
    [("bert", True), ("opt", False), ("gemma3_text", False), ("vit", False)],
)
def test_packed_equals_solo_with_other_options_in_every_lane(
    architecture: str, checkpointing: bool
) -> None:
    backbone, make = tiny.tiny_backbone(architecture), _make(architecture)
    packed = Training(backbone, _lanes(), checkpointing=checkpointing).run(make, 0, STEPS)
    for lane in _lanes():
        alone = Training(backbone, [lane]).run(make, 0, STEPS)
        assert furthest(packed[lane.number], alone[lane.number]) < 1e-9, lane.number
    plain = [_lane(number, {}) for number in OPTIONS]
    without = Training(backbone, plain).run(make, 0, STEPS)
    assert furthest(packed[0], without[0]) == 0.0, "a lane without options is as it was"
    assert min(furthest(packed[n], without[n]) for n in OPTIONS if n) > 1e-6


def test_a_backbone_that_cannot_pack_has_them_too() -> None:
    backbone, make = tiny.tiny_backbone("deberta-v2"), _make("deberta-v2")
    plain = Training(backbone, [_lane(3, {})]).run(make, 0, 2)
    own = Training(backbone, [_lane(3, OPTIONS[3])]).run(make, 0, 2)
    assert furthest(plain[3], own[3]) > 1e-6


def test_replayed_steps_draw_anew() -> None:
    backbone, make = tiny.tiny_backbone("bert"), _make("bert")
    eager = Training(backbone, _lanes()).run(make, 0, STEPS)
    recorder = Training(backbone, _lanes(), recorder=Replayed())
    replayed = recorder.run(make, 0, STEPS)
    assert recorder.steps.replayed == STEPS - 1
    assert max(furthest(eager[n], replayed[n]) for n in OPTIONS) < 1e-12


def test_nothing_is_hooked_where_all_options_are_off() -> None:
    pack = Training(tiny.tiny_backbone("bert"), [_lane(0, {})]).pack
    assert list(pack._ffn.install(pack._backbone.model)) == []
    late = Training(tiny.tiny_backbone("bert"), [_lane(2, BOTH), _lane(4, BOTH)]).pack
    assert [own._layer for own, _ in late._ffn._layers] == [1, 2], "from the first layer up"


# -- one step, by hand ----------------------------------------------------------------------------


def _gradients(training: Training) -> dict[str, Tensor]:
    return {item.name: item.parameter.grad.clone() for item in training.pack.stacked()}


def _accumulated(
    architecture: str, number: int, step: int, cuts: tuple[int, ...] = (0, 4)
) -> dict[str, Tensor]:
    """A lane's gradients in one step of 4 rows, cut into micro-batches."""
    training = Training(tiny.tiny_backbone(architecture), [_lane(number, OPTIONS[number])])
    whole = tiny.tiny_batch(architecture, rows=4, tokens=9, seed=1)
    with training.pack.running():
        training.optimizer.zero_grad()
        for start, stop in pairwise(cuts):
            inputs = {name: tensor[start:stop] for name, tensor in whole.inputs.items()}
            part = replace(
                whole, inputs=inputs, mask=whole.mask[start:stop], labels=whole.labels[start:stop]
            )
            draws = StepUniform(Seeds(7), step, start, 4, training.pack.device)
            training.steps.accumulate(part, {}, draws, weight=4)
    return _gradients(training)


def _drawn(name: str, step: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=Seeds(7).generator("dropout", name, step))


@contextmanager
def _by_hand(backbone: Backbone, number: int, step: int) -> Iterator[list[tuple[int, Tensor]]]:
    """Hooks that mask, drop, and collect what every `down` reads; every pass here is a lane's."""
    options, seen, handles = OPTIONS[number], [], []
    rates = [options.get(name, 0.0) for name in ("ffn_masking", "ffn_dropping")]
    first = _lane(number, {}).configuration.layers[0]
    for layer in range(first, tiny.LAYERS):

        def before(module: Any, args: Any, layer: int = layer) -> Any:
            h = args[0].view(4, -1, args[0].shape[-1])
            seen.append((layer, h))
            kept = _drawn(f"ffn_masking.{layer}", step, *h.shape) >= rates[0]
            return ((h * kept).view(args[0].shape),)

        def after(module: Any, args: Any, output: Tensor, layer: int = layer) -> Tensor:
            dropped = bool(_drawn(f"ffn_dropping.{layer}", step, 1) < rates[1])
            return torch.zeros_like(output) if dropped else output

        module = backbone.model.get_submodule(backbone.anatomy.site(layer, "down").module)
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _expected(architecture: str, number: int, step: int) -> dict[str, Tensor]:
    """The same by autograd: the task's loss, and the density of what was seen, written out."""
    options = OPTIONS[number]
    backbone = tiny.tiny_backbone(architecture)
    batch = tiny.tiny_batch(architecture, rows=4, tokens=9, seed=1)
    training = Training(backbone, [_lane(number, {})])
    training.optimizer.zero_grad()
    draws = StepUniform(Seeds(7), step, 0, 4, training.pack.device)
    with training.pack.running(), _by_hand(backbone, number, step) as seen:
        loss = functional.cross_entropy(training.pack(batch, Call(True, draws))[0], batch.labels)
    epsilon = options.get("density_epsilon", 1e-7)
    for layer, h in seen:
        tokens = [int(n) for n in batch.mask.sum(1)] if h.shape[1] > 1 else [1] * 4
        assert architecture != "bert" or (h.shape[1] == 1) == (layer == 2)
        rows = [
            (own[:n].square() / (own[:n].square() + epsilon)).mean()
            for own, n in zip(h, tokens, strict=True)
        ]
        weight = options.get("density_weight", 0.0)
        loss = loss + weight * torch.stack(rows).mean() / tiny.LAYERS
    loss.backward()
    return _gradients(training)


@pytest.mark.parametrize(
    ("architecture", "number"),
    [("bert", 1), ("bert", 2), ("llama", 3), ("opt", 4), ("bert", 5), ("opt", 5)],
)
def test_a_step_is_what_the_papers_write(architecture: str, number: int) -> None:
    step = 3
    if OPTIONS[number].get("ffn_dropping"):
        first = _lane(number, {}).configuration.layers[0]
        rate, layers = OPTIONS[number]["ffn_dropping"], range(first, tiny.LAYERS)
        step = next(  # one in which some layer of the lane is dropped
            step
            for step in range(50)
            if any(float(_drawn(f"ffn_dropping.{n}", step, 1)) < rate for n in layers)
        )
    found, expected = (
        _accumulated(architecture, number, step),
        _expected(architecture, number, step),
    )
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) < 1e-7, f"{name}: the loss is float32"
    cut = _accumulated(architecture, number, step, (0, 1, 4))
    assert max(float((cut[name] - grad).abs().max()) for name, grad in found.items()) < 1e-7
    plain = Training(tiny.tiny_backbone(architecture), [_lane(number, {})])
    assert any(gradient.abs().max() > 0 for gradient in found.values())
    assert plain.pack.n_layers == tiny.LAYERS


def test_what_the_penalty_alone_adds_is_its_derivative() -> None:
    """2 e h / (h^2 + e)^2, in float64, whatever the task's loss is rounded to."""
    from autopeft.training.lanes.ffn import FfnOptions, LayerOptions
    from autopeft.training.lanes.stream import Stream

    rng = np.random.default_rng(0)
    h = torch.tensor(rng.normal(size=(2 * 3, 5, 4)), requires_grad=True)
    options = [FfnOptions(weight=0.7, epsilon=0.01), FfnOptions()]
    layer = LayerOptions(0, options, 0.25, Stream())
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.float64)
    share = torch.tensor(1.0 / 3.0, dtype=torch.float64)
    call = Call(True, lambda *a, **k: torch.ones(()), mask=mask, row_share=share)
    with layer._stream.running(2, 3, call):
        (out,) = layer.before(torch.nn.Identity(), (h,)) or ()
    assert torch.equal(out, h)
    out.backward(torch.zeros_like(out))
    square = h.detach().square()
    slope = 2 * 0.01 * h.detach() / (square + 0.01).square() * (0.7 * 0.25 / 3.0 / 4.0)
    expected = slope * (mask / mask.sum(1, keepdim=True)).unsqueeze(2).repeat(2, 1, 1)
    expected[3:] = 0.0
    assert h.grad is not None
    assert float((h.grad - expected).abs().max()) < 1e-14


def test_a_backbone_without_known_ffns_is_refused() -> None:
    backbone = tiny.tiny_backbone("bert")
    layers = tuple(
        replace(layer, sites={r: s for r, s in layer.sites.items() if r != "down"})
        for layer in backbone.anatomy.layers
    )
    blind = replace(backbone, anatomy=replace(backbone.anatomy, layers=layers))
    lane = _lane(0, BOTH, sites=("query",))
    with pytest.raises(BackboneError, match=r"ffn_masking.*down") as caught:
        Training(blind, [lane])
    assert [fault.key for fault in caught.value.faults] == [
        "training.ffn_masking",
        "training.ffn_dropping",
    ]
