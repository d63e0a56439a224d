"""HF `peft`'s own types through the pass-through, each as `peft` has it."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from passed_cases import TRAINING, biased_bert, passed, passed_group
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError
from autopeft.export.adapter import folded_configuration, folded_weights
from autopeft.export.peft_weights import peft_adapter
from autopeft.methods import registry
from autopeft.methods.lane_operator import SILENT, Call
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.state import LaneState
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:Sparse invariant checks:UserWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
)

DECODERS_ONLY = ("peft:ADAPTION_PROMPT",)
"""Types that no BERT carries: `test_passed_attention`."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Of this module."""
    return biased_bert()


@pytest.fixture(scope="module")
def base(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on disk."""
    folder = tmp_path_factory.mktemp("base")
    backbone.model.save_pretrained(folder)
    return folder


def _pack(backbone: Backbone, configuration: Configuration, **settings: Any) -> Pack:
    lanes = [Lane(0, configuration)]
    return Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0), **settings)


def _train(pack: Pack, steps: int = 4, first: int = 0) -> list[float]:
    """Losses of a few steps on one batch."""
    batch = tiny.tiny_batch("bert")
    optimizer = LaneAdamW(
        pack.stacked(), 1, learning_rates=[1e-2], weight_decays=[0.0], max_grad_norm=1.0
    )
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        draws = StepUniform(Seeds(0), step, 0, len(batch), torch.device("cpu"))
        with pack.running():
            logits = pack(batch, Call(True, draws))[0]
            loss = nn.functional.cross_entropy(logits, batch.labels)
            penalty = pack.auxiliary_loss()
            (loss if penalty is None else loss + penalty).backward()
        optimizer.step(torch.ones(1))
        losses.append(float(loss.detach()))
    return losses


def _outputs(pack: Pack) -> Tensor:
    with torch.no_grad(), pack.running():
        logits: Tensor = pack(tiny.tiny_batch("bert"), SILENT)[0]
    return logits


def _tensors(pack: Pack) -> dict[str, Tensor]:
    own = pack.lane_views(pack.parameters_by_name(), 0) | pack.lane_fixed(0)
    return {name: tensor.detach().clone() for name, tensor in own.items()}


def _through_peft(backbone: Backbone, pack: Pack, base: Path, folder: Path) -> Tensor:
    """Logits of the saved adapter, loaded by `peft` on transformers' task class."""
    configuration = pack.lanes[0].configuration
    adapter = peft_adapter(configuration, backbone, backbone.head(3), _tensors(pack))
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config))
    save_file(adapter.tensors, folder / "adapter_model.safetensors")
    torch.manual_seed(99)  # what a type draws anew must not matter
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(model, folder).eval()
    of_tasks = folder.name in ("POLY", "MULTITASK_PROMPT_TUNING")
    tasks = {"task_ids": torch.zeros(3, dtype=torch.long)} if of_tasks else {}
    with torch.no_grad():
        logits: Tensor = theirs(**tiny.tiny_batch("bert").inputs, **tasks).logits
    return logits


