"""In float32 on a CPU, lanes are their solo runs to the last bit, grouped as the loop groups them.

On a machine whose products depend on how many rows there are, they are so within 1e-5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import tiny_backbones as tiny
import tiny_causal
import torch
from every_method import TRAINING, lanes_of_each, measured, measured_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_training import STEPS, Training, furthest, without_cache
from method_cases import carried, configuration, sizes
from same_bits import ROWS_ARE_APART

from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.backbone.pointwise import GRAIN, WHOLE, pointwise
from autopeft.configuration import Configuration, Group
from autopeft.methods.lane_operator import SILENT
from autopeft.training.batches import Batch, PaddedExamples
from autopeft.training.data.examples import Examples
from autopeft.training.lanes.pack import Lane
from autopeft.training.lanes.passes import in_passes
from autopeft.training.lanes.state import LaneState

WITHIN = 0.0 if ROWS_ARE_APART else 1e-5
QUICK = ("bert", "modernbert", "gpt2", "causal-llama")
EVERY = (
    *(name for name in tiny.ARCHITECTURES if name != "deberta-v2"),
    *(f"causal-{name}" for name in ("llama", "qwen3", "gemma3", "gpt2", "opt")),
)
EXAMPLES = 96
MEASURED = 64
"""Examples whose outputs are compared."""

Batches = Callable[[Sequence[int]], Batch]


def _backbone(name: str) -> Backbone:
    if not name.startswith("causal-"):
        return measured_backbone(name, torch.float32)
    return measured(backbone_of(tiny_causal.tiny_causal(name[len("causal-") :], torch.float32)))


def _batches(name: str, *, longest: int) -> Batches:
    """Batches of examples by their numbers: pixels, tokens of two to `longest`, or answers."""
    rng = np.random.default_rng(longest)
    if name == "vit":
        pixels = torch.from_numpy(rng.normal(size=(EXAMPLES, 3, 16, 16))).float()
        labels = torch.from_numpy(rng.integers(0, 3, EXAMPLES))
        return lambda rows: Batch(
            {"pixel_values": pixels[list(rows)]}, torch.ones(len(rows), 17), labels[list(rows)]
        )
    ids = [
        rng.integers(3, tiny.VOCABULARY, n).astype(np.int32)
        for n in rng.integers(2, longest + 1, EXAMPLES)
    ]
    answers = name.startswith("causal-")
    labels = np.zeros(EXAMPLES, np.int64) if answers else rng.integers(0, 3, EXAMPLES)
    targets = tuple(np.arange(len(row)) >= len(row) // 2 for row in ids) if answers else None
    examples = PaddedExamples(
        Examples(tuple(ids), labels, targets=targets), pad_token_id=0, device=torch.device("cpu")
    )
    return lambda rows: examples.batch(np.array(rows))


def _ends(
    backbone: Backbone,
    lanes: Sequence[Lane],
    batches: Batches,
    *,
    rows: int,
    steps: int,
    checkpointing: bool = False,
) -> dict[int, tuple[LaneState, torch.Tensor]]:
    """By lane: its state after some steps of `rows` examples, and its outputs on `MEASURED`."""

    def batch(step: int) -> Batch:
        return batches(np.random.default_rng(step).choice(EXAMPLES, rows, replace=False).tolist())

    training = Training(backbone, lanes, torch.float32, checkpointing=checkpointing)
    states = training.run(without_cache(batch), 0, steps)
    with training.pack.running(), torch.no_grad():
        outputs = training.pack(batches(range(MEASURED)), SILENT, {})
    own = dict(zip((lane.number for lane in training.pack.lanes), outputs, strict=True))
    return {number: (state, own[number]) for number, state in states.items()}


def _apart(
    backbone: Backbone,
    lanes: Sequence[Lane],
    batches: Batches,
    *,
    rows: int,
    steps: int = STEPS,
    checkpointing: bool = False,
) -> dict[str, float]:
    """Lanes further than `WITHIN` from their solo runs, which recompute nothing.

    Returns:
        How far, by number and methods.
    """
    found = {}
    for together in in_passes(lanes, backbone.anatomy, len(lanes)):
        packed = _ends(
            backbone, together, batches, rows=rows, steps=steps, checkpointing=checkpointing
        )
        for lane in together:
            solo = _ends(backbone, [lane], batches, rows=rows, steps=steps)[lane.number]
            state, outputs = packed[lane.number]
            off = max(furthest(state, solo[0]), float((outputs - solo[1]).abs().max()))
            if not off <= WITHIN:
                found[f"{lane.number}: {', '.join(lane.configuration.methods)}"] = off
    return found


def test_the_largest_sizes_of_each_method() -> None:
    """Three rows on BERT, all in one pack but for prompts, which run apart.

    Prefixes and prompts are there in several lengths.
    """
    backbone = measured_backbone("bert", torch.float32)
    anatomy = backbone.anatomy
    cases = [
        configuration(name, anatomy, size, training=TRAINING)
        for name in carried(anatomy)
        for size in sizes(name, anatomy)[0 if name in ("prefix", "prompt") else -1 :]
    ]
    lanes = [Lane(number, case) for number, case in enumerate(cases)]
    assert not _apart(backbone, lanes, _batches("bert", longest=7), rows=3, steps=3)


@dataclass(frozen=True)
class Case:
    """A random pack: the seed of its lanes, rows a step, the longest example, and its layers."""

    seed: int
    rows: int
    longest: int
    checkpointing: bool


CASES = st.builds(
    Case,
    seed=st.integers(0, 9999),
    rows=st.integers(1, 9),
    longest=st.integers(3, 14),
    checkpointing=st.booleans(),
)


def _random_pack(name: str, case: Case) -> None:
    """Four random lanes, every other one with a sparsity rule, after twenty steps."""
    backbone = _backbone(name)
    rng = np.random.default_rng(case.seed)
    lanes = [
        Lane(
            number,
            tiny.random_configuration(
                backbone, rng, layers=len(backbone.anatomy.layers), rules=number % 2 == 1
            ),
        )
        for number in range(4)
    ]
    batches = _batches(name, longest=case.longest)
    assert not _apart(backbone, lanes, batches, rows=case.rows, checkpointing=case.checkpointing)


@pytest.mark.parametrize("name", QUICK)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(case=CASES)
def test_random_packs(name: str, case: Case) -> None:
    _random_pack(name, case)


def test_prompts_longer_than_a_lone_row() -> None:
    """On rotary positions: angles beyond those of the text are extrapolated (DEPT, two lanes)."""
    _random_pack("llama", Case(4649, rows=1, longest=3, checkpointing=False))


def test_a_reparametrised_prefix_beside_lanes_without() -> None:
    """Gradients of its keys and values come back through slices of all rows, also of one lane."""
    _random_pack("modernbert", Case(327, rows=8, longest=13, checkpointing=False))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_lanes_beside_one_that_trains_norms(name: str) -> None:
    """A norm that reads its input twice: lanes without an operator there sum as alone."""
    backbone = _backbone(name)
    groups = {
        "lora": Group.of("lora", [0, 1], ["query", "value"], rank=4, alpha=8.0, dropout=0.1),
        "norm": Group.of("norm", [1, 2], ["attention_norm", "ffn_norm"], bias=False),
    }
    lanes = [
        Lane(number, Configuration.of([group], training=TRAINING))
        for number, group in enumerate(groups.values())
    ]
    assert not _apart(backbone, lanes, _batches(name, longest=8), rows=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=10, deadline=None)
@given(case=CASES)
def test_random_packs_on_every_architecture(name: str, case: Case) -> None:
    _random_pack(name, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_each_method_on_every_architecture(name: str) -> None:
    """Two lanes of each method in one pack, of one after another of its variants."""
    backbone = _backbone(name)
    lanes = lanes_of_each(backbone, carried(backbone.anatomy), turn=EVERY.index(name))
    assert not _apart(backbone, lanes, _batches(name, longest=8), rows=3)


@pytest.mark.parametrize("count", [1, 63, WHOLE, 2 * GRAIN + 1, 3 * GRAIN])
@pytest.mark.parametrize("function", [torch.nn.functional.silu, torch.sigmoid])
def test_functions_of_numbers_do_not_depend_on_where_these_stand(
    function: Callable[[torch.Tensor], torch.Tensor], count: int
) -> None:
    x = torch.randn(3, count, generator=torch.Generator().manual_seed(0))
    whole, parts = pointwise(function, x), [pointwise(function, row) for row in x]
    assert torch.equal(whole, torch.stack(parts))
    assert torch.allclose(whole, function(x.double()).float(), atol=1e-6)


def test_some_functions_of_torch_alone_depend_on_it() -> None:
    """So the test above could fail."""
    x = torch.randn(3, 1 + WHOLE // 2, generator=torch.Generator().manual_seed(0))
    silu = torch.nn.functional.silu
    assert not torch.equal(silu(x), torch.stack([silu(row) for row in x]))
