"""A trained adapter, loaded: it answers as `peft` and transformers do, or predicts, not both."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stories
import tiny_causal as tiny
import torch
from importance_maps import with_importance
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import autopeft
from autopeft.backbone.loading import BackboneRequest, load_backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError, InputError
from autopeft.export.adapter import Adapter, save_adapter
from autopeft.export.configuration_file import ConfigurationFile
from autopeft.study.blocks import ModelBlock, TrainingBlock
from autopeft.study.data_block import DataBlock
from autopeft.training.data.prompts import answer_ends
from autopeft.training.data.request import DataRequest
from autopeft.training.generation import generate
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.setup import backbone_request

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
PROMPTS = ["w5 w9 w12", "w40", "w8 w8 w21 w33 w50 w61"]
LORA = Group.of("lora", [0, 1], ["query", "down"], rank=3, alpha=6.0, dropout=0.0)
PREFIX = Group.of("prefix", [1], length=3, reparametrise=False)
ADAPTER = Group.of(
    "serial_adapter", [0], ["ffn"], size=4, activation="relu", scale=1.0, dropout=0.0
)
CHANNELS = Group.of(
    "sparse",
    [0, 1],
    ["value", "down"],
    density=0.2,
    granularity="input",
    score="gradient",
    smallest=False,
    noise=4,
)
WEIGHTS = Group.of(
    "sparse",
    [0, 1],
    ["query", "up"],
    density=0.05,
    granularity="weight",
    score="gradient",
    smallest=False,
)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:Sparse invariant checks:UserWarning",  # of peft's SHiRA
)

Trained = Callable[..., Path]


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """Writes an adapter folder for a saved backbone, with random or untouched weights."""

    def write(
        base: Path,
        groups: Sequence[Group],
        *,
        task: str,
        noise: float = 0.3,
        quantization: str = "none",
        **data: Any,
    ) -> Path:
        model = ModelBlock(name_or_path=str(base), task=task, quantization=quantization)
        backbone = load_backbone(backbone_request(model))
        backbone = replace(backbone, anatomy=with_importance(backbone.anatomy, block=8))
        configuration = Configuration.of(list(groups), training=TRAINING)
        outputs = 1 if task == "causal-lm" else 2
        recipe = backbone.recipe(outputs)
        pack = Pack(backbone, recipe, [Lane(0, configuration)], seeds=Seeds(0))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in pack.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
        block = {"source": "rows.jsonl"} | data
        if task == "causal-lm":
            block = {"format": "prompt-completion"} | block
        file = ConfigurationFile(
            model, DataBlock(**block), TrainingBlock(), 0, configuration, backbone.fingerprint
        )
        metrics = {"validation": {"loss": 1.0}, "trainable_params": 7, "head_params": 0}
        adapter = Adapter(
            file,
            pack.lane_views(pack.parameters_by_name(), 0) | pack.lane_fixed(0),
            () if task == "causal-lm" else ("no", "yes"),
            {**metrics, "optimizer_steps": 3},
        )
        save_adapter(adapter, tmp_path / "adapter", backbone, recipe)
        return tmp_path / "adapter"

    return write


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny.save(tiny.tiny_causal("llama", torch.float32), tmp_path / "llama")


def answers_of_peft(base: Path, adapter: Path, prompts: Sequence[str], most: int) -> list[str]:
    """What transformers' own generation says, one prompt at a time."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        out = model.generate(**inputs, max_new_tokens=most, do_sample=False)
        before, whole = (
            tokenizer.decode(ids, skip_special_tokens=True)
            for ids in (inputs["input_ids"][0], out[0])
        )
        found.append(whole[len(before) :])
    return found


