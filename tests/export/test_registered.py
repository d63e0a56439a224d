"""Adapters of methods that `peft` lacks, through `PeftModel.from_pretrained`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from importance_maps import with_importance
from method_cases import configuration as case
from passed_cases import TRAINING, passed_group
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

import autopeft
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError, ExportError, InputError
from autopeft.export.adapter import folded_configuration, folded_weights
from autopeft.export.peft_groups import save_groups, split
from autopeft.export.peft_weights import registered_adapter
from autopeft.methods import registry
from autopeft.methods.lane_operator import SILENT
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    autopeft.register_with_peft()
    autopeft.register_with_peft()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Backbone, Path]]:
    found = {}
    for name in ("bert", "llama", "vit"):
        folder = tmp_path_factory.mktemp(name)
        backbone = tiny.tiny_backbone(name, torch.float32)
        backbone.model.save_pretrained(folder)
        found[name] = backbone, folder
    return found


def _trained(backbone: Backbone, configuration: Configuration) -> Pack:
    """A pack whose every tensor has moved from where it started."""
    lanes = [Lane(0, configuration)]
    pack = Pack(backbone, backbone.head(3), lanes, seeds=Seeds(7))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in pack.stacked():
            noise = torch.randn(item.parameter.shape, generator=generator)
            item.parameter.add_(noise, alpha=0.1)
    return pack


def _batch(architecture: str) -> Batch:
    batch = tiny.tiny_batch(architecture)
    return replace(batch, inputs={name: _narrow(given) for name, given in batch.inputs.items()})


def _narrow(given: Tensor) -> Tensor:
    return given.float() if given.is_floating_point() else given


def _logits(pack: Pack, architecture: str) -> Tensor:
    with torch.no_grad(), pack.running():
        logits: Tensor = pack(_batch(architecture), SILENT)[0]
    return logits


def _saved(pack: Pack, backbone: Backbone, folder: Path) -> None:
    configuration = pack.lanes[0].configuration
    tensors = pack.lane_views(pack.parameters_by_name(), 0) | pack.lane_fixed(0)
    folded = folded_weights(configuration, {n: t.detach().cpu() for n, t in tensors.items()})
    adapter = registered_adapter(
        folded_configuration(configuration), backbone.head(3), folded, base_model="tiny", seed=7
    )
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config))
    held = {name: tensor.clone().contiguous() for name, tensor in adapter.tensors.items()}
    save_file(held, folder / "adapter_model.safetensors")


def _loaded(base: Path, folder: Path, **options: Any) -> Any:
    torch.manual_seed(99)
    images = json.loads((base / "config.json").read_text())["model_type"] == "vit"
    kind: Any = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    model = kind.from_pretrained(base, num_labels=3, **options)
    return PeftModel.from_pretrained(model, folder).eval()


def test_tokens_that_peft_puts_before_the_text_are_not_written(
    bases: dict[str, tuple[Backbone, Path]],
) -> None:
    """They are an adapter of plain `peft`, which makes the model's arguments."""
    backbone, _ = bases["bert"]
    configuration = Configuration.of([passed_group("peft:P_TUNING")], training=TRAINING)
    with pytest.raises(ExportError, match="peft puts it before every text"):
        registered_adapter(configuration, backbone.head(3), {}, base_model="tiny")


