"""ADAPTION_PROMPT, which wraps attention modules of decoders, held against plain `peft`."""

import json
import warnings
from pathlib import Path

import pytest
import tiny_backbones as tiny
import torch
from passed_cases import TRAINING, outputs_of, passed, passed_group, tensors_of
from passed_decoders import CLIP, DECAY, RATE, pack_of, task_model, train
from peft import AdaptionPromptConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from autopeft import counting
from autopeft.configuration import Configuration, Group
from autopeft.export.peft_weights import peft_adapter
from autopeft.methods import registry
from autopeft.methods.lane_operator import SILENT, Call
from autopeft.training.lanes.wiring import Placed

NAME = "peft:ADAPTION_PROMPT"
DECODERS = ("llama", "mistral", "gpt2")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_steps_are_those_of_plain_peft(architecture: str, checkpointing: bool) -> None:
    backbone = tiny.tiny_backbone(architecture)
    configuration = passed(NAME)
    assert counting.faults(configuration, backbone.anatomy) == []
    pack = pack_of(backbone, configuration, torch.float64, checkpointing=checkpointing)
    own = sum(i.parameter.numel() for i in pack.stacked() if not i.name.startswith("head."))
    assert own == counting.trainable_params(configuration, backbone.anatomy) == 2 * (3 * 32 + 1)
    assert own == counting.training_params(configuration, backbone.anatomy)

    start = tensors_of(pack)
    model = task_model(backbone, start, torch.float64)
    batch = tiny.tiny_batch(architecture)
    with torch.no_grad():
        bare = model(**batch.inputs).logits
    assert torch.allclose(outputs_of(pack, architecture), bare, rtol=0, atol=1e-12)  # gates at 0

    config = AdaptionPromptConfig(adapter_len=3, adapter_layers=2, task_type="SEQ_CLS")
    theirs = get_peft_model(model, config).double().eval()
    for name, parameter in theirs.named_parameters():
        *_, layer, _, tensor = name.split(".")
        if tensor.startswith("adaption_"):
            parameter.data.copy_(start[f"{NAME}.{layer}.{NAME}.{tensor}"])
    model.score.weight.requires_grad_()  # peft leaves the head alone
    trained = [p for p in theirs.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() > 1]
    gates = [p for p in trained if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": gates, "weight_decay": 0.0}],
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
    with torch.no_grad():
        logits = theirs(**batch.inputs).logits
    assert torch.allclose(outputs_of(pack, architecture), logits, rtol=0, atol=1e-9)
    assert losses[-1] < losses[0]
    assert not torch.allclose(logits, bare, atol=1e-3)
    moved = {n for n, t in tensors_of(pack).items() if not torch.equal(t, start[n])}
    assert moved == set(start)


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_trained_one_is_saved_continued_and_loaded_by_peft(
    architecture: str, tmp_path: Path
) -> None:
    backbone = tiny.tiny_backbone(architecture, torch.float32)
    pack = pack_of(backbone, passed(NAME), torch.float32)
    frozen = {n: t.clone() for n, t in backbone.model.state_dict().items()}
    train(pack, architecture, 4)
    assert all(torch.equal(t, frozen[n]) for n, t in backbone.model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in backbone.model.modules())
    trained, tensors = outputs_of(pack, architecture), tensors_of(pack)

    again = pack_of(backbone, passed(NAME), torch.float32, saved={0: tensors})
    own = again.lane_views(again.parameters_by_name(), 0)
    with torch.no_grad():
        own["head.0_weight"].copy_(tensors["head.0_weight"])
    assert torch.equal(outputs_of(again, architecture), trained)

    adapter = peft_adapter(passed(NAME), backbone, backbone.head(3), tensors)
    assert adapter.config["adapter_layers"] == 2
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.config))
    save_file(adapter.tensors, tmp_path / "adapter_model.safetensors")
    blank = dict(tensors, **{"head.0_weight": torch.zeros(32, 3)})
    model = task_model(backbone, blank, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(model, tmp_path).eval()
    with torch.no_grad():
        logits = theirs(**tiny.tiny_batch(architecture).inputs).logits
    assert torch.allclose(logits, trained, atol=1e-5)


def test_gains_scale_what_is_added() -> None:
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


def test_it_trains_beside_methods_at_the_same_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which see no prompts, and run once: `peft` computes queries again without them."""
    backbone = tiny.tiny_backbone("llama")
    groups = [
        passed_group(NAME),
        Group.of("lora", [1], ["query", "key"], rank=2, alpha=4.0, dropout=0.3),
        Group.of("prefix", [2], length=2, reparametrise=False),
        Group.of(
            "serial_adapter", [2], ["attention"], size=2, activation="relu", scale=1.0, dropout=0.0
        ),
    ]
    mixed = Configuration.of(groups, training=TRAINING)
    assert counting.faults(mixed, backbone.anatomy) == []
    pack = pack_of(backbone, mixed, torch.float64)
    before = tensors_of(pack)
    losses = train(pack, "llama", 6)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(tensor, before[n]) for n, tensor in tensors_of(pack).items())
    seen, delta = [], Placed.delta

    def told(self: Placed, x: Tensor, y: Tensor, call: Call) -> Tensor:
        seen.append((self.operator.name, x.shape[2]))
        return delta(self, x, y, call)

    monkeypatch.setattr(Placed, "delta", told)
    outputs_of(pack, "llama")
    names = ("lora.1.key", "lora.1.query", "serial_adapter.2.attention")
    assert sorted(seen) == [(name, 7) for name in names]


def test_a_backbone_in_bfloat16_is_trained_in_float32() -> None:
    wide, narrow = (tiny.tiny_backbone("llama", d) for d in (torch.float32, torch.bfloat16))
    ends = []
    for backbone in (wide, narrow):
        pack = pack_of(backbone, passed(NAME), torch.float32)
        assert all(item.parameter.dtype == torch.float32 for item in pack.stacked())
        losses = train(pack, "llama", 6)
        assert losses[-1] < losses[0]
        ends.append(losses[-1])
    assert ends[1] == pytest.approx(ends[0], abs=0.05)


def test_layers_are_the_last_ones_and_the_backbone_a_known_decoder() -> None:
    anatomy = tiny.tiny_backbone("llama").anatomy
    for layers in ([0], [0, 2], [0, 1]):
        group = Group.of(NAME, layers, adapter_len=3)
        (fault,) = counting.faults(Configuration.of([group], training=TRAINING), anatomy)
        assert fault.key == f"{NAME}.layers"
        assert "mode: last" in fault.hint
    carried = {a for a in tiny.ARCHITECTURES if not registry[NAME].carried_by(
        tiny.tiny_backbone(a).anatomy)}  # fmt: skip
    assert carried == set(DECODERS)
    assert "aligner" in registry[NAME].carried_by(tiny.tiny_backbone("bert").anatomy)
