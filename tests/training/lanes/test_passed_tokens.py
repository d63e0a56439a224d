"""Types of HF `peft` that stand below the layers, or before them, held against plain `peft`."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from passed_cases import TRAINING, outputs_of, passed, passed_group, tensors_of
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError, ExportError
from autopeft.export.peft_weights import peft_adapter
from autopeft.methods import registry
from autopeft.methods.lane_operator import Call
from autopeft.training.batches import Batch
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
    "ignore:Token type ids are not supported:UserWarning",
)

PROMPTS = ("peft:PROMPT_TUNING", "peft:P_TUNING", "peft:MULTITASK_PROMPT_TUNING")
PREFIXES = ("peft:PREFIX_TUNING", "peft:CARTRIDGE")
TOKENS = "peft:TRAINABLE_TOKENS"
RATE = 1e-2


def _pack(backbone: Backbone, configuration: Configuration, **settings: Any) -> Pack:
    lanes = [Lane(0, configuration)]
    return Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0), dtype=torch.float64, **settings)


def _batch(architecture: str) -> Batch:
    """Rows of several lengths; of BERT, of two types of tokens."""
    batch = tiny.tiny_batch(architecture)
    if architecture != "bert":
        return batch
    types = torch.zeros_like(batch.mask)
    types[:, 2:] = batch.mask[:, 2:]
    return Batch({**batch.inputs, "token_type_ids": types}, batch.mask, batch.labels)


def _train(pack: Pack, batch: Batch, steps: int = 1) -> list[float]:
    optimizer = LaneAdamW(
        pack.stacked(), 1, learning_rates=[RATE], weight_decays=[0.0], max_grad_norm=1e9
    )
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        draws = StepUniform(Seeds(0), step, 0, len(batch), torch.device("cpu"))
        with pack.running():
            loss = nn.functional.cross_entropy(pack(batch, Call(True, draws))[0], batch.labels)
            loss.backward()
        optimizer.step(torch.ones(1))
        losses.append(float(loss.detach()))
    return losses


def _plain(backbone: Backbone, pack: Pack) -> PeftModel:
    """Plain `peft` on transformers' own class, with the tensors that a fresh pack begins with."""
    (group,) = pack.lanes[0].configuration.groups
    config = copy.deepcopy(backbone.config)
    config.num_labels = 3
    config.pad_token_id = config.pad_token_id or 0
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    getattr(model, model.base_model_prefix).load_state_dict(backbone.model.state_dict())
    adapter = peft_adapter(
        pack.lanes[0].configuration, backbone, backbone.head(3), tensors_of(pack)
    )
    known = adapter.config | {"base_model_name_or_path": None}
    theirs = get_peft_model(model, PeftConfig.from_peft_type(**known)).eval()
    start = f"{group.method}.0.{group.method}."
    own = {n.removeprefix(start): t for n, t in tensors_of(pack).items() if n.startswith(start)}
    if group.method != TOKENS:
        theirs.prompt_encoder["default"].double().load_state_dict(own)
    parameters = dict(theirs.named_parameters())
    head = {n: t for n, t in adapter.tensors.items() if n.startswith("base_model.")}
    with torch.no_grad():
        for name, parameter in parameters.items():
            plain = name.replace("modules_to_save.default.", "")
            if plain in head:
                parameter.copy_(head[plain]).requires_grad_()
    return theirs


