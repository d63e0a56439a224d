"""The solo probe: what its figures are of, and that it leaves the study as it was."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_backbones as tiny
import torch

from autopeft.backbone.memory import backbone_bytes
from autopeft.configuration import Configuration, Group
from autopeft.execution import probe as probing
from autopeft.execution.peak_memory import added_peak
from autopeft.execution.probe import SoloProbe, lengthened
from autopeft.execution.steady import longest_batch, middling_batch
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings

CPU = torch.device("cpu")
STEPS, BATCH = 40, 8
EVERY = ("train_seconds", "peak_memory_bytes", "latency_seconds")


def configuration(layers: list[int], rank: int) -> Configuration:
    group = Group.of("lora", layers, ["query", "value"], rank=rank, alpha=4.0, dropout=0.1)
    training = {"learning_rate": 1e-2, "weight_decay": 0.0, "warmup_ratio": 0.0}
    return Configuration.of([group], training=training)


SMALL, LARGE = configuration([2], 1), configuration([0, 1, 2], 8)


@pytest.fixture(scope="module")
def study() -> tuple[Trainer, TaskData]:
    """Three BERT-like layers; texts of 3 to 26 tokens."""
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(4, 64, 3 + i).astype(np.int32) for i in range(24))
    examples = Examples(ids, rng.integers(0, 3, 24))
    data = TaskData(examples, examples, ("a", "b", "c"), "", ())
    backbone = tiny.tiny_backbone("bert", torch.float32)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    settings = LoopSettings("sequence-classification", ("loss",), STEPS, BATCH, BATCH)
    return Trainer(backbone, data, settings, study_seed=0), data


def solo(study: tuple[Trainer, TaskData], *metrics: str) -> SoloProbe:
    return SoloProbe(*study, metrics=metrics, max_length=32)


def test_storages_are_counted_while_they_live() -> None:
    mebi = 2**18  # float32
    kept = torch.zeros(mebi)
    with added_peak(CPU) as added:
        a = torch.zeros(mebi)
        b = a.view(512, 512) + kept.view(512, 512)  # views hold nothing of their own
        assert added() == 2 * 2**20
        del a
        c = (b * 2.0).add_(1.0)  # in place
        assert added() == 2 * 2**20
        d = torch.cat([b, c])
        assert added() == 4 * 2**20
        del b, c, d
        torch.zeros(8)
        assert added() == 4 * 2**20, "a peak falls no more"
        torch.empty(8 * mebi, device="meta")
        assert added() == 4 * 2**20, "shapes alone take nothing"


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_of_sparse_tensors_the_parts_are_counted() -> None:
    rows, columns = torch.tensor([0, 1, 2]), torch.tensor([0, 1])
    with added_peak(CPU) as added:
        values = torch.ones(2)
        sparse = torch.sparse_csr_tensor(rows, columns, values, (2, 2), check_invariants=True)
        dense = torch.ones(2, 1)
        assert added() == 2 * 8
        made = sparse @ dense
        assert added() >= 3 * 8
        assert made.tolist() == [[1.0], [1.0]]


def test_a_peak_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="meta"), added_peak(torch.device("meta")):
        pass


def test_what_was_asked_for_is_measured_as_plain_json(study: tuple[Trainer, TaskData]) -> None:
    found = solo(study, *EVERY).measure(LARGE)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(EVERY) <= set(found)
    steps = found["step_seconds"]
    assert found["train_seconds"] == pytest.approx(STEPS * np.median(steps), rel=1e-3)
    assert 0 < found["latency_seconds"] < found["seconds"]
    only = solo(study, "latency_seconds").measure(LARGE)
    assert not {"train_seconds", "peak_memory_bytes"} & set(only)


def test_peak_memory_repeats_and_grows_with_what_is_trained(
    study: tuple[Trainer, TaskData],
) -> None:
    probe = solo(study, "peak_memory_bytes")
    small, large, again = (
        probe.measure(each)["peak_memory_bytes"] for each in (SMALL, LARGE, SMALL)
    )
    assert small == again, "it depends on what ran before"
    backbone = backbone_bytes(study[0].backbone)
    assert backbone < small < large
    # Four float32 each at least (weight, gradient, two moments) of the parameters between them.
    width = study[0].backbone.anatomy.hidden_size
    extra = 2 * 2 * width * (3 * 8 - 1)
    assert large - small >= 4 * 4 * extra


def test_peak_memory_is_of_the_longest_batch(study: tuple[Trainer, TaskData]) -> None:
    trainer = study[0]
    assert trainer.train.width(longest_batch(trainer)) == 26
    assert trainer.train.width(middling_batch(trainer)) < 26
    assert len(longest_batch(trainer)) == len(middling_batch(trainer)) == BATCH


def test_seconds_are_medians_after_a_warm_up(
    study: tuple[Trainer, TaskData], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that jumps in the first steps and forwards, and once later, changes nothing."""
    ticks = iter(range(1_000_000))
    now = [0.0]

    def clock() -> float:
        next(ticks)
        return now[0]

    monkeypatch.setattr(probing.time, "perf_counter", clock)
    probe = solo(study, "latency_seconds")
    calls = [0]
    costs = [9.0] * probing.WARM_FORWARDS + [0.5] * probing.FORWARDS
    costs[-1] = 7.0

    def scores(self: object, examples: object) -> None:
        now[0] += costs[calls[0]]
        calls[0] += 1

    monkeypatch.setattr(probing.PackRun, "scores", scores)
    assert probe.measure(SMALL)["latency_seconds"] == 0.5
    assert calls[0] == len(costs)


def test_the_timed_example_has_the_length_that_the_study_allows() -> None:
    ids = tuple(np.arange(n, dtype=np.int32) for n in (3, 5, 4))
    targets = tuple(np.arange(n) == n - 1 for n in (3, 5, 4))
    types = tuple(np.zeros(n, dtype=np.int32) for n in (3, 5, 4))
    examples = Examples(ids, np.array([0, 1, 2]), types, targets)
    for length in (12, 4):
        one = lengthened(examples, length)
        assert len(one) == 1
        assert one.labels.tolist() == [1]
        assert one.token_ids[0].tolist() == (list(range(5)) * 3)[:length]
        assert one.token_types is not None
        assert one.targets is not None
        assert len(one.token_types[0]) == len(one.targets[0]) == length
        assert not one.targets[0][0]
        assert one.targets[0][-1]


def test_a_probe_changes_nothing_of_training(study: tuple[Trainer, TaskData]) -> None:
    def trained() -> list[torch.Tensor]:
        run = study[0].start([Lane(0, LARGE)])
        run.train(4)
        return [run.scores(study[0].validation)]

    before = trained()
    random_state = torch.get_rng_state()
    solo(study, *EVERY).measure(SMALL)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(trained()[0], before[0])
