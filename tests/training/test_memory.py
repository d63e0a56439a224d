"""The memory model against what autograd keeps, tensor by tensor, and its own laws."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from weakref import WeakSet

import method_cases
import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from every_method import measured
from method_cases import carried, configuration, dropout, variants

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.layer_memory import LayerMemory
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.counting import passes, placed_groups
from autopeft.execution.fitting import step_shape
from autopeft.execution.peak_memory import added_peak
from autopeft.methods import registry
from autopeft.methods.base import Kept
from autopeft.methods.lane_operator import Call
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.passes import in_passes
from autopeft.training.lanes.scaled_products import ALIGNED
from autopeft.training.lanes.seeds import StepUniform
from autopeft.training.lanes.steps import autocast
from autopeft.training.loop import PackRun, Trainer
from autopeft.training.memory import PERSISTENT_BYTES, MemoryEstimate, estimate, largest_pack
from autopeft.training.settings import LoopSettings
from autopeft.training.step_shape import Overhead, StepShape, Weights

ROWS, TOKENS = 64, 24
REST = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}


ALL = [0, 1, 2]
BEFORE = LayerMemory(norms_behind=False)
ROTATED = replace(BEFORE, rotates=True)
NEAR = 0.15
"""How near an estimate has to be."""


def lora(layers: list[int], sites: list[str], rank: int = 4, dropout: float = 0.0) -> Group:
    return Group.of("lora", layers, sites, rank=rank, alpha=2.0 * rank, dropout=dropout)


def adapter(method: str, layers: list[int], size: int = 8) -> Group:
    settings = {"activation": "relu", "scale": 1.0, "dropout": 0.0}
    return Group.of(method, layers, ["ffn"], size=size, **settings)


def sparse(sites: list[str], granularity: str, density: float = 0.15, **settings: int) -> Group:
    own = {"score": "random", "smallest": False, "granularity": granularity} | settings
    own |= {"noise": 0} if granularity == "input" else {}
    return Group.of("sparse", ALL, sites, density=density, **own)


def lane(*groups: Group, **options: float) -> Configuration:
    return Configuration.of(groups, training=REST | options)


def beside_lora(method: str, sites: list[str], **given: object) -> Configuration:
    """A method of size 8 beside LoRA below it, so that gradients pass every layer."""
    anatomy = tiny.tiny_backbone("llama").anatomy
    case = method_cases.configuration(method, anatomy, 8, layers=ALL, sites=sites, **given)
    return lane(lora(ALL, ["query"]), *case.groups)


def _reft(rank: int) -> Group:
    own = {"kind": "loreft", "orthonormal": True, "positions": "ends", "first": 2, "last": 2}
    return Group.of("reft", [0, 2], rank=rank, dropout=0.0, **own)


def _adalink(rank: int) -> Group:
    return Group.of("adalink", [0], rank=rank, activation="gelu", dropout=0.0)


def _norm(layers: list[int], site: str) -> Configuration:
    return lane(Group.of("norm", layers, [site], bias=True))


def _prefix(length: int) -> Group:
    return Group.of("prefix", ALL, length=length, reparametrise=False)


ON_TOP = "an adapter of the top layer"
TOP_NORM = "a norm of the top layer"
"""What they keep is small, and ends that are not counted are not: in BERT what the head reads, in
Llama what the norm behind all layers does, which is gone when a layer's gradients come."""