@pytest.mark.parametrize("architecture", ["bert", "vit"])
@pytest.mark.parametrize("name", registry.names())
def test_a_method_of_ours_loads_through_peft(
    name: str, architecture: str, bases: dict[str, tuple[Backbone, Path]], tmp_path: Path
) -> None:
    """Images too, which come without a mask."""
    backbone, base = bases[architecture]
    measured = replace(backbone, anatomy=with_importance(backbone.anatomy))
    pack = _trained(measured, case(name, measured.anatomy))
    _saved(pack, backbone, tmp_path / "adapter")
    theirs = _loaded(base, tmp_path / "adapter")
    batch = _batch(architecture)
    with torch.no_grad():
        logits = theirs(**batch.inputs).logits
        with theirs.disable_adapter():
            bare = theirs(**batch.inputs).logits
    assert torch.allclose(logits, _logits(pack, architecture), atol=1e-5)
    assert not torch.allclose(logits, bare, atol=1e-5)
    theirs.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    again = _loaded(base, tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again(**batch.inputs).logits, logits)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_mixture_loads_in_one_call(
    architecture: str, bases: dict[str, tuple[Backbone, Path]], tmp_path: Path
) -> None:
    backbone, base = bases[architecture]
    groups = [
        Group.of("lora", [0], ["query", "value"], rank=2, alpha=4.0, dropout=0.0),
        Group.of("lora", [1, 2], ["value"], rank=4, alpha=4.0, dropout=0.1),
        Group.of(
            "serial_adapter", [2], ["ffn"], size=2, activation="relu", scale=1.0, dropout=0.0
        ),
        Group.of("prefix", [1], length=3, reparametrise=False),
        Group.of("prompt", [1], length=2, initial="random"),
        *case("dept", backbone.anatomy, 3, layers=[2], positions=5, rank=2).groups,
        passed_group("peft:VERA", (1,), r=4),
        Group.of("peft:LORA", [0, 2], ["up"], r=4, init_lora_weights="pissa_niter_1"),
        Group.of("peft:LORA", [1], ["up"], r=4, init_lora_weights="mica"),
        passed_group("peft:TRAINABLE_TOKENS"),
    ]
    pack = _trained(backbone, Configuration.of(groups, training=TRAINING))
    _saved(pack, backbone, tmp_path)
    options = {"pad_token_id": 0} if architecture == "llama" else {}
    theirs = _loaded(base, tmp_path, **options)
    with torch.no_grad():
        logits = theirs(**tiny.tiny_batch(architecture).inputs).logits
    assert torch.allclose(logits, _logits(pack, architecture), atol=1e-5)