@pytest.mark.parametrize(
    ("architecture", "name", "settings"),
    [
        *(("bert", name, {}) for name in (*PROMPTS, *PREFIXES, TOKENS)),
        ("bert", "peft:P_TUNING", {"encoder_reparameterization_type": "LSTM"}),
        ("electra", "peft:PROMPT_TUNING", {}),  # whose embeddings are narrower
        ("distilbert", "peft:PROMPT_TUNING", {}),  # whose widths peft does not find
        ("modernbert", "peft:PROMPT_TUNING", {}),  # which pools the mean of all tokens
        ("roberta", "peft:PREFIX_TUNING", {"prefix_projection": False}),
        ("gpt2", "peft:PREFIX_TUNING", {}),
        ("bert", "peft:PREFIX_TUNING", {"prefix_projection": False, "init_weights": "zero"}),
        ("llama", "peft:CARTRIDGE", {"num_frozen_tokens": 2}),
        ("llama", TOKENS, {}),
        ("gemma3_text", "peft:PREFIX_TUNING", {}),  # of which some layers see a window alone
    ],
)  # fmt: skip
def test_outputs_are_those_of_plain_peft_before_and_after_a_step(
    architecture: str, name: str, settings: dict[str, Any]
) -> None:
    backbone, batch = tiny.tiny_backbone(architecture), _batch(architecture)
    group = passed_group(name)
    known = dict(group.settings) | settings
    if not known.get("prefix_projection", True):
        del known["encoder_hidden_size"]
    group = Group.of(name, group.layers, **known)
    configuration = Configuration.of([group], training=TRAINING)
    assert counting.faults(configuration, backbone.anatomy) == []
    pack = _pack(backbone, configuration)
    own = sum(i.parameter.numel() for i in pack.stacked() if not i.name.startswith("head."))
    assert counting.training_params(configuration, backbone.anatomy) == own
    started = [t for n, t in tensors_of(pack).items() if n.startswith("peft:PREFIX_TUNING")]
    if "init_weights" in known:
        assert started
        assert not any(tensor.any() for tensor in started)
    theirs = _plain(backbone, pack)
    tasks = {"task_ids": torch.zeros(3, dtype=torch.long)} if "MULTITASK" in name else {}
    given = {**batch.inputs, **tasks}
    logits = theirs(**given).logits
    assert torch.allclose(outputs_of(pack, batch), logits, rtol=0, atol=1e-12)
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    nn.functional.cross_entropy(logits, batch.labels).backward()
    optimizer.step()
    _train(pack, batch)
    with torch.no_grad():
        after = theirs(**given).logits
    assert not torch.allclose(after, logits, atol=1e-3)
    assert torch.allclose(outputs_of(pack, batch), after, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["peft:PROMPT_TUNING", "peft:PREFIX_TUNING"])
