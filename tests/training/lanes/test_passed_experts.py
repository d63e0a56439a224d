"""XLORA, a router over trained LoRA adapters in decoders, held against plain `peft`."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_backbones
import tiny_causal as tiny
import torch
from passed_cases import TRAINING, tensors_of
from passed_decoders import CLIP, DECAY, RATE, check_it_goes_on
from peft import LoraConfig, PeftModel, XLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from autopeft import counting
from autopeft.api.deploying import undeployable
from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.configuration import NO_SPARSITY, Configuration, Group
from autopeft.errors import BackboneError, ExportError
from autopeft.export.foreign import baseline_of, read_foreign
from autopeft.export.peft_weights import peft_adapter, registered_adapter
from autopeft.methods import registry
from autopeft.methods.lane_operator import SILENT, Call
from autopeft.methods.passed.experts import KNOWN
from autopeft.methods.passed.router import BuiltExperts
from autopeft.training.batches import Batch
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform

NAME, MAPS = "peft:XLORA", ("q_proj", "v_proj", "down_proj")
ROUTER = "base_model.internal_xlora_classifier."
DEEP = {"xlora_depth": 3, "xlora_size": 6, "xlora_dropout_p": 0.0}
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"layerwise_scalings": True, **DEEP},
    {"use_trainable_adapters": True, "softmax_temperature": 2.0},
    {"top_k_lora": 2, "enable_softmax_topk": True, "enable_softmax": False},
    {"scaling_pass_value": 0.5, "global_scaling_weight": 0.7},
)
"""Each parameter at another value."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
    "ignore:.lora_bias=True. was passed",
    "ignore:Adapter .default.. 1 LoRA tensor",
    "ignore:fan_in_fan_out is set to False",
)


def _model(name: str, dtype: torch.dtype = torch.float64) -> Any:
    model = tiny.tiny_causal(name, dtype)
    model.config.use_cache = False
    return model


def _saved(model: Any, path: Path, seed: int, **given: Any) -> str:
    """A LoRA adapter as if it were trained, as `peft` writes it."""
    torch.manual_seed(seed)
    told = {"r": 2, "lora_alpha": 5, "init_lora_weights": False, "task_type": "CAUSAL_LM",
            "target_modules": list(MAPS[:2])}  # fmt: skip
    get_peft_model(copy.deepcopy(model), LoraConfig(**told | given)).save_pretrained(path)
    return str(path)


def _folders(name: str, folder: Path, **given: Any) -> list[str]:
    """Three adapters that differ in maps, ranks and scalings, biases among them."""
    model = _model(name)
    fused = name == "phi3"
    maps = ["qkv_proj", "down_proj"] if fused else list(MAPS)
    maps = ["q_proj", "fc2"] if name == "phi" else maps
    each: list[dict[str, Any]] = [
        {"target_modules": maps[:1]},
        {"target_modules": maps, "r": 3, "use_rslora": True, "rank_pattern": {maps[-1]: 1}},
        {"target_modules": maps[:1], "layers_to_transform": [1], "lora_bias": True,
         "alpha_pattern": {f"layers.1.*{maps[0]}": 2.5}},
    ]  # fmt: skip
    return [
        _saved(model, folder / str(number), number, **told | given)
        for number, told in enumerate(each)
    ]


def _group(folders: list[str], layers: int = 2, **settings: Any) -> Group:
    return Group.of(NAME, range(layers), adapters=", ".join(folders), **settings)


def _configuration(folders: list[str], **settings: Any) -> Configuration:
    return Configuration.of([_group(folders, **settings)], training=TRAINING)


def _pack(
    backbone: Backbone, configuration: Configuration, dtype: torch.dtype, **options: Any
) -> Pack:
    lanes = [Lane(0, configuration)]
    recipe = backbone.recipe(3)
    return Pack(backbone, recipe, lanes, seeds=Seeds(0), dtype=dtype, **options)


def _batch() -> Batch:
    inputs = tiny.tiny_inputs()
    return Batch(inputs, inputs["attention_mask"], torch.tensor([0, 2, 1]))


