"""Sparsity rules in packs: packed = solo, resume, and what does not train stays bit for bit."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from importance_maps import with_importance
from lane_training import STEPS, Make, Training, furthest, without_cache
from tiny_backbones import ACTING_RULES

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.methods.lane_operator import Call
from autopeft.training.batches import Batch
from autopeft.training.lanes import attention
from autopeft.training.lanes.members import Members
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.lanes.state import LaneState, take_state
from autopeft.training.lanes.stream import Stream

RULES: tuple[Mapping[str, Any], ...] = (
    ACTING_RULES[0],
    {"rule": "none"},
    *ACTING_RULES[1:],
)
_SPARSE = {"rule": "sparse", "scope": "global", "score": "gradient", "smallest": False}
CHOOSING_RULES: tuple[Mapping[str, Any], ...] = (
    {"rule": "spt", "budget": 0.6, "threshold": 4.0, "score": "sensitivity"},
    {"rule": "spt", "budget": 0.3, "threshold": 10.0, "score": "magnitude"},
    {**_SPARSE, "granularity": "weight"},
    {**_SPARSE, "granularity": "block", "block": 4},
    {**_SPARSE, "granularity": "output", "scope": "site", "score": "random"},
)
"""Every rule that says before training what trains."""


class Replayed:
    """Runs again what it is given, as a graph would."""

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """`run` itself."""
        return run


def _groups(number: int, backbone: Backbone) -> list[Group]:
    lora = Group.of(
        "lora", [0, 1, 2], ["query", "up", "down"], rank=2 + number, alpha=8.0, dropout=0.1
    )
    if number % 2:
        return [lora]
    adapter = {"activation": "gelu", "scale": 1.0, "dropout": 0.0}
    groups = [lora, Group.of("serial_adapter", [number % 3, 2], ["ffn"], size=3, **adapter)]
    if backbone.anatomy.carries_prefix:
        more = {"hidden": 4} if number == 2 else {}
        groups.append(Group.of("prefix", [1], length=2, reparametrise=number == 2, **more))
    return groups


def _lane(number: int, backbone: Backbone, sparsity: Mapping[str, Any] | None = None) -> Lane:
    training = {"learning_rate": 1e-3, "weight_decay": 0.01, "warmup_ratio": 0.0}
    rule = (*RULES, *CHOOSING_RULES)[number] if sparsity is None else sparsity
    return Lane(
        number, Configuration.of(_groups(number, backbone), training=training, sparsity=rule)
    )


def _scored(backbone: Backbone) -> Backbone:
    """With an importance map."""
    return replace(backbone, anatomy=with_importance(backbone.anatomy))


def _every_rule(backbone: Backbone) -> list[Lane]:
    """A lane of each; those that choose train what they would not without their rule."""
    lanes = [_lane(number, backbone) for number in range(len(RULES) + len(CHOOSING_RULES))]
    for lane in lanes[len(RULES) :]:
        groups = counting.resolved(lane.configuration, backbone.anatomy).groups
        assert "sparse" in {group.method for group in groups}, lane.configuration.sparsity
    mixed = counting.resolved(lanes[len(RULES)].configuration, backbone.anatomy).methods
    assert {"lora", "sparse"} <= set(mixed)
    return lanes


@pytest.fixture
def make(make_batch: Callable[..., Batch]) -> Make:
    """BERT's batches by step."""
    return without_cache(lambda step: make_batch("bert", seed=step))


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit"])
def test_packed_equals_solo_with_every_rule_in_one_pack(
    name: str, make_backbone: Callable[..., Backbone], make_batch: Callable[..., Batch]
) -> None:
    backbone = _scored(make_backbone(name))
    own = without_cache(lambda step: make_batch(name, seed=step))
    lanes = _every_rule(backbone)
    solo = {lane.number: Training(backbone, [lane]).run(own)[lane.number] for lane in lanes}
    packed = Training(backbone, lanes[::-1]).run(own)
    assert max(furthest(packed[number], solo[number]) for number in solo) < 1e-9
    half = Training(backbone, lanes).run(own, 0, 9)
    found = {}
    for part in (lanes[:3], lanes[3:]):
        second = Training(backbone, part, recorder=Replayed() if part is lanes[:3] else None)
        second.put(half)
        found |= second.run(own, 9, STEPS)
    assert max(furthest(found[number], solo[number]) for number in solo) < 1e-9
    plain = Training(backbone, [_lane(0, backbone, {"rule": "none"})]).run(own)[0]
    weights = solo[0].weights()
    assert any(float((t - weights[n]).abs().max()) > 1e-4 for n, t in plain.weights().items())


