"""Whatever saves time or memory changes no result: cache, checkpointing, capture, regrouping."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tiny_backbones as tiny
import tiny_causal
import torch
from every_method import lanes_of_each, measured
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_training import STEPS, Known, Make, Training, furthest, without_cache
from method_cases import carried
from transformers.models.llama.modeling_llama import eager_attention_forward

from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError
from autopeft.methods import registry
from autopeft.methods.lane_operator import Call
from autopeft.training.activations import TOKENS, ActivationCache
from autopeft.training.batches import Batch, PaddedExamples
from autopeft.training.data.examples import Examples
from autopeft.training.lanes import attention
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.state import LaneState
from autopeft.training.lanes.stream import Stream
from autopeft.training.lanes.trunk import SharedTrunk

CPU = torch.device("cpu")
PACKABLE = tuple(name for name in tiny.ARCHITECTURES if name != "deberta-v2")
UNKEPT = ("vit",)
"""Architectures of which nothing is kept: images are not read as `PaddedExamples`."""
TURNS = 9
"""One of this many of the methods is trained on an architecture in the fast suite."""
DECODERS = ("llama", "qwen3", "gemma3", "gpt2", "opt")
ROWS, BATCH = 12, 4


class Replayed:
    """Runs again what it is given, as a graph would: on the buffers it was recorded with."""

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """`run` itself."""
        return run


def _examples(*, answers: bool) -> PaddedExamples:
    rng = np.random.default_rng(3)
    ids = [rng.integers(3, tiny.VOCABULARY, n).astype(np.int32) for n in rng.integers(3, 15, ROWS)]
    labels = np.zeros(ROWS, dtype=np.int64) if answers else rng.integers(0, 3, ROWS)
    targets = None
    if answers:
        targets = tuple(np.arange(len(row)) >= max(1, len(row) // 2) for row in ids)
    return PaddedExamples(
        Examples(tuple(ids), labels, targets=targets), pad_token_id=0, device=CPU
    )


def _order(step: int) -> np.ndarray:
    """Three batches an epoch, in other company each time."""
    rows = np.random.default_rng(step // 3).permutation(ROWS)
    return rows[BATCH * (step % 3) : BATCH * (step % 3 + 1)]


def _make(examples: PaddedExamples, cache: ActivationCache | None = None) -> Make:
    def make(step: int, pack: Pack) -> tuple[Batch, Known]:
        rows = _order(step)
        batch = examples.batch(rows)
        return batch, SharedTrunk([pack], cache).known(batch, rows)

    return make


def _uncached(name: str, backbone: Backbone) -> Make:
    """Batches of an architecture by step, of which nothing is known."""
    if name in UNKEPT:
        return without_cache(lambda step: tiny.tiny_batch(name, seed=step))
    return _make(_examples(answers=backbone.lm_head is not None))


def _cache(examples: PaddedExamples, n_layers: int, home: str, folder: Path) -> ActivationCache:
    homes = dict.fromkeys(range(1, n_layers + 1), home)
    blocks = [_order(0), _order(1), _order(2)]
    return ActivationCache(examples, blocks, homes=homes, width=32, folder=folder)  # type: ignore[arg-type]


def _backbone(name: str) -> Backbone:
    if name.startswith("causal-"):
        return backbone_of(tiny_causal.tiny_causal(name.removeprefix("causal-")))
    return tiny.tiny_backbone(name)


def _lanes(
    backbone: Backbone, seed: int, count: int, *, methods: Sequence[str] = (), rules: bool = False
) -> list[Lane]:
    """Random lanes that branch off at different layers; with `rules`, every second has one."""
    rng = np.random.default_rng(seed)
    n_layers = len(backbone.anatomy.layers)
    return [
        Lane(
            number,
            tiny.random_configuration(
                backbone,
                rng,
                layers=n_layers,
                first=number % n_layers,
                methods=methods,
                rules=rules and number % 2 == 0,
            ),
        )
        for number in range(count)
    ]


QUICK = ("bert", "modernbert", "gpt2", "causal-llama")
EVERY = (*PACKABLE, *(f"causal-{name}" for name in DECODERS))


def _solo(backbone: Backbone, lanes: list[Lane], make: Make) -> dict[int, LaneState]:
    return {lane.number: Training(backbone, [lane]).run(make)[lane.number] for lane in lanes}


@dataclass(frozen=True)
class Way:
    """A pack, and a way to run it.

    Attributes:
        seed: Of its lanes.
        order: The lanes, in the order in which they are given.
        home: Where activations are kept.
        checkpointing: Whether layers are recomputed up to the rung; behind it the other way.
        replayed: Whether passes are replayed.
        rung: The step at which the lanes are saved and regrouped.
        cut: Lanes of the first of the two packs that go on.
    """

    seed: int
    order: tuple[int, ...]
    home: Literal["off", "memory", "disk"]
    checkpointing: bool
    replayed: bool
    rung: int
    cut: int


@st.composite
def _ways(draw: st.DrawFn) -> Way:
    count = draw(st.integers(3, 4))
    return Way(
        seed=draw(st.integers(0, 99)),
        order=tuple(draw(st.permutations(range(count)))),
        home=draw(st.sampled_from(["off", "memory", "disk"])),
        checkpointing=draw(st.booleans()),
        replayed=draw(st.booleans()),
        rung=draw(st.integers(1, STEPS - 1)),
        cut=draw(st.integers(1, count - 1)),
    )


FORCED = {
    "kept on disk": Way(0, (2, 0, 3, 1), "disk", False, False, 11, 2),
    "kept in memory and checkpointed": Way(0, (3, 2, 1, 0), "memory", True, False, 7, 2),
    "kept in memory and replayed": Way(0, (1, 3, 0, 2), "memory", False, True, 12, 2),
    "kept on disk, checkpointed and replayed": Way(0, (3, 1, 2, 0), "disk", True, True, 9, 1),
}
UNKEPT_WAYS = {
    "checkpointed": Way(0, (2, 0, 3, 1), "off", True, False, 7, 2),
    "replayed": Way(0, (3, 1, 2, 0), "off", False, True, 12, 2),
}


@cache
def _alone(name: str, seed: int, count: int) -> dict[int, LaneState]:
    """The ends of solo runs without any of the mechanisms."""
    backbone = _backbone(name)
    lanes = _lanes(backbone, seed, count, rules=True)
    return _solo(backbone, lanes, _uncached(name, backbone))


def _hold(name: str, way: Way, folder: Path) -> int:
    """Hold a way to run a pack against solo runs; how many of its passes were replayed."""
    backbone = _backbone(name)
    lanes = _lanes(backbone, way.seed, len(way.order), rules=True)
    home = "off" if name in UNKEPT else way.home
    plain, known = _uncached(name, backbone), set()
    if home != "off":
        examples = _examples(answers=backbone.lm_head is not None)
        n_layers = len(backbone.anatomy.layers)
        plain = _make(examples, _cache(examples, n_layers, home, folder))

    def make(step: int, pack: Pack) -> tuple[Batch, Known]:
        batch, own = plain(step, pack)
        known.update(own)
        return batch, own

    recorder = Replayed() if way.replayed else None
    turned = [lanes[number] for number in way.order]
    first = Training(backbone, turned, checkpointing=way.checkpointing, recorder=recorder)
    half = first.run(make, 0, way.rung)
    found, replayed = {}, first.steps.replayed
    for part in (turned[: way.cut], turned[way.cut :]):
        later = Training(backbone, part, checkpointing=not way.checkpointing, recorder=recorder)
        later.put(half)
        found |= later.run(make, way.rung, STEPS)
        replayed += later.steps.replayed
    solo = _alone(name, way.seed, len(lanes))
    assert max(furthest(found[number], solo[number]) for number in solo) < 1e-9
    assert bool(known) == (home != "off"), "what is kept was not used"
    assert any(folder.glob(f"*{TOKENS}")) == (home == "disk")
    return replayed


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(
            pytest.param(name, way, id=f"{name}-{w}")
            for name in (*QUICK, "t5")
            for w, way in FORCED.items()
        ),
        *(
            pytest.param(name, way, id=f"{name}-{w}")
            for name in UNKEPT
            for w, way in UNKEPT_WAYS.items()
        ),
    ],
)
def test_every_mechanism_ends_where_solo_runs_do(name: str, way: Way, tmp_path: Path) -> None:
    assert (_hold(name, way, tmp_path) > 0) == way.replayed


def test_replayed_passes_read_what_layers_that_are_left_out_hand_on(tmp_path: Path) -> None:
    backbone, examples = tiny.tiny_backbone("t5"), _examples(answers=False)
    lanes = [lane for lane in _lanes(backbone, 4, 6) if lane.number % 3]
    kept = _make(examples, _cache(examples, len(backbone.anatomy.layers), "memory", tmp_path))
    training = Training(backbone, lanes, recorder=Replayed())
    assert min(training.pack.branch_points) > 0
    packed = training.run(kept)
    assert training.steps.replayed > STEPS // 2
    solo = _solo(backbone, lanes, _make(examples))
    assert max(furthest(packed[number], solo[number]) for number in solo) < 1e-9


@pytest.mark.parametrize("name", QUICK)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(way=_ways())
def test_every_way_to_run_a_pack_ends_where_solo_runs_do(
    name: str, way: Way, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _hold(name, way, tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=10, deadline=None)
@given(way=_ways())
def test_every_way_on_every_architecture(
    name: str, way: Way, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _hold(name, way, tmp_path_factory.mktemp("cache"))


def _hold_methods(name: str, names: Sequence[str], folder: Path) -> None:
    """Hold a pack of lanes of one method each, on kept activations, against solo runs."""
    backbone = measured(_backbone(name))
    own = [each for each in carried(backbone.anatomy) if each in names]
    lanes = lanes_of_each(backbone, own, turn=EVERY.index(name))
    make = _uncached(name, backbone)
    solo = _solo(backbone, lanes, make)
    if name not in UNKEPT:
        examples = _examples(answers=backbone.lm_head is not None)
        make = _make(examples, _cache(examples, len(backbone.anatomy.layers), "memory", folder))
    packed = Training(backbone, lanes).run(make)
    apart = {
        lane.configuration.groups[0].method: furthest(packed[lane.number], solo[lane.number])
        for lane in lanes
    }
    assert not {method: each for method, each in apart.items() if not each < 1e-9}


@pytest.mark.parametrize("name", EVERY)
def test_methods_alone_in_turns(name: str, tmp_path: Path) -> None:
    """Every method on two architectures or more, its variants in turns."""
    every = sorted(registry.names())
    _hold_methods(name, every[EVERY.index(name) % TURNS :: TURNS], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_each_method_alone(name: str, tmp_path: Path) -> None:
    _hold_methods(name, sorted(registry.names()), tmp_path)


@pytest.mark.parametrize(("name", "runs"), [("bert", 9), ("t5", 15)])
def test_kept_activations_are_computed_once_and_do_not_depend_on_who_asks(
    name: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three blocks, three layers; from kept layers on, T5's first one runs once more."""
    backbone = tiny.tiny_backbone(name)
    examples = _examples(answers=False)
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    lanes = [
        Lane(
            first,
            Configuration.of(
                [Group.of("lora", [first], ["value"], rank=2, alpha=4.0, dropout=0.0)]
                if first < 3
                else [],
                training=training,
            ),
        )
        for first in range(4)
    ]
    asked: list[tuple[int, ...]] = []
    trunk = Pack.trunk

    def noting(self: Pack, batch: Batch, wanted: object, *args: Any) -> dict[int, torch.Tensor]:
        asked.append(tuple(sorted(wanted)))  # type: ignore[call-overload]
        return trunk(self, batch, wanted, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Pack, "trunk", noting)

    def known(order: list[int], cache: ActivationCache) -> dict[int, torch.Tensor]:
        found = {}
        for number in order:
            pack = Training(backbone, [lanes[number]]).pack
            with pack.running():
                found |= cache.known(SharedTrunk([pack]), np.arange(ROWS))
        return found

    one = known([0, 1, 2, 3], _cache(examples, 3, "memory", tmp_path))
    once = len(asked)
    other = known([3, 2, 1, 0], _cache(examples, 3, "memory", tmp_path))
    assert one.keys() == other.keys()
    assert sorted(one) == [1, 2, 3]
    assert all(torch.equal(one[layer], other[layer]) for layer in one)
    on_disk = known([2, 0, 1, 3], _cache(examples, 3, "disk", tmp_path))
    filled = len(asked)
    again = known([0, 1, 2, 3], _cache(examples, 3, "disk", tmp_path))
    assert once == runs
    assert len(asked) == filled, "another process computed what lay on disk"
    assert all(torch.equal(on_disk[layer], again[layer]) for layer in one)


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "llama", "t5", "distilbert"])
def test_backbone_dropout_is_shared_by_lanes_and_equal_to_solo(name: str) -> None:
    backbone = tiny.tiny_backbone(name)
    if name == "llama":
        backbone.config.attention_dropout = 0.2
    if name == "modernbert":
        backbone.config.attention_dropout = 0.1
    examples, lanes = _examples(answers=False), _lanes(backbone, 8, 3)
    make = _make(examples)
    packed = Training(backbone, lanes, backbone_dropout=True).run(make)
    for lane in lanes:
        alone = Training(backbone, [lane], backbone_dropout=True).run(make)[lane.number]
        calm = Training(backbone, [lane]).run(make)[lane.number]
        assert furthest(alone, packed[lane.number]) < 1e-9
        assert furthest(alone, calm) > 1e-4, "nothing was dropped"


