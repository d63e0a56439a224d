import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from autopeft.backbone.discovery import discover
from autopeft.backbone.fingerprint import fingerprint_of_files, fingerprint_of_model
from autopeft.backbone.loading import (
    Backbone,
    BackboneRequest,
    backbone_of,
    config_anatomy,
    load_backbone,
)
from autopeft.errors import BackboneError

Saver = Callable[..., Path]


def save_tokenizer(folder: Path, **special: str) -> None:
    words = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[END]", "a", "b", "c"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", **special
    ).save_pretrained(folder)


@pytest.fixture
def saved(tmp_path: Path, by_name: Any) -> Saver:
    """Saves a tiny model of the named architecture, and a tokenizer, in a folder."""

    def save(name: str = "bert", model: Any = None, **special: str) -> Path:
        folder = tmp_path / name
        made = by_name[name].base().float() if model is None else model
        transformers_logging.disable_progress_bar()
        made.save_pretrained(folder)
        transformers_logging.enable_progress_bar()
        save_tokenizer(folder, **(special or {"pad_token": "[PAD]"}))
        return folder

    return save


def load(folder: Path, **settings: Any) -> Backbone:
    return load_backbone(BackboneRequest(str(folder), **settings))


def fault(folder: Path | str, **settings: Any) -> str:
    with pytest.raises(BackboneError) as caught:
        load_backbone(BackboneRequest(str(folder), **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_backbone_is_frozen_and_quiet(saved: Saver, capfd: Any) -> None:
    folder = saved("bert")
    capfd.readouterr()
    transformers_logging.set_verbosity_warning()
    backbone = load(folder)
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == transformers_logging.WARNING
    assert transformers_logging.is_progress_bar_enabled()
    assert isinstance(backbone.model, transformers.BertModel)
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert backbone.config.use_cache is False
    assert backbone.name == str(folder)
    assert backbone.anatomy == discover(backbone.model, backbone.config)
    assert backbone.tokenizer(["a b"], return_tensors="pt")["input_ids"].tolist() == [[3, 4]]


def test_weights_are_those_of_the_file(saved: Saver, by_name: Any) -> None:
    expected = by_name["llama"].base().float().state_dict()
    state = load(saved("llama")).model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "pooled"), [("bert", True), ("roberta", False), ("vit", False), ("electra", False)]
)
def test_only_a_pooler_that_the_head_reads_is_loaded(
    name: str, pooled: bool, saved: Saver
) -> None:
    backbone = load(saved(name))
    assert backbone.pretrained_pooler == pooled
    assert any(key.startswith("pooler") for key in backbone.model.state_dict()) == pooled
    assert (backbone.head(2).pool == "pooler") == pooled
    assert (backbone.tokenizer is None) == (name == "vit")
    assert backbone.anatomy.n_params == sum(p.numel() for p in backbone.model.parameters())


def test_a_missing_pooler_becomes_part_of_the_head(saved: Saver, by_name: Any) -> None:
    config = by_name["bert"].config()
    folder = saved("bert", transformers.BertModel(config, add_pooling_layer=False))
    backbone = load(folder)
    assert not backbone.pretrained_pooler
    assert backbone.head(2).steps[0].name == "bert.pooler.dense"
    assert not any("pooler" in name for name in backbone.model.state_dict())
    out = backbone.model(torch.tensor([[3, 4]]))
    assert out.pooler_output is None


def test_a_task_checkpoint_gives_its_base_model(saved: Saver, by_name: Any) -> None:
    task = by_name["roberta"].task().float()
    state = load(saved("roberta", task)).model.state_dict()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, task.state_dict()[f"roberta.{name}"])


