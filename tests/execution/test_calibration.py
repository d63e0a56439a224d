"""Calibration: its rules, what it stores, and that it leaves training as it was."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_backbones as tiny
import torch

from autopeft.configuration import Configuration, Group
from autopeft.execution import calibration, steady
from autopeft.execution.calibration import Calibration, Question, calibrate, chosen_size
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.precision import bf16_possible, bf16_speedup, chosen_precision
from autopeft.training.settings import LoopSettings

GROUP = Group.of("lora", [0, 1, 2], ["query"], rank=2, alpha=4.0, dropout=0.1)
REST = {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_ratio": 0.0}
ONE = Configuration.of([GROUP], training=REST)


def setting(steps: int = 3) -> tuple[Trainer, TaskData]:
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(4, 64, 8).astype(np.int32) for _ in range(24))
    examples = Examples(ids, rng.integers(0, 3, 24))
    data = TaskData(examples, examples, ("a", "b", "c"), "", ())
    backbone = tiny.tiny_backbone("bert", torch.float32)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    settings = LoopSettings("sequence-classification", ("loss",), steps, 8, 8)
    return Trainer(backbone, data, settings, study_seed=0), data


@pytest.mark.parametrize(
    ("speeds", "largest", "size"),
    [
        ({1: 100, 2: 100, 4: 100, 8: 100}, 64, 4),  # flat: the least
        ({1: 10, 2: 20, 4: 40, 8: 80, 16: 83}, 64, 8),  # within 5 % of the best
        ({1: 10, 2: 20, 4: 40, 8: 80, 16: 150}, 64, 16),
        ({1: 100, 2: 90}, 2, 2),  # memory holds no more
        ({1: 100}, 64, 4),  # no time for more
        ({}, 1, 1),
    ],
)
def test_the_smallest_size_nearly_as_good_as_the_best(
    speeds: dict[int, float], largest: int, size: int
) -> None:
    seconds = {lanes: lanes / speed for lanes, speed in speeds.items()}
    assert chosen_size(seconds, largest) == size


@pytest.mark.parametrize(
    ("speedup", "losses", "precision"),
    [
        (1.3, (1.0, 1.01), "bf16"),
        (1.14, (1.0, 1.0), "fp32"),
        (1.3, (1.0, 1.05), "fp32"),
        (1.3, (1.0, float("nan")), "fp32"),
        (0.8, (1.0, 1.0), "fp32"),
    ],
)
def test_bf16_has_to_pay_and_to_train_alike(
    speedup: float, losses: tuple[float, float], precision: str
) -> None:
    assert chosen_precision(speedup, losses) == precision


def test_one_slow_step_does_not_decide() -> None:
    assert bf16_speedup([1.0, 1.0, 9.0], [1.0, 1.0, 1.0]) == 1.0


def test_open_questions_are_measured_and_stored_as_plain_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "bf16_possible", lambda device: True)
    trainer, data = setting()
    found = calibrate(trainer, data, ONE, Question(None, None, 4), go_on=lambda: True)
    assert sorted(found.step_seconds) == [1, 2, 4]
    assert found.pack_size == 4
    assert found.bf16_speedup is not None
    assert found.complete
    plain = found.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["samples_per_second"]["2"] == pytest.approx(
        2 * 8 / found.step_seconds[2], rel=0.01
    )
    assert "packs of 4" in found.sentence()
    assert trainer.settings.precision == "fp32"


def test_what_a_study_says_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, data = setting()
    packs = calibrate(trainer, data, ONE, Question(3, None, 64), go_on=lambda: True)
    assert (packs.pack_size, dict(packs.step_seconds)) == (3, {})
    sizes = calibrate(trainer, data, ONE, Question(None, "fp32", 2), go_on=lambda: True)
    assert (sizes.precision, sizes.bf16_speedup) == ("fp32", None)


def test_time_that_runs_out_leaves_safe_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "LIMIT_S", 0.0)
    trainer, data = setting()
    found = calibrate(trainer, data, ONE, Question(None, None, 64), go_on=lambda: True)
    assert (found.pack_size, found.precision, found.complete) == (4, "fp32", False)
    assert "time did not suffice" in found.sentence()


@pytest.fixture
def steps_take(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes optimizer steps take so many seconds of a clock; gives the precision of each."""

    def steps_take(**seconds: float) -> list[str]:
        now, taken, one_step = 0.0, [], PackRun._one_step

        def slow(run: PackRun) -> torch.Tensor:
            nonlocal now
            precision = run._settings.precision
            taken.append(precision)
            now += seconds[precision]
            return one_step(run)

        clock = SimpleNamespace(monotonic=lambda: now, perf_counter=lambda: now)
        monkeypatch.setattr(PackRun, "_one_step", slow)
        monkeypatch.setattr(calibration, "time", clock)
        monkeypatch.setattr(steady, "time", clock)
        return taken

    return steps_take


