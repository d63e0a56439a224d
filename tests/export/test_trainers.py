"""Exports to axolotl and LLaMA-Factory: what `peft` builds from their keys is what was found.

The reference is `peft` itself: its LoRA is built here as either tool's source builds it from a
file (axolotl 0.18.0, `loaders/adapter.py`; LLaMA-Factory 0.9.3, `model/adapter.py`).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_causal as tiny
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.heads import lm_recipe
from autopeft.backbone.loading import BackboneRequest
from autopeft.backbone.skeleton import config_anatomy
from autopeft.configuration import Configuration, Group
from autopeft.errors import ExportError
from autopeft.export.axolotl import axolotl_text
from autopeft.export.configuration_file import ConfigurationFile
from autopeft.export.llama_factory import ROWS, TRAIN, llama_factory_files
from autopeft.export.peft_config import peft_config
from autopeft.space.document import parse_yaml
from autopeft.study.blocks import ModelBlock, TrainingBlock
from autopeft.study.data_block import DataBlock

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TRAINED = {"learning_rate": 3e-4, "weight_decay": 0.01, "warmup_ratio": 0.1}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny.tiny_causal("llama")


@pytest.fixture(scope="module")
def anatomy(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    folder = tiny.save(model, tmp_path_factory.mktemp("llama"))
    return config_anatomy(BackboneRequest(str(folder), task="causal-lm"))


def lora(layers: list[int], sites: list[str], rank: int, **given: Any) -> Group:
    settings = {"alpha": 2.0 * rank, "dropout": 0.1, **given}
    return Group.of("lora", layers, sites, rank=rank, **settings)


def exported(*groups: Group, **blocks: dict[str, Any]) -> ConfigurationFile:
    """A file about these groups: prompts and completions on the hub, unless said otherwise."""
    data = {"source": "me/rows", "config": "en", "format": "prompt-completion", "max_length": 96}
    data |= {"splits": {"validation": "dev"}} | blocks.get("data", {})
    training = {"batch_size": 16, "micro_batch_size": 4, "lr_scheduler": "constant"}
    training |= {"precision": "bf16", "epochs": 2} | blocks.get("training", {})
    return ConfigurationFile(
        model=ModelBlock(
            **{"name_or_path": "me/llama", "revision": "v1", "task": "causal-lm"}
            | blocks.get("model", {})
        ),
        data=DataBlock.model_validate(data),
        training=TrainingBlock(**training),
        seed=7,
        configuration=Configuration.of(
            groups, training=TRAINED, sparsity={"rule": "none"} | blocks.get("sparsity", {})
        ),
    )


MIXED = (lora([0], ["query"], 4), lora([1], ["query", "down"], 2), lora([1], ["up"], 4, alpha=3.0))


def built(model: PreTrainedModel, config: LoraConfig) -> dict[tuple[int, str], tuple[int, float]]:
    """(layer, module) -> rank and scale of the LoRA that `peft` makes."""
    made = get_peft_model(tiny.tiny_causal("llama"), config)
    found = {}
    for name, module in made.named_modules():
        if isinstance(module, LoraLayer):
            layer, leaf = name.split(".layers.")[1].split(".")[0], name.rpartition(".")[2]
            found[int(layer), leaf] = (module.r["default"], module.scaling["default"])
    return found


def test_axolotl_builds_the_same_lora(model: PreTrainedModel, anatomy: Anatomy) -> None:
    file = exported(*MIXED)
    text = axolotl_text(file, file.configuration, anatomy)
    plain = parse_yaml(text, "axolotl.yaml")
    config = LoraConfig(
        r=plain["lora_r"],
        lora_alpha=plain["lora_alpha"],
        target_modules=plain["lora_target_modules"],
        lora_dropout=plain["lora_dropout"],
        rank_pattern=plain["lora_rank_pattern"],
        alpha_pattern=plain["lora_alpha_pattern"],
        task_type="CAUSAL_LM",
    )
    assert built(model, config) == {
        (0, "q_proj"): (4, 2.0),
        (1, "q_proj"): (2, 2.0),
        (1, "down_proj"): (2, 2.0),
        (1, "up_proj"): (4, 0.75),
    }
    assert text.startswith("# Found by autopeft, for axolotl 0.18.0 or newer:")
    rest = {key: value for key, value in plain.items() if not key.startswith("lora_")}
    rows = {"path": "me/rows", "name": "en"}
    kind = {
        "field_instruction": "prompt",
        "field_output": "completion",
        "format": "{instruction}",
        "no_input_format": "{instruction}",
    }
    assert rest == {
        "base_model": "me/llama",
        "revision_of_model": "v1",
        "adapter": "lora",
        "datasets": [{**rows, "split": "train", "type": kind}],
        "test_datasets": [{**rows, "split": "dev", "type": kind}],
        "sequence_len": 96,
        "train_on_inputs": False,
        "num_epochs": 2,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "optimizer": "adamw_torch",
        "learning_rate": 3e-4,
        "lr_scheduler": "constant_with_warmup",
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "bf16": True,
        "fp16": False,
        "tf32": False,
        "sample_packing": False,
        "gradient_checkpointing": False,
        "seed": 7,
        "output_dir": "adapter",
    }


def test_axolotl_fills_a_prompt_as_we_do(anatomy: Anatomy) -> None:
    prompt = "Q {{now}}: {question}\nA:"
    file = exported(lora([0], ["query"], 4), data={"prompt": prompt, "completion": "answer"})
    plain = parse_yaml(axolotl_text(file, file.configuration, anatomy), "axolotl.yaml")
    kind = plain["datasets"][0]["type"]
    assert (kind["field_instruction"], kind["field_output"]) == ("question", "answer")
    assert kind["format"].format(instruction="why?") == "Q {now}: why?\nA:"


def test_llama_factory_builds_the_same_lora(model: PreTrainedModel, anatomy: Anatomy) -> None:
    file = exported(
        lora([0], ["query", "value"], 4, dora=True),
        lora([1], ["up"], 4, dora=True),
        data={"format": "messages", "splits": {"validation": 0.2}},
        training={"max_steps": 50, "lr_scheduler": "cosine"},
    )
    files = llama_factory_files(file, file.configuration, anatomy)
    plain = parse_yaml(files[TRAIN], TRAIN)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=plain["lora_rank"],
        target_modules=[each.strip() for each in plain["lora_target"].split(",")],
        lora_alpha=plain["lora_alpha"],
        lora_dropout=plain["lora_dropout"],
        use_dora=plain["use_dora"],
    )
    places = [(0, "q_proj"), (0, "v_proj"), (1, "up_proj")]
    assert built(model, config) == dict.fromkeys(places, (4, 2.0))
    assert config.use_dora
    assert plain["dataset"] == "autopeft"
    assert "template" not in plain  # the tokenizer's own
    known = {"val_size": 0.2, "max_steps": 50, "lr_scheduler_type": "cosine", "cutoff_len": 96}
    assert plain | known == plain
    assert "num_train_epochs" not in plain
    assert json.loads(files[ROWS]) == {
        "autopeft": {
            "hf_hub_url": "me/rows",
            "subset": "en",
            "split": "train",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    }


def test_a_quantised_model_and_a_file_of_rows(anatomy: Anatomy, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    file = exported(
        lora([0], ["query"], 4),
        model={"quantization": "nf4", "revision": None},
        data={"source": str(rows), "config": None},
    )
    plain = parse_yaml(axolotl_text(file, file.configuration, anatomy), "axolotl.yaml")
    assert plain["adapter"] == "qlora"
    assert plain["load_in_4bit"] is True
    assert plain["datasets"][0] | {"path": str(rows), "ds_type": "json"} == plain["datasets"][0]
    files = llama_factory_files(file, file.configuration, anatomy)
    assert parse_yaml(files[TRAIN], TRAIN)["quantization_bit"] == 4
    assert parse_yaml(files[TRAIN], TRAIN)["template"] == "empty"
    tables = json.loads(files[ROWS])
    assert tables["autopeft"]["file_name"] == str(rows)
    assert tables["autopeft_validation"]["split"] == "dev"


def faults_of(file: ConfigurationFile, anatomy: Anatomy, tool: str) -> dict[str, str]:
    write = axolotl_text if tool == "axolotl" else llama_factory_files
    with pytest.raises(ExportError) as caught:
        write(file, file.configuration, anatomy)
    return {fault.key: str(fault) for fault in caught.value.faults}


@pytest.mark.parametrize("tool", ["axolotl", "llama-factory"])
def test_what_neither_can_carry_is_refused_at_once(anatomy: Anatomy, tool: str) -> None:
    adapter = Group.of("prefix", [0], length=4, reparametrise=False)
    many = exported(
        lora([0], ["query"], 4),
        adapter,
        data={"source": "builtin:docstrings", "limit": {"train": 100}},
        training={"micro_batch_size": 5},
        sparsity={"rule": "lisa", "layers": 2, "interval": 20},
    )
    assert set(faults_of(many, anatomy, tool)) == {
        "prefix",
        "sparsity.rule",
        "data.limit.train",
        "data.source",
        "training.micro_batch_size",
    }
    uneven = exported(lora([0], ["query"], 4), lora([1], ["query"], 4, dropout=0.0, alpha=2.5))
    assert {"lora.dropout", "lora.alpha"} <= set(faults_of(uneven, anatomy, tool))
    classes = exported(lora([0], ["query"], 4), model={"task": "sequence-classification"})
    classes = replace(classes, data=DataBlock(source="me/rows"))
    assert "causal-lm" in faults_of(classes, anatomy, tool)["model.task"]
    two = exported(lora([0], ["query"], 4), data={"prompt": "{a} {b}"})
    assert "one column" in faults_of(two, anatomy, "axolotl")["data.prompt"]


def test_options_of_our_training_are_refused(anatomy: Anatomy) -> None:
    file = exported(lora([0], ["query"], 4))
    training = {**dict(file.configuration.training), "ffn_dropping": 0.1, "density_weight": 1.0}
    optional = Configuration.of(file.configuration.groups, training=training)
    wanted = {f"training.{name}" for name in ("ffn_dropping", "density_weight")}
    for tool in ("axolotl", "llama-factory"):
        assert set(faults_of(replace(file, configuration=optional), anatomy, tool)) == wanted
    with pytest.raises(ExportError) as caught:
        peft_config(optional, anatomy, lm_recipe(), base_model="base")
    assert {fault.key for fault in caught.value.faults} == wanted


def test_llama_factory_has_one_rank_and_prompts_that_are_columns(anatomy: Anatomy) -> None:
    ranks = faults_of(exported(*MIXED), anatomy, "llama-factory")["lora.rank"]
    # Widths 64 of query, 80 of up and down: (4 * 64 + 2 * (64 + 80) + 4 * 80) / 288 = 3.
    assert "rank 3 everywhere comes nearest" in ranks
    text = exported(lora([0], ["query"], 4), data={"prompt": "Q: {question}"})
    assert "--format axolotl" in faults_of(text, anatomy, "llama-factory")["data.prompt"]