def test_t5_gives_its_encoder(saved: Saver, by_name: Any) -> None:
    full = transformers.T5ForConditionalGeneration(by_name["t5"].config())
    backbone = load(saved("t5", full))
    assert isinstance(backbone.model, transformers.T5EncoderModel)
    torch.testing.assert_close(
        backbone.model.encoder.block[1].layer[0].SelfAttention.q.weight,
        full.encoder.block[1].layer[0].SelfAttention.q.weight.detach(),
    )
    assert not backbone.anatomy.causal


def test_an_encoder_decoder_without_an_encoder_class_is_a_fault(saved: Saver) -> None:
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(vocab_size=64, d_model=16, **layers, **heads)
    folder = saved("bert", transformers.BartModel(config))
    assert "'bart' has no base model" in fault(folder)


def test_dtypes(saved: Saver, by_name: Any) -> None:
    half = saved("bert", by_name["bert"].base().half())
    assert load(half).model.dtype == torch.float32
    assert load(half, dtype="bfloat16").model.dtype == torch.bfloat16
    brain = saved("roberta", by_name["roberta"].base().bfloat16())
    assert load(brain).model.dtype == torch.bfloat16
    assert load(brain, dtype="float32").model.dtype == torch.float32


def test_attention_implementation(saved: Saver) -> None:
    folder = saved("bert")
    assert load(folder).config._attn_implementation == "sdpa"
    assert load(folder, attn_implementation="eager").config._attn_implementation == "eager"
    assert "cannot load" in fault(saved("deberta-v2"), attn_implementation="sdpa")


def test_the_fingerprint_is_of_the_weights_alone(saved: Saver, tmp_path: Path) -> None:
    folder = saved("bert")
    backbone = load(folder)
    sharded = tmp_path / "sharded"
    shutil.copytree(folder, sharded)
    (sharded / "model.safetensors").unlink()
    backbone.model.save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    assert load(sharded).fingerprint == backbone.fingerprint == load(folder).fingerprint
    file = folder / "model.safetensors"
    state = load_file(file)
    state["pooler.dense.bias"][0] += 1
    save_file(state, file, metadata={"format": "pt"})
    assert load(folder).fingerprint != backbone.fingerprint


def test_the_fingerprint_knows_names_and_shapes(tmp_path: Path) -> None:
    def of(**tensors: torch.Tensor) -> str:
        save_file(tensors, tmp_path / "weights")
        return fingerprint_of_files([tmp_path / "weights"])

    row = torch.arange(4.0)
    prints = {of(a=row), of(b=row), of(a=row.reshape(2, 2)), of(a=row.int()), of(a=row + 1)}
    assert len(prints) == 5
    save_file({"a": row}, tmp_path / "weights", metadata={"note": "other"})
    assert fingerprint_of_files([tmp_path / "weights"]) in prints


def test_a_model_in_memory_has_a_fingerprint_too(by_name: Any) -> None:
    model = by_name["llama"].base()
    first = fingerprint_of_model(model)
    assert fingerprint_of_model(by_name["llama"].base()) == first
    with torch.no_grad():
        model.norm.weight[0] += 1
    assert fingerprint_of_model(model) != first


def test_pickled_weights_need_leave(saved: Saver) -> None:
    folder = saved("bert")
    safe = load(folder).model.state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "no safetensors weights" in fault(folder)
    backbone = load(folder, allow_pickle=True)
    for name, tensor in backbone.model.state_dict().items():
        torch.testing.assert_close(tensor, safe[name], rtol=0, atol=0)
    (folder / "pytorch_model.bin").unlink()
    assert "no weights" in fault(folder, allow_pickle=True)


def test_missing_weights_are_a_fault_and_not_random(saved: Saver) -> None:
    folder = saved("bert")
    file = folder / "model.safetensors"
    state = load_file(file)
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, file, metadata={"format": "pt"})
    assert "lacks 1 weights (encoder.layer.1.output.dense.weight)" in fault(folder)


@pytest.mark.parametrize("cut", [0, 5, 200, -1])
def test_a_damaged_file_is_a_fault(cut: int, saved: Saver) -> None:
    folder = saved("bert")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    assert "damaged or cut short" in fault(folder)


