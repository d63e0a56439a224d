"""HF `peft`'s own types through the pass-through, each as `peft` has it."""

import copy
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from passed_cases import TRAINING, biased_bert, outputs_of, passed, passed_group, tensors_of
from peft import LilyConfig, PeftModel, get_peft_model, set_peft_model_state_dict
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
from autopeft.training.batches import Batch
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

DECODERS_ONLY = ("peft:ADAPTION_PROMPT", "peft:SHADOW", "peft:XLORA")
"""No BERT carries them: `test_passed_attention`, `test_passed_layers`, `test_passed_experts`."""


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


def _through_peft(backbone: Backbone, pack: Pack, base: Path, folder: Path) -> Tensor:
    """Logits of the saved adapter, loaded by `peft` on transformers' task class."""
    configuration = pack.lanes[0].configuration
    adapter = peft_adapter(configuration, backbone, backbone.head(3), tensors_of(pack))
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
        for tensor_name, tensor in folded_weights(configuration, tensors_of(pack)).items()
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

    trained = outputs_of(pack)
    one = tiny.tiny_batch("bert", rows=1)
    whole = tiny.tiny_batch("bert", rows=2)  # of which padding is a part
    first = {key: value[:1] for key, value in whole.inputs.items()}
    with torch.no_grad(), pack.running():
        by_itself = pack(Batch(first, whole.mask[:1], one.labels), SILENT)[0]
        together = pack(whole, SILENT)[0][:1]
    assert torch.allclose(by_itself, together, atol=1e-6) != registry[name].reads_batch
    stored = folded_weights(configuration, tensors_of(pack))
    again = _pack(backbone, folded_configuration(configuration), saved={0: stored})
    held = again.lane_views(again.parameters_by_name(), 0)
    with torch.no_grad():
        for tensor_name, tensor in held.items():
            tensor.copy_(stored[tensor_name])
    assert torch.allclose(outputs_of(again), trained, atol=1e-6)

    folder = tmp_path / name.removeprefix("peft:")
    theirs = _through_peft(backbone, pack, base, folder)
    assert torch.allclose(theirs, trained, atol=1e-5)
    assert not torch.allclose(theirs, outputs_of(_pack(backbone, configuration)), atol=1e-4)


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
    assert not torch.allclose(outputs_of(pack), outputs_of(bare), atol=1e-4)


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


def test_lily_shares_factors_among_layers_as_plain_peft_does(tmp_path: Path) -> None:
    """By full names it would share none: it groups modules by the name that it was told."""
    backbone = tiny.tiny_backbone("llama")
    r, copies, layers = 4, 2, (0, 1, 2)
    group = Group.of("peft:LILY", layers, ["query", "value", "up"], r=r, num_B=copies, stride_A=2)
    configuration = Configuration.of([group], training=TRAINING)
    assert counting.faults(configuration, backbone.anatomy) == []
    # q_proj is 32 x 32, v_proj 32 x 16, up_proj 32 x 48; A of layers 0 and 1 is one.
    expected = 3 * r * (32 * 2) + copies * r * (32 + 16 + 48) + 3 * 3 * r * copies
    assert counting.trainable_params(configuration, backbone.anatomy) == expected

    pack = Pack(backbone, backbone.head(3), [Lane(0, configuration)], seeds=Seeds(0),
                dtype=torch.float64)  # fmt: skip
    batch = tiny.tiny_batch("llama")
    tensors = tensors_of(pack)
    adapter = peft_adapter(configuration, backbone, backbone.head(3), tensors)
    config = copy.deepcopy(backbone.config)
    config.num_labels, config.pad_token_id = 3, 0
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    getattr(model, model.base_model_prefix).load_state_dict(backbone.model.state_dict())
    plain = LilyConfig(
        r=r, num_B=copies, stride_A=2, target_modules=["q_proj", "v_proj", "up_proj"],
        task_type="SEQ_CLS",
    )  # fmt: skip
    theirs = get_peft_model(model, plain).double().eval()
    own = [p for n, p in theirs.named_parameters() if "lily_" in n and p.requires_grad]
    assert sum(parameter.numel() for parameter in own) == expected
    set_peft_model_state_dict(theirs, adapter.tensors)
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    ours = LaneAdamW(
        pack.stacked(), 1, learning_rates=[1e-2], weight_decays=[0.0], max_grad_norm=1e9
    )
    for step in range(4):
        logits = theirs(**batch.inputs).logits
        draws = StepUniform(Seeds(0), step, 0, len(batch), torch.device("cpu"))
        with pack.running():
            found = pack(batch, Call(True, draws))[0]
            assert torch.allclose(found, logits, rtol=0, atol=1e-9)
            ours.zero_grad()
            nn.functional.cross_entropy(found, batch.labels).backward()
        ours.step(torch.ones(1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, batch.labels).backward()
        optimizer.step()

    adapter = peft_adapter(configuration, backbone, backbone.head(3), tensors_of(pack))
    assert adapter.config["layers_to_transform"] == [0, 1, 2]
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.config))
    save_file(adapter.tensors, tmp_path / "adapter_model.safetensors")
    again = AutoModelForSequenceClassification.from_config(config).double().eval()
    getattr(again, again.base_model_prefix).load_state_dict(backbone.model.state_dict())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(again, tmp_path).eval()
        assert torch.allclose(loaded(**batch.inputs).logits, theirs(**batch.inputs).logits,
                              atol=1e-6)  # fmt: skip


def test_lily_at_a_map_whose_name_others_end_with_is_told() -> None:
    anatomy = tiny.tiny_backbone("bert").anatomy
    group = Group.of("peft:LILY", [0, 1], ["query", "down"], r=4)
    (fault,) = counting.faults(Configuration.of([group], training=TRAINING), anatomy)
    assert fault.key == "peft:LILY.sites"
    assert "output.dense" in fault.given


def test_poly_at_maps_that_run_on_positions_too_is_told() -> None:
    """`peft` asks for a task of every row, which positions are none of."""
    anatomy = tiny.tiny_backbone("deberta-v2").anatomy
    for sites, keys in ((["query", "value"], ["peft:POLY.sites"]), (["value", "up"], [])):
        group = Group.of("peft:POLY", [0], sites, r=2)
        faults = counting.faults(Configuration.of([group], training=TRAINING), anatomy)
        assert [fault.key for fault in faults] == keys
