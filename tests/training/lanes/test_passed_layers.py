"""SHADOW, whose state runs along through layers of decoders, held against plain `peft`."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from passed_cases import TRAINING, outputs_of, passed, passed_group, tensors_of
from passed_decoders import CLIP, DECAY, RATE, check_it_goes_on, pack_of, task_model, train
from peft import PeftModel, ShadowConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from autopeft import counting
from autopeft.configuration import NO_SPARSITY, Configuration, Group
from autopeft.errors import BackboneError, ExportError
from autopeft.export.peft_weights import peft_adapter, registered_adapter
from autopeft.methods import registry
from autopeft.methods.lane_operator import SILENT, Call
from autopeft.methods.passed.build import UNREAD
from autopeft.methods.passed.layers import KNOWN
from autopeft.training.batches import Batch

NAME, LAYERS = "peft:SHADOW", "base_model.model.model.layers"
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"update_hidden_size": 6, "shadow_num_hidden_layers": 2, "shadow_intermediate_size": 24},
    {"share_embeddings": False, "shadow_alpha": 0.5},
    {"shadow_hidden_size": 16, "init_weights": False},
)
"""Each parameter at another value."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
)


@pytest.mark.parametrize("architecture", KNOWN)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form) or "plain")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_steps_are_those_of_plain_peft(
    architecture: str, form: dict[str, Any], checkpointing: bool
) -> None:
    backbone = tiny.tiny_backbone(architecture)
    configuration = passed(NAME, **form)
    assert counting.faults(configuration, backbone.anatomy) == []
    pack = pack_of(backbone, configuration, torch.float64, checkpointing=checkpointing)
    own = sum(i.parameter.numel() for i in pack.stacked() if not i.name.startswith("head."))
    assert own == counting.trainable_params(configuration, backbone.anatomy)
    assert own == counting.training_params(configuration, backbone.anatomy)
    fixed = sum(tensor.numel() for tensor in pack.lane_fixed(0).values())
    assert fixed == sum(
        registry[NAME].fixed_count(group, place)
        for group, place in counting.placed_groups(configuration, backbone.anatomy)
    )

    start = tensors_of(pack)
    model = task_model(backbone, start, torch.float64)
    batch = tiny.tiny_batch(architecture)
    with torch.no_grad():
        bare = model(**batch.inputs).logits
    alike = torch.allclose(outputs_of(pack, architecture), bare, rtol=0, atol=1e-12)
    assert alike == form.get("init_weights", True)

    config = ShadowConfig(
        r=4, shadow_dropout=0.0, auxiliary_loss_weight=0.0, task_type="SEQ_CLS",
        target_modules=["model.layers.1", "model.layers.2"], **form,
    )  # fmt: skip
    theirs = get_peft_model(model, config).double().eval()
    plain = dict(theirs.named_parameters())
    for name, tensor in start.items():
        if not name.startswith("head."):
            layer, rest = name.removeprefix(f"{NAME}.").split(f".{NAME}.")
            inner = rest if rest.startswith("base_model.") else f"{LAYERS}.{layer}.{rest}"
            plain[inner].data.copy_(tensor)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    unread = {n for n in plain if any(f"layers.2.{each}" in n for each in UNREAD)}
    idle = {*unread, "base_model.shadow_head.default.weight"}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    losses = train(pack, architecture, 5)
    for loss in losses:
        optimizer.zero_grad()
        expected = nn.functional.cross_entropy(theirs(**batch.inputs).logits, batch.labels)
        assert loss == pytest.approx(float(expected.detach()), abs=1e-10)
        expected.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
    # What peft says it trains of the same is ours, and what gets no gradient.
    assert {n for n, p in plain.items() if p.requires_grad and p.grad is None} == idle
    told = sum(p.numel() for n, p in plain.items() if p.requires_grad and n not in idle)
    assert told == own + model.score.modules_to_save["default"].weight.numel()
    with torch.no_grad():
        logits = theirs(**batch.inputs).logits
    assert torch.allclose(outputs_of(pack, architecture), logits, rtol=0, atol=1e-9)
    assert losses[-1] < losses[0]
    assert not torch.allclose(logits, bare, atol=1e-3)
    moved = {n for n, t in tensors_of(pack).items() if not torch.equal(t, start[n])}
    assert moved == set(start) - set(pack.lane_fixed(0))