def test_answers_are_those_of_peft(llama: Path, trained: Trained) -> None:
    folder = trained(llama, [LORA], task="causal-lm")
    answers = autopeft.load(folder, device="cpu").generate(PROMPTS, max_new_tokens=12)
    assert answers == answers_of_peft(llama, folder, PROMPTS, 12)
    assert len(set(answers)) == 3
    card = (folder / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained(" in card
    assert 'model.generate(["a prompt"])' in card
    assert "num_labels" not in card


def test_sparse_weights_are_loaded_without_the_map_that_chose_them(
    llama: Path, trained: Trained
) -> None:
    folder = trained(llama, [CHANNELS, WEIGHTS], task="causal-lm")
    model = autopeft.load(folder, device="cpu")
    assert model._backbone.anatomy.importance is None
    answers = model.generate(PROMPTS, max_new_tokens=12)
    assert answers == answers_of_peft(llama, folder, PROMPTS, 12)
    untouched = trained(llama, [CHANNELS, WEIGHTS], task="causal-lm", noise=0.0)
    assert autopeft.load(untouched, device="cpu").generate(PROMPTS, max_new_tokens=12) != answers
    with safe_open(folder / "adapter.safetensors", framework="pt") as file:
        assert not any(name.endswith(".step") for name in file.keys())  # noqa: SIM118
        assert file.get_tensor("sparse.0.query.index").dtype == torch.int32


@pytest.mark.parametrize("groups", [[PREFIX, LORA], [ADAPTER], [LORA, CHANNELS, WEIGHTS]])
def test_prompts_do_not_change_each_others_answers(
    groups: list[Group], llama: Path, trained: Trained
) -> None:
    model = autopeft.load(trained(llama, groups, task="causal-lm"), device="cpu")
    together = model.generate(PROMPTS, max_new_tokens=6)
    assert together == [model.generate([p], max_new_tokens=6)[0] for p in PROMPTS]
    assert len(set(together)) == 3


def test_generation_stops_at_ends_and_limits(llama: Path) -> None:
    backbone = load_backbone(BackboneRequest(str(llama), task="causal-lm"))
    configuration = Configuration.of([LORA], training=TRAINING)
    pack = Pack(backbone, backbone.recipe(1), [Lane(0, configuration)], seeds=Seeds(0))
    prompts = [[5, 9, 12], [40], *([[7, 8]] * 20)]

    def run(ends: set[int], most: int, longest: int | None) -> list[list[int]]:
        assert backbone.lm_head is not None
        return generate(
            pack, backbone.lm_head, prompts, ends=ends, pad=0, most=most, longest=longest
        )

    whole = run(set(), 8, None)
    assert [len(answer) for answer in whole] == [8] * 22
    end = whole[0][3]
    expected = [answer[: answer.index(end)] if end in answer else answer for answer in whole]
    assert run({end}, 8, None) == expected
    assert expected[0] != whole[0]
    assert [len(answer) for answer in run(set(), 8, 6)] == [3, 5, *([4] * 20)]


def test_the_template_of_the_data_writes_rows_of_columns(llama: Path, trained: Trained) -> None:
    folder = trained(llama, [LORA], task="causal-lm", prompt="w5 {a} w9 {b}")
    model = autopeft.load(folder, device="cpu")
    row = {"a": "w11", "b": "w12", "more": "w13"}
    assert model.generate([row], 5) == model.generate(["w5 w11 w9 w12"], 5)
    with pytest.raises(InputError) as caught:
        model.generate([{"a": "w11"}, " ", "w3", [{"role": "user", "content": "w3"}]])
    assert [(fault.key, fault.given) for fault in caught.value.faults] == [
        ("prompts.0", "a row without b"),
        ("prompts.1", "an empty text"),
        ("prompts.3", "a chat, and the data's format is prompt-completion"),
    ]


def test_chats_are_written_by_the_models_template(llama: Path, trained: Trained) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w20 ' if m.role == 'user' else 'w21 ' }}{{ m.content }} "
        "{% endfor %}{% if add_generation_prompt %}w21{% endif %}"
    )
    tokenizer.save_pretrained(llama)
    folder = trained(llama, [LORA], task="causal-lm", format="messages")
    model = autopeft.load(folder, device="cpu")
    expected = answers_of_peft(llama, folder, ["w20 w5 w6 w21"], 5)
    assert model.generate(["w5 w6"], 5) == expected
    assert model.generate([[{"role": "user", "content": "w5 w6"}]], 5) == expected
    with pytest.raises(InputError, match="the data's format is messages"):
        model.generate([{"a": "w3"}])


def test_answers_of_chats_end_with_the_turn(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens(["<end>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    chat = DataRequest("rows.jsonl", format="messages", messages="messages")
    assert answer_ends(chat, tokenizer) == {2, 64}
    assert answer_ends(replace(chat, format="prompt-completion"), tokenizer) == {2}
    tokenizer.chat_template = tokenizer.chat_template.replace("<end>", " w9")
    assert answer_ends(chat, tokenizer) == {2}


def test_a_model_that_answers_predicts_no_labels(llama: Path, trained: Trained) -> None:
    model = autopeft.load(trained(llama, [LORA], task="causal-lm"), device="cpu")
    for call in (model.predict, model.logits):
        with pytest.raises(InputError, match=r"use \.generate\(prompts\)"):
            call(["w5"])
    with pytest.raises(InputError) as caught:
        model.generate("w5", 0)
    assert [fault.key for fault in caught.value.faults] == ["prompts", "max_new_tokens"]


def test_a_model_of_labels_does_not_answer(llama: Path, trained: Trained) -> None:
    folder = trained(llama, [LORA], task="sequence-classification")
    model = autopeft.load(folder, device="cpu")
    assert set(model.predict(["w5", "w6 w7"])) <= {"no", "yes"}
    with pytest.raises(InputError, match=r"use \.predict\(texts\)"):
        model.generate(["w5"])
    assert "AutoModelForSequenceClassification" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_adapter_of_a_quantised_backbone_finds_it_again(
    kind: str, llama: Path, trained: Trained
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = trained(llama, [LORA], task="causal-lm", quantization=kind)
    assert len(autopeft.load(folder, device="cpu").generate(PROMPTS, 3)) == 3
    file = folder / "autopeft.yaml"
    file.write_text(file.read_text().replace(f"quantization: {kind}", "quantization: none"))
    with pytest.raises(BackboneError, match="the one it was trained on"):
        autopeft.load(folder, device="cpu")


def test_an_untrained_adapter_tells_the_models_own_story(tmp_path: Path, trained: Trained) -> None:
    base = stories.save_stories(tmp_path / "stories")
    layers = replace(LORA, layers=(0, 4))
    folder = trained(base, [layers], task="causal-lm", noise=0.0)
    (answer,) = autopeft.load(folder, device="cpu").generate(["Once upon a time"])
    assert answer.startswith(", there was a little girl named Lily. She loved to play outside")


def test_an_adapter_of_moved_ranks_is_smaller_and_the_same(tmp_path: Path, llama: Path) -> None:
    """Zero triplets are dropped: every matrix has a rank of its own, in our form and in peft's."""
    model = ModelBlock(name_or_path=str(llama), task="causal-lm")
    backbone = load_backbone(backbone_request(model))
    rule = {"rule": "adalora", "target": 0.5}
    configuration = Configuration.of([LORA], training=TRAINING, sparsity=rule)
    recipe = backbone.recipe(1)
    pack = Pack(backbone, recipe, [Lane(0, configuration)], seeds=Seeds(0))
    weights = pack.lane_views(pack.parameters_by_name(), 0)
    generator = torch.Generator().manual_seed(3)
    gone = {"lora.0.query": [0], "lora.0.down": [0, 1, 2], "lora.1.query": [1, 2]}
    with torch.no_grad():
        for name, weight in sorted(weights.items()):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
            if name.endswith(".B"):
                weight[gone.get(name.removesuffix(".B"), [])] = 0.0
    block = DataBlock(source="rows.jsonl", format="prompt-completion")
    file = ConfigurationFile(model, block, TrainingBlock(), 0, configuration, backbone.fingerprint)
    facts = {"validation": {"loss": 1.0}, "trainable_params": 7, "head_params": 0}
    adapter = Adapter(file, weights, (), {**facts, "optimizer_steps": 3})
    folder = tmp_path / "adapter"
    assert save_adapter(adapter, folder, backbone, recipe) == ("autopeft", "peft")
    loaded = autopeft.load(folder, device="cpu")
    ranks = {name: t.shape[0] for name, t in loaded.adapter.weights.items() if name.endswith("B")}
    assert ranks == {"lora.0.query.B": 2, "lora.1.query.B": 1, "lora.1.down.B": 3}
    answers = loaded.generate(PROMPTS, max_new_tokens=12)
    assert answers == answers_of_peft(llama, folder, PROMPTS, 12)
    whole = generate(
        pack,
        backbone.lm_head,  # type: ignore[arg-type]
        [[5, 9, 12]],
        ends=frozenset(),
        pad=0,
        most=6,
        longest=None,
    )
    again = generate(
        loaded._pack,
        backbone.lm_head,  # type: ignore[arg-type]
        [[5, 9, 12]],
        ends=frozenset(),
        pad=0,
        most=6,
        longest=None,
    )
    assert whole == again