def _logits(pack: Pack, backbone: Backbone, call: Call = SILENT) -> Tensor:
    """Of real tokens [n, vocabulary]; of a classifier's rows [B, 3]."""
    batch = _batch()
    out = pack(batch, call)[0]
    return out if backbone.lm_head is None else backbone.lm_head.logits(out[batch.mask.bool()])


def _outputs(pack: Pack, backbone: Backbone) -> Tensor:
    with torch.no_grad(), pack.running():
        return _logits(pack, backbone)


def _targets(logits: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, logits.shape[1], logits.shape[:1], generator=generator)


def _train(pack: Pack, backbone: Backbone, steps: int, **call: Any) -> list[float]:
    optimizer = LaneAdamW(
        pack.stacked(), 1, learning_rates=[RATE], weight_decays=[DECAY], max_grad_norm=CLIP
    )
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        draws = StepUniform(Seeds(0), step, 0, 3, torch.device("cpu"))
        with pack.running():
            logits = _logits(pack, backbone, Call(True, draws, **call))
            loss = nn.functional.cross_entropy(logits, _targets(logits))
            loss.backward()
        optimizer.step(torch.ones(1))
        losses.append(float(loss.detach()))
    return losses


def _plain(model: Any, folders: list[str], task: str, **form: Any) -> Any:
    """`peft`'s model, all of it in float64."""
    adapters = {str(number): folder for number, folder in enumerate(folders)}
    config = XLoraConfig(task_type=task, hidden_size=32, adapters=adapters, **form)
    return get_peft_model(model, config).double().eval()


def _start_alike(theirs: Any, tensors: dict[str, Tensor]) -> None:
    """Give plain `peft` our router; that of the adapters is in their files."""
    at = f"{NAME}.0.{NAME}.{ROUTER}"
    own = {n.removeprefix(at): t for n, t in tensors.items() if n.startswith(at)}
    theirs.base_model.internal_xlora_classifier.load_state_dict(own)


def _steps_are_alike(
    theirs: Any, out: Callable[[], Tensor], pack: Pack, backbone: Backbone
) -> Tensor:
    """Five steps of both, held together; the logits that they come to."""
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    with torch.no_grad():
        assert torch.allclose(_outputs(pack, backbone), out(), rtol=0, atol=1e-9)
    for loss in _train(pack, backbone, 5):
        optimizer.zero_grad()
        logits = out()
        expected = nn.functional.cross_entropy(logits, _targets(logits))
        assert loss == pytest.approx(float(expected.detach()), abs=1e-10)
        expected.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
    with torch.no_grad():
        logits = out()
    assert torch.allclose(_outputs(pack, backbone), logits, rtol=0, atol=1e-9)
    return logits


def _counts_hold(pack: Pack, configuration: Configuration, anatomy: Any) -> int:
    own = sum(i.parameter.numel() for i in pack.stacked() if not i.name.startswith("head."))
    assert own == counting.trainable_params(configuration, anatomy)
    assert own == counting.training_params(configuration, anatomy)
    fixed = sum(tensor.numel() for tensor in pack.lane_fixed(0).values())
    assert fixed == sum(
        registry[NAME].fixed_count(group, place)
        for group, place in counting.placed_groups(configuration, anatomy)
    )
    return own


CASES = [("llama", form, checkpointing) for form in FORMS for checkpointing in (False, True)]
CASES += [(name, FORMS[1], False) for name in tiny.CAUSAL if name.partition("-")[0] not in (
    "llama", "gpt2", "opt")]  # fmt: skip