def test_a_missing_shard_is_a_fault(saved: Saver) -> None:
    folder = saved("bert")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "without model-00001-of-00002.safetensors" in fault(folder)


def test_a_tokenizer_without_padding_pads_with_its_end_token(saved: Saver) -> None:
    backbone = load(saved("llama", eos_token="[END]", padding_side="left"))
    batch = backbone.tokenizer(["a", "a b c"], padding=True)
    assert batch["input_ids"] == [[3, 2, 2], [3, 4, 5]]
    assert batch["attention_mask"][0] == [1, 0, 0]


def test_a_configuration_without_padding_gets_the_tokenizers(saved: Saver) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = saved("llama", transformers.LlamaModel(config), eos_token="[END]")
    assert load(folder).config.pad_token_id == 2


def test_a_tokenizer_must_be_there_and_be_able_to_pad(saved: Saver, by_name: Any) -> None:
    folder = saved("bert", cls_token="[END]")
    assert "neither a padding nor an end token" in fault(folder)
    for file in folder.glob("*token*"):
        file.unlink()
    assert "has no tokenizer" in fault(folder)


def test_every_fault_of_a_request_is_reported() -> None:
    request = BackboneRequest("", dtype="float8", attn_implementation="fast", task="ranking")
    with pytest.raises(BackboneError) as caught:
        load_backbone(request)
    keys = ["dtype", "attn_implementation", "task", "name_or_path"]
    assert [fault.key for fault in caught.value.faults] == keys


def test_devices_that_are_not_there_are_faults(saved: Saver) -> None:
    folder = saved("bert")
    assert "allowed: cpu, cuda or mps" in fault(folder, device="abacus")
    if not torch.cuda.is_available():
        assert "got cuda; allowed: cpu" in fault(folder, device="cuda")
    assert "got meta" in fault(folder, device="meta")


def test_folders_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no folder" in fault(tmp_path / "absent")
    assert "no folder" in fault("./absent")
    assert "holds no config.json" in fault(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert "no folder" in fault("file.txt")


def test_a_broken_configuration_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(BackboneError, match="cannot load"):
        config_anatomy(BackboneRequest(str(tmp_path)))


def test_code_of_a_repository_never_runs(tmp_path: Path) -> None:
    """Neither for an unknown architecture, nor with a question that waits for an answer."""
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(BackboneError, match="cannot load"):
        config_anatomy(BackboneRequest(str(tmp_path)))


def test_an_unknown_model_type_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(BackboneError, match="nothing-known"):
        config_anatomy(BackboneRequest(str(tmp_path)))


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "vit", "gpt2", "deberta-v2"])
def test_the_anatomy_needs_the_configuration_alone(name: str, saved: Saver) -> None:
    folder = saved(name)
    loaded = load(folder)
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    assert config_anatomy(BackboneRequest(str(folder))) == loaded.anatomy


def test_the_anatomy_of_a_large_model_takes_no_memory(tmp_path: Path) -> None:
    transformers.LlamaConfig(num_key_value_heads=8).save_pretrained(tmp_path)
    anatomy = config_anatomy(BackboneRequest(str(tmp_path)))
    assert anatomy.n_params > 5e9
    assert anatomy.site(31, "key").out_features == 1024


def test_declared_sites_are_used(saved: Saver) -> None:
    request = BackboneRequest(str(saved("bert")), sites={"up": r".*intermediate\.dense"})
    assert load_backbone(request).anatomy.roles == ("up",)
    assert config_anatomy(request).roles == ("up",)


def test_a_model_in_memory_becomes_a_backbone(by_name: Any) -> None:
    model = by_name["bert"].base().train()
    backbone = backbone_of(model)
    assert backbone.model is model
    assert backbone.name == "bert"
    assert backbone.head(2).pool == "pooler"
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert backbone.fingerprint == fingerprint_of_model(model)