PACKS = {
    "one lora": [lane(lora(ALL, ["query", "value"]))],
    "four alike": [lane(lora(ALL, ["query", "value"]))] * 4,
    "top layer": [lane(lora([2], ["query", "up", "down"]))] * 2,
    "ffn alone": [lane(lora(ALL, ["up"]))] * 2,
    "dropout": [lane(lora(ALL, ["query", "down"], dropout=0.1))] * 2,
    "adapters": [lane(adapter("serial_adapter", ALL)), lane(adapter("parallel_adapter", ALL))],
    ON_TOP: [lane(adapter("parallel_adapter", [2]))] * 2,
    "scattered": [
        lane(lora(ALL, ["query", "up"])),
        lane(adapter("parallel_adapter", [0, 2])),
        lane(lora(ALL, ["query", "up"], rank=3)),
    ],
    "rows": [lane(sparse(["query", "down"], "input")), lane(sparse(["down"], "input", 0.2))],
    "columns": [lane(sparse(["value", "up"], "output"))] * 2,
    "blocks": [lane(sparse(["query", "up"], "block", block=8))] * 2,
    "single weights": [lane(sparse(["query", "down"], "weight", 0.01))] * 2,
    "many single weights": [lane(sparse(["query", "down"], "weight", 0.3))] * 2,
    "bottlenecks": [
        beside_lora("linear_adapter", ["query", "down"], form=form, activation=act)
        for form, act in (("parallel", "tanh"), ("series", "relu"))
    ],
    "trained scales": [beside_lora("serial_adapter", ["ffn"], scaling="channel")] * 2,
    "behind layers": [beside_lora("adapter_plus", [], drop_path=0.0)] * 2,
    "distances": [beside_lora("snell", ["query", "down"])] * 2,
    "kronecker": [beside_lora("compacter", ["attention", "ffn"], bottleneck=8)] * 2,
    "experts": [beside_lora("moelora", ["query", "up"])] * 2,
    "experts without contrast": [beside_lora("moelora", ["query", "up"], contrast=0.0)] * 2,
    "experts at random": [beside_lora("adamix", ["ffn"], consistency=0.0)] * 2,
    "prompts": [lane(Group.of("prompt", [0], length=n, initial="random")) for n in (5, 9)],
    "prefixes": [lane(_prefix(length)) for length in (3, 9)],
    "a prefix beside": [lane(_prefix(5)), *[lane(lora(ALL, ["query", "value"]))] * 3],
    "prefixes among": [lane(_prefix(5)), lane(lora(ALL, ["up"])), lane(_prefix(20))],
    "edits": [lane(_reft(rank), _adalink(2 * rank)) for rank in (3, 4)],
    "aligners": [lane(Group.of("aligner", ALL, length=3))] * 2,
    "masked": [lane(lora(ALL, ["query", "down"]), ffn_masking=0.1, ffn_dropping=0.1)] * 2,
    "dense": [lane(lora([1, 2], ["query", "up"]), density_weight=1.0), lane(lora(ALL, ["up"]))],
    "a norm behind a layer": [_norm([1], "ffn_norm")] * 2,
    TOP_NORM: [_norm([2], "ffn_norm")] * 2,
    "a norm within": [_norm([1], "attention_norm")] * 2,
    "depths": [lane(lora([2], ["value"])), lane(lora([1, 2], ["value"])), lane(lora(ALL, ["up"]))],
}


def trainer(
    kind: str, precision: str = "fp32", *, checkpointing: bool = False, rows: int = ROWS
) -> Trainer:
    rng = np.random.default_rng(0)
    lengths = rng.integers(TOKENS - 7, TOKENS + 1, rows)  # padded, so that there is a mask
    ids = [rng.integers(4, 64, length).astype(np.int32) for length in lengths]
    examples = Examples(tuple(ids), rng.integers(0, 3, rows))
    settings = LoopSettings(
        "sequence-classification",
        ("loss",),
        1,
        rows,
        rows,
        precision=precision,
        gradient_checkpointing=checkpointing,
        lanes_per_pass=16,
    )
    backbone: Backbone = tiny.tiny_backbone(kind, torch.float32)
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    return Trainer(
        backbone, TaskData(examples, examples, ("a", "b", "c"), "", ()), settings, study_seed=0
    )


@dataclass(eq=False)
class Held:
    """A tensor in a graph: gone with the graph's part that holds it."""

    tensor: torch.Tensor


def kept_by_autograd(trained: Trainer, run: PackRun) -> int:
    """Bytes of all storages that the graph of one pass holds at most, parameters left out."""
    return max(kept_by_pass(trained, run, pack) for pack in run.packs)


