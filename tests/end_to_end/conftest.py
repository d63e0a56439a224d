"""A tiny real checkpoint and a tiny real data set on disk, and the command line as processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from grounds import Ground, Postgres, Sqlite
from stand_in_place import placed
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)
from warm_processes import WarmProcess

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _save(model: torch.nn.Module, folder: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=44,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    return _save(BertModel(config), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def deberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeBERTa-v2 of two layers: it calls its query map twice, so lanes cannot share a pass."""
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=44,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
    )
    return _save(DebertaV2Model(config), tmp_path_factory.mktemp("deberta"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=44,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    return _save(LlamaModel(config), tmp_path_factory.mktemp("llama"))


def write_data(folder: Path, *, pairs: bool = False, regression: bool = False) -> Path:
    """Three classes told apart by which words are frequent; or their number as a score."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", 96), ("validation", 48)):
        lines = ["text,text2,label" if pairs else "text,label"]
        for _ in range(rows):
            label = int(rng.integers(3))
            own = WORDS[label * 10 : label * 10 + 10]
            words = rng.choice([*own, *own, *WORDS], size=int(rng.integers(4, 9)))
            text = " ".join(words)
            shown = str(label + 0.5) if regression else f"class{label}"
            lines.append(f"{text},{text[:5]},{shown}" if pairs else f"{text},{shown}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_study(folder: Path, model: Path, data: Path, **blocks: Any) -> Path:
    """A study file over the model and data; blocks replace its own."""
    plain: dict[str, Any] = {
        "schema": "autopeft/v1",
        "study": {"name": "tiny", "seed": 1},
        "model": {"name_or_path": str(model)},
        "data": {"source": str(data), "text": "text", "label": "label", "max_length": 16},
        # Pinned, so that only the test of calibration spends time on it.
        "training": {
            "epochs": 4,
            "batch_size": 16,
            "learning_rate": 1.0e-3,
            "precision": "fp32",
        },
        "space": {
            "methods": {
                "lora": {
                    "rank": {"choice": [0, 1, 2, 4, 8]},
                    "sites": ["query", "value", "up"],
                    "layers": {"mode": "bits"},
                },
                "parallel_adapter": {"size": {"choice": [0, 2, 8]}, "layers": {"mode": "bits"}},
                "prefix": {"length": {"choice": [0, 2]}, "layers": {"mode": "bits"}},
            },
            "training": {"learning_rate": {"float": [1.0e-3, 2.0e-2], "log": True}},
        },
        "search": {"initial": 3, "pack": 4, "rungs": [1.0]},
        "budget": {"trials": 6},
        # Tests look into it; `test_runners` shows that runners of their own find the same.
        "execution": {"executor": "in-process"},
    }
    for name, block in blocks.items():
        plain[name] = plain.get(name, {}) | block if isinstance(block, dict) else block
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def environment() -> dict[str, str]:
    """Of every command."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(folder: Path, *arguments: str) -> WarmProcess:
    """The command line as a process of its own, in a folder."""
    return WarmProcess(folder, arguments, environment())


def start_fresh(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command line in an interpreter of its own, started as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "autopeft", *arguments],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run to the end; standard output."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out


@pytest.fixture(scope="session")
def cli() -> Callable[..., str]:
    """`run`."""
    return run


@pytest.fixture(scope="session")
def start_cli() -> Callable[..., WarmProcess]:
    """`start`."""
    return start


@pytest.fixture(scope="session")
def start_fresh_cli() -> Callable[..., subprocess.Popen[str]]:
    """`start_fresh`."""
    return start_fresh


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Path]:
    """`write_data`."""
    return write_data


@pytest.fixture(scope="session")
def make_study() -> Callable[..., Path]:
    """`write_study`."""
    return write_study


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """A place on each database."""
    if request.param == "sqlite":
        with placed(tmp_path) as place:
            yield Sqlite(place)
        return
    server, url = (request.getfixturevalue(n) for n in ("postgres_server", "postgresql_url"))
    with placed(tmp_path, url) as place:
        yield Postgres(place, server)
