"""What factors of HF `peft`'s types start from: as `peft` starts, trains and reloads it."""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
from passed_cases import TRAINING, biased_bert, outputs_of, passed, passed_group, tensors_of
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.export.peft_config import peft_config
from autopeft.export.peft_weights import peft_adapter
from autopeft.methods import registry
from autopeft.methods.lane_operator import Call
from autopeft.methods.passed.build import ROOT, Target, config_of
from autopeft.methods.passed.types import TYPES
from autopeft.training.data.examples import Examples, TaskData
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.state import LaneState
from autopeft.training.loop import Trainer
from autopeft.training.settings import LoopSettings

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:fan_in_fan_out is set to True:UserWarning",
)

LORA = {"r": 4, "lora_alpha": 6}
TAKEN: list[dict[str, Any]] = [
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "pissa_niter_2"},
    {"init_lora_weights": "pissa", "use_rslora": True},
    {"init_lora_weights": "pissa", "use_dora": True},
    {"init_lora_weights": "olora", "lora_dropout": 0.3},
]
"""What is taken out of the weights."""

CASES: list[tuple[str, dict[str, Any]]] = [
    *(("LORA", LORA | own) for own in TAKEN),
    *(("LORA", LORA | {"init_lora_weights": own}) for own in ("gaussian", "orthogonal", "mica")),
    ("HIRA", {"r": 4, "init_weights": "gaussian"}),
    ("LOKR", {"r": 4, "init_weights": "lycoris"}),
    ("MISS", {"r": 4, "init_weights": "bat"}),
    ("MISS", {"r": 4, "init_weights": "mini", "mini_r": 8}),
    ("TINYLORA", {"u": 8, "init_weights": "uniform"}),
    ("C3A", {"init_weights": True}),
    ("C3A", {"init_weights": False}),
    ("C3A", {"init_weights": "gaussian"}),
    ("C3A", {"init_weights": "kaiming_uniform"}),
]
MOVED = [("TINYLORA", "uniform"), *(("C3A", n) for n in (False, "gaussian", "kaiming_uniform"))]
"""What `peft` does not start at the backbone."""


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return "-".join(str(each) for each in value.values())
    return str(value)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Of this module."""
    return biased_bert()


@pytest.fixture(scope="module")
def base(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on disk."""
    folder = tmp_path_factory.mktemp("base")
    backbone.model.save_pretrained(folder)
    return folder


def _pack(backbone: Backbone, configuration: Configuration, seed: int = 0, **saved: Any) -> Pack:
    lanes = [Lane(0, configuration)]
    return Pack(backbone, backbone.head(3), lanes, seeds=Seeds(seed), **saved)


def _train(pack: Pack, steps: int) -> None:
    """AdamW on one batch."""
    batch = tiny.tiny_batch("bert")
    optimizer = LaneAdamW(
        pack.stacked(), 1, learning_rates=[1e-2], weight_decays=[0.0], max_grad_norm=1.0
    )
    for step in range(steps):
        optimizer.zero_grad()
        draws = StepUniform(Seeds(0), step, 0, len(batch), torch.device("cpu"))
        with pack.running():
            logits = pack(batch, Call(True, draws))[0]
            nn.functional.cross_entropy(logits, batch.labels).backward()
        optimizer.step(torch.ones(1))


def _theirs(pack: Pack, base: Path, targets: tuple[Target, ...]) -> Any:
    """`peft`'s own model of transformers' task class, of the seed that the pack drew from."""
    (group,) = pack.lanes[0].configuration.groups
    kind = next(each for each in TYPES if f"peft:{each.name}" == group.method)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    at = {name: f"{model.base_model_prefix}.{name}" for name in (t.name for t in targets)}
    named = tuple(Target(at[t.name], t.role, t.transposed) for t in targets)
    options = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    config = config_of(kind, dict(group.settings), named, **options)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = tensors_of(pack)
        torch.manual_seed(Seeds(0).seed("init", f"{group.method}.0.query"))
        theirs = get_peft_model(model, config)
        classifier = theirs.base_model.model.classifier.modules_to_save["default"]
        classifier.weight.copy_(weights["head.0_weight"].T)
        classifier.bias.copy_(weights["head.0_bias"])
    return theirs.eval()


def _their_steps(model: Any, steps: int) -> None:
    batch = tiny.tiny_batch("bert")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**tiny.tiny_batch("bert").inputs).logits
    return logits


def _passed_lane(pack: Pack) -> Any:
    (lane,) = pack._passed
    return lane._adapter