def kept_by_pass(trained: Trainer, run: PackRun, pack: Pack) -> int:
    parameters = [*trained.backbone.model.parameters(), *pack.parameters()]
    own = {each.untyped_storage().data_ptr() for each in parameters}
    held: WeakSet[Held] = WeakSet()

    def keep(tensor: torch.Tensor) -> Held:
        item = Held(tensor.detach())  # an operation may keep what it makes: no circle
        held.add(item)
        return item

    batch = trained.train.batch(np.arange(ROWS))
    uniform = StepUniform(run._seeds, 0, 0, ROWS, trained.device)
    with (
        autocast(trained.device, trained.settings.precision),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda item: item.tensor),
        pack.running(),
    ):
        call = Call(training=True, uniform=uniform, row_share=torch.tensor(1.0 / ROWS))
        logits = pack(batch, call)
    assert logits.requires_grad
    storages = [item.tensor.untyped_storage() for item in held]
    kept = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(size for address, size in kept.items() if address not in own)


def estimated(lanes: list[Configuration], backbone: Backbone, **shape: object) -> MemoryEstimate:
    return estimate(
        lanes,
        backbone.anatomy,
        head_params=99,
        shape=StepShape(ROWS, TOKENS, key_vectors=ALIGNED, **shape),
        weights=Weights(),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("name", [name for name in PACKS if name not in (ON_TOP, TOP_NORM)])
def test_activations_are_what_autograd_keeps(kind: str, name: str, precision: str) -> None:
    lanes, trained = PACKS[name], trainer(kind, precision)
    run = trained.start([Lane(number, each) for number, each in enumerate(lanes)])
    found = kept_by_autograd(trained, run)
    shape = {"first_token": kind == "bert", "compute": precision}
    expected = estimated(lanes, trained.backbone, **shape).activations
    assert expected == pytest.approx(found, rel=NEAR)


STEPPED = (
    *("experts", "top layer", "dropout", "scattered", "rows", "single weights", "depths"),
    *("a norm behind a layer", TOP_NORM, "a norm within", "prefixes among"),
)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("name", STEPPED)
def test_a_step_holds_what_is_estimated(
    kind: str, name: str, precision: str, checkpointing: bool
) -> None:
    """The most bytes of tensors that are alive at once in a step, all of it, are counted."""
    lanes, trained = PACKS[name], trainer(kind, precision, checkpointing=checkpointing)
    run = trained.start([Lane(number, each) for number, each in enumerate(lanes)])
    assert estimated_over_live(trained, run, lanes) == pytest.approx(1.0, abs=NEAR)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_step_of_few_tokens_holds_copies_of_weights(kind: str, checkpointing: bool) -> None:
    """A fifth to two fifths of what such a step holds are maps that autocast has cast."""
    lanes = [lane(lora(ALL, ["query"], rank=1))]
    trained = trainer(kind, "bf16", checkpointing=checkpointing, rows=2)
    run = trained.start([Lane(0, *lanes)])
    assert estimated_over_live(trained, run, lanes) == pytest.approx(1.0, abs=NEAR)


def test_a_step_of_few_tokens_holds_what_experts_make_of_one_another() -> None:
    """B B^T of eight experts of rank 32, two thirds of what the step holds."""
    trained = trainer("bert", rows=2)
    (own,) = configuration(
        "moelora", trained.backbone.anatomy, 32, layers=[0, 1], sites=["query"]
    ).groups
    lanes = [lane(own)]
    run = trained.start([Lane(0, *lanes)])
    assert estimated_over_live(trained, run, lanes) == pytest.approx(1.0, abs=NEAR)


def estimated_over_live(trained: Trainer, run: PackRun, lanes: list[Configuration]) -> float:
    """The estimate of a step without an evaluation, over what its tensors take at their most."""
    with added_peak(trained.device) as peak:
        run.train(1)
    expected = estimate(
        lanes,
        trained.backbone.anatomy,
        head_params=trained.recipe.n_parameters,
        shape=replace(step_shape(trained), evaluated=1),
        weights=Weights(),
    )
    return (expected.activations + expected.working) / peak()


OTHERS = ("modernbert", "gpt2", "opt", "qwen3", "gemma3_text", "t5")
"""Architectures whose layers keep what BERT's and Llama's do not."""


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["four alike", "top layer", "dropout", "scattered", "adapters"])
def test_what_architectures_keep_of_their_own_is_counted(kind: str, name: str) -> None:
    lanes, trained = PACKS[name], trainer(kind)
    run = trained.start([Lane(number, each) for number, each in enumerate(lanes)])
    found = kept_by_autograd(trained, run)
    shape = step_shape(trained)
    expected = estimated(lanes, trained.backbone, first_token=shape.first_token).activations
    assert expected == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("name", ["adapters", ON_TOP])