@pytest.mark.parametrize("name", [n for n in registry.offered() if n not in DECODERS_ONLY])
def test_a_type_trains_is_counted_and_reloads_through_peft(
    name: str, backbone: Backbone, base: Path, tmp_path: Path
) -> None:
    configuration = passed(name)
    assert counting.faults(configuration, backbone.anatomy) == []
    frozen = {n: t.clone() for n, t in backbone.model.state_dict().items()}
    pack = _pack(backbone, configuration)
    own = [item for item in pack.stacked() if not item.name.startswith("head.")]
    assert counting.training_params(configuration, backbone.anatomy) == sum(
        item.parameter.numel() for item in own
    )
    assert counting.trainable_params(configuration, backbone.anatomy) == sum(
        tensor.numel()
        for tensor_name, tensor in folded_weights(configuration, _tensors(pack)).items()
        if tensor_name not in pack.lane_fixed(0) and not tensor_name.startswith("head.")
    )
    fixed = sum(tensor.numel() for tensor in pack.lane_fixed(0).values())
    assert fixed == sum(
        registry[name].fixed_count(group, place)
        for group, place in counting.placed_groups(configuration, backbone.anatomy)
    )
    before = [item.parameter.detach().clone() for item in own]
    losses = _train(pack)
    assert losses[-1] < losses[0]
    for item, old in zip(own, before, strict=True):
        assert not torch.equal(item.parameter, old), item.name
    assert all(torch.equal(t, frozen[n]) for n, t in backbone.model.state_dict().items())
    assert not any("forward" in m.__dict__ for m in backbone.model.modules())

    trained = _outputs(pack)
    stored = folded_weights(configuration, _tensors(pack))
    again = _pack(backbone, folded_configuration(configuration), saved={0: stored})
    held = again.lane_views(again.parameters_by_name(), 0)
    with torch.no_grad():
        for tensor_name, tensor in held.items():
            tensor.copy_(stored[tensor_name])
    assert torch.allclose(_outputs(again), trained, atol=1e-6)

    folder = tmp_path / name.removeprefix("peft:")
    theirs = _through_peft(backbone, pack, base, folder)
    assert torch.allclose(theirs, trained, atol=1e-5)
    assert not torch.allclose(theirs, _outputs(_pack(backbone, configuration)), atol=1e-4)


@pytest.mark.parametrize(
    ("group", "key", "told"),
    [
        (passed_group("peft:ROAD", group_size=7), "peft:ROAD.group_size", "2, 4, 8, 16"),
        (passed_group("peft:C3A", block_size=5), "peft:C3A.block_size", "1, 2, 4, 8, 16"),
        (passed_group("peft:GRALORA", gralora_k=3), "peft:GRALORA.gralora_k", "1, 2, 4, 8"),
        (passed_group("peft:VBLORA", vector_length=6), "peft:VBLORA.vector_length", "1, 2, 4"),
        (passed_group("peft:MISS", r=64), "peft:MISS", "must be less than or equal to"),
        (passed_group("peft:SHIRA", r=30), "peft:SHIRA", "more shira params than"),
        (passed_group("peft:GRALORA", r=5), "peft:GRALORA", "divisible"),
        (passed_group("peft:OSF", effective_rank=32), "peft:OSF", "no parameters"),
        (
            passed_group("peft:GLORA", config_A_B="none", config_C="none", config_D_E="none"),
            "peft:GLORA",
            "no parameters",
        ),
    ],
    ids=lambda value: value.method if isinstance(value, Group) else "",
)
def test_sizes_that_do_not_fit_are_told(
    group: Group, key: str, told: str, backbone: Backbone
) -> None:
    faults = counting.faults(Configuration.of([group], training=TRAINING), backbone.anatomy)
    assert {fault.key for fault in faults} == {key}
    assert told in str(faults[0])


def test_types_beside_each_other() -> None:
    backbone = tiny.tiny_backbone("gpt2", torch.float32)
    at = backbone.anatomy

    def told(*groups: Group) -> list[str]:
        configuration = Configuration.of(groups, training=TRAINING)
        return [fault.key for fault in counting.faults(configuration, at)]

    lora = Group.of("peft:LORA", [0], ["query", "key", "value"], r=2)
    vera = Group.of("peft:VERA", [0], ["query", "key", "value"], r=2)
    assert told(lora) == []
    assert told(Group.of("peft:LORA", [0], ["query"], r=2)) == ["peft:LORA.sites"]
    assert told(lora, vera) == ["peft:VERA"]
    bank = Group.of("peft:UNILORA", [0], ["up"], theta_d_length=8)
    other = Group.of("peft:UNILORA", [1], ["down"], theta_d_length=8)
    assert told(bank) == told(vera, Group.of("peft:VERA", [1], ["up"], r=2)) == []
    assert told(bank, other) == ["peft:UNILORA.sites"]
    assert "peft:HRA" not in registry.carried_by(at)  # no Conv1D
    assert "peft:LORA" in registry.carried_by(at)


