"""`adapter_config.json` of every type, as `peft` writes it, read as today's configuration."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from passed_cases import SETTINGS
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from autopeft import counting
from autopeft.backbone.request import BackboneRequest
from autopeft.backbone.skeleton import Skeleton, skeleton
from autopeft.errors import InputError
from autopeft.export.foreign import baseline_of, read_foreign
from autopeft.methods import registry
from autopeft.methods.passed.build import UNREAD
from autopeft.methods.passed.parameters import arguments, config_class
from autopeft.searchers.baselines import baselines

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:Sparse invariant checks:UserWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
)

REST = {"weight_decay": 0.0, "warmup_ratio": 0.06}
TARGETS = {
    "llama": ["q_proj", "v_proj", "up_proj"],
    "bert": ["query", "value", "intermediate.dense"],
}
NORMS = {"llama": ["input_layernorm"], "bert": ["attention.output.LayerNorm"]}
OURS = {"IA3": "ia3", "BEFT": "bitfit", "LN_TUNING": "norm", "HIRA": "hira", "BOFT": "boft",
        "ROAD": "road", "WAVEFT": "waveft", "LORA": "lora"}  # fmt: skip
"""What has a method with lanes that trains the same by default."""
ON_DECODERS = ("ADAPTION_PROMPT", "SHADOW")
UNREAD_BY_THE_TASK = ("shadow_head", *(f"layers.2.{name}" for name in UNREAD))
"""What no gradient of the task's loss gets to: `test_passed_layers`."""
WHOLE_BLOCKS = ("BOFT",)
"""Types of whose matrices `peft` keeps both halves, each the other's negative."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Skeleton]:
    found = {}
    for name in ("llama", "bert"):
        folder = tmp_path_factory.mktemp(name)
        tiny.tiny_backbone(name, torch.float32).model.save_pretrained(folder)
        found[name] = skeleton(BackboneRequest(str(folder), task="sequence-classification"))
    return found


def _task_model(name: str) -> Any:
    config = copy.deepcopy(tiny.tiny_backbone(name, torch.float32).config)
    config.num_labels, config.pad_token_id = 3, 0
    return AutoModelForSequenceClassification.from_config(config)


def _plain(name: str, architecture: str, folder: Path, **given: Any) -> tuple[Any, int]:
    """What `peft` saves of a type by default, and the scalars that it trains without the head."""
    kind = registry[f"peft:{name}"].kind
    known = config_class(name).__dataclass_fields__
    settings = arguments(kind, SETTINGS.get(name, {})) | given
    if name == "PROMPT_TUNING":
        settings["prompt_tuning_init"] = "RANDOM"
    if kind.where == "linear":
        settings.setdefault("target_modules", TARGETS[architecture])
    if kind.where == "norm":
        settings.setdefault("target_modules", NORMS[architecture])
    if kind.where == "attention":
        settings["adapter_layers"] = 2
    if "feedforward_modules" in known:
        settings.setdefault("feedforward_modules", [])
    task = "FEATURE_EXTRACTION" if kind.where == "prefix" else "SEQ_CLS"
    config = config_class(name)(task_type=task, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(_task_model(architecture), config)
    trained = sum(
        parameter.numel()
        for key, parameter in model.named_parameters()
        if parameter.requires_grad and "classifier" not in key and "score" not in key
        and "ranknum" not in key and not any(each in key for each in UNREAD_BY_THE_TASK)
    )  # fmt: skip
    config = model.peft_config["default"]
    config.save_pretrained(folder)
    return config, trained


def _configuration(folder: Path, found: Skeleton) -> Any:
    foreign = read_foreign(folder / "adapter_config.json")
    plain = baseline_of(foreign, found)
    return foreign, next(iter(baselines([plain], found.anatomy, training=REST).values()))


@pytest.mark.parametrize("method", [n for n in registry.offered() if n != "peft:XLORA"])
def test_what_peft_saves_is_a_baseline_of_as_many_parameters(
    method: str, models: dict[str, Skeleton], tmp_path: Path
) -> None:
    name = method.removeprefix("peft:")
    architecture = "llama" if name in ON_DECODERS else "bert"
    config, trained = _plain(name, architecture, tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).peft_type == config.peft_type
    foreign, configuration = _configuration(tmp_path, models[architecture])
    assert foreign.kind == name
    assert configuration.methods == (OURS.get(name, method),)
    anatomy = models[architecture].anatomy
    if name not in WHOLE_BLOCKS:
        assert counting.training_params(configuration, anatomy) == trained
    if registry[method].kind.where == "linear":
        places = {
            (layer, site)
            for group in configuration.groups
            for layer in group.layers
            for site in group.sites
        }
        assert places == {(layer, s) for layer in range(3) for s in ("query", "value", "up")}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("HIRA", {"r": 4, "hira_dropout": 0.1}, ("hira", {"rank": 4, "dropout": 0.1})),
        ("HIRA", {"init_weights": False}, ("peft:HIRA", {"r": 32, "init_weights": False})),
        ("ROAD", {"variant": "road_4"}, ("road", {"variant": 4, "group_size": 8})),
        ("OFT", {"use_cayley_neumann": False}, ("oft", {"block_size": 8, "share": False})),
        ("OFT", {"coft": True}, ("peft:OFT", {"oft_block_size": 8, "coft": True})),
        ("WAVEFT", {"scaling": 5.0, "random_loc_seed": 3},
         ("waveft", {"coefficients": 20, "scale": 5.0, "places_seed": 3})),
        ("WAVEFT", {"wavelet_family": "db2"}, ("peft:WAVEFT", {"wavelet_family": "db2"})),
        ("BOFT", {"boft_block_size": 4}, ("boft", {"block_size": 4, "factors": 1})),
        ("LORA", {"init_lora_weights": "pissa", "r": 2},
         ("peft:LORA", {"r": 2, "init_lora_weights": "pissa"})),
        ("LORA", {"lora_bias": True}, ("peft:LORA", {"lora_bias": True})),
        ("VERA", {"r": 16, "d_initial": 0.5}, ("peft:VERA", {"r": 16, "d_initial": 0.5})),
    ],
)  # fmt: skip
def test_settings_decide_by_which_method(
    name: str, given: dict[str, Any], expected: tuple[str, dict[str, Any]],
    models: dict[str, Skeleton], tmp_path: Path,
) -> None:  # fmt: skip
    _plain(name, "bert", tmp_path, **given)
    _, configuration = _configuration(tmp_path, models["bert"])
    method, settings = expected
    assert configuration.methods == (method,)
    for group in configuration.groups:
        assert settings.items() <= dict(group.settings).items()


def test_norms_without_shifts_are_passed(models: dict[str, Skeleton], tmp_path: Path) -> None:
    _, trained = _plain("LN_TUNING", "llama", tmp_path)
    _, configuration = _configuration(tmp_path, models["llama"])
    assert configuration.methods == ("peft:LN_TUNING",)
    assert counting.trainable_params(configuration, models["llama"].anatomy) == trained == 3 * 32


def test_sizes_by_module_layers_and_inputs(models: dict[str, Skeleton], tmp_path: Path) -> None:
    given = {"r": 8, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {r"layers.1.mlp.up_proj": 5},
             "layers_to_transform": [0, 1]}  # fmt: skip
    _, trained = _plain("LOHA", "llama", tmp_path, **given)
    _, configuration = _configuration(tmp_path, models["llama"])
    assert counting.trainable_params(configuration, models["llama"].anatomy) == trained
    told = {(g.layers, g.sites, g["r"], g.get("alpha")) for g in configuration.groups}
    assert ((1,), ("up",), 2, 5) in told
    assert ((0,), ("up",), 2, None) in told
    assert {layer for group in configuration.groups for layer in group.layers} == {0, 1}

    both = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    _, trained = _plain("IA3", "llama", tmp_path, **both)
    _, configuration = _configuration(tmp_path, models["llama"])
    assert configuration.methods == ("ia3",)
    assert counting.trainable_params(configuration, models["llama"].anatomy) == trained
    _plain("IA3", "llama", tmp_path, **(both | {"feedforward_modules": ["k_proj"]}))
    with pytest.raises(InputError, match="feedforward_modules"):
        _configuration(tmp_path, models["llama"])


@pytest.mark.parametrize(
    ("name", "given", "key", "words"),
    [
        ("VERA", {"target_modules": ["nothing"]}, "target_modules", "modules that the model has"),
        ("VERA", {"target_modules": ["query", "word_embeddings"]}, "target_modules", "layers"),
        ("ADALORA", {"total_step": 900}, "total_step", "rule: adalora"),
        ("VERA", {"target_modules": None}, "target_modules", "modules that the model has"),
        ("VBLORA", {"save_only_topk_weights": True}, "save_only_topk_weights", "inference"),
        ("POLY", {"n_tasks": 3}, "n_tasks", "one task"),
        ("HIRA", {"rank_pattern": {"query": 2}}, "rank_pattern", "ignores"),
        ("C3A", {"block_size": 5}, "peft:C3A.block_size", "1, 2, 4, 8"),
        ("C3A", {"block_size": [5]}, "block_size", "int"),
        ("VERA", {"newest_key": 3}, "newest_key", "no such key"),
        ("PROMPT_TUNING", {"num_virtual_tokens": None}, "num_virtual_tokens", "int"),
        ("ADAPTION_PROMPT", {"adapter_len": 3, "adapter_layers": 9}, "adapter_layers", "1 to 3"),
        ("ADAPTION_PROMPT", {"adapter_len": 3, "adapter_layers": 2}, "peft_type", "aligner"),
        ("SHADOW", {}, "auxiliary_loss_weight", "by the task's loss"),
        ("SHADOW", {"auxiliary_loss_weight": 0.0}, "target_modules", "bert.encoder.layer.1"),
        ("SHADOW", {"auxiliary_loss_weight": 0.0, "target_modules": None}, "peft_type", "llama"),
        ("SHADOW", {"auxiliary_loss_weight": 0.0, "shadow_model": "me/small"}, "shadow_model",
         "read another model"),
        ("CPT", {}, "peft_type", "language modelling"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_over_is_told(
    name: str, given: dict[str, Any], key: str, words: str, models: dict[str, Skeleton],
    tmp_path: Path,
) -> None:  # fmt: skip
    plain = {"peft_type": name, "target_modules": ["query"], **SETTINGS.get(name, {}), **given}
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain))
    with pytest.raises(InputError) as caught:
        _configuration(tmp_path, models["bert"])
    assert key in {fault.key for fault in caught.value.faults}
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "layers"),
    [
        (["layers.1", "layers.2"], (1, 2)),
        (r".*\.layers\.[01]", (0, 1)),
        (None, (0, 1, 2)),
    ],
)
def test_layers_are_named_by_lists_and_expressions(
    wanted: Any, layers: tuple[int, ...], models: dict[str, Skeleton], tmp_path: Path
) -> None:
    given = {"target_modules": wanted, "r": 2, "shadow_alpha": 0.3}
    _plain("SHADOW", "llama", tmp_path, **given)
    _, configuration = _configuration(tmp_path, models["llama"])
    (group,) = configuration.groups
    assert group.layers == layers
    assert dict(group.settings) == {"r": 2, "shadow_alpha": 0.3, "shadow_dropout": 0.0}


def test_axolotls_llama_adapter(models: dict[str, Skeleton], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "base_model: me/llama\nadapter: llama-adapter\npeft_adapter: {len: 4, layers: 2}\n"
        "learning_rate: 0.009\nmicro_batch_size: 4\n"
    )
    foreign = read_foreign(path)
    assert foreign.kind == "ADAPTION_PROMPT"
    assert foreign.left == ()
    plain = baseline_of(foreign, models["llama"])
    assert plain == {
        "peft:ADAPTION_PROMPT": [{"layers": [1, 2], "adapter_len": 4}],
        "training": {"learning_rate": 0.009},
    }
    path.write_text("base_model: me/llama\nadapter: llama-adapter\npeft_adapter: {len: 4}\n")
    with pytest.raises(InputError, match="peft_adapter"):
        read_foreign(path)