def test_float32_agrees_within_1e_5(make_backbone: Callable[..., Backbone], make: Make) -> None:
    backbone = _scored(make_backbone("bert", torch.float32))
    lanes = _every_rule(backbone)
    packed = Training(backbone, lanes, torch.float32).run(make)
    for lane in lanes:
        alone = Training(backbone, [lane], torch.float32).run(make)[lane.number].weights()
        weights = packed[lane.number].weights()
        assert max(float((t - weights[n]).abs().max()) for n, t in alone.items()) < 1e-5


def test_passes_in_replay_and_passes_that_spare_gradients_agree(
    make_backbone: Callable[..., Backbone], make: Make
) -> None:
    backbone = make_backbone("bert")
    lanes = [_lane(number, backbone) for number in range(len(RULES))]
    eager = Training(backbone, lanes).run(make)
    replayed = Training(backbone, lanes, recorder=Replayed())
    found = replayed.run(make)
    assert replayed.steps.replayed > STEPS / 2
    assert max(furthest(found[number], eager[number]) for number in eager) < 1e-9


def _layer(name: str) -> str:
    return name.split("/")[1].split(".")[1]


@pytest.mark.parametrize("rule", [0, 4, 5])
def test_layers_that_do_not_train_stay_bit_for_bit(
    rule: int, make_backbone: Callable[..., Backbone], make: Make
) -> None:
    backbone = make_backbone("bert")
    training = Training(backbone, [_lane(rule, backbone), _lane(1, backbone)])
    position = [lane.number for lane in training.pack.lanes].index(rule)
    before = take_state(training.pack, training.optimizer, 0, training.rules)[rule]
    seen = set()
    for step in range(12):
        after = training.run(make, step, step + 1)[rule]
        moving = training.optimizer.moving
        assert moving is not None
        layers = set(moving.view(2, -1)[position, :3].nonzero().flatten().tolist())
        seen |= layers
        assert 1 <= len(layers) < 3
        for name, tensor in after.tensors.items():
            if name.startswith("rule/"):
                continue
            trains = name.split("/")[1].startswith("head.") or int(_layer(name)) in layers
            if not trains:
                assert torch.equal(tensor, before.tensors[name]), (step, name)
            elif name.startswith("second/") and name.endswith((".B", "weight")):
                assert not torch.equal(tensor, before.tensors[name]), (step, name)
        counts = (after.tensors["rule/steps"] - before.tensors.get("rule/steps", 0)).tolist()
        assert [index for index, count in enumerate(counts) if count] == [*sorted(layers), 3]
        before = after
    assert len(seen) > 1


def test_a_lane_that_is_not_scored_does_not_notice(
    make_backbone: Callable[..., Backbone], make: Make
) -> None:
    backbone = make_backbone("bert")
    neighbour = _lane(1, backbone)
    scored = Training(backbone, [_lane(0, backbone), neighbour])
    calm = Training(backbone, [_lane(0, backbone, {"rule": "rst"}), neighbour])
    one, other = scored.run(make)[1], calm.run(make)[1]
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_the_clip_counts_what_moves(make_backbone: Callable[..., Backbone], make: Make) -> None:
    """Gradients of layers that do not train, however large, change nothing."""
    backbone = make_backbone("bert")

    def trained(spoilt: bool) -> LaneState:
        training = Training(backbone, [_lane(5, backbone)], recorder=Replayed())
        update = training.steps.update

        def spoiling(factors: torch.Tensor) -> None:
            moving = training.optimizer.moving
            assert moving is not None
            for item in training.pack.stacked():
                if spoilt and item.layer is not None and not moving[item.layer]:
                    assert item.parameter.grad is not None
                    item.parameter.grad.fill_(float("inf"))
            update(factors)

        training.steps.update = spoiling  # type: ignore[method-assign]
        return training.run(make)[5]

    assert furthest(trained(True), trained(False)) == 0.0


