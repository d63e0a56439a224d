"""The parts of the packing benchmark."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from peft import get_peft_model
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from autopeft.api.problem import Facts, bind_space, make_problem
from autopeft.backbone.discovery import discover
from autopeft.configuration import Configuration
from autopeft.counting import trainable_params
from autopeft.searchers.registry import make_searcher
from autopeft.study.definition import default_definition
from autopeft.training.lanes.pack import Lane
from benchmarks.speed import rows, trials
from benchmarks.speed.bench import Bench, Plan
from benchmarks.speed.encoders import curve_distance, same_recipe
from benchmarks.speed.lanes import Ours, lane_turns, trainer_of
from benchmarks.speed.lines import Fact, Line, Repeat, Work, evaluate
from benchmarks.speed.measuring import (
    Arm,
    Measured,
    Part,
    Records,
    Turns,
    finished,
    interleaved,
    measure,
)
from benchmarks.speed.nearest import lora_config
from benchmarks.speed.profiling import mixed_profile
from benchmarks.speed.reference import run_reference
from benchmarks.speed.roofline import pack_flops
from benchmarks.speed.shapes import SHAPES, load_subject

CPU = {"device": "cpu", "dtype": torch.float32}
STEPS = 12


@pytest.fixture(scope="module")
def bench() -> Bench:
    subject = load_subject("tiny-bert", n_classes=3, **CPU)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in (*subject.backbone.model.parameters(),):
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15, generator=torch.Generator().manual_seed(1))
    inner: Any = subject.task_model
    inner.bert.load_state_dict(subject.backbone.model.state_dict())
    data = rows.random_rows(
        rows.TREC_LIKE, n_train=40, n_validation=10, n_classes=3, vocabulary=128
    )
    return Bench(subject, data)


def test_the_kept_draws_are_the_first_that_random_search_proposes() -> None:
    with torch.device("meta"):
        model = tf.AutoModel.from_config(SHAPES["minilm"]())
    anatomy = discover(model, model.config)
    definition = default_definition(["space=quick", "search.searcher=random"])
    assert definition.study.seed == 0
    space = bind_space(definition, anatomy)
    problem = make_problem(definition, anatomy, space, Facts(0.2, 1.0, 2310, 1000, 100))
    proposed = make_searcher("random", problem).ask(trials.DRAWS)
    drawn = [proposal.configuration for proposal in proposed]
    assert trials.sixteen(anatomy)[3:] == drawn
    assert trials.quick_draws(anatomy) == drawn
    assert len(trials.sixteen(anatomy)) == 16


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_peft_configuration_has_the_same_parameters(bench: Bench, seed: int) -> None:
    for configuration in trials.random_mix(bench.anatomy, 4, seed):
        task_model: Any = bench.subject.fresh_task_model(dropout=True)
        model = get_peft_model(
            task_model, lora_config(configuration, bench.anatomy, prefix="bert")
        )
        found = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
        wanted = trainable_params(configuration, bench.anatomy)
        adapters = [g for g in configuration.groups if g.method.endswith("adapter")]
        # A stand-in's rank is whole: at most half a rank off at each of an adapter's places.
        width = bench.anatomy.hidden_size + bench.anatomy.intermediate_size
        assert abs(found - wanted) <= sum(len(g.layers) for g in adapters) * width / 2
        heads = [
            name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name
        ]
        assert sorted(name.rpartition(".")[2] for name in heads) == ["bias", "weight"]


def test_without_dropout_nothing_in_the_reference_is_random(bench: Bench) -> None:
    batch = {"input_ids": torch.arange(4, 20).view(2, 8)}
    still: Any = bench.subject.fresh_task_model(dropout=False).train()
    noisy: Any = bench.subject.fresh_task_model(dropout=True).train()
    still.config._attn_implementation = noisy.config._attn_implementation = "sdpa"
    assert torch.equal(still(**batch).logits, still(**batch).logits)
    assert not torch.equal(noisy(**batch).logits, noisy(**batch).logits)


def _ours(bench: Bench, configurations: dict[int, Configuration], ours: Ours) -> Measured:
    lanes = [Lane(*item) for item in configurations.items()]
    trainer = trainer_of(bench.subject, bench.data, ours)
    return finished(lane_turns(bench.subject, trainer, lanes, ours))


def test_the_reference_follows_our_trajectory_from_our_start_only(bench: Bench) -> None:
    configuration = trials.lora(bench.anatomy, range(3), rate=1e-2)
    ours = Ours(batch_size=8, micro_batch_size=8, max_steps=STEPS)
    curve = _ours(bench, {0: configuration}, ours).details["curves"]["0"]
    recipe = same_recipe(bench, configuration, ours)
    theirs = run_reference(bench.subject, bench.data, configuration, recipe)
    assert len(theirs.details["losses"]) == STEPS
    assert curve_distance(theirs.details["losses"], curve) < 1e-5
    for other in (
        replace(recipe, start=None),
        replace(recipe, order=list(recipe.order or [])[::-1]),
    ):
        away = run_reference(bench.subject, bench.data, configuration, other)
        assert curve_distance(away.details["losses"], curve) > 1e-3


def test_a_factor_taken_away_changes_the_cost_and_not_the_result(bench: Bench) -> None:
    few = dict(enumerate([trials.lora(bench.anatomy, [1]), trials.lora(bench.anatomy, [2])]))
    ours = Ours(batch_size=8, micro_batch_size=8, max_steps=10)
    whole = _ours(bench, few, ours)
    alike = {"no trunk": replace(ours, trunk=False), "cache": replace(ours, cache_bytes=1 << 24)}
    for name, other in alike.items():
        curves = _ours(bench, few, other).details["curves"]
        for number, curve in whole.details["curves"].items():
            assert np.allclose(np.array(curve), np.array(curves[number]), atol=1e-5), name
    loose = _ours(bench, few, replace(ours, bucketing=False))
    assert loose.details["tokens"] > whole.details["tokens"]
    assert loose.samples == whole.samples == 2 * 10 * 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo looks
def test_compiled_operators_do_the_same(bench: Bench) -> None:
    mix = dict(enumerate(trials.random_mix(bench.anatomy, 2, seed=0)))
    ours = Ours(batch_size=8, micro_batch_size=8, max_steps=3)
    plain = _ours(bench, mix, ours).details["curves"]
    counters.clear()
    compiled = _ours(bench, mix, replace(ours, compiled=True)).details["curves"]
    assert counters["frames"]["ok"] > 0, "nothing was compiled"
    for number, curve in plain.items():
        assert np.allclose(np.array(curve), np.array(compiled[number]), atol=1e-5)


@pytest.mark.slow
def test_a_scenarios_own_pack_is_profiled(bench: Bench) -> None:
    text = mixed_profile(bench, lanes=2, batch=4)
    assert text.startswith("pack of 2 mixed lanes, bf16: ")
    assert "forward: operators" in text
    assert "aten::" in text


def test_flops_of_a_pack_are_those_that_torch_counts() -> None:
    subject = load_subject("tiny-llama", n_classes=3, **CPU)  # type: ignore[arg-type]
    subject.backbone.model.set_attn_implementation("eager")  # type: ignore[operator]
    tokens, batch = 12, 4
    data = rows.random_rows(
        rows.Lengths(tokens, 0, tokens, tokens),
        n_train=batch,
        n_validation=4,
        n_classes=3,
        vocabulary=128,
    )
    bench = Bench(subject, data)
    every = [range(3), [1, 2], [2]]
    lanes = [Lane(n, trials.lora(bench.anatomy, layers)) for n, layers in enumerate(every)]
    ours = Ours(batch_size=batch, micro_batch_size=batch, max_steps=1, evaluate=False)
    trainer = trainer_of(subject, data, ours)
    run = trainer.start(lanes)
    with FlopCounterMode(display=False) as counter:
        run.train(1)
    width = trainer.train.width(np.arange(batch))
    predicted = pack_flops(lanes, bench.anatomy, batch, width)
    assert 0.9 < predicted / counter.get_total_flops() < 1.1


# -- measuring ------------------------------------------------------------------------------------


def _measured(seconds: float, samples: int = 10) -> Measured:
    return Measured((0.0, 0.0), (seconds, 2 * seconds), (1.0, 1.0), samples)


def _arm(name: str, seconds: list[float], log: list[str], abreast: str = "") -> Arm:
    def part(number: int, each: float) -> Part:
        def run(repeat: int) -> Turns:
            for turn in range(3):
                log.append(f"{name}{number} {turn}")
                yield
            return _measured(each * (repeat + 1))

        return Part(f"trial {number}", (number,), run)

    return Arm(name, tuple(part(*item) for item in enumerate(seconds)), abreast)


def _names(arms: list[Arm], repeat: int) -> list[str]:
    groups = interleaved(arms, repeat)
    return ["".join(f"{arm.name}{part.trials[0]}" for arm, part in group) for group in groups]


def test_parts_take_turns_and_repeats_turn_round() -> None:
    arms = [_arm("a", [1.0] * 4, []), _arm("b", [1.0] * 2, [])]
    order = _names(arms, 0)
    assert order == ["a0", "b0", "a1", "a2", "b1", "a3"]
    assert _names(arms, 1) == order[::-1]


def test_arms_abreast_take_turns_within_their_parts() -> None:
    log: list[str] = []
    arms = [_arm("a", [1.0] * 2, log, "x"), _arm("b", [5.0], log, "x"), _arm("c", [1.0], log)]
    assert _names(arms, 0) == ["a0b0a1", "c0"]
    records = Records(None, {})
    measure("s", arms, 1, records)
    rounds = [set(log[start : start + 3]) for start in range(0, 9, 3)]
    assert rounds == [{f"{part} {turn}" for part in ("a0", "a1", "b0")} for turn in range(3)]
    assert log[9:] == ["c0 0", "c0 1", "c0 2"]
    assert records["s", "b", "trial 0", 0].measured.span("train")[0] == 5.0


def test_others_turns_are_not_in_a_parts_time(bench: Bench) -> None:
    ours = Ours(max_steps=3, by_step=True)
    lanes = [Lane(0, trials.lora(bench.anatomy, (0, 1)))]
    turns = lane_turns(bench.subject, trainer_of(bench.subject, bench.data, ours), lanes, ours)
    count = 0

    def with_pauses() -> Turns:
        nonlocal count
        while True:
            try:
                next(turns)
            except StopIteration as end:
                return end.value
            count += 1
            time.sleep(1.0)
            yield

    measured = finished(with_pauses())
    assert count == 4, "before each of three steps and before the evaluation"
    assert measured.span("total")[0] < 2.0


def test_what_is_recorded_is_measured_once(tmp_path: Path) -> None:
    path, log = tmp_path / "record.jsonl", []
    arms = [_arm("a", [1.0, 3.0], log)]
    measure("s", arms, 1, Records(path, {"code": "1"}))
    assert len(log) == 2 * 3
    measure("s", arms, 2, Records(path, {"code": "1"}))
    assert len(log) == 4 * 3, "the first repeat is on file, the second is not"
    measure("s", arms, 1, Records(path, {"code": "2"}))
    assert len(log) == 6 * 3, "other code's measurements do not count"
    kept = Records(path, {"code": "1"})["s", "a", "trial 1", 0].measured
    assert kept.span("train") == (3.0, 6.0)
    assert kept.span("total") == (4.0, 7.0)


@cache
def _repeats(count: int) -> list[Repeat]:
    log: list[str] = []
    arms = [_arm("slow", [4.0, 8.0], log), _arm("fast", [2.0, 2.0], log)]
    records = Records(None, {})
    measure("s", arms, count, records)
    return [Repeat("s", arms, number, records) for number in range(count)]


@pytest.mark.parametrize(
    ("line", "median", "verdict"),
    [
        (Line("f", Work("slow"), Work("fast"), "train"), 3.0, ""),
        (Line("f", Work("slow"), Work("fast"), "train", bar=3.0), 3.0, ">= 3x reached"),
        (Line("f", Work("slow"), Work("fast"), "train", bar=3.5), 3.0, ">= 3.5x missed by 0.5"),
        (Line("f", Work("slow", frozenset([0])), Work("fast"), "train"), 1.0, ""),
        (
            Line("f", Work("slow", frozenset([0])), Work("fast"), "train", per_sample=True),
            2.0,
            "",
        ),
        (Fact("f", lambda repeat: 0.25, bar=0.1, unit=" s"), 0.25, "<= 0.1 s missed by 0.15"),
    ],
)
def test_a_line_is_the_median_ratio_and_a_verdict(
    line: Line | Fact, median: float, verdict: str
) -> None:
    result = evaluate("s", line, _repeats(3))
    assert len(result.values) == 3
    assert result.median == pytest.approx(median)
    assert result.verdict == verdict
    assert result.mixed == 0


def test_curve_points_are_held_against_means_of_the_same_steps() -> None:
    curve = [(2, 1.5), (4, 3.0)]
    assert curve_distance([1.0, 2.0, 3.0, 4.0], curve) == pytest.approx(0.5)


# -- data -----------------------------------------------------------------------------------------


def test_trec_is_split_without_overlap() -> None:
    folder = rows.data_folder(None)
    if folder is None or not (folder / "trec6" / "train.csv").is_file():
        pytest.skip(f"no TREC-6: set {rows.VARIABLE} to a folder that holds trec6/train.csv")

    class Tokenizer:
        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return {"input_ids": [[ord(c) for c in text] for text in texts]}

    data = rows.trec6(folder, Tokenizer())
    assert (len(data.train), len(data.validation)) == (1000, 545)
    assert len(data.label_names) == 6
    train = {bytes(ids) for ids in data.train.token_ids}
    held = [bytes(ids) in train for ids in data.validation.token_ids]
    assert np.mean(held) < 0.02, "a few questions occur twice in TREC itself"


@pytest.mark.parametrize("n_classes", [0, 3])
def test_random_rows_are_what_was_asked_for(n_classes: int) -> None:
    make: Callable[[], Any] = lambda: rows.random_rows(  # noqa: E731
        rows.TREC_LIKE, n_train=200, n_validation=20, n_classes=n_classes, vocabulary=50
    )
    data, again = make(), make()
    lengths = np.array([len(ids) for ids in data.train.token_ids])
    assert lengths.min() >= 5
    assert lengths.max() <= rows.MAX_LENGTH
    assert abs(lengths.mean() - rows.TREC_LIKE.mean) < 1.0
    assert all(map(np.array_equal, data.train.token_ids, again.train.token_ids))
    assert (data.train.targets is None) == bool(n_classes)
    assert len(data.label_names) == n_classes


def test_bars_leave_out_what_none_of_them_needs() -> None:
    arms = tuple(Arm(name, ()) for name in ("slow", "fast", "other"))
    bar = Line("f", Work("slow"), Work("fast"), bar=2.0)
    lines = (bar, Line("g", Work("fast"), Work("other")))
    kept = Plan(arms, lines).of_bars()
    assert ([arm.name for arm in kept.arms], kept.lines) == (["slow", "fast"], (bar,))
    fact = Fact("h", lambda repeat: 0.0, bar=1.0)
    kept = Plan(arms, (*lines, fact, Fact("i", lambda repeat: 0.0))).of_bars()
    assert (kept.arms, kept.lines) == (arms, (bar, fact))