def test_an_ffn_below_all_that_trains_keeps_nothing_and_runs(
    kind: str, name: str, precision: str, checkpointing: bool
) -> None:
    """What adapters add to an FFN's output asks no gradient of the FFN; it makes its tensors."""
    lanes, trained = PACKS[name], trainer(kind, precision, checkpointing=checkpointing)
    run = trained.start([Lane(number, each) for number, each in enumerate(lanes)])
    assert estimated_over_live(trained, run, lanes) == pytest.approx(1.0, abs=NEAR)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["modernbert", "t5"])
@pytest.mark.parametrize("name", ["four alike", "top layer", ON_TOP])
def test_attention_makes_what_its_kind_needs(
    kind: str, name: str, precision: str, checkpointing: bool
) -> None:
    """Rotations of a fused map's slices, and masks of every head, come and go."""
    lanes, trained = PACKS[name], trainer(kind, precision, checkpointing=checkpointing)
    run = trained.start([Lane(number, each) for number, each in enumerate(lanes)])
    assert estimated_over_live(trained, run, lanes) == pytest.approx(1.0, abs=NEAR)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bert", LayerMemory()),
        ("roberta", LayerMemory()),
        ("electra", LayerMemory()),
        ("distilbert", LayerMemory()),
        ("deberta-v2", LayerMemory()),
        ("llama", ROTATED),
        ("gpt2", replace(BEFORE, activation=4)),
        ("opt", BEFORE),
        ("vit", BEFORE),
        ("t5", replace(BEFORE, head_masks=True)),
        ("modernbert", replace(ROTATED, rotates_slices=True)),
        ("qwen3", replace(ROTATED, head_norms=True)),
        ("gemma3_text", replace(ROTATED, norms=4, head_norms=True)),
    ],
)
def test_layers_are_read_for_what_they_keep(kind: str, expected: LayerMemory) -> None:
    assert tiny.tiny_backbone(kind, torch.float32).anatomy.memory == expected


KINDS = ("bert", pytest.param("llama", marks=pytest.mark.slow))
PRECISIONS = ("fp32", pytest.param("bf16", marks=pytest.mark.slow))


def carrying(name: str, kind: str, precision: str, *, checkpointing: bool = False) -> Trainer:
    """A trainer whose backbone carries the method; else the test is skipped."""
    trained = trainer(kind, precision, checkpointing=checkpointing)
    trained.backbone = measured(trained.backbone)
    if name not in carried(trained.backbone.anatomy):
        pytest.skip(f"a {kind} does not carry it")
    return trained


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", registry.names())
def test_what_every_method_keeps_is_counted(name: str, kind: str, precision: str) -> None:
    """Two lanes of every variant at all sites of all layers, dropout too where there is any."""
    trained = carrying(name, kind, precision)
    anatomy = trained.backbone.anatomy
    ratios = {}
    for given in (*variants(name), dropout(name, 0.2)):
        own = configuration(name, anatomy, layers=ALL, **given)
        run = trained.start([Lane(number, own) for number in range(2)])
        assert len(run.packs) == 1
        for operator in run.packs[0].operators:
            _, layer, site = operator.name.split(".")
            assert _kept(own, anatomy, int(layer), site).products_only == operator.products_only
        shape = {"first_token": kind == "bert", "compute": precision}
        whole = estimated([own, own], trained.backbone, **shape).activations
        expected = whole / passes(own, anatomy)  # one pass runs here
        ratios[str(given)] = expected / kept_by_autograd(trained, run)
    assert min(ratios.values()) > 1 - NEAR, ratios
    assert max(ratios.values()) < 1 + NEAR, ratios


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", registry.names())
def test_a_step_of_every_method_holds_what_is_estimated(
    name: str, kind: str, precision: str, checkpointing: bool
) -> None:
    """Two lanes at all sites of all layers."""
    trained = carrying(name, kind, precision, checkpointing=checkpointing)
    own = configuration(name, trained.backbone.anatomy, layers=ALL)
    run = trained.start([Lane(number, own) for number in range(2)])
    assert estimated_over_live(trained, run, [own, own]) == pytest.approx(1.0, abs=NEAR)


