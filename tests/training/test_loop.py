"""The training loop on tiny data: resume, micro-batches, divergence, packed evaluation."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from importance_maps import with_importance

from autopeft.configuration import Configuration, Group
from autopeft.errors import TrialError
from autopeft.training.activations import CacheBudget
from autopeft.training.batches import Batch
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.scoring import scoring_rows
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.lanes.state import LaneState
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.settings import LoopSettings

STEPS = 12


def _examples(rows: int, seed: int) -> Examples:
    """The class is which third of the vocabulary is frequent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows)
    ids = [
        np.where(rng.random(n) < 0.7, rng.integers(4, 24, n) + 20 * label, rng.integers(4, 64, n))
        for label, n in zip(labels, rng.integers(3, 14, rows), strict=True)
    ]
    return Examples(tuple(np.array(row, dtype=np.int32) for row in ids), labels)


def _trainer(**changes: object) -> Trainer:
    settings = {
        "task": "sequence-classification",
        "metrics": ("accuracy", "loss"),
        "total_steps": STEPS,
        "batch_size": 8,
        "micro_batch_size": 8,
    } | changes
    backbone = tiny.tiny_backbone("bert", torch.float32)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    data = TaskData(_examples(48, 0), _examples(30, 1), ("a", "b", "c"), "", ())
    return Trainer(backbone, data, LoopSettings(**settings), study_seed=3)  # type: ignore[arg-type]


def _lanes(*rates: float) -> list[Lane]:
    def configuration(number: int, rate: float) -> Configuration:
        group = Group.of(
            "lora", [number % 3, 2], ["query", "up"], rank=2 + number, alpha=8.0, dropout=0.1
        )
        training = {"learning_rate": rate, "weight_decay": 0.0, "warmup_ratio": 0.1}
        return Configuration.of([group], training=training)

    return [Lane(number, configuration(number, rate)) for number, rate in enumerate(rates)]


def _weights(run: PackRun) -> dict[int, dict[str, torch.Tensor]]:
    return {number: state.weights() for number, state in run.states().items()}


def _apart(one: PackRun, other: PackRun) -> float:
    left, right = _weights(one), _weights(other)
    return max(
        float((tensor - right[number][name]).abs().max())
        for number, tensors in left.items()
        for name, tensor in tensors.items()
    )


def test_training_learns_and_records_its_curve() -> None:
    trainer = _trainer(total_steps=60)
    run = trainer.start(_lanes(2e-2, 1e-2))
    before = run.evaluate(trainer.train)
    seen: list[int] = []
    assert run.train(60, on_step=lambda step: seen.append(step) is None)
    after = run.evaluate(trainer.train)
    assert seen == list(range(1, 61))
    curves = run.drain_curve()
    for number in (0, 1):
        assert after[number].values["loss"] < 0.8 * before[number].values["loss"]
        curve = curves[number]
        assert [point.step for point in curve] == list(range(3, 61, 3))
        assert curve[-1].value < curve[0].value  # type: ignore[operator]
    assert run.profile.samples == 480
    assert run.profile.tokens >= 480 * 8


def test_a_resumed_pack_is_where_an_uninterrupted_one_is(tmp_path: Path) -> None:
    trainer = _trainer()
    whole = trainer.start(_lanes(1e-2, 1e-3, 5e-3))
    whole.train(STEPS)
    half = trainer.start(_lanes(1e-2, 1e-3, 5e-3))
    assert not half.train(STEPS, on_step=lambda step: step < 5)
    states = {}
    for number, state in half.states().items():
        state.save(tmp_path / f"{number}.safetensors")
        states[number] = LaneState.load(tmp_path / f"{number}.safetensors")
    resumed = trainer.start(_lanes(1e-2, 1e-3, 5e-3), states=states)
    assert resumed.step == 5
    resumed.train(STEPS)
    assert _apart(whole, resumed) < 1e-6


