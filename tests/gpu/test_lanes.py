"""Lanes on a GPU: graphs, rules and memory, held against solo runs without graphs and a CPU."""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
import waits
from every_method import lanes_of_each, measured
from importance_maps import with_importance
from lane_training import STEPS, Make, Training, furthest, without_cache
from method_cases import carried

from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import TrialError
from autopeft.importance.measuring import measure
from autopeft.importance.settings import ImportanceSettings
from autopeft.training.batches import Batch, PaddedExamples
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.state import LaneState
from autopeft.training.lanes.steps import recorder_for
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings

OnGpu = Callable[..., Backbone]
ROWS, BATCH = 24, 4
TEXT = ("bert", "roberta", "modernbert", "gpt2", "llama", "t5", "causal-llama", "causal-gemma3")
CALM = {"learning_rate": 1e-3, "weight_decay": 0.01, "warmup_ratio": 0.0}
RULES: tuple[dict[str, Any], ...] = (
    {"rule": "ist", "interval": 4},
    {"rule": "none"},
    {"rule": "id3", "budget": 0.3, "exponent": 0.5},
    {"rule": "adalora", "interval": 3, "warmup": 0.1, "final": 0.3, "target": 0.4},
    {"rule": "rst", "keep": 0.7},
    {"rule": "lisa", "interval": 5, "layers": 1},
    {"rule": "id3_random", "budget": 0.3},
    {"rule": "adalora_random", "interval": 3, "warmup": 0.1, "final": 0.3, "target": 0.4},
)
SPARSE: tuple[dict[str, Any], ...] = (
    {"granularity": "weight", "density": 0.1, "score": "gradient"},
    {"granularity": "weight", "density": 0.4, "score": "random"},
    {"granularity": "input", "density": 0.2, "score": "gradient", "noise": 0},
    {"granularity": "output", "density": 0.2, "score": "magnitude"},
    {"granularity": "block", "density": 0.2, "block": 4, "score": "gradient"},
)


