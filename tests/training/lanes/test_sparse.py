"""Sparse weights in lanes: exact gradients, nothing else moves, packs equal solo, resuming."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from importance_maps import with_importance
from lane_training import STEPS, Training, furthest, without_cache
from torch import Tensor

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError, InputError
from autopeft.methods.lane_operator import Call
from autopeft.methods.sparse import dense_change
from autopeft.methods.sparse_operators import NoisyInputRows, quantisation_step
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.state import LaneState, put_state

ROWS = 3


def _training(rate: float = 1e-3) -> dict[str, float]:
    return {"learning_rate": rate, "weight_decay": 0.01, "warmup_ratio": 0.0}


def _sparse(layers: list[int], sites: list[str], density: float, **given: Any) -> Group:
    settings = {"granularity": "weight", "score": "gradient", "smallest": False} | given
    if settings["granularity"] == "input":
        settings.setdefault("noise", 0)
    return Group.of("sparse", layers, sites, density=density, **settings)


def _measured(architecture: str) -> Backbone:
    backbone = tiny.tiny_backbone(architecture)
    return replace(backbone, anatomy=with_importance(backbone.anatomy))


def _batches(architecture: str) -> Any:
    return lambda step: tiny.tiny_batch(architecture, rows=ROWS, seed=step)


KINDS: dict[str, list[dict[str, Any]]] = {
    "compressed weights": [{"density": 0.1}, {"density": 0.07, "score": "magnitude"}],
    "dense weights": [{"density": 0.4}, {"density": 0.3, "score": "random"}],
    "rows": [
        {"density": 0.2, "granularity": "input"},
        {"density": 0.13, "granularity": "input", "score": "random"},
    ],
    "columns": [
        {"density": 0.2, "granularity": "output", "smallest": True},
        {"density": 0.13, "granularity": "output", "score": "magnitude"},
    ],
    "blocks": [
        {"density": 0.2, "granularity": "block", "block": 4},
        {"density": 0.13, "granularity": "block", "block": 4, "score": "diagonal"},
    ],
    "blocks that leave a strip": [
        {"density": 0.2, "granularity": "block", "block": 5, "score": "random"},
        {"density": 0.13, "granularity": "block", "block": 5, "score": "magnitude"},
    ],
    "heads": [
        {"density": 0.5, "granularity": "head"},
        {"density": 0.3, "granularity": "head", "score": "random"},
    ],
}
"""Two lanes each, of one size class and different sizes, so that they are stacked and padded."""


def _sites(kind: str) -> list[str]:
    attention = ["query", "value", "output"]
    return attention if kind == "heads" else [*attention, "up", "down"]


def _pair(kind: str) -> list[Lane]:
    return [
        Lane(
            number,
            Configuration.of([_sparse([0, 2], _sites(kind), **given)], training=_training()),
        )
        for number, given in enumerate(KINDS[kind])
    ]


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_a_dense_change_at_the_chosen_weights(
    kind: str, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = _measured(architecture)
    lanes = _pair(kind)
    pack = Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for position in range(2):
            for name, view in pack.lane_views(pack.parameters_by_name(), position).items():
                if name.startswith("sparse."):
                    view.copy_(torch.randn(view.shape, generator=generator).double() * 0.1)
    batch = tiny.tiny_batch(architecture)
    found = _loss(pack, batch)
    found.backward()
    dense = {}
    for placed in pack._placed:
        operator = placed.operator
        assert operator.members == (0, 1), "the lanes were not stacked"
        changes = []
        for position in range(2):
            (group,) = lanes[position].configuration.groups
            start = f"{operator.name}."
            own = {
                name.removeprefix(start): tensor
                for source in (
                    pack.lane_views(pack.parameters_by_name(), position),
                    pack.lane_fixed(position),
                )
                for name, tensor in source.items()
                if name.startswith(start)
            }
            changes.append(dense_change(group, placed.place, own))
        change = torch.stack(changes).requires_grad_()
        dense[operator.name] = change

        def plain(x: Tensor, y: Tensor, call: Call, change: Tensor = change) -> Tensor:
            return torch.einsum("kbti,kio->kbto", x, change)

        monkeypatch.setattr(operator, "delta", plain)
    expected = _loss(pack, batch)
    expected.backward()
    assert torch.allclose(found, expected, atol=1e-10)
    for placed in pack._placed:
        operator = placed.operator
        gradient = operator.values.grad  # type: ignore[union-attr]
        whole = dense[operator.name].grad
        assert whole is not None
        for position in range(2):
            own = operator.lane_tensor(gradient, "values", position)  # type: ignore[arg-type]
            index = pack.lane_fixed(position)[f"{operator.name}.index"]
            (group,) = lanes[position].configuration.groups
            spread = dense_change(group, placed.place, {"values": own, "index": index})
            ones = {"values": torch.ones_like(own), "index": index}
            mask = dense_change(group, placed.place, ones)
            assert torch.allclose(spread, whole[position] * mask, atol=1e-10)
            padding = gradient.clone()  # type: ignore[union-attr]
            operator.lane_tensor(padding, "values", position).zero_()
            assert not padding[position].any(), "a padded unit has a gradient"
        assert float(whole.abs().max()) > 1e-6


def _loss(pack: Pack, batch: Batch) -> Tensor:
    def refuse(name: str, shape: Any, *, per_row: bool = True) -> Tensor:
        raise AssertionError("random numbers without dropout")

    with pack.running():
        logits = pack(batch, Call(training=True, uniform=refuse))
    weights = torch.linspace(-1.0, 1.0, logits.numel(), dtype=logits.dtype).view_as(logits)
    return (logits * weights).sum() + logits.square().sum()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "modernbert"])
def test_a_change_merged_into_the_weights_gives_the_same_outputs(architecture: str) -> None:
    backbone, merged = _measured(architecture), _measured(architecture)
    group = _sparse([0, 1], ["query", "value", "down"], 0.1)
    other = _sparse([2], ["output", "up"], 0.2, granularity="output")
    configuration = Configuration.of([group, other], training=_training(1e-2))
    training = Training(backbone, [Lane(0, configuration)])
    state = training.run(without_cache(_batches(architecture)))[0]
    tensors = state.kept()
    with torch.no_grad():
        for placed in training.pack._placed:
            place = placed.place
            start = f"{placed.operator.name}."
            own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
            used = group if place.layer < 2 else other
            change = dense_change(used, place, own)
            site = merged.anatomy.site(place.layer, place.site)
            weight: Any = merged.model.get_submodule(site.module).weight
            rows = weight if site.transposed else weight.T
            rows[:, site.start : site.start + site.out_features] += change
    plain = Pack(
        merged,
        merged.head(3),
        [Lane(0, Configuration.of([], training=_training()))],
        seeds=Seeds(7),
        dtype=torch.float64,
    )
    with torch.no_grad():
        for name, view in plain.lane_views(plain.parameters_by_name(), 0).items():
            view.copy_(tensors[name])
    batch = tiny.tiny_batch(architecture, seed=99)
    found, expected, before = (
        _evaluated(pack, batch)
        for pack in (
            training.pack,
            plain,
            Pack(
                backbone,
                backbone.head(3),
                [Lane(0, Configuration.of([], training=_training()))],
                seeds=Seeds(7),
                dtype=torch.float64,
            ),
        )
    )
    assert torch.allclose(found, expected, atol=1e-9)
    assert not torch.allclose(found, before, atol=1e-3)


def _evaluated(pack: Pack, batch: Batch) -> Tensor:
    uniform = StepUniform(Seeds(0), 0, 0, 1, torch.device("cpu"))
    with torch.no_grad(), pack.running():
        return pack(batch, Call(training=False, uniform=uniform))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_outside_the_mask_never_change_bit_for_bit(kind: str) -> None:
    backbone = _measured("bert")
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    lanes = _pair(kind)
    training = Training(backbone, lanes)
    training.run(without_cache(_batches("bert")))
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for placed in training.pack._placed:
        d_in, place = placed.place.d_in, placed.place
        unit = torch.eye(d_in, dtype=torch.float64).expand(2, 1, d_in, d_in)
        call = Call(training=False, uniform=StepUniform(Seeds(0), 0, 0, 1, torch.device("cpu")))
        with torch.no_grad():
            y = unit.new_zeros(2, 1, d_in, place.d_out)
            change = placed.operator.delta(unit, y, call)[:, 0]
        for position, lane in enumerate(lanes):
            mask = _expected_mask(backbone, lane.configuration.groups[0], place)
            if mask is None:
                continue
            assert torch.all(change[position][~mask] == 0.0)
            assert torch.all(change[position][mask] != 0.0)


def _expected_mask(backbone: Backbone, group: Group, place: Any) -> Tensor | None:
    """Where a measured score is highest, straight from the definition; None for other scores."""
    if group["score"] != "gradient":
        return None
    importance = backbone.anatomy.measured()
    site = importance.of("gradient")[place.layer, place.site]
    d_in, d_out = place.d_in, place.d_out
    mask = np.zeros((d_in, d_out), dtype=bool)
    sign = 1.0 if group["smallest"] else -1.0
    granularity, density = group["granularity"], float(group["density"])
    if granularity == "weight":
        mask.ravel()[site.weights[: round(density * d_in * d_out)]] = True
    elif granularity == "input":
        mask[np.argsort(sign * site.inputs)[: round(density * d_in)]] = True
    elif granularity == "output":
        mask[:, np.argsort(sign * site.outputs)[: round(density * d_out)]] = True
    elif granularity == "head":
        along = site.inputs if place.site == "output" else site.outputs
        heads = along.reshape(-1, 8).sum(1)
        best = np.argsort(sign * heads)[: max(1, round(density * len(heads)))]
        channels = np.concatenate([np.arange(8 * head, 8 * head + 8) for head in best])
        if place.site == "output":
            mask[channels] = True
        else:
            mask[:, channels] = True
    else:
        side = int(group["block"])
        own = site.blocks.ravel()
        for block in np.argsort(sign * own)[: round(density * len(own))]:
            row, column = divmod(int(block), site.blocks.shape[1])
            mask[row * side : (row + 1) * side, column * side : (column + 1) * side] = True
    return torch.from_numpy(mask)


def _salient(layers: list[int], sites: list[str], channels: int, score: str) -> Group:
    return Group.of("salient_channels", layers, sites, channels=channels, score=score)


def _mixed_lanes() -> list[Lane]:
    """Every kind of unit at many densities beside LoRA and adapters, some with noise."""
    both = ["query", "value"]
    lora = Group.of("lora", [0, 2], both, rank=3, alpha=6.0, dropout=0.1)
    serial = Group.of(
        "serial_adapter", [1], ["ffn"], size=4, activation="gelu", scale=1.0, dropout=0.1
    )
    groups = [
        [_sparse([0, 1], both, 0.01), lora],
        [_sparse([0, 1], both, 0.013, score="random")],
        [_sparse([1, 2], both, 0.4, score="magnitude", smallest=True), serial],
        [_sparse([0], ["down", "up"], 0.2, granularity="input", noise=4)],
        [_sparse([0], ["down"], 0.17, granularity="input", noise=3, score="activation"), serial],
        [_sparse([0, 2], ["down"], 0.2, granularity="input")],
        [_sparse([1], ["up", "key"], 0.1, granularity="output")],
        [_salient([0, 1], ["attention"], 5, "activation"), lora],
        [_salient([1], ["attention", "ffn"], 7, "random"), serial],
        [_sparse([0, 1], ["value", "output"], 0.3, granularity="head"), lora],
        [_sparse([2], both, 0.1, granularity="block", block=4)],
        [_sparse([1, 2], both, 0.12, granularity="block", block=4, score="diagonal")],
    ]
    return [
        Lane(number, Configuration.of(own, training=_training(1e-3 / (1 + number))))
        for number, own in enumerate(groups)
    ]


@pytest.mark.parametrize("architecture", ["bert", "llama", "modernbert"])
def test_packed_equals_solo_with_mixed_units_and_densities(architecture: str) -> None:
    backbone, lanes = _measured(architecture), _mixed_lanes()
    make = without_cache(_batches(architecture))
    packed = Training(backbone, lanes).run(make)
    for lane in lanes:
        alone = Training(backbone, [lane]).run(make)[lane.number]
        assert furthest(packed[lane.number], alone) < 1e-9, lane.number
        ours = ("sparse.", "salient_channels.")
        moved = [tensor for name, tensor in alone.weights().items() if name.startswith(ours)]
        assert all(float(tensor.abs().max()) > 1e-5 for tensor in moved)


def test_float32_packs_agree_within_1e_5() -> None:
    backbone = tiny.tiny_backbone("bert", torch.float32)
    backbone = replace(backbone, anatomy=with_importance(backbone.anatomy))
    lanes, make = _mixed_lanes(), without_cache(_batches("bert"))
    packed = Training(backbone, lanes, torch.float32).run(make)
    for lane in lanes:
        alone = Training(backbone, [lane], torch.float32).run(make)[lane.number]
        for name, tensor in alone.weights().items():
            assert float((tensor - packed[lane.number].weights()[name]).abs().max()) < 1e-5, name


def test_a_saved_rung_goes_on_without_the_map_it_was_chosen_by(tmp_path: Path) -> None:
    backbone, lanes = _measured("bert"), _mixed_lanes()
    make = without_cache(_batches("bert"))
    whole = Training(backbone, lanes).run(make)
    half = Training(backbone, lanes).run(make, 0, 8)
    loaded = {}
    for number, state in half.items():
        state.save(tmp_path / f"{number}.safetensors")
        loaded[number] = LaneState.load(tmp_path / f"{number}.safetensors")
    unmeasured = replace(backbone, anatomy=replace(backbone.anatomy, importance=None))
    with pytest.raises(BackboneError, match="no importance map"):
        Training(unmeasured, lanes)
    for part in (lanes[:3], lanes[3:]):
        saved = {lane.number: loaded[lane.number].kept() for lane in part}
        training = Training(unmeasured, part, saved=saved)
        put_state(training.pack, training.optimizer, loaded)
        for number, state in training.run(make, 8, STEPS).items():
            assert furthest(state, whole[number]) < 1e-9, number


def test_a_state_with_other_weights_chosen_is_refused() -> None:
    backbone, lanes = _measured("bert"), _mixed_lanes()[:1]
    state = Training(backbone, lanes).run(without_cache(_batches("bert")), 0, 1)
    other = replace(backbone, anatomy=with_importance(backbone.anatomy, seed=5))
    training = Training(other, lanes)
    with pytest.raises(InputError, match=r"another sparse\.0\.query\.index"):
        put_state(training.pack, training.optimizer, state)


# -- salient channels ---------------------------------------------------------------------------


def test_salient_channels_are_a_linear_map_on_the_highest_channels() -> None:
    backbone = _measured("bert")
    group = _salient([1], ["attention"], 5, "activation")
    lane = Lane(0, Configuration.of([group], training=_training()))
    pack = Pack(backbone, backbone.head(3), [lane], seeds=Seeds(0), dtype=torch.float64)
    (operator,) = pack.operators
    outputs = backbone.anatomy.measured().of("activation")[1, "output"].outputs
    best = sorted(np.argsort(-outputs)[:5].tolist())
    assert pack.lane_fixed(0)["salient_channels.1.attention.index"].tolist() == best
    views = pack.lane_views(pack.parameters_by_name(), 0)
    linear = views["salient_channels.1.attention.linear"]
    assert 0.01 < float(linear.std()) < 0.03
    y = torch.randn(1, 2, 4, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quiet = Call(False, StepUniform(Seeds(0), 0, 0, 1, torch.device("cpu")))
    with torch.no_grad():
        found = operator.delta(y, y, quiet)  # type: ignore[operator]
    expected = torch.zeros_like(y)
    expected[..., best] = y[..., best] @ linear
    assert torch.allclose(found, expected, atol=1e-12)


# -- noise ------------------------------------------------------------------------------------


def test_quantisation_steps_are_the_best_of_80_clip_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 6, generator=generator) * torch.logspace(-2, 1, 6)
    weight[3, 2] = 40.0  # clipping an outlier pays
    chosen = torch.tensor([1, 7])
    found = quantisation_step(weight, 4, chosen)
    left = [i for i in range(20) if i not in (1, 7)]
    clipped = False
    for column in range(6):
        own = weight[left, column].double().numpy()
        errors = {}
        for level in range(21, 101):
            step = np.abs(own).max() * level / 100 / 7
            errors[step] = ((np.clip(np.round(own / step), -8, 7) * step - own) ** 2).sum()
        best = min(errors, key=lambda step: errors[step])
        clipped |= best < np.abs(own).max() / 7 * 0.99
        assert float(found[column]) == pytest.approx(best, rel=1e-5)
    assert clipped


def test_noise_lies_on_the_other_rows_in_training_alone() -> None:
    backbone = _measured("bert")
    group = _sparse([0], ["down"], 0.25, granularity="input", noise=4)
    lane = Lane(0, Configuration.of([group], training=_training()))
    pack = Pack(backbone, backbone.head(3), [lane], seeds=Seeds(0), dtype=torch.float64)
    (operator,) = pack.operators
    assert isinstance(operator, NoisyInputRows)
    unit = torch.eye(48, dtype=torch.float64).expand(1, 1, 48, 48)
    uniform = StepUniform(Seeds(0), 0, 0, 4, torch.device("cpu"))
    with torch.no_grad():
        quiet = operator.delta(unit, unit, Call(False, uniform))[0, 0]
        noise = operator.delta(unit, unit, Call(True, uniform))[0, 0]
        other_rows = StepUniform(Seeds(0), 0, 2, 4, torch.device("cpu"))
        again = operator.delta(unit, unit, Call(True, other_rows))[0, 0]
        later = StepUniform(Seeds(0), 1, 0, 4, torch.device("cpu"))
        next_step = operator.delta(unit, unit, Call(True, later))[0, 0]
    assert torch.all(quiet == 0.0)
    assert torch.equal(noise, again), "micro-batches of a step must see the same weights"
    assert not torch.equal(noise, next_step)
    index = pack.lane_fixed(0)["sparse.0.down.index"]
    assert torch.all(noise[index] == 0.0)
    left = [i for i in range(48) if i not in index.tolist()]
    scaled = noise[left] / (0.5 * pack.lane_fixed(0)["sparse.0.down.step"])
    assert abs(float(scaled.mean())) < 0.1
    assert float(scaled.std()) == pytest.approx(1.0, abs=0.06)