def _beside(adapter: Any, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """What an adapter trains, beside what `peft`'s own model does."""
    parts = dict(theirs.named_parameters())
    return [
        (own, parts[name.replace(ROOT, f"{ROOT}bert.")]) for name, own in adapter.trained().items()
    ]


def _reloaded(backbone: Backbone, pack: Pack, base: Path, folder: Path) -> Any:
    """The saved adapter as `peft` loads it onto transformers' task class."""
    configuration = pack.lanes[0].configuration
    adapter = peft_adapter(configuration, backbone, backbone.head(3), tensors_of(pack))
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config))
    save_file(adapter.tensors, folder / "adapter_model.safetensors")
    torch.manual_seed(99)  # what a type draws anew must not matter
    options = {} if "bert" in type(backbone.model).__name__.lower() else {"pad_token_id": 0}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, folder).eval()


@pytest.mark.parametrize(("name", "settings"), CASES, ids=_told)
def test_a_start_is_pefts_own_and_goes_on_as_pefts_own(
    name: str, settings: dict[str, Any], backbone: Backbone, base: Path, tmp_path: Path
) -> None:
    without_dropout = {n: v for n, v in settings.items() if not n.endswith("dropout")}
    configuration = passed(f"peft:{name}", **without_dropout)
    assert counting.faults(configuration, backbone.anatomy) == []
    frozen = {n: t.clone() for n, t in backbone.model.state_dict().items()}
    pack = _pack(backbone, configuration)
    adapter = _passed_lane(pack)
    theirs = _theirs(pack, base, tuple(adapter.places))

    prefix = f"{ROOT}bert."
    beside = _beside(adapter, theirs)
    for ours, found in beside:
        assert torch.equal(ours, found)
        assert found.requires_grad
    trained = [name for name, p in theirs.named_parameters() if p.requires_grad]
    assert len(beside) == sum("classifier" not in name for name in trained)
    for target in adapter.places:
        layer = theirs.get_submodule(f"{prefix}{target.name}")
        own = adapter.built.layer(target).get_base_layer().weight
        assert torch.equal(own, layer.get_base_layer().weight)
    assert torch.allclose(outputs_of(pack), _logits(theirs), atol=1e-6)
    bare = outputs_of(_pack(backbone, Configuration.of([], training=TRAINING)))
    moves = (name, settings.get("init_weights")) in MOVED
    assert torch.allclose(outputs_of(pack), bare, atol=1e-6) != moves

    _train(pack, 3)
    _their_steps(theirs, 3)
    for ours, found in beside:
        assert torch.allclose(ours, found, atol=1e-5)
    assert torch.allclose(outputs_of(pack), _logits(theirs), atol=1e-5)
    assert not torch.allclose(outputs_of(pack), bare, atol=1e-3)
    assert all(torch.equal(t, frozen[n]) for n, t in backbone.model.state_dict().items())


@pytest.mark.parametrize(("name", "settings"), CASES, ids=_told)
def test_a_start_is_counted_and_reloads(
    name: str, settings: dict[str, Any], backbone: Backbone, base: Path, tmp_path: Path
) -> None:
    configuration = passed(f"peft:{name}", **settings)
    pack = _pack(backbone, configuration)
    own = [item for item in pack.stacked() if not item.name.startswith("head.")]
    count = sum(item.parameter.numel() for item in own)
    assert counting.training_params(configuration, backbone.anatomy) == count
    assert counting.trainable_params(configuration, backbone.anatomy) == count
    assert sum(tensor.numel() for tensor in pack.lane_fixed(0).values()) == sum(
        registry[f"peft:{name}"].fixed_count(group, place)
        for group, place in counting.placed_groups(configuration, backbone.anatomy)
    )
    adapter = _passed_lane(pack)
    held = [adapter.built.layer(target).get_base_layer().weight for target in adapter.places]
    frozen = {module.weight.data_ptr() for module in adapter.modules.values()}
    assert sum(weight.numel() for weight in held if weight.data_ptr() not in frozen) == sum(
        registry[f"peft:{name}"].kept_widths(group, place).shared
        for group, place in counting.placed_groups(configuration, backbone.anatomy)
    )  # what the memory model says there is of weights that are not the backbone's
    started = outputs_of(pack)
    _train(pack, 4)
    trained, stored = outputs_of(pack), tensors_of(pack)
    again = _pack(backbone, configuration, seed=5, saved={0: stored})  # another seed
    with torch.no_grad():
        for tensor_name, tensor in again.lane_views(again.parameters_by_name(), 0).items():
            tensor.copy_(stored[tensor_name])
    assert torch.equal(outputs_of(again), trained)
    assert set(tensors_of(again)) == set(stored)
    theirs = _logits(_reloaded(backbone, pack, base, tmp_path / "adapter"))
    assert torch.allclose(theirs, trained, atol=1e-5)
    assert not torch.allclose(theirs, started, atol=1e-3)