def _sparse_lanes() -> list[Lane]:
    """Channels by activation with GIFT-SW's noise, and single weights by gradient."""
    shared = {"density": 0.2, "smallest": False}
    settings = (
        {"granularity": "input", "score": "activation", "noise": 4},
        {"granularity": "weight", "score": "gradient"},
    )
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.1}
    return [
        Lane(
            number,
            Configuration.of(
                [Group.of("sparse", [0, 2], ["query", "down"], **shared, **own)],
                training=training,
            ),
        )
        for number, own in enumerate(settings)
    ]


def _measured(trainer: Trainer) -> Trainer:
    anatomy = with_importance(trainer.backbone.anatomy)
    trainer.backbone = replace(trainer.backbone, anatomy=anatomy)
    return trainer


def test_sparse_lanes_resume_without_their_map() -> None:
    measured, lanes = _measured(_trainer()), _sparse_lanes()
    whole, half = measured.start(lanes), measured.start(lanes)
    whole.train(STEPS)
    half.train(5)
    resumed = _trainer().start(lanes, states=half.states())
    resumed.train(STEPS)
    assert _apart(whole, resumed) < 1e-6
    kept = whole.states()[0].kept()
    assert {"sparse.0.down.values", "sparse.0.down.index", "sparse.0.down.step"} < set(kept)


def test_micro_batches_see_the_same_noise() -> None:
    whole = _measured(_trainer()).start(_sparse_lanes())
    cut = _measured(_trainer(micro_batch_size=3)).start(_sparse_lanes())
    whole.train(STEPS)
    cut.train(STEPS)
    assert _apart(whole, cut) < 1e-5


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_change_nothing(micro: int) -> None:
    whole = _trainer().start(_lanes(1e-3, 1e-3))
    whole.train(STEPS)
    cut = _trainer(micro_batch_size=micro).start(_lanes(1e-3, 1e-3))
    cut.train(STEPS)
    assert _apart(whole, cut) < 1e-5


def test_a_diverged_lane_is_told_apart_and_its_neighbour_is_not_touched() -> None:
    alone = _trainer().start(_lanes(1e-2)[:1])
    alone.train(STEPS)
    run = _trainer().start(_lanes(1e-2, 1e30))
    run.train(STEPS)
    found = run.evaluate()
    assert found[1].diverged
    assert found[1].values == {}
    assert not found[0].diverged
    assert found[0].values["accuracy"] == alone.evaluate()[0].values["accuracy"]


def test_predictions_do_not_depend_on_the_pack() -> None:
    trainer = _trainer()
    pack = trainer.start(_lanes(1e-2, 1e-3, 5e-3, 2e-3))
    logits = pack.scores(trainer.validation)
    order = [lane.number for lane in pack.lanes]
    for lane in _lanes(1e-2, 1e-3, 5e-3, 2e-3):
        own = trainer.start([lane]).scores(trainer.validation)[0]
        assert torch.allclose(own, logits[order.index(lane.number)], atol=1e-5)


def _cached(**budget: object) -> dict[str, object]:
    return {"cache": CacheBudget(**budget)}  # type: ignore[arg-type]


def test_a_cache_changes_rounding_at_most(tmp_path: Path) -> None:
    lanes = _lanes(1e-3, 5e-4, 1e-3, 1e-3)
    plain = _trainer(total_steps=18).start(lanes)
    plain.train(18)
    for budget in ({"memory_bytes": 1 << 20}, {"disk_bytes": 1 << 20, "folder": tmp_path}):
        trainer = _trainer(total_steps=18, **_cached(**budget))
        kept = trainer.start(lanes)
        kept.train(18)
        assert _apart(plain, kept) < 1e-5
        one, other = plain.evaluate(), kept.evaluate()
        for number, found in other.items():
            assert abs(found.values["accuracy"] - one[number].values["accuracy"]) <= 1 / 30
        assert trainer.caches[trainer.train].known(_Top(), np.arange(3)), "nothing was kept"


class _Top:
    """A pack that branches off at the last layer, and may compute nothing."""

    branch_points = (2,)

    def trunk(self, *args: object) -> dict[int, torch.Tensor]:
        """Never called."""
        raise AssertionError("the last layer's input was computed again")