def _quiet(name: str, shape: Any) -> torch.Tensor:
    raise AssertionError("random numbers in evaluation")


def test_gains_shrink_what_a_method_adds(
    make_backbone: Callable[..., Backbone], make_batch: Callable[..., Batch]
) -> None:
    """Against packs whose alpha and scale are smaller in that layer."""
    backbone, batch = make_backbone("bert"), make_batch("bert")

    def pack(factors: Mapping[int, float]) -> Pack:
        training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
        groups = []
        for layer in range(3):
            factor = factors.get(layer, 1.0)
            lora = {"rank": 2, "alpha": 4.0 * factor, "dropout": 0.0}
            adapter = {"size": 3, "activation": "relu", "scale": factor, "dropout": 0.0}
            groups += [
                Group.of("lora", [layer], ["value"], **lora),
                Group.of("parallel_adapter", [layer], ["ffn"], **adapter),
            ]
        lanes = [
            Lane(0, Configuration.of(groups, training=training)),
            Lane(1, Configuration.of(groups[2:], training=training)),
        ]
        made = Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0), dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        for position in range(2):
            views = made.lane_views(made.parameters_by_name(), position)
            for name in sorted(views):
                views[name].copy_(
                    torch.randn(views[name].shape, generator=generator, dtype=torch.float64) * 0.3
                )
        return made

    gains = torch.ones(2, 3)
    gains[0, 1], gains[0, 2], gains[1, 2] = 0.25, 0.0, 0.5
    plain = pack({})
    with torch.no_grad(), plain.running():
        found = plain(batch, Call(False, _quiet, gains))
        usual = plain(batch, Call(False, _quiet))
        ones = plain(batch, Call(False, _quiet, torch.ones(2, 3)))
    assert torch.equal(ones, usual)
    for lane, factors in ((0, {1: 0.25, 2: 0.0}), (1, {2: 0.5})):
        expected = pack(factors)
        with torch.no_grad(), expected.running():
            own = expected(batch, Call(False, _quiet))
        assert torch.allclose(found[lane], own[lane], atol=1e-12)
        assert float((found[lane] - usual[lane]).abs().max()) > 1e-4


@pytest.mark.parametrize("gain", [0.0, 0.25, 1.0])
def test_a_gain_on_a_prefix_is_on_the_attention_that_it_gets(
    gain: float, make_backbone: Callable[..., Backbone]
) -> None:
    """Two lanes, the first one's prefix shrunk: softmax weights written out."""
    backbone = make_backbone("llama")
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    groups = [Group.of("prefix", [1], length=2, reparametrise=False)]
    lanes = [Lane(n, Configuration.of(groups, training=training)) for n in range(2)]
    pack = Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0), dtype=torch.float64)
    operator: Any = pack.operators[0]
    gains = torch.ones(2, 3, dtype=torch.float64)
    gains[0, 1] = gain
    stream = Stream(rows=1, lanes=2, call=Call(False, _quiet, gains))
    members = Members.of([0, 1], torch.device("cpu"))
    layer = attention.LayerAttention("name", [(operator, members)], stream, layer=1)
    module = backbone.model.get_submodule(backbone.anatomy.layers[1].attention)
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 4, 5, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, 5, 8, generator=generator, dtype=torch.float64)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    attention.bind(module, layer)
    try:
        found, _ = attention.lane_attention(module, query, key, value, mask, scaling=0.5)
    finally:
        attention.unbind(module)
    for lane, factor in ((0, gain), (1, 1.0)):
        for head in range(4):
            kv, columns = head // 2, slice(8 * (head // 2), 8 * (head // 2) + 8)
            keys = torch.cat([operator.keys[lane][:, columns], key[lane, kv]])
            values = torch.cat([operator.values[lane][:, columns], value[lane, kv]])
            weights = (query[lane, head] @ keys.T * 0.5).exp()
            weights[:, :2] *= factor
            expected = weights @ values / weights.sum(1, keepdim=True)
            assert torch.allclose(found[lane, :, head], expected, atol=1e-12)