@pytest.mark.parametrize("architecture", KNOWN)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form) or "plain")
def test_a_trained_one_is_saved_continued_and_loaded_by_peft(
    architecture: str, form: dict[str, Any], tmp_path: Path
) -> None:
    backbone = tiny.tiny_backbone(architecture, torch.float32)
    pack = pack_of(backbone, passed(NAME, **form), torch.float32)
    frozen = {n: t.clone() for n, t in backbone.model.state_dict().items()}
    train(pack, architecture, 4)
    assert all(torch.equal(t, frozen[n]) for n, t in backbone.model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in backbone.model.modules())
    trained, tensors = outputs_of(pack, architecture), tensors_of(pack)

    again = pack_of(backbone, passed(NAME, **form), torch.float32, saved={0: tensors})
    own = again.lane_views(again.parameters_by_name(), 0)
    with torch.no_grad():
        own["head.0_weight"].copy_(tensors["head.0_weight"])
    assert torch.equal(outputs_of(again, architecture), trained)

    adapter = peft_adapter(passed(NAME, **form), backbone, backbone.head(3), tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.config))
    save_file(adapter.tensors, tmp_path / "adapter_model.safetensors")
    blank = dict(tensors, **{"head.0_weight": torch.zeros(32, 3)})
    model = task_model(backbone, blank, torch.float32)
    theirs = PeftModel.from_pretrained(model, tmp_path).eval()
    with torch.no_grad():
        logits = theirs(**tiny.tiny_batch(architecture).inputs).logits
    assert torch.allclose(logits, trained, atol=1e-5)


def test_gains_scale_what_is_injected() -> None:
    backbone = tiny.tiny_backbone("llama")
    pack = pack_of(backbone, passed(NAME), torch.float64)
    train(pack, "llama", 3)
    bare = pack_of(backbone, Configuration.of([], training=TRAINING), torch.float64)
    with torch.no_grad():
        bare.head.get_parameter("0_weight").copy_(pack.head.get_parameter("0_weight"))
    batch = tiny.tiny_batch("llama")

    def out(gain: float) -> Tensor:
        gains = torch.full((1, 3), gain, dtype=torch.float64)
        with torch.no_grad(), pack.running():
            logits: Tensor = pack(batch, Call(False, SILENT.uniform, gains=gains))[0]
        return logits

    assert torch.allclose(out(1.0), outputs_of(pack, "llama"), rtol=0, atol=1e-12)
    assert torch.allclose(out(0.0), outputs_of(bare, "llama"), rtol=0, atol=1e-12)
    assert not torch.allclose(out(0.5), out(1.0), atol=1e-4)


def test_dropout_is_drawn_again_alike_and_where_it_is_recomputed() -> None:
    backbone, given = tiny.tiny_backbone("llama"), {"shadow_dropout": 0.5, "init_weights": False}
    packs = [
        pack_of(backbone, passed(NAME, **given), torch.float64, checkpointing=checkpointing)
        for checkpointing in (False, False, True)
    ]
    losses = train(packs[0], "llama", 4)
    torch.manual_seed(5)
    assert train(packs[1], "llama", 4) == losses
    assert train(packs[2], "llama", 4) == pytest.approx(losses, abs=1e-12)
    still = pack_of(backbone, passed(NAME, init_weights=False), torch.float64)
    assert train(still, "llama", 4) != pytest.approx(losses, abs=1e-4)
    assert torch.equal(outputs_of(packs[0], "llama"), outputs_of(packs[0], "llama"))


def test_what_the_trunk_gave_before_may_be_handed_in() -> None:
    backbone, batch = tiny.tiny_backbone("llama"), tiny.tiny_batch("llama")
    pack = pack_of(backbone, passed(NAME), torch.float64)
    train(pack, "llama", 3)
    bare = pack_of(backbone, Configuration.of([], training=TRAINING), torch.float64)
    with pack.running():
        known = pack.trunk(batch, [1, 3], {})
    with bare.running():
        expected = bare.trunk(batch, [1, 3], {})
    assert all(torch.equal(known[layer], expected[layer]) for layer in (1, 3))
    with torch.no_grad(), pack.running():
        found = pack(batch, SILENT, {1: known[1]})[0]
    assert torch.equal(found, outputs_of(pack, "llama"))


def test_a_row_is_the_same_by_itself() -> None:
    backbone, batch = tiny.tiny_backbone("llama"), tiny.tiny_batch("llama")
    pack = pack_of(backbone, passed(NAME), torch.float64)
    train(pack, "llama", 3)
    together = outputs_of(pack, "llama")
    for row in range(len(batch)):
        tokens = int(batch.mask[row].sum())
        inputs = {name: each[row : row + 1, :tokens] for name, each in batch.inputs.items()}
        one = Batch(inputs, batch.mask[row : row + 1, :tokens], batch.labels[row : row + 1])
        found = outputs_of(pack, one)
        assert torch.allclose(found, together[row : row + 1], rtol=0, atol=1e-12)