def test_no_step_is_taken_once_the_time_is_over(steps_take: Callable[..., list[str]]) -> None:
    taken = steps_take(fp32=9.0)
    trainer, data = setting()
    found = calibrate(trainer, data, ONE, Question(None, None, 64), go_on=lambda: True)
    assert taken == ["fp32"] * 3, "20 seconds are over within the third step"
    assert dict(found.step_seconds) == {1: 9.0}, "the last step has to do"
    assert (found.seconds, found.pack_size, found.precision) == (27.0, 4, "fp32")
    assert not found.complete


@pytest.mark.parametrize(
    ("fp32", "bf16", "taken", "speedup"),
    [
        (3.0, 60.0, ["fp32"] * 3 + ["bf16"], None),  # not even warm
        (1.0, 4.0, ["fp32"] * 3 + ["bf16"] * 3 + ["fp32"] * 2 + ["bf16"], None),
        (1.0, 0.5, (["fp32"] * 3 + ["bf16"] * 3) + (["fp32"] * 2 + ["bf16"] * 2) * 3, 2.0),
        # Within the second turn: the pairs that there are decide.
        (
            2.0,
            1.0,
            ["fp32"] * 3 + (["bf16"] * 3 + ["fp32"] * 2 + ["bf16"] * 2 + ["fp32"] * 2 + ["bf16"]),
            2.0,
        ),
    ],
)
def test_a_slow_precision_is_given_up_when_the_time_is_over(
    steps_take: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    fp32: float,
    bf16: float,
    taken: list[str],
    speedup: float | None,
) -> None:
    monkeypatch.setattr(calibration, "bf16_possible", lambda device: True)
    steps = steps_take(fp32=fp32, bf16=bf16)
    trainer, data = setting()
    found = calibrate(trainer, data, ONE, Question(2, None, 64), go_on=lambda: True)
    assert steps == taken
    assert found.bf16_speedup == speedup
    assert found.precision == ("fp32" if speedup is None else "bf16")
    assert found.seconds < calibration.LIMIT_S + max(fp32, bf16)


def test_whoever_asks_to_stop_waits_for_one_step(steps_take: Callable[..., list[str]]) -> None:
    taken = steps_take(fp32=0.1, bf16=0.1)
    trainer, data = setting()
    asked = lambda: len(taken) < 5  # noqa: E731
    found = calibrate(trainer, data, ONE, Question(None, None, 64), go_on=asked)
    assert len(taken) == 5
    assert not found.complete


@pytest.mark.parametrize("fast", [True, False])
def test_a_cpu_whose_bf16_products_are_slow_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    assert bf16_possible(torch.device("cpu")) is fast


def test_doubling_ends_where_it_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, data = setting()
    tried: list[int] = []

    def steps(self: object, run: SimpleNamespace, count: int) -> list[float]:
        lanes = len(run.lanes)
        tried.append(lanes)
        return [1.0 if lanes <= 16 else lanes / 16] * count

    monkeypatch.setattr(calibration._Probe, "steps", steps)
    found = calibrate(trainer, data, ONE, Question(None, "fp32", 64), go_on=lambda: True)
    assert max(tried) == 32
    assert found.pack_size == 16


def test_calibration_leaves_later_training_bit_for_bit_as_it_was() -> None:
    def trained(*, first: bool) -> dict[str, torch.Tensor]:
        trainer, data = setting(steps=6)
        if first:
            calibrate(trainer, data, ONE, Question(None, None, 2), go_on=lambda: True)
        run = trainer.start([Lane(0, ONE)])
        run.train(6)
        return run.states()[0].weights()

    before, after = trained(first=False), trained(first=True)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_calibration_without_timings_says_so() -> None:
    plain = Calibration(4, "fp32").to_dict()
    assert plain["step_seconds"] == {}
    assert plain["bf16_speedup"] is None