def test_a_full_disk_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = SimpleNamespace(free=0)
    monkeypatch.setattr("autopeft.training.activations.shutil.disk_usage", lambda path: full)
    trainer = _trainer(**_cached(disk_bytes=1 << 20, folder=tmp_path))
    run, plain = trainer.start(_lanes(1e-3, 1e-3)), _trainer().start(_lanes(1e-3, 1e-3))
    run.train(STEPS)
    plain.train(STEPS)
    assert _apart(run, plain) < 1e-6
    assert "not kept on disk" in caplog.text


def test_backbone_dropout_keeps_nothing_and_changes_the_training() -> None:
    trainer = _trainer(backbone_dropout=True, **_cached(memory_bytes=1 << 20))
    assert not trainer.caches
    run, calm = trainer.start(_lanes(1e-3)), _trainer().start(_lanes(1e-3))
    run.train(STEPS)
    calm.train(STEPS)
    assert _apart(run, calm) > 1e-4


def test_checkpointing_changes_nothing() -> None:
    run = _trainer(gradient_checkpointing=True).start(_lanes(1e-3, 2e-3))
    plain = _trainer().start(_lanes(1e-3, 2e-3))
    run.train(STEPS)
    plain.train(STEPS)
    assert _apart(run, plain) < 1e-7