def test_a_backbone_in_bfloat16_is_trained_in_float32() -> None:
    wide, narrow = (tiny.tiny_backbone("llama", d) for d in (torch.float32, torch.bfloat16))
    for form in FORMS:
        ends = []
        for backbone in (wide, narrow):
            pack = pack_of(backbone, passed(NAME, **form), torch.float32)
            assert all(item.parameter.dtype == torch.float32 for item in pack.stacked())
            losses = train(pack, "llama", 6)
            assert losses[-1] < losses[0]
            ends.append(losses[-1])
        assert ends[1] == pytest.approx(ends[0], abs=0.05), form


@pytest.mark.parametrize(
    ("layers", "given", "key", "told"),
    [
        ([0, 2], {}, "layers", "one behind the other"),
        ([0], {"update_hidden_size": 0}, "update_hidden_size", "1 and above"),
        ([0], {"shadow_num_hidden_layers": 0}, "shadow_num_hidden_layers", "1 and above"),
        ([0], {"shadow_intermediate_size": 0}, "shadow_intermediate_size", "1 and above"),
        ([0], {"shadow_hidden_size": 0}, "shadow_hidden_size", "1 and above"),
        ([0], {"shadow_hidden_size": 12}, "shadow_hidden_size", "multiples of 8"),
    ],
)
def test_layers_and_sizes_that_do_not_fit_are_told(
    layers: list[int], given: dict[str, Any], key: str, told: str
) -> None:
    anatomy = tiny.tiny_backbone("qwen2").anatomy
    group = Group.of(NAME, layers, r=4, **given)
    (fault,) = counting.faults(Configuration.of([group], training=TRAINING), anatomy)
    assert fault.key == f"{NAME}.{key}"
    assert told in fault.allowed
    other = Group.of(NAME, layers, r=4, shadow_hidden_size=12)
    llama = tiny.tiny_backbone("llama").anatomy  # whose heads keep their width
    if key == "shadow_hidden_size" and given[key]:
        assert counting.faults(Configuration.of([other], training=TRAINING), llama) == []


def test_it_has_the_model_to_itself() -> None:
    backbone = tiny.tiny_backbone("llama")
    lora = Group.of("lora", [1], ["query"], rank=2, alpha=4.0, dropout=0.0)
    for groups, sparsity, key, told in (
        ([passed_group(NAME), lora], NO_SPARSITY, NAME, "beside lora"),
        ([Group.of(NAME, [0], r=4), Group.of(NAME, [1], r=2)], NO_SPARSITY, NAME, "2 groups"),
        ([passed_group(NAME)], {"rule": "rst", "keep": 0.5}, "sparsity.rule", "rst"),
    ):
        configuration = Configuration.of(groups, training=TRAINING, sparsity=sparsity)
        (fault,) = counting.faults(configuration, backbone.anatomy)
        assert fault.key == key
        assert told in fault.given
        assert "runs along" in fault.allowed
    with pytest.raises(BackboneError, match="whole model to itself"):
        pack_of(backbone, passed(NAME), torch.float64).serve(lambda: True, lambda: False)
    tensors = tensors_of(pack_of(backbone, passed(NAME), torch.float64))
    with pytest.raises(ExportError, match="runs along"):
        registered_adapter(passed(NAME), backbone.head(3), tensors, base_model="me/base")


def test_it_is_carried_by_decoders_whose_likeness_is_read_whole() -> None:
    """Beside a GPT-2's layers, `peft` leaves a table of tokens in the network that nothing reads.

    It is trained as little as the table of what peft calls a mirror of a ModernBERT.
    """
    carried = {a for a in tiny.ARCHITECTURES if not registry[NAME].carried_by(
        tiny.tiny_backbone(a).anatomy)}  # fmt: skip
    assert carried == set(KNOWN)
    for architecture, table in (("gpt2", "wte"), ("modernbert", "embeddings.tok_embeddings")):
        backbone = tiny.tiny_backbone(architecture)
        config = copy.deepcopy(backbone.config)
        config.num_labels, config.pad_token_id = 3, 0
        model = AutoModelForSequenceClassification.from_config(config).double()
        theirs = get_peft_model(model, ShadowConfig(task_type="SEQ_CLS"))
        batch = tiny.tiny_batch(architecture)
        theirs(**batch.inputs, labels=batch.labels).loss.backward()
        parameter = theirs.get_parameter(f"base_model.shadow_backbone.default.{table}.weight")
        assert parameter.requires_grad
        assert parameter.grad is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loop_goes_on_from_its_state(precision: str, tmp_path: Path) -> None:
    backbone = tiny.tiny_backbone("llama", torch.float32)
    check_it_goes_on(backbone, passed(NAME, shadow_dropout=0.2), precision, tmp_path)