def test_layers_may_be_run_again(name: str) -> None:
    """A cache that grew by each run would make checkpointed layers see their own keys twice."""
    backbone, batch = tiny.tiny_backbone("bert"), _batch("bert")
    plain, again = (
        _pack(backbone, passed(name), checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert _train(again, batch, 3) == pytest.approx(_train(plain, batch, 3), rel=1e-12)


def test_an_encoder_draws_the_same_again() -> None:
    backbone, batch = tiny.tiny_backbone("bert"), _batch("bert")
    lstm = {"encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.5}
    losses = _train(_pack(backbone, passed("peft:P_TUNING", **lstm)), batch, 3)
    torch.manual_seed(5)
    assert _train(_pack(backbone, passed("peft:P_TUNING", **lstm)), batch, 3) == losses
    lstm["encoder_dropout"] = 0.0
    assert _train(_pack(backbone, passed("peft:P_TUNING", **lstm)), batch, 3) != losses


def test_embeddings_train_beside_other_methods_and_not_in_the_trunk() -> None:
    backbone, batch = tiny.tiny_backbone("bert"), _batch("bert")
    lora = Group.of("lora", [1], ["query"], rank=2, alpha=4.0, dropout=0.0)
    mixed = Configuration.of(
        [passed_group(TOKENS), passed_group("peft:VERA"), lora], training=TRAINING
    )
    assert counting.faults(mixed, backbone.anatomy) == []
    pack = _pack(backbone, mixed)
    before = tensors_of(pack)
    losses = _train(pack, batch, 4)
    assert losses[-1] < losses[0]
    for name, tensor in pack.lane_views(pack.parameters_by_name(), 0).items():
        assert not torch.equal(tensor, before[name]), name
    with pack.running():
        trunk = pack.trunk(batch, [0, 2], {})
    bare = _pack(backbone, Configuration.of([], training=TRAINING))
    with bare.running():
        frozen = bare.trunk(batch, [0, 2], {})
    assert all(torch.equal(trunk[layer], frozen[layer]) for layer in (0, 2))


def _told(architecture: str, *groups: Group, **sparsity: Any) -> Iterator[tuple[str, str]]:
    anatomy = tiny.tiny_backbone(architecture).anatomy
    own = {"sparsity": sparsity} if sparsity else {}
    for fault in counting.faults(Configuration.of(groups, training=TRAINING, **own), anatomy):
        yield fault.key, f"{fault.given}; {fault.allowed}; {fault.hint}"


@pytest.mark.parametrize(
    ("group", "key", "words"),
    [
        (Group.of("peft:P_TUNING", [0, 1], num_virtual_tokens=2), "layers", "layers: [0]"),
        (Group.of("peft:CARTRIDGE", [0, 1], num_virtual_tokens=2), "layers", "mode: all"),
        (passed_group("peft:CARTRIDGE", num_virtual_tokens=1), "num_frozen_tokens", "1 of 1"),
        (passed_group("peft:P_TUNING", encoder_num_layers=3), "encoder_num_layers", "LSTM"),
        (
            passed_group("peft:PREFIX_TUNING", prefix_projection=False),
            "encoder_hidden_size", "prefix_projection: true",
        ),
        (passed_group("peft:P_TUNING", encoder_hidden_size=0), "encoder_hidden_size", "1 and"),
        (passed_group(TOKENS, token_indices="3-64"), "token_indices", "0 to 63"),
        (passed_group(TOKENS, token_indices="the"), "token_indices", "101 102"),
        (Group.of(TOKENS, [1], token_indices="3"), "layers", "layer 0"),
    ],
    ids=lambda value: value.method if isinstance(value, Group) else "",
)  # fmt: skip
def test_what_peft_ignores_or_has_not_is_told(group: Group, key: str, words: str) -> None:
    ((where, told),) = _told("bert", group)
    assert where == f"{group.method}.{key}"
    assert words in told


def test_nothing_stands_beside_what_is_before_every_text() -> None:
    prompt = passed_group("peft:PROMPT_TUNING")
    lora = Group.of("lora", [1], ["query"], rank=2, alpha=4.0, dropout=0.0)
    ours = Group.of("prompt", [0], length=2, initial="random")
    assert list(_told("bert", prompt)) == []
    for others in ([lora], [ours], [passed_group("peft:CARTRIDGE"), lora]):
        ((key, told),) = _told("bert", prompt, *others)
        assert key in registry.offered()
        assert all(name in told for name in {g.method for g in others} - {key})
    keys = [key for key, _ in _told("bert", prompt, rule="rst", keep=0.5)]
    assert keys == ["sparsity.rule"]


@pytest.mark.parametrize(
    ("architecture", "lacking"),
    [
        ("llama", {*PROMPTS}),  # the last token of rows of embeddings is not found
        ("modernbert", {*PREFIXES}),  # no cache
        ("deberta-v2", {*PREFIXES}),
        ("vit", {*PROMPTS, *PREFIXES, TOKENS}),
        ("t5", {*PROMPTS, *PREFIXES, TOKENS}),
        ("roberta", set()),
    ],
)
def test_backbones_carry_what_runs_on_their_classifiers(
    architecture: str, lacking: set[str]
) -> None:
    carried = registry.carried_by(tiny.tiny_backbone(architecture).anatomy)
    assert {*PROMPTS, *PREFIXES, TOKENS} - carried == lacking


def test_texts_that_leave_no_position_are_told() -> None:
    backbone = tiny.tiny_backbone("roberta")
    room = 30  # 32 rows, of which two are the padding's
    pack = _pack(backbone, passed("peft:PROMPT_TUNING", num_virtual_tokens=room - 7))
    outputs_of(pack, tiny.tiny_batch("roberta"))
    with pytest.raises(BackboneError, match="23 before a text of 8 tokens; allowed: 30 together"):
        outputs_of(pack, tiny.tiny_batch("roberta", tokens=8))


def test_tokens_of_a_language_model_are_no_adapter_of_peft() -> None:
    backbone = tiny.tiny_backbone("gpt2")
    pack = _pack(backbone, passed(TOKENS))
    with pytest.raises(ExportError, match="language model"):
        peft_adapter(passed(TOKENS), backbone, backbone.lm_recipe(), tensors_of(pack))