@pytest.mark.parametrize(("name", "form", "checkpointing"), CASES, ids=str)
def test_outputs_and_steps_are_those_of_plain_peft(
    name: str, form: dict[str, Any], checkpointing: bool, tmp_path: Path
) -> None:
    folders = _folders(name, tmp_path)
    backbone = backbone_of(_model(name))
    frozen = {n: t.clone() for n, t in backbone.model.state_dict().items()}
    configuration = _configuration(folders, **form)
    assert counting.faults(configuration, backbone.anatomy) == []
    pack = _pack(backbone, configuration, torch.float64, checkpointing=checkpointing)
    own, start = _counts_hold(pack, configuration, backbone.anatomy), tensors_of(pack)

    theirs = _plain(_model(name), folders, "CAUSAL_LM", **form)
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == own
    _start_alike(theirs, start)
    batch = _batch()

    def out() -> Tensor:
        logits: Tensor = theirs(**batch.inputs).logits[batch.mask.bool()]
        return logits

    with torch.no_grad():
        bare = _model(name)(**batch.inputs).logits[batch.mask.bool()]
    logits = _steps_are_alike(theirs, out, pack, backbone)
    assert not torch.allclose(logits, bare, atol=1e-2)
    moved = {n for n, t in tensors_of(pack).items() if not torch.equal(t, start[n])}
    assert moved == set(start) - set(pack.lane_fixed(0))
    assert all(torch.equal(t, frozen[n]) for n, t in backbone.model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in backbone.model.modules())


def _classifier(backbone: Backbone, head: Tensor) -> Any:
    """transformers' own classifier around the same weights and head [32, 3]."""
    config = copy.deepcopy(backbone.config)
    config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    model.model.load_state_dict(backbone.model.state_dict())
    model.score.weight.data.copy_(head.T)
    return model


@pytest.mark.parametrize("form", FORMS[:3], ids=str)
def test_a_classifiers_head_trains_with_the_router(form: dict[str, Any], tmp_path: Path) -> None:
    """`peft` leaves it as it was drawn: here it is made to train there."""
    folders = _folders("llama", tmp_path)
    backbone = backbone_of(_model("llama").model)
    pack = _pack(backbone, _configuration(folders, **form), torch.float64)
    start = tensors_of(pack)
    theirs = _plain(_classifier(backbone, start["head.0_weight"]), folders, "SEQ_CLS", **form)
    score = theirs.base_model.lora_model.model.score.weight
    assert not score.requires_grad
    score.requires_grad_()
    _start_alike(theirs, start)
    _steps_are_alike(theirs, lambda: theirs(**_batch().inputs).logits, pack, backbone)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_was_trained_is_continued_without_the_files(
    form: dict[str, Any], tmp_path: Path
) -> None:
    folders = _folders("llama", tmp_path, lora_dropout=0.1)
    backbone = backbone_of(_model("llama"))
    configuration = _configuration(folders, **form)
    pack = _pack(backbone, configuration, torch.float64)
    _train(pack, backbone, 3)
    tensors = tensors_of(pack)
    for folder in folders:
        shutil.rmtree(folder)
    again = _pack(backbone, configuration, torch.float64, saved={0: tensors})
    assert torch.equal(_outputs(again, backbone), _outputs(pack, backbone))
    assert set(tensors_of(again)) == set(tensors)
    assert all(torch.equal(t, tensors[n]) for n, t in tensors_of(again).items())
    assert _train(again, backbone, 3) == _train(pack, backbone, 3)


def test_dropout_is_drawn_again_alike_and_where_it_is_recomputed(tmp_path: Path) -> None:
    backbone = backbone_of(_model("llama"))
    dropping = _folders("llama", tmp_path / "dropping", lora_dropout=0.5)
    still = _folders("llama", tmp_path / "still")
    deep = {"xlora_depth": 2, "xlora_size": 6, "scaling_pass_value": 0.5}

    def losses(folders: list[str], rate: float, **options: Any) -> list[float]:
        configuration = _configuration(folders, **deep, xlora_dropout_p=rate)
        return _train(_pack(backbone, configuration, torch.float64, **options), backbone, 3)

    first = losses(dropping, 0.5)
    torch.manual_seed(5)
    assert losses(dropping, 0.5) == first
    assert losses(dropping, 0.5, checkpointing=True) == pytest.approx(first, abs=1e-12)
    none = losses(still, 0.0)
    for other in (losses(dropping, 0.0), losses(still, 0.5)):
        assert other != pytest.approx(first, abs=1e-4)
        assert other != pytest.approx(none, abs=1e-4)