def _kept(own: Configuration, anatomy: Anatomy, layer: int, site: str) -> Kept:
    places = [each for each in placed_groups(own, anatomy) if each[1].layer == layer]
    (found,) = (each for each in places if each[1].site == site)
    return registry[found[0].method].kept_widths(*found)


def test_weights_gradients_and_moments_are_the_tensors_own() -> None:
    lanes, trained = PACKS["scattered"], trainer("bert")
    run = trained.start([Lane(number, each) for number, each in enumerate(lanes)])
    scalars = sum(parameter.numel() for parameter in run.packs[0].parameters())
    found = estimate(
        lanes,
        trained.backbone.anatomy,
        head_params=trained.recipe.n_parameters,
        shape=StepShape(ROWS, TOKENS),
        weights=Weights(),
    )
    assert found.lanes == scalars * PERSISTENT_BYTES


def test_lanes_with_prompts_run_apart_and_do_not_lengthen_others() -> None:
    backbone = tiny.tiny_backbone("bert", torch.float32)
    prompts, others = PACKS["prompts"], PACKS["four alike"]
    both = estimated([*prompts, *others], backbone).activations
    assert both == max(estimated(each, backbone).activations for each in (prompts, others))
    lanes = [Lane(number, each) for number, each in enumerate([*prompts, *others])]
    passes = [[n.number for n in each] for each in in_passes(lanes[::-1], backbone.anatomy, 3)]
    assert passes == [[2, 3, 4], [5], [0], [1]]  # prompts of five and of nine tokens


def test_checkpointing_the_math_kernel_and_logits_go_the_right_way() -> None:
    lanes, backbone = PACKS["four alike"], tiny.tiny_backbone("bert", torch.float32)
    plain = estimated(lanes, backbone)
    recomputed = estimated(lanes, backbone, checkpointing=True)
    assert plain.activations / 3 < recomputed.activations < plain.activations / 2
    scores = estimated(lanes, backbone, fused_attention=False).activations - plain.activations
    assert scores == 3 * 4 * ROWS * TOKENS * (2 * 4 * TOKENS * 4)  # layers, lanes, [heads, T] x 2
    spoken = estimated(lanes, backbone, logits=50_000_000)
    assert spoken.working - plain.working == 3 * 4 * 50_000 * 1_000
    overhead = Overhead(share=0.5, recomputed=2.0, recomputed_bf16=3.0, fixed=7)
    lost = estimated(lanes, backbone, overhead=overhead)
    assert lost.total - plain.total == pytest.approx(0.5 * (plain.activations + plain.working) + 7)
    deep = PACKS["top layer"]
    plain, lost = estimated(deep, backbone), estimated(deep, backbone, overhead=overhead)
    trunk = ROWS * TOKENS * 4 * (2 * 48 + 3 * 32)  # what its FFN makes at its widest
    step = plain.activations + plain.working
    assert lost.total - plain.total == pytest.approx(0.5 * (step + trunk) + 7)
    lost = estimated(lanes, backbone, checkpointing=True, overhead=overhead)
    assert lost.total - recomputed.total == pytest.approx(2.0 * recomputed.training + 7)
    half = {"checkpointing": True, "compute": "bf16"}
    cast = estimated(lanes, backbone, **half)
    lost = estimated(lanes, backbone, **half, overhead=overhead)
    assert lost.total - cast.total == pytest.approx(3.0 * cast.training + 7)


def test_the_largest_pack_is_the_last_that_fits() -> None:
    backbone = tiny.tiny_backbone("bert", torch.float32)
    (one,) = PACKS["one lora"]

    def needs(lanes: list[Configuration]) -> int:
        return estimated(list(lanes), backbone).training

    for lanes in (1, 5, 12):
        assert largest_pack(one, needs, needs([one] * lanes)) == lanes
    assert largest_pack(one, needs, needs([one]) - 1) == 0
