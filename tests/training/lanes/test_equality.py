"""A lane's result does not depend on its pack: the equality contract."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lane_training import STEPS, Training, furthest, without_cache
from tiny_backbones import ARCHITECTURES
from torch import Tensor

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.state import LaneState, put_state, take_state

ROWS = 3
Batches = Callable[[int], Batch]


def assert_near_in_float32(name: str, one: Tensor, other: Tensor) -> None:
    """All within 1e-5."""
    assert float((one - other).abs().max()) < 1e-5, name


@pytest.fixture(scope="module")
def packs(
    architecture: str,
    make_backbone: Callable[..., Backbone],
    make_batch: Callable[..., Batch],
    make_configuration: Callable[..., Configuration],
) -> tuple[Backbone, list[Lane], Batches]:
    """A backbone, five random lanes, and its batches by step."""
    backbone = make_backbone(architecture)
    rng = np.random.default_rng(11 + ARCHITECTURES.index(architecture))  # other methods in each
    lanes = [Lane(n, make_configuration(backbone, rng, rules=n % 2 == 0)) for n in range(5)]
    return backbone, lanes, lambda step: make_batch(architecture, rows=ROWS, seed=step)


def test_packed_equals_solo_on_every_architecture(
    packs: tuple[Backbone, list[Lane], Batches],
) -> None:
    backbone, lanes, batches = packs
    solo, right = dict[int, LaneState](), dict[int, int]()
    for lane in lanes:
        fresh, alone = Training(backbone, [lane]), Training(backbone, [lane])
        solo |= alone.run(without_cache(batches))
        right |= alone.right(without_cache(batches))
        before = take_state(fresh.pack, fresh.optimizer, 0)[lane.number].weights()
        moved = [
            float((tensor - before[name]).abs().max())
            for name, tensor in solo[lane.number].weights().items()
        ]
        assert max(moved) > 1e-4, "nothing was trained"
    if not backbone.anatomy.packable:
        with pytest.raises(BackboneError, match="1 lane"):
            Training(backbone, lanes)
        return
    together = Training(backbone, lanes)
    packed = together.run(without_cache(batches))
    assert max(furthest(packed[number], solo[number]) for number in solo) < 1e-9
    assert right == together.right(without_cache(batches))


def _bert_lanes(
    make_backbone: Callable[..., Backbone],
    make_configuration: Callable[..., Configuration],
    dtype: torch.dtype,
    seed: int,
) -> tuple[Backbone, list[Lane]]:
    backbone = make_backbone("bert", dtype)
    rng = np.random.default_rng(seed)
    return backbone, [Lane(n, make_configuration(backbone, rng)) for n in range(4)]


@pytest.mark.parametrize("seed", range(2))
def test_float32_agrees_within_1e_5(
    seed: int,
    make_backbone: Callable[..., Backbone],
    make_batch: Callable[..., Batch],
    make_configuration: Callable[..., Configuration],
) -> None:
    backbone, lanes = _bert_lanes(make_backbone, make_configuration, torch.float32, seed)

    def batches(step: int) -> Batch:
        return make_batch("bert", rows=ROWS, seed=step)

    packed = Training(backbone, lanes, torch.float32).run(without_cache(batches))
    for lane in lanes:
        alone = Training(backbone, [lane], torch.float32).run(without_cache(batches))[lane.number]
        weights, packed_weights = alone.weights(), packed[lane.number].weights()
        for name, tensor in weights.items():
            assert_near_in_float32(name, tensor, packed_weights[name])


def test_order_of_lanes_and_resume_do_not_matter(
    make_backbone: Callable[..., Backbone],
    make_batch: Callable[..., Batch],
    make_configuration: Callable[..., Configuration],
) -> None:
    backbone, lanes = _bert_lanes(make_backbone, make_configuration, torch.float64, 5)

    def batches(step: int) -> Batch:
        return make_batch("bert", rows=ROWS, seed=step)

    whole = Training(backbone, lanes).run(without_cache(batches))
    turned = Training(backbone, lanes[::-1]).run(without_cache(batches))
    half = Training(backbone, lanes).run(without_cache(batches), 0, 8)
    regrouped = {}
    for part in (lanes[:2], lanes[2:]):
        training = Training(backbone, part)
        put_state(training.pack, training.optimizer, half)
        regrouped |= training.run(without_cache(batches), 8, STEPS)
    for number, state in whole.items():
        assert furthest(state, turned[number]) < 1e-9
        assert furthest(state, regrouped[number]) < 1e-9


def test_a_lane_that_turns_nan_leaves_its_neighbours_as_they_were(
    make_backbone: Callable[..., Backbone], make_batch: Callable[..., Batch]
) -> None:
    backbone = make_backbone("bert")

    def lane(number: int, rank: int) -> Lane:
        group = Group.of("lora", [0, 2], ["query", "value"], rank=rank, alpha=8.0, dropout=0.1)
        training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
        return Lane(number, Configuration.of([group], training=training))

    def batches(step: int) -> Batch:
        return make_batch("bert", rows=ROWS, seed=step)

    lanes = [lane(0, 4), lane(1, 3), lane(2, 4)]
    healthy = Training(backbone, lanes).run(without_cache(batches))
    sick = Training(backbone, lanes)
    names = {item.name: item.parameter for item in sick.pack.stacked()}
    views = sick.pack.lane_views(names, 1)
    with torch.no_grad():
        views["lora.0.query.A"][0, 0] = float("nan")
    before = take_state(sick.pack, sick.optimizer, 0)[1]
    after = sick.run(without_cache(batches))
    for number in (0, 2):
        for name, tensor in healthy[number].tensors.items():
            assert torch.equal(tensor, after[number].tensors[name]), name
    assert not after[1].active
    assert after[1].updates == 0
    for name, tensor in before.tensors.items():
        assert torch.equal(tensor.nan_to_num(9.0), after[1].tensors[name].nan_to_num(9.0)), name


def test_state_files_round_trip(
    tmp_path: object,
    make_backbone: Callable[..., Backbone],
    make_batch: Callable[..., Batch],
    make_configuration: Callable[..., Configuration],
) -> None:
    backbone, lanes = _bert_lanes(make_backbone, make_configuration, torch.float64, 2)
    states = Training(backbone, lanes).run(
        without_cache(lambda step: make_batch("bert", seed=step)), 0, 3
    )
    path = tmp_path / "lane.safetensors"  # type: ignore[operator]
    states[0].save(path)
    loaded = LaneState.load(path)
    assert furthest(loaded, states[0]) == 0.0
    assert (loaded.step, loaded.updates, loaded.active) == (3, 3, True)


def test_float32_agrees_on_every_architecture(
    architecture: str,
    make_backbone: Callable[..., Backbone],
    make_batch: Callable[..., Batch],
    make_configuration: Callable[..., Configuration],
) -> None:
    backbone = make_backbone(architecture, torch.float32)
    if not backbone.anatomy.packable:
        pytest.skip("its lanes run one by one")
    rng = np.random.default_rng(21 + ARCHITECTURES.index(architecture))
    lanes = [Lane(number, make_configuration(backbone, rng)) for number in range(3)]

    def batches(step: int) -> Batch:
        batch = make_batch(architecture, rows=ROWS, seed=step)
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in batch.inputs.items()}
        return Batch(inputs, batch.mask, batch.labels)

    together = Training(backbone, lanes, torch.float32)
    packed = together.run(without_cache(batches))
    for lane in lanes:
        alone = Training(backbone, [lane], torch.float32)
        weights = alone.run(without_cache(batches))[lane.number].weights()
        for name, tensor in weights.items():
            assert_near_in_float32(name, tensor, packed[lane.number].weights()[name])
        right = together.right(without_cache(batches))[lane.number]
        assert abs(right - alone.right(without_cache(batches))[lane.number]) <= 1