@pytest.mark.parametrize("name", ["opt", "deberta-v2"])
def test_dropout_that_cannot_be_reached_is_refused(name: str) -> None:
    backbone = tiny.tiny_backbone(name)
    with pytest.raises(BackboneError, match="backbone_dropout"):
        Training(backbone, _lanes(backbone, 1, 1), backbone_dropout=True)


def test_attention_dropout_is_what_eager_attention_does_with_the_same_draws() -> None:
    """Against transformers' own eager attention, its dropout fed with the same factors."""
    backbone, rate = tiny.tiny_backbone("llama"), 0.25
    stream = Stream(rows=ROWS, call=Call(training=True, uniform=_draws))
    layer = attention.LayerAttention("name", [], stream, layer=0, dropout=rate)
    module = backbone.model.get_submodule(backbone.anatomy.layers[0].attention)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, 4, 7, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, ROWS, 2, 7, 8, generator=generator, dtype=torch.float64)
    mask = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    attention.bind(module, layer)
    try:
        found, _ = attention.lane_attention(module, query, key, value, mask, scaling=0.5)
    finally:
        attention.unbind(module)
    keep = (_draws("name", (ROWS, 4, 7, 7)) >= rate) / (1 - rate)
    _, probabilities = eager_attention_forward(module, query, key, value, mask, scaling=0.5)
    expected = (probabilities * keep) @ value.repeat_interleave(2, dim=1)
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-6)  # its softmax is float32
    assert float((keep == 0).double().mean()) == pytest.approx(rate, abs=0.05)


def _draws(name: str, shape: Sequence[int]) -> torch.Tensor:
    assert name == "name"
    return torch.rand(*shape, generator=torch.Generator().manual_seed(9))
