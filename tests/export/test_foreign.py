"""Today's configuration from other tools' files, against the LoRA that `peft` makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_causal as tiny
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from autopeft import counting
from autopeft.backbone.loading import BackboneRequest
from autopeft.backbone.skeleton import Skeleton, skeleton
from autopeft.errors import InputError
from autopeft.export.foreign import baseline_of, read_foreign
from autopeft.searchers.baselines import baselines

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

REST = {"weight_decay": 0.0, "warmup_ratio": 0.06}
ROLES = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
ROLES |= {"up_proj": "up", "gate_proj": "gate", "down_proj": "down"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    folder = tiny.save(tiny.tiny_causal("llama"), tmp_path_factory.mktemp("llama"))
    return skeleton(BackboneRequest(str(folder), task="causal-lm"))


def written(folder: Path, plain: dict[str, Any]) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(plain))
    return path


Places = dict[tuple[int, str], tuple[int, float]]


def by_peft(config: LoraConfig) -> Places:
    """(layer, role) -> rank and alpha of what `peft` builds."""
    found = {}
    for name, module in get_peft_model(tiny.tiny_causal("llama"), config).named_modules():
        if isinstance(module, LoraLayer):
            layer, leaf = name.split(".layers.")[1].split(".")[0], name.rpartition(".")[2]
            rank = module.r["default"]
            root = rank**0.5 if config.use_rslora else rank
            found[int(layer), ROLES[leaf]] = (rank, module.scaling["default"] * root)
    return found


def by_us(plain: dict[str, Any], found: Skeleton) -> Places:
    configurations = baselines([plain], found.anatomy, training=REST)
    configuration = next(iter(configurations.values()))
    return {
        (layer, role): (int(group["rank"]), float(group["alpha"]))
        for group in configuration.groups
        for layer in group.layers
        for role in group.sites
    }


@pytest.mark.parametrize(
    "given",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "r": 4, "lora_alpha": 8},
        {"target_modules": r"model\.layers\.1\..*(up|down)_proj"},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
        {"target_modules": ["layers.0.self_attn.q_proj", "layers.1.mlp.up_proj"]},
        {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "down_proj": 3},
            "alpha_pattern": {"down_proj": 12},
            "use_rslora": True,
        },
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.0.self_attn.k_proj"]},
    ],
)
def test_the_same_modules_ranks_and_scales(
    given: dict[str, Any], llama: Skeleton, tmp_path: Path
) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **given)
    saved = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    saved |= {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "me/llama"}
    foreign = read_foreign(written(tmp_path, saved))
    assert foreign.model == "me/llama"
    plain = baseline_of(foreign, llama)
    assert by_us(plain, llama) == by_peft(config)
    assert {each["dropout"] for each in plain["lora"]} == {0.1}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # of Conv1D
@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "mlp.c_fc"]])
def test_one_lora_of_a_fused_map_is_peft_s_own(targets: list[str], tmp_path: Path) -> None:
    """GPT-2's query, key and value are one map, which no LoRA of ours has to itself."""
    folder = tiny.save(tiny.tiny_causal("gpt2"), tmp_path / "gpt2")
    found = skeleton(BackboneRequest(str(folder), task="causal-lm"))
    config = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=targets)
    saved = json.loads(json.dumps(config.to_dict(), default=sorted)) | {"peft_type": "LORA"}
    plain = baseline_of(read_foreign(written(tmp_path, saved)), found)
    assert list(plain) == ["peft:LORA"]
    groups = next(iter(baselines([plain], found.anatomy, training=REST).values())).groups
    places = {(layer, site) for group in groups for layer in group.layers for site in group.sites}
    sites = ["query", "key", "value"] + ["up"] * (len(targets) - 1)
    layers = range(len(found.anatomy.layers))
    assert places == {(layer, site) for layer in layers for site in sites}
    assert {(group["r"], group["lora_alpha"]) for group in groups} == {(3, 6)}
    theirs = get_peft_model(tiny.tiny_causal("gpt2"), config)
    configuration = next(iter(baselines([plain], found.anatomy, training=REST).values()))
    ours = counting.trainable_params(configuration, found.anatomy)
    assert ours == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


def test_axolotls_file_gives_its_training_too(llama: Skeleton, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "base_model: me/llama\nadapter: qlora\nload_in_4bit: true\nlora_r: 4\nlora_alpha: 16\n"
        "lora_dropout: 0.05\nlora_target_linear: true\nmicro_batch_size: 2\nnum_epochs: 3\n"
        "gradient_accumulation_steps: 8\nlearning_rate: 0.0002\nlr_scheduler: cosine\n"
        "wandb_project: mine\ndatasets:\n  - {path: me/rows, type: alpaca}\n"
    )
    foreign = read_foreign(path)
    assert (foreign.model, foreign.data) == ("me/llama", "me/rows")
    assert foreign.training == {
        "learning_rate": 2e-4,
        "epochs": 3,
        "lr_scheduler": "cosine",
        "batch_size": 16,
    }
    assert set(foreign.left) == {"load_in_4bit", "wandb_project", "datasets"}
    plain = baseline_of(foreign, llama)
    assert by_us(plain, llama) == dict.fromkeys(
        [(layer, role) for layer in (0, 1) for role in ROLES.values()], (4, 16.0)
    )
    found = baselines([plain, "lora-r8"], llama.anatomy, training=REST)
    assert next(iter(found)) == "own lr=0.0002"  # one run, at its own rate
    assert len(found) == 1 + 3


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"peft_type": "CPT"}, "peft_type", "language modelling"),
        ({"peft_type": "NEWEST"}, "peft_type", "by hand"),
        ({"bias": "all"}, "bias", "none"),
        ({"init_lora_weights": "eva"}, "init_lora_weights", "batches"),
        ({"layer_replication": [[0, 2]]}, "layer_replication", "no such key"),
        ({"target_modules": ["lm_head"]}, "target_modules", "the linear maps"),
        ({"target_modules": ["nothing"]}, "target_modules", "model has (autopeft sites MODEL)"),
        ({"target_modules": ["q_proj", "qeury_proj"]}, "target_modules", "sits on"),
        ({"rank_pattern": {"v_proj": 2}}, "rank_pattern", "sits on"),
        ({"alpha_pattern": {"q_proj": 2, "k": 2}}, "alpha_pattern", "sits on"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save", "head"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save", "head"),
        ({"r": "four"}, "r", "a number"),
    ],
)
def test_what_cannot_be_taken_over_is_a_fault(
    given: dict[str, Any], key: str, words: str, llama: Skeleton, tmp_path: Path
) -> None:
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    with pytest.raises(InputError) as caught:
        baseline_of(read_foreign(written(tmp_path, plain | given)), llama)
    assert key in [fault.key for fault in caught.value.faults]
    assert words in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        read_foreign(tmp_path / "adapter_config.json")
    (tmp_path / "full.yaml").write_text("base_model: me/llama\nrelora: true\nlr_scheduler: rex\n")
    with pytest.raises(InputError) as caught:
        read_foreign(tmp_path / "full.yaml")
    assert [fault.key for fault in caught.value.faults] == ["adapter", "relora", "lr_scheduler"]


def test_faults_of_a_written_out_baseline_name_its_place(llama: Skeleton) -> None:
    plain = {"lora": [{"layers": [7], "sites": ["query"], "rank": 4}]}
    with pytest.raises(InputError) as caught:
        baselines(["lora-r8", plain], llama.anatomy, training=REST)
    (fault,) = caught.value.faults
    assert fault.key.startswith("search.baselines.1.lora.0")