@pytest.mark.parametrize("budget", [{}, {"memory_bytes": 1 << 20}])
@pytest.mark.parametrize("size", [1, 2])
def test_lanes_that_run_in_turns_share_the_trunk_and_end_in_the_same_place(
    size: int, budget: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = _lanes(1e-3, 5e-4, 1e-3, 1e-3, 1e-3)
    together = _trainer(lanes_per_pass=5).start(lanes)
    together.train(STEPS)
    rows: list[int] = []
    trunk = Pack.trunk

    def noting(self: Pack, batch: Batch, *args: object) -> dict[int, torch.Tensor]:
        rows.append(len(batch))
        return trunk(self, batch, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Pack, "trunk", noting)
    in_turns = _trainer(lanes_per_pass=size, **_cached(**budget)).start(lanes)
    in_turns.train(STEPS)
    assert len(in_turns.packs) == -(-5 // size)
    assert _apart(together, in_turns) < 1e-5
    assert sum(rows) == (48 if budget else 8 * STEPS), "the trunk ran once a batch, or once in all"
    one, other = together.evaluate(), in_turns.evaluate()
    assert all(one[n].values["accuracy"] == other[n].values["accuracy"] for n in one)
    curves = together.drain_curve(), in_turns.drain_curve()
    assert [p.value for p in curves[0][3]] == pytest.approx([p.value for p in curves[1][3]])


def test_lanes_that_cannot_share_a_pass_run_in_turns() -> None:
    backbone = tiny.tiny_backbone("deberta-v2", torch.float32)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    data = TaskData(_examples(16, 0), _examples(8, 1), ("a", "b", "c"), "", ())
    settings = LoopSettings(
        "sequence-classification",
        ("loss",),
        total_steps=4,
        batch_size=8,
        micro_batch_size=8,
        cache=CacheBudget(memory_bytes=1 << 20),
        lanes_per_pass=2,
    )
    trainer = Trainer(backbone, data, settings, study_seed=3)
    pack = trainer.start(_lanes(1e-3, 2e-3))
    alone = trainer.start(_lanes(1e-3, 2e-3)[1:])
    pack.train(4)
    alone.train(4)
    assert len(pack.packs) == 2
    for name, tensor in alone.states()[1].weights().items():
        assert torch.equal(tensor, pack.states()[1].weights()[name])


RULES: list[dict[str, Any]] = [
    {"rule": "ist", "interval": 3, "batch": 10},
    {"rule": "id3", "budget": 0.5},
    {"rule": "adalora", "interval": 2, "final": 0.4},
    {"rule": "none"},
    {"rule": "ist", "interval": 4, "batch": 5},
]


def _ruled() -> list[Lane]:
    training = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
    groups = [
        Group.of("lora", [0, 1, 2], ["query", "up"], rank=3, alpha=8.0, dropout=0.1),
        Group.of("prefix", [1], length=2, reparametrise=False),
    ]
    return [
        Lane(number, Configuration.of(groups, training=training, sparsity=rule))
        for number, rule in enumerate(RULES)
    ]


@pytest.mark.parametrize("changes", [{"lanes_per_pass": 2}, {"micro_batch_size": 3}, {"cache": 1}])
def test_rules_in_turns_in_parts_and_from_caches(changes: dict[str, Any]) -> None:
    together = _trainer(lanes_per_pass=5).start(_ruled())
    together.train(STEPS)
    if "cache" in changes:
        changes = _cached(memory_bytes=1 << 20)
    other = _trainer(**changes).start(_ruled())
    other.train(STEPS)
    assert _apart(together, other) < 1e-5
    assert 0.0 < other.profile.scoring_seconds < other.profile.train_seconds
    one, two = together.states(), other.states()
    for number in (0, 4):
        scores = one[number].of_rule()["scores"]
        assert float(scores.abs().max()) > 1e-6, "nothing was learnt"
        assert torch.allclose(scores, two[number].of_rule()["scores"], atol=1e-5)
    plain = _trainer().start(_lanes(1e-3))
    plain.train(STEPS)
    assert plain.profile.scoring_seconds == 0.0


def test_rules_go_on_from_state_files_in_other_packs(tmp_path: Path) -> None:
    trainer = _trainer(lanes_per_pass=3)
    whole = trainer.start(_ruled())
    whole.train(STEPS)
    half = trainer.start(_ruled())
    half.train(7)
    states = {}
    for number, state in half.states().items():
        state.save(tmp_path / f"{number}.safetensors")
        states[number] = LaneState.load(tmp_path / f"{number}.safetensors")
    for part in (_ruled()[:1], _ruled()[1:]):
        resumed = trainer.start(part, states=states)
        resumed.train(STEPS)
        for number, state in resumed.states().items():
            expected = whole.states()[number].tensors
            assert state.tensors.keys() == expected.keys()
            for name, tensor in state.tensors.items():
                apart = (tensor.double() - expected[name].double()).abs().max()
                assert float(apart) < 1e-5, (number, name)


def test_the_scoring_order_is_an_epoch_of_batches_at_a_time() -> None:
    seeds = Seeds(3)
    batches = [scoring_rows(seeds, 10, 4, turn) for turn in range(6)]
    assert [len(rows) for rows in batches] == [4, 4, 2, 4, 4, 2]
    for epoch in (batches[:3], batches[3:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(10))
    assert not np.array_equal(np.concatenate(batches[:3]), np.concatenate(batches[3:]))
    assert np.array_equal(batches[4], scoring_rows(seeds, 10, 4, 4))


def test_a_probe_sees_what_scoring_takes() -> None:
    run = _trainer().start(_ruled()[:1])
    run.train(2)
    assert run.profile.scoring_seconds == 0.0
    per_step = run.scoring_seconds_per_step()
    assert per_step == pytest.approx(run.profile.scoring_seconds / 3)
    assert per_step > 0.0
    assert _trainer().start(_lanes(1e-3)).scoring_seconds_per_step() == 0.0


def _too_large(*_: object, **__: object) -> bool:
    """More bytes than a process can address: what the CPU's allocator says of it is its own."""
    return torch.empty(1 << 50, dtype=torch.uint8).numel() == 0


def test_an_allocation_that_is_far_too_large_is_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = _trainer().start(_lanes(1e-3))
    with pytest.raises(TrialError, match="out of memory") as caught:
        run.train(2, on_step=_too_large)
    assert caught.value.cause == "out-of-memory"
    monkeypatch.setattr("autopeft.training.loop.predict", _too_large)
    with pytest.raises(TrialError) as caught:
        run.evaluate()
    assert caught.value.cause == "out-of-memory"


def test_another_fault_of_a_step_is_not_out_of_memory() -> None:
    def fails(step: int) -> bool:
        return bool((torch.ones(2, 3) @ torch.ones(2, 3)).sum() > 0)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        _trainer().start(_lanes(1e-3)).train(2, on_step=fails)