@pytest.mark.parametrize("name", ["loretta_adp", "dept"])
def test_it_trains_on(name: str, bases: dict[str, tuple[Backbone, Path]], tmp_path: Path) -> None:
    backbone, base = bases["bert"]
    pack = _trained(backbone, case(name, backbone.anatomy))
    _saved(pack, backbone, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    theirs = PeftModel.from_pretrained(model, tmp_path, is_trainable=True).train()
    trained = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    assert any("autopeft_lane" in name for name in trained)
    assert all("autopeft_" in name or "classifier" in name for name in trained)
    batch = tiny.tiny_batch("bert")
    theirs(**batch.inputs, labels=batch.labels).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.*able.:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_transformers_would_run_again_are_refused(
    reentrant: bool, bases: dict[str, tuple[Backbone, Path]], tmp_path: Path
) -> None:
    """They would find no lane in the backward pass: nothing would train, or torch would fail."""
    backbone, base = bases["bert"]
    _saved(_trained(backbone, case("lora", backbone.anatomy)), backbone, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    theirs = PeftModel.from_pretrained(model, tmp_path, is_trainable=True).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    batch = tiny.tiny_batch("bert")
    with pytest.raises(BackboneError, match="gradient_checkpointing=False"):
        theirs(**batch.inputs)
    with torch.no_grad():
        theirs(**batch.inputs)
    theirs.eval()(**batch.inputs)
    model.gradient_checkpointing_disable()
    theirs.train()(**batch.inputs, labels=batch.labels).loss.backward()


def test_named_groups_load_in_one_call(
    bases: dict[str, tuple[Backbone, Path]], tmp_path: Path
) -> None:
    backbone, base = bases["bert"]
    groups = [
        Group.of("lora", [0], ["query"], rank=2, alpha=4.0, dropout=0.0),
        Group.of("lora", [2], ["value"], rank=4, alpha=4.0, dropout=0.1),
        Group.of("peft:IA3", [1], ["key", "value"]),
        Group.of("peft:VERA", [0, 1], ["up"], r=4),
        Group.of("peft:VERA", [2], ["up"], r=8),
        Group.of("peft:RANDLORA", [2], ["key"], r=4),
        Group.of("peft:LN_TUNING", [1], ["ffn_norm"]),
        Group.of("peft:LORA", [0], ["key"], r=4, init_lora_weights="olora"),
    ]
    configuration = Configuration.of(groups, training=TRAINING)
    pack = _trained(backbone, configuration)
    tensors = pack.lane_views(pack.parameters_by_name(), 0) | pack.lane_fixed(0)
    held = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    names = save_groups(configuration, backbone, backbone.head(3), held, tmp_path)
    assert set(names) == {
        "lora_0", "lora_1", "peft_IA3_0", "peft_LN_TUNING_0", "peft_LORA_0", "peft_RANDLORA_0",
        "peft_VERA_0", "peft_VERA_1",
    }  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    loaded = autopeft.load_adapter(model, tmp_path)
    assert loaded is model
    with torch.no_grad():
        logits = loaded(**tiny.tiny_batch("bert").inputs).logits
    assert torch.allclose(logits, _logits(pack, "bert"), atol=1e-5)


@pytest.mark.parametrize("where", ["", "groups/lora_0"])
def test_weights_that_are_pickles_are_refused(
    bases: dict[str, tuple[Backbone, Path]], tmp_path: Path, where: str
) -> None:
    """As `peft` itself would read them, where nothing else lies beside them."""
    backbone, base = bases["bert"]
    groups = [
        Group.of("lora", [0], ["query"], rank=2, alpha=4.0, dropout=0.0),
        Group.of("lora", [2], ["value"], rank=4, alpha=4.0, dropout=0.1),
    ]
    configuration = Configuration.of(groups, training=TRAINING)
    pack = _trained(backbone, configuration)
    held = {n: t.detach() for n, t in pack.lane_views(pack.parameters_by_name(), 0).items()}
    save_groups(configuration, backbone, backbone.head(3), held, tmp_path)
    group = tmp_path / "groups/lora_0"
    weights = group / "adapter_model.safetensors"
    torch.save(load_file(weights), group / "adapter_model.bin")
    weights.unlink()
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    folder = tmp_path if not where else tmp_path / where
    with pytest.raises(InputError, match=r"adapter_model\.bin, a pickle") as raised:
        autopeft.load_adapter(model, folder)
    assert "safetensors" in str(raised.value)


@pytest.mark.parametrize(
    ("group", "why"),
    [
        (Group.of("peft:VERA", [0], ["query"], r=4), "lora_0 and peft_VERA_0, both at "),
        (Group.of("peft:POLY", [1], ["query"], r=4), "an argument that the call"),
        (Group.of("prefix", [1], length=3, reparametrise=False), "from without"),
        (Group.of("svft", [1], ["query"], bands=1, pattern="plain"), "not carried by HF peft"),
    ],
    ids=lambda given: getattr(given, "method", ""),
)
def test_what_is_no_group_is_not_written_and_told(
    group: Group,
    why: str,
    bases: dict[str, tuple[Backbone, Path]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backbone = bases["bert"][0]
    lora = Group.of("lora", [0], ["query"], rank=2, alpha=4.0, dropout=0.0)
    both = Configuration.of([lora, group], training=TRAINING)
    found = split(both, backbone.anatomy)
    assert found.parts == {}
    (fault,) = found.faults
    assert why in fault.given
    with caplog.at_level("INFO", logger="autopeft.export.peft_groups"):
        assert save_groups(both, backbone, backbone.head(3), {}, tmp_path) == ()
    assert why in caplog.text
    assert not list(tmp_path.iterdir())


def test_what_becomes_lora_at_one_place_is_one_group(
    bases: dict[str, tuple[Backbone, Path]], tmp_path: Path
) -> None:
    """Of several methods, with a second group for DoRA and others beside them."""
    backbone, base = bases["bert"]
    anatomy = backbone.anatomy
    groups = [
        Group.of("lora", [0, 1], ["query"], rank=2, alpha=4.0, dropout=0.0),
        Group.of("lora", [2], ["query"], rank=2, alpha=4.0, dropout=0.0, dora=True),
        *case("kasa", anatomy, 2, layers=[0], sites=["query", "up"]).groups,
        *case("vera", anatomy, 3, layers=[1], sites=["query", "up"]).groups,
        *case("ia3", anatomy, layers=[0, 2], sites=["key", "value"]).groups,
        *case("hut", anatomy, 2, layers=[1], sites=["value"]).groups,
    ]
    configuration = Configuration.of(groups, training=TRAINING)
    pack = _trained(backbone, configuration)
    tensors = pack.lane_views(pack.parameters_by_name(), 0) | pack.lane_fixed(0)
    held = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    names = save_groups(configuration, backbone, backbone.head(3), held, tmp_path)
    assert sorted(names) == ["hut_0", "ia3_0", "lora_0", "lora_1"]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    loaded = autopeft.load_adapter(model, tmp_path)
    with torch.no_grad():
        logits = loaded(**_batch("bert").inputs).logits
    assert torch.allclose(logits, _logits(pack, "bert"), atol=1e-5)