def _examples(*, answers: bool, seed: int = 3) -> Examples:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, tiny.VOCABULARY, n).astype(np.int32) for n in rng.integers(3, 15, ROWS)]
    labels = np.zeros(ROWS, dtype=np.int64) if answers else rng.integers(0, 3, ROWS)
    targets = None
    if answers:
        targets = tuple(np.arange(len(row)) >= max(1, len(row) // 2) for row in ids)
    return Examples(tuple(ids), labels, targets=targets)


def _make(backbone: Backbone, device: torch.device) -> Make:
    """The same batches at every call, in another company each epoch."""
    examples = _examples(answers=backbone.lm_head is not None)
    padded = PaddedExamples(examples, pad_token_id=0, device=device)

    def batch(step: int) -> Batch:
        rows = np.random.default_rng(step // 6).permutation(ROWS)
        return padded.batch(rows[BATCH * (step % 6) : BATCH * (step % 6 + 1)])

    return without_cache(batch)


def _captured(
    backbone: Backbone,
    lanes: Sequence[Lane],
    make: Make,
    gpu: torch.device,
    dtype: torch.dtype = torch.float64,
) -> dict[int, LaneState]:
    """Every lane's end after a pack whose passes were replayed."""
    training = Training(backbone, lanes, dtype, recorder=recorder_for(gpu))
    found = training.run(make)
    assert training.steps.replayed > STEPS // 2, "passes were not replayed"
    return found


def _solo(
    backbone: Backbone, lanes: Sequence[Lane], make: Make, dtype: torch.dtype = torch.float64
) -> dict[int, LaneState]:
    return {n.number: Training(backbone, [n], dtype).run(make)[n.number] for n in lanes}


def _apart(one: dict[int, LaneState], other: dict[int, LaneState]) -> float:
    return max(furthest(one[number], other[number]) for number in other)


@pytest.fixture(autouse=True)
def _no_fallback(caplog: pytest.LogCaptureFixture) -> Any:
    """A pass or an update that cannot be captured says so in the log."""
    with caplog.at_level(logging.WARNING):
        yield
    assert "captured" not in caplog.text


@pytest.mark.parametrize("name", TEXT)
def test_replayed_packs_end_where_eager_solo_runs_do(
    name: str, on_gpu: OnGpu, gpu: torch.device
) -> None:
    backbone, rng = on_gpu(name), np.random.default_rng(4)
    n_layers = len(backbone.anatomy.layers)
    lanes = [Lane(n, tiny.random_configuration(backbone, rng, layers=n_layers)) for n in range(4)]
    make = _make(backbone, gpu)
    assert _apart(_captured(backbone, lanes, make, gpu), _solo(backbone, lanes, make)) < 1e-9


def test_float32_packs_end_where_solo_runs_do(on_gpu: OnGpu, gpu: torch.device) -> None:
    backbone, rng = on_gpu("bert", torch.float32), np.random.default_rng(4)
    lanes = [Lane(n, tiny.random_configuration(backbone, rng)) for n in range(4)]
    make = _make(backbone, gpu)
    packed = _captured(backbone, lanes, make, gpu, torch.float32)
    solo = _solo(backbone, lanes, make, torch.float32)
    weights = [
        float((tensor - solo[number].weights()[name]).abs().max())
        for number, state in packed.items()
        for name, tensor in state.weights().items()
    ]
    assert max(weights) < 1e-5


def test_rules_act_on_replayed_packs_as_on_solo_runs(on_gpu: OnGpu, gpu: torch.device) -> None:
    backbone = on_gpu("bert")
    groups = [
        Group.of("lora", [0, 1, 2], ["query", "up", "down"], rank=4, alpha=8.0, dropout=0.1),
        Group.of("prefix", [1], length=2, reparametrise=False),
    ]
    lanes = [
        Lane(number, Configuration.of(groups, training=CALM, sparsity=rule))
        for number, rule in enumerate(RULES)
    ]
    make = _make(backbone, gpu)
    assert _apart(_captured(backbone, lanes, make, gpu), _solo(backbone, lanes, make)) < 1e-9


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_steps_of_every_method_are_captured(
    name: str, turn: int, on_gpu: OnGpu, gpu: torch.device
) -> None:
    """All methods in one pack: replayed, it ends where it does eagerly."""
    backbone = measured(on_gpu(name))
    lanes = lanes_of_each(backbone, carried(backbone.anatomy), turn=turn, placed=[(1, 2)])
    make = _images(gpu) if name == "vit" else _make(backbone, gpu)
    captured = _captured(backbone, lanes, make, gpu)
    eager = Training(backbone, lanes).run(make)
    apart = {
        lane.configuration.groups[0].method: furthest(captured[lane.number], eager[lane.number])
        for lane in lanes
    }
    assert not {method: each for method, each in apart.items() if not each < 1e-9}


def _images(device: torch.device) -> Make:
    batches = [tiny.tiny_batch("vit", seed=seed) for seed in range(6)]
    moved = [
        Batch(
            {name: tensor.to(device) for name, tensor in batch.inputs.items()},
            batch.mask.to(device),
            batch.labels.to(device),
        )
        for batch in batches
    ]
    return without_cache(lambda step: moved[step % 6])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_sparse_weights_in_replayed_packs(name: str, on_gpu: OnGpu, gpu: torch.device) -> None:
    plain = on_gpu(name)
    backbone = replace(plain, anatomy=with_importance(plain.anatomy))
    lanes = [
        Lane(
            number,
            Configuration.of(
                [Group.of("sparse", [0, 2], ["query", "down"], **{"smallest": False} | settings)],
                training=CALM,
            ),
        )
        for number, settings in enumerate(SPARSE)
    ]
    make = _make(backbone, gpu)
    assert _apart(_captured(backbone, lanes, make, gpu), _solo(backbone, lanes, make)) < 1e-9


def _refuse(*args: Any) -> None:
    raise AssertionError("a step synchronises")


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("drawing", [False, True], ids=["rules", "peft"])
def test_no_step_waits_for_the_device(
    name: str, drawing: bool, on_gpu: OnGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules that ask, in replayed passes; a type that draws, in passes that are not."""
    lanes = [waits.drawing_lane()] if drawing else waits.ruled_lanes()
    run = waits.one_shape(on_gpu(name, torch.float32)).start(lanes)
    run.train(waits.SETTLED)
    synchronize = torch.cuda.synchronize

    def watched(on: bool) -> None:
        _waiting_is_an_error(on)
        monkeypatch.setattr(torch.cuda, "synchronize", _refuse if on else synchronize)

    def on_step(step: int) -> bool:
        watched(step < waits.STEPS)
        return True

    try:
        watched(True)
        assert run.train(waits.STEPS, on_step=on_step)
    finally:
        watched(False)
    assert (run.replayed > 0) == (not drawing)
    scores = run.states()[0].of_rule()["scores"]
    assert scores.dtype == torch.float64
    assert float(scores.abs().max()) > 1e-4, "IST has learnt nothing"
    assert run.profile.scoring_seconds > 0.0


def test_waiting_is_seen(gpu: torch.device) -> None:
    """Else the test above could not fail: one number put at indices, as rules used to do it."""
    mask, at = torch.zeros(4, dtype=torch.bool, device=gpu), torch.arange(2, device=gpu)
    try:
        _waiting_is_an_error(True)
        with pytest.raises(RuntimeError, match="synchroni"):
            mask[at] = True
        mask.index_fill_(0, at, True)
    finally:
        _waiting_is_an_error(False)


def _waiting_is_an_error(on: bool) -> None:
    """Set torch's mode, which warns once a process that it is a prototype: no error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode("error" if on else "default")


def _trainer(backbone: Backbone, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "task": "sequence-classification",
        "metrics": ("accuracy", "loss"),
        "total_steps": 18,
        "batch_size": BATCH,
        "micro_batch_size": BATCH,
    }
    data = TaskData(
        _examples(answers=False), _examples(answers=False, seed=5), ("a", "b", "c"), "d" * 64, ()
    )
    return Trainer(backbone, data, LoopSettings(**settings | changes), study_seed=3)


def _lora(number: int, **training: float) -> Lane:
    group = Group.of("lora", [number % 3, 2], ["query", "up"], rank=2, alpha=4.0, dropout=0.0)
    return Lane(number, Configuration.of([group], training=CALM | training))


def test_the_loop_ends_where_it_does_on_a_cpu(on_gpu: OnGpu) -> None:
    """Without dropout, whose draws are the device's own; padding differs and changes nothing."""
    lanes = [_lora(number) for number in range(3)]
    ends = []
    for backbone in (on_gpu("bert", torch.float32), tiny.tiny_backbone("bert", torch.float32)):
        object.__setattr__(backbone, "tokenizer", on_gpu("bert").tokenizer)
        run = _trainer(backbone).start(lanes)
        run.train(18)
        ends.append((run.states(), run.evaluate()))
    (gpu_states, gpu_found), (cpu_states, cpu_found) = ends
    for number, state in gpu_states.items():
        other = cpu_states[number].weights()
        assert all(
            torch.allclose(tensor, other[name], atol=1e-4)
            for name, tensor in state.weights().items()
        )
        mine, theirs = gpu_found[number].values, cpu_found[number].values
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert abs(mine["accuracy"] - theirs["accuracy"]) <= 1.01 / ROWS


def test_a_lane_that_diverges_leaves_its_neighbours_bit_for_bit(on_gpu: OnGpu) -> None:
    backbone = on_gpu("bert", torch.float32)
    calm, wild = _lora(0), _lora(1, learning_rate=1e30)
    ends = []
    for second in (_lora(1), wild):
        run = _trainer(backbone).start([calm, second])
        run.train(18)
        ends.append((run.states()[0], run.evaluate()))
    assert furthest(ends[0][0], ends[1][0]) == 0.0
    assert ends[1][1][1].diverged
    assert not ends[1][1][0].diverged


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_activations_change_nothing(precision: str, on_gpu: OnGpu) -> None:
    from autopeft.training.activations import CacheBudget

    backbone = on_gpu("bert", torch.float32)
    group = Group.of("lora", [2], ["query", "up"], rank=2, alpha=4.0, dropout=0.0)
    lane = Lane(0, Configuration.of([group], training=CALM))
    ends = []
    for size in (0, 1 << 20):
        trainer = _trainer(backbone, precision=precision, cache=CacheBudget(memory_bytes=size))
        run = trainer.start([lane])
        run.train(18)
        ends.append(run.states()[0])
    tolerance = 1e-5 if precision == "fp32" else 2e-3
    weights = ends[1].weights()
    assert all(
        torch.allclose(tensor, weights[name], atol=tolerance)
        for name, tensor in ends[0].weights().items()
    )


def test_scores_are_those_of_a_cpu(on_gpu: OnGpu) -> None:
    settings = ImportanceSettings(head="initial", block=8)
    maps = []
    for backbone in (on_gpu("bert"), tiny.tiny_backbone("bert")):
        object.__setattr__(backbone, "tokenizer", on_gpu("bert").tokenizer)
        maps.append(measure(_trainer(backbone), settings))
    for score in maps[1].scores:
        mine = maps[0].sites(score)
        for key, total in maps[1].sites(score).items():
            assert mine[key] == pytest.approx(total, rel=1e-5), (key, score)


def test_running_out_of_memory_is_told_and_leaves_the_device_usable(
    on_gpu: OnGpu, gpu: torch.device
) -> None:
    trainer = _trainer(on_gpu("bert", torch.float32))
    huge = [
        Lane(
            number,
            Configuration.of(
                [
                    Group.of(
                        "serial_adapter",
                        [0, 1, 2],
                        ["ffn"],
                        size=1 << 20,
                        activation="relu",
                        scale=1.0,
                        dropout=0.0,
                    )
                ],
                training=CALM,
            ),
        )
        for number in range(2)
    ]
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction((1 << 30) / total)
    try:
        with pytest.raises(TrialError) as told:
            trainer.start(huge).train(1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert told.value.cause == "out-of-memory"
    run = trainer.start([_lora(0)])
    assert run.train(4)