def test_types_and_methods_of_ours_train_together_and_alone_in_their_pack(
    backbone: Backbone,
) -> None:
    groups = [
        passed_group("peft:LORA", (1, 2), r=2),
        passed_group("peft:VERA", (0,)),
        Group.of("lora", [1], ["query"], rank=2, alpha=4.0, dropout=0.0),
        Group.of(
            "serial_adapter", [2], ["ffn"], size=2, activation="relu", scale=1.0, dropout=0.0
        ),
    ]
    mixed = Configuration.of(groups, training=TRAINING)
    assert counting.faults(mixed, backbone.anatomy) == []
    pack = _pack(backbone, mixed)
    before = {item.name: item.parameter.detach().clone() for item in pack.stacked()}
    losses = _train(pack)
    assert losses[-1] < losses[0]
    for item in pack.stacked():
        assert not torch.equal(item.parameter, before[item.name]), item.name
    trained = sum(
        item.parameter.numel() for item in pack.stacked() if not item.name.startswith("head.")
    )
    assert counting.trainable_params(mixed, backbone.anatomy) == trained
    lanes = [Lane(0, mixed), Lane(1, passed("peft:LORA"))]
    with pytest.raises(BackboneError, match="1 lane where peft trains"):
        Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0))


def test_what_a_type_draws_is_the_same_again_and_when_recomputed(backbone: Backbone) -> None:
    configuration = passed("peft:LORA", lora_dropout=0.5)
    plain, again, recomputed = (
        _pack(backbone, configuration, checkpointing=checkpointing)
        for checkpointing in (False, False, True)
    )
    losses = _train(plain)
    torch.manual_seed(5)
    assert _train(again) == losses
    assert _train(recomputed) == pytest.approx(losses, rel=1e-6)
    assert _train(_pack(backbone, passed("peft:LORA"))) != losses


def test_a_type_is_the_trunk_below_its_first_layer(backbone: Backbone) -> None:
    batch = tiny.tiny_batch("bert")
    pack = _pack(backbone, passed("peft:FOURIERFT", layers=(2,)))
    bare = _pack(backbone, Configuration.of([], training=TRAINING))
    with pack.running():
        hidden = pack.trunk(batch, [2, 3], {})
    with bare.running():
        expected = bare.trunk(batch, [2, 3], {})
    assert all(torch.equal(hidden[layer], expected[layer]) for layer in (2, 3))
    assert not torch.allclose(_outputs(pack), _outputs(bare), atol=1e-4)


def _examples(rows: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(4, 64, n).astype(np.int32) for n in rng.integers(3, 10, rows)]
    return Examples(tuple(ids), rng.integers(0, 3, rows))


def test_the_loop_trains_types_beside_lanes_and_goes_on_from_their_states(
    backbone: Backbone, tmp_path: Path
) -> None:
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    data = TaskData(_examples(24, 0), _examples(9, 1), ("a", "b", "c"), "", ())
    settings = LoopSettings(
        task="sequence-classification", metrics=("accuracy", "loss"), total_steps=6, batch_size=8,
        micro_batch_size=8,
    )  # fmt: skip
    trainer = Trainer(backbone, data, settings, study_seed=3)
    own = Group.of("lora", [0], ["query"], rank=2, alpha=4.0, dropout=0.0)
    lanes = [
        Lane(0, passed("peft:VBLORA", vblora_dropout=0.2)),
        Lane(1, Configuration.of([own], training=TRAINING)),
        Lane(2, passed("peft:SHIRA")),
    ]
    whole = trainer.start(lanes)
    assert [len(pack.lanes) for pack in whole.packs] == [1, 1, 1]
    assert whole.train(6)
    values = whole.evaluate()
    assert set(values) == {0, 1, 2}
    assert not any(each.diverged for each in values.values())
    for lane in lanes:
        first = trainer.start([lane])
        first.train(3)
        path = tmp_path / f"{lane.number}.safetensors"
        first.states()[lane.number].save(path)
        rest = trainer.start([lane], states={lane.number: LaneState.load(path)})
        rest.train(6)
        wanted, found = whole.states()[lane.number], rest.states()[lane.number]
        assert set(wanted.tensors) == set(found.tensors)
        for name, tensor in wanted.tensors.items():
            assert torch.allclose(tensor, found.tensors[name], atol=1e-6), name
        assert rest.evaluate()[lane.number].values == pytest.approx(
            values[lane.number].values, rel=1e-5
        )