def test_gains_scale_what_the_adapters_add(tmp_path: Path) -> None:
    backbone = backbone_of(_model("llama"))
    pack = _pack(backbone, _configuration(_folders("llama", tmp_path)), torch.float64)
    bare = _pack(backbone, Configuration.of([], training=TRAINING), torch.float64)

    def out(gain: float) -> Tensor:
        gains = torch.full((1, 2), gain, dtype=torch.float64)
        with torch.no_grad(), pack.running():
            return _logits(pack, backbone, Call(False, SILENT.uniform, gains=gains))

    assert torch.allclose(out(1.0), _outputs(pack, backbone), rtol=0, atol=1e-12)
    assert torch.allclose(out(0.0), _outputs(bare, backbone), rtol=0, atol=1e-12)
    assert not torch.allclose(out(0.5), out(1.0), atol=1e-4)


def test_a_backbone_in_bfloat16_is_trained_in_float32(tmp_path: Path) -> None:
    folders, ends = _folders("llama", tmp_path), []
    for dtype in (torch.float32, torch.bfloat16):
        backbone = backbone_of(_model("llama", dtype).model)
        pack = _pack(backbone, _configuration(folders), torch.float32)
        assert all(item.parameter.dtype == torch.float32 for item in pack.stacked())
        losses = _train(pack, backbone, 6)
        assert losses[-1] < losses[0]
        ends.append(losses[-1])
    assert ends[1] == pytest.approx(ends[0], abs=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loop_goes_on_from_its_state(precision: str, tmp_path: Path) -> None:
    backbone = backbone_of(_model("llama", torch.float32).model)
    folders = _folders("llama", tmp_path, lora_dropout=0.2)
    lane = _configuration(folders, use_trainable_adapters=True)
    check_it_goes_on(backbone, lane, precision, tmp_path)


# -- what is refused ------------------------------------------------------------------------------


def _spoilt(folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> str:
    """An adapter whose files are written anew with a change."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    change(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SPOILT: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = {
    "type": (lambda config, held: config.update(peft_type="IA3"), "of type IA3"),
    "dora": (lambda config, held: config.update(use_dora=True), "use_dora"),
    "bias": (lambda config, held: config.update(bias="all"), "bias: all"),
    "pissa": (lambda config, held: config.update(init_lora_weights="pissa_niter_4"), "pissa"),
    "head": (
        lambda config, held: held.update({"base_model.model.score.weight": torch.ones(3, 32)}),
        "score.weight",
    ),
    "pair": (lambda config, held: held.pop(Q), "pairs of one rank"),
    "rank": (lambda config, held: held.update({Q: torch.ones(5, 32)}), "pairs of one rank"),
    "width": (lambda config, held: held.update({Q: torch.ones(2, 48)}), "48 x 32, which is 32 x"),
    "layer": (
        lambda config, held: [
            held.update({n.replace("layers.0", "layers.7"): held.pop(n)})
            for n in (Q, Q.replace("_A", "_B"))
        ],
        "no linear map of a layer",
    ),
    "elsewhere": (
        lambda config, held: held.update(
            {"odd.lora_A.weight": torch.ones(2, 3), "odd.lora_B.weight": torch.ones(3, 2)}
        ),
        "odd, which is no linear map",
    ),
    "empty": (lambda config, held: held.clear(), "no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_files_that_are_no_experts_are_told_before_anything_trains(
    how: str, tmp_path: Path
) -> None:
    anatomy = backbone_of(_model("llama")).anatomy
    model = _model("llama")
    good, other = (_saved(model, tmp_path / str(n), n) for n in (0, 1))
    assert counting.faults(_configuration([good, other]), anatomy) == []
    change, told = SPOILT[how]
    _spoilt(Path(other), change)  # files that have changed are read again
    (fault,) = counting.faults(_configuration([good, other]), anatomy)
    assert fault.key == f"{NAME}.adapters"
    assert told in str(fault)
    assert other in fault.given


@pytest.mark.parametrize(
    ("adapters", "told"),
    [
        ("/nowhere/a, {good}", "/nowhere/a, without adapter_config.json"),
        ("{good}, near/by", "write the whole path"),
        ("{good}", "two folders or more"),
        (" , ", "two folders or more"),
        ("{good}, {torn}", "unreadable"),
    ],
)
def test_folders_that_are_none_are_told(adapters: str, told: str, tmp_path: Path) -> None:
    good = _saved(_model("llama"), tmp_path / "good", 0)
    torn = Path(_saved(_model("llama"), tmp_path / "torn", 1))
    (torn / "adapter_model.safetensors").write_bytes(b"none")
    text = adapters.format(good=good, torn=torn)
    anatomy = backbone_of(_model("llama")).anatomy
    (fault,) = counting.faults(_configuration([text]), anatomy)
    assert fault.key == f"{NAME}.adapters"
    assert told in str(fault)


@pytest.mark.parametrize(
    ("given", "key", "told"),
    [
        ({"xlora_depth": 0}, "xlora_depth", "1 and above"),
        ({"xlora_size": 0}, "xlora_size", "1 and above"),
        ({"xlora_dropout_p": 1.0}, "xlora_dropout_p", "below 1"),
        ({"softmax_temperature": 0.0}, "softmax_temperature", "above 0"),
        ({"top_k_lora": 3}, "top_k_lora", "1 to 2"),
        ({"top_k_lora": 0}, "top_k_lora", "1 to 2"),
        ({"top_k_lora": 1, "enable_softmax_topk": True}, "top_k_lora", "no gradient"),
        ({"layers": 1}, "layers", "mode: all"),
    ],
)
def test_numbers_that_mean_nothing_are_told(
    given: dict[str, Any], key: str, told: str, tmp_path: Path
) -> None:
    anatomy = backbone_of(_model("llama")).anatomy
    folders = [_saved(_model("llama"), tmp_path / str(n), n) for n in (0, 1)]
    (fault,) = counting.faults(_configuration(folders, **given), anatomy)
    assert fault.key == f"{NAME}.{key}"
    assert told in str(fault)


def test_it_has_the_model_to_itself_and_no_form_of_peft(tmp_path: Path) -> None:
    backbone = backbone_of(_model("llama"))
    folders = _folders("llama", tmp_path)
    group, own = _group(folders), _configuration(folders)
    lora = Group.of("lora", [1], ["query"], rank=2, alpha=4.0, dropout=0.0)
    for groups, sparsity, key in (
        ([group, lora], NO_SPARSITY, NAME),
        ([group], {"rule": "rst", "keep": 0.5}, "sparsity.rule"),
    ):
        configuration = Configuration.of(groups, training=TRAINING, sparsity=sparsity)
        faults = counting.faults(configuration, backbone.anatomy)
        assert {fault.key for fault in faults} == {key}
        assert any("its own adapters alone" in fault.allowed for fault in faults)
    pack = _pack(backbone, own, torch.float64)
    with pytest.raises(BackboneError, match="whole model to itself"):
        pack.serve(lambda: True, lambda: False)
    tensors, recipe = tensors_of(pack), backbone.recipe(1)
    with pytest.raises(ExportError, match="its own adapters alone"):
        registered_adapter(own, recipe, tensors, base_model="me/base")
    with pytest.raises(ExportError, match="saves neither its router"):
        peft_adapter(own, backbone, recipe, tensors)
    for causal in (True, False):
        (fault,) = undeployable(own, backbone.anatomy, causal=causal)
        assert "autopeft.load" in fault.hint

    theirs = _plain(_model("llama"), folders, "CAUSAL_LM", use_trainable_adapters=True)
    theirs.save_pretrained(tmp_path / "theirs")
    assert load_file(tmp_path / "theirs" / "adapter_model.safetensors") == {}
    skeleton: Any = SimpleNamespace(anatomy=backbone.anatomy)
    plain = baseline_of(read_foreign(tmp_path / "theirs" / "adapter_config.json"), skeleton)
    (found,) = plain[NAME]
    assert found == {
        "layers": [0, 1], "adapters": ", ".join(folders), "use_trainable_adapters": True,
    }  # fmt: skip


def _why_not(name: str, folder: Path) -> str:
    """What plain `peft` says of a router over adapters of a base model's query and value maps."""
    backbone = tiny_backbones.tiny_backbone(name, torch.float32)
    model = copy.deepcopy(backbone.model)
    sites = backbone.anatomy.layers[0].sites
    maps = sorted({sites["query"].module, sites["up"].module})
    auto = AutoModelForSequenceClassification
    config = copy.deepcopy(backbone.config)
    config.num_labels, config.pad_token_id, config.use_cache = 3, 0, False
    model = auto.from_config(config).eval()
    maps = [f"{model.base_model_prefix}.{each}" for each in maps]
    folders = [
        _saved(model, folder / str(n), n, target_modules=maps, task_type=None) for n in (0, 1)
    ]
    adapters = {str(number): each for number, each in enumerate(folders)}
    try:
        theirs = get_peft_model(model, XLoraConfig(hidden_size=32, adapters=adapters))
        theirs(**tiny_backbones.tiny_batch(name).inputs)
    except (ValueError, KeyError, RuntimeError) as error:
        return str(error)
    return ""


def test_it_is_carried_where_peft_finds_the_layers(tmp_path: Path) -> None:
    """Under `model.`, with a row of tokens for each text in every map: not so OPT's FFN."""
    anatomies = {
        name: tiny_backbones.tiny_backbone(name).anatomy for name in tiny_backbones.ARCHITECTURES
    }
    anatomies |= {name: backbone_of(_model(name)).anatomy for name in tiny.CAUSAL}
    carried = {a.architecture for a in anatomies.values() if not registry[NAME].carried_by(a)}
    assert carried == set(KNOWN)
    for name, told in (("bert", "unexpected keys"), ("gpt2", "unexpected keys"),
                       ("opt", "size of tensor"), ("llama", "")):  # fmt: skip
        said = _why_not(name, tmp_path / name)
        assert told in said
        assert bool(told) == bool(said)


def test_what_peft_does_of_names_is_why_they_are_numbers(tmp_path: Path) -> None:
    folders = [_saved(_model("llama"), tmp_path / str(n), n) for n in (0, 1)]
    config = XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=32, adapters=dict(zip("ab", folders, strict=True))
    )
    with pytest.raises(KeyError, match="a"):
        get_peft_model(_model("llama"), config)(**_batch().inputs)


def test_what_peft_built_is_around_the_backbones_own_tensors(tmp_path: Path) -> None:
    backbone = backbone_of(_model("llama"))
    pack = _pack(backbone, _configuration(_folders("llama", tmp_path)), torch.float64)
    (theirs,) = pack.passed_models
    assert isinstance(theirs, PeftModel)
    own = {p.data_ptr() for p in backbone.model.parameters()}
    inner = theirs.base_model.lora_model.model.model
    frozen = [p for n, p in inner.named_parameters() if ".lora_" not in n]
    assert {p.data_ptr() for p in frozen} == own
    built: Any = pack._passed[0]._adapter.built
    assert isinstance(built, BuiltExperts)
    assert sum(n.endswith("lora.1") for n in built.saved()) == 3 * 2


def test_the_first_run_is_transformers_own_whatever_the_backbone_is_used_for(
    tmp_path: Path,
) -> None:
    """Hooks that were put on the backbone before, and the attention that a pack gives it."""
    configuration = _configuration(_folders("llama", tmp_path))
    fresh, used = backbone_of(_model("llama")), backbone_of(_model("llama"))
    used.model(**_batch().inputs, output_hidden_states=True)
    expected = _outputs(_pack(fresh, configuration, torch.float64), fresh)
    pack = _pack(used, configuration, torch.float64)
    assert torch.equal(_outputs(pack, used), expected)
    model: Any = used.model
    model.set_attn_implementation("eager")
    inner: Any = pack.passed_models[0].base_model.lora_model.model  # type: ignore[union-attr]
    told = {m.config._attn_implementation for m in inner.modules() if hasattr(m, "config")}
    assert told == {"sdpa"}