def _of_gpt2(start: str, layers: tuple[int, ...] = (0, 2)) -> Configuration:
    sites = ("query", "key", "value", "output", "down")
    group = Group.of("peft:LORA", layers, sites, r=4, init_lora_weights=start)
    return Configuration.of([group], training=TRAINING)


@pytest.mark.parametrize("start", ["gaussian", "pissa", "pissa_niter_2", "orthogonal", "mica"])
def test_starts_of_weights_that_are_stored_the_other_way(start: str, tmp_path: Path) -> None:
    backbone = tiny.tiny_backbone("gpt2", torch.float32)
    backbone.model.save_pretrained(tmp_path / "base")
    configuration = _of_gpt2(start)
    assert counting.faults(configuration, backbone.anatomy) == []
    pack = _pack(backbone, configuration)
    bare = outputs_of(_pack(backbone, Configuration.of([], training=TRAINING)), "gpt2")
    assert torch.allclose(outputs_of(pack, "gpt2"), bare, atol=1e-6)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in pack.stacked():
            noise = torch.randn(item.parameter.shape, generator=generator)
            item.parameter.add_(noise, alpha=0.1)
    theirs = _reloaded(backbone, pack, tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        logits = theirs(**tiny.tiny_batch("gpt2").inputs).logits
    assert torch.allclose(logits, outputs_of(pack, "gpt2"), atol=2e-5)
    assert not torch.allclose(logits, bare, atol=1e-2)


@pytest.mark.parametrize("settings", TAKEN, ids=_told)
def test_what_is_taken_out_is_exported_as_what_was_learnt(
    settings: dict[str, Any], backbone: Backbone
) -> None:
    """The map that trained, of twice the rank on a whole weight, which nothing decomposes."""
    pack = _pack(backbone, passed("peft:LORA", **LORA | settings))
    _train(pack, 4)
    adapter = peft_adapter(
        pack.lanes[0].configuration, backbone, backbone.head(3), tensors_of(pack)
    )
    growth = math.sqrt(2) if settings.get("use_rslora") else 2
    assert adapter.config["init_lora_weights"] is True
    assert adapter.config["r"] == 8
    assert adapter.config["lora_alpha"] == pytest.approx(6 * growth)
    yet = peft_config(
        pack.lanes[0].configuration, backbone.anatomy, backbone.head(3), base_model="b"
    )
    assert (yet["init_lora_weights"], yet["r"]) == (settings["init_lora_weights"], 4)
    scale = adapter.config["lora_alpha"] / (math.sqrt(8) if settings.get("use_rslora") else 8)
    name = "encoder.layer.0.attention.self.query"
    low, high = (adapter.tensors[f"{ROOT}bert.{name}.lora_{x}.weight"].double() for x in "AB")
    layer = _passed_lane(pack).built.model.get_submodule(ROOT + name)
    with torch.no_grad():
        trained = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        whole = layer.get_base_layer().weight.double() + layer.scaling["default"] * trained
    weight = backbone.model.get_submodule(name).weight.double()
    assert torch.allclose(weight + scale * high @ low, whole, atol=1e-6)
    assert not torch.allclose(weight, whole, atol=1e-3)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_3", "olora", "mica"])
def test_a_weight_in_half_the_precision_is_left_at_the_backbone(start: str) -> None:
    """What is left is of the factors as they are kept, so that it is the same when resumed."""
    backbone = tiny.tiny_backbone("bert", torch.bfloat16)
    pack = _pack(backbone, passed("peft:LORA", r=4, init_lora_weights=start))
    again = _pack(backbone, passed("peft:LORA", r=4), seed=3)
    resumed = _pack(backbone, pack.lanes[0].configuration, seed=3, saved={0: tensors_of(pack)})
    name = "encoder.layer.0.attention.self.query"
    at, weight = f"{ROOT}{name}", backbone.model.get_submodule(name).weight
    own = _passed_lane(pack).built.model.get_submodule(at)
    held = _passed_lane(resumed).built.model.get_submodule(at)
    rest = own.get_base_layer().weight
    assert rest.dtype == torch.bfloat16
    assert torch.equal(rest, held.get_base_layer().weight)
    scale, (A, B) = own.scaling["default"], (own.lora_A["default"], own.lora_B["default"])
    whole = rest.double() + scale * B.weight.double() @ A.weight.double()
    taken = (rest.double() - weight.double()).abs()
    assert ((whole - weight.double()).abs() <= rest.double().abs() * 2.0**-8).all()
    assert (float(taken.max()) > 0.01) != (start == "mica")
    assert outputs_of(again).shape == outputs_of(pack).shape


def _examples(rows: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(4, 64, n).astype(np.int32) for n in rng.integers(3, 10, rows)]
    return Examples(tuple(ids), rng.integers(0, 3, rows))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora", "mica", "orthogonal"])
def test_the_loop_goes_on_from_a_state(start: str, backbone: Backbone, tmp_path: Path) -> None:
    object.__setattr__(backbone, "tokenizer", SimpleNamespace(pad_token_id=0))
    data = TaskData(_examples(24, 0), _examples(9, 1), ("a", "b", "c"), "", ())
    settings = LoopSettings(
        task="sequence-classification", metrics=("accuracy", "loss"), total_steps=6, batch_size=8,
        micro_batch_size=8,
    )  # fmt: skip
    trainer = Trainer(backbone, data, settings, study_seed=3)
    own = Group.of("lora", [0], ["query"], rank=2, alpha=4.0, dropout=0.0)
    beside = Lane(1, Configuration.of([own], training=TRAINING))
    lane = Lane(0, passed("peft:LORA", init_lora_weights=start, lora_dropout=0.2))
    whole, alone = trainer.start([lane, beside]), trainer.start([beside])
    whole.train(6)
    alone.train(6)
    first = trainer.start([lane])
    first.train(3)
    path = tmp_path / "state.safetensors"
    first.states()[0].save(path)
    rest = trainer.start([lane], states={0: LaneState.load(path)})
    rest.train(6)
    wanted, found = whole.states()[0], rest.states()[0]
    assert set(wanted.tensors) == set(found.tensors)
    assert all(torch.equal(tensor, found.tensors[n]) for n, tensor in wanted.tensors.items())
    assert rest.evaluate()[0].values == whole.evaluate()[0].values
    for name, tensor in alone.states()[1].tensors.items():  # nothing of the backbone was taken
        assert torch.equal(tensor, whole.states()[1].tensors[name]), name


@pytest.mark.parametrize(
    ("group", "key", "told"),
    [
        (passed_group("peft:LORA", r=33, init_lora_weights="pissa"), ".r", "1 to 32"),
        (passed_group("peft:LORA", r=33, init_lora_weights="olora"), ".r", "1 to 32"),
        (passed_group("peft:LORA", r=33, init_lora_weights="mica"), ".r", "1 to 32"),
        (
            passed_group("peft:LORA", r=4, lora_alpha=0, init_lora_weights="pissa_niter_1"),
            ".lora_alpha",
            "> 0",
        ),
        (passed_group("peft:LORA", r=3, init_lora_weights="orthogonal"), "", "to be even"),
        (
            passed_group("peft:LORA", r=4, init_lora_weights="pissa", lora_bias=True),
            "",
            "only supported with init_lora_weights=True or False",
        ),
        (passed_group("peft:MISS", r=5, init_weights="bat"), "", "fully divisible"),
        (passed_group("peft:MISS", r=4, mini_r=5, init_weights="mini"), "", "mini_r"),
    ],
)  # fmt: skip
def test_starts_that_do_not_fit_are_told(
    group: Group, key: str, told: str, backbone: Backbone
) -> None:
    faults = counting.faults(Configuration.of([group], training=TRAINING), backbone.anatomy)
    assert {fault.key for fault in faults} == {group.method + key}
    assert told in str(faults[0])


def test_olora_is_refused_where_peft_takes_a_weight_for_its_transpose() -> None:
    backbone = tiny.tiny_backbone("gpt2", torch.float32)
    (fault,) = counting.faults(_of_gpt2("olora"), backbone.anatomy)
    assert fault.key == "peft:LORA.init_lora_weights"
    assert "Conv1D" in fault.hint
    config = LoraConfig(
        r=4, target_modules=["attn.c_proj"], init_lora_weights="olora", fan_in_fan_out=True
    )
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    name = "h.0.attn.c_proj"
    frozen = backbone.model.get_submodule(name)(x)
    theirs = get_peft_model(tiny.tiny_backbone("gpt2", torch.float32).model, config)
    layer = theirs.base_model.model.get_submodule(name)
    assert not torch.allclose(layer(x), frozen, atol=1e-2)  # square, so that it is no error there
