"""HF `peft`'s own types on an encoder, a decoder and a vision transformer.

How each starts, that it trains, and that `peft` on transformers' own class makes the same of what
was trained, and of a step more. `test_passed` holds more of them on an encoder alone.
"""

import copy
import json
import re
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import tiny_backbones as tiny
import torch
from passed_cases import TRAINING, biased, outputs_of, passed, tensors_of
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.export.peft_weights import peft_adapter
from autopeft.methods import registry
from autopeft.methods.lane_operator import SILENT
from autopeft.training.batches import Batch
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:Sparse invariant checks:UserWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
)

NAMES = [name for name in registry.offered() if name != "peft:XLORA"]
"""All but one, of which `peft` has no file: `test_passed_experts`."""
FAMILIES = ("bert", "llama", "vit")
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")
NOT_CARRIED = {
    "bert": {
        "ADAPTION_PROMPT": "peft knows the attention of",
        "SHADOW": "peft's network is whole",
    },
    "llama": dict.fromkeys(PROMPTS, "read the last position"),
    "vit": {
        **dict.fromkeys((*PROMPTS, "TRAINABLE_TOKENS"), "table of tokens"),
        **dict.fromkeys(("PREFIX_TUNING", "CARTRIDGE"), "no cache of keys and values"),
        "ADAPTION_PROMPT": "peft knows the attention of",
        "SHADOW": "peft's network is whole",
    },
}
"""Types that cannot run there, with a part of what is told."""
TASKS = ("POLY", "MULTITASK_PROMPT_TUNING")
SINGLE = ("ADALORA", "PSOFT")
"""Types that compute in float32: a step of Adam's makes much of what is rounded between types."""
RATE = 1e-2


@cache
def _backbone(architecture: str, dtype: torch.dtype) -> Backbone:
    own = biased(architecture)
    own.model.to(dtype)
    return own


def _of(name: str, architecture: str) -> tuple[Backbone, Batch]:
    """What a type runs on, and what it reads."""
    dtype = torch.float32 if name.removeprefix("peft:") in SINGLE else torch.float64
    batch = tiny.tiny_batch(architecture)
    if architecture == "vit":
        pixels = batch.inputs["pixel_values"].to(dtype)
        batch = Batch({"pixel_values": pixels}, batch.mask, batch.labels)
    return _backbone(architecture, dtype), batch


def _plain(name: str, architecture: str) -> Tensor:
    """Logits of the backbone alone, under a lane's head as it starts."""
    backbone, batch = _of(name, architecture)
    return outputs_of(_pack(backbone, Configuration.of([], training=TRAINING)), batch)


def _pack(backbone: Backbone, configuration: Configuration) -> Pack:
    lanes, dtype = [Lane(0, configuration)], _dtype(backbone)
    return Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0), dtype=dtype)


def _configuration(name: str) -> Configuration:
    """Lily's at maps whose names no other map's name ends with."""
    own = passed(name)
    if name != "peft:LILY":
        return own
    (group,) = own.groups
    return replace(own, groups=(replace(group, sites=("query", "up", "value")),))


def _dtype(backbone: Backbone) -> torch.dtype:
    return next(backbone.model.parameters()).dtype


def _train(pack: Pack, batch: Batch, steps: int) -> list[float]:
    """Losses of steps of a new optimizer, without what is drawn in training."""
    optimizer = LaneAdamW(
        pack.stacked(), 1, learning_rates=[RATE], weight_decays=[0.0], max_grad_norm=0.0
    )
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with pack.running():
            loss = nn.functional.cross_entropy(pack(batch, SILENT)[0], batch.labels)
            loss.backward()
        optimizer.step(torch.ones(1))
        losses.append(float(loss.detach()))
    return losses


def _in_peft(backbone: Backbone, pack: Pack, folder: Path, *, trainable: bool) -> PeftModel:
    """The adapter, written and loaded by `peft` onto transformers' own class."""
    tensors = tensors_of(pack)
    adapter = peft_adapter(pack.lanes[0].configuration, backbone, backbone.head(3), tensors)
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config))
    save_file(adapter.tensors, folder / "adapter_model.safetensors")
    config = copy.deepcopy(backbone.config)
    config.num_labels = 3
    images = backbone.anatomy.architecture == "vit"
    if not images:
        config.pad_token_id = 0
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    torch.manual_seed(99)  # what a type draws anew must not matter
    model = auto.from_config(config).to(_dtype(backbone))
    getattr(model, model.base_model_prefix).load_state_dict(backbone.model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
        theirs = theirs.to(_dtype(backbone)).eval()
    for name, parameter in theirs.named_parameters():
        if trainable and name.replace("modules_to_save.default.", "") in adapter.tensors:
            parameter.requires_grad_()  # of the head, which some types leave frozen
    return theirs


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_type_runs_and_starts_as_it_says(name: str, architecture: str) -> None:
    """As the backbone where its identity says so; or it is told why it does not run."""
    backbone, batch = _of(name, architecture)
    kind = name.removeprefix("peft:")
    told, why = (
        NOT_CARRIED[architecture].get(kind, ""),
        registry[name].carried_by(backbone.anatomy),
    )
    assert told in why
    assert bool(told) == bool(why)
    if told:
        return
    configuration, identity = _configuration(name), registry[name].identity
    assert counting.faults(configuration, backbone.anatomy) == []
    found = outputs_of(_pack(backbone, configuration), batch)
    apart = float((found - _plain(name, architecture)).abs().max())
    if identity.startswith("no:") or kind in re.findall(r"\w+", identity):
        assert apart > 1e-5, f"it starts as the backbone, and says: {identity}"
    else:
        assert apart < 1e-6, f"it does not start as the backbone, and says: {identity}"


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        (name, each)
        for each in ("llama", "vit")
        for name in NAMES
        if name.removeprefix("peft:") not in NOT_CARRIED[each]
    ],
)
def test_a_type_trains_and_goes_on_in_peft(name: str, architecture: str, tmp_path: Path) -> None:
    backbone, batch = _of(name, architecture)
    kind, configuration = name.removeprefix("peft:"), _configuration(name)
    pack = _pack(backbone, configuration)
    own = [item for item in pack.stacked() if not item.name.startswith("head.")]
    trained = sum(item.parameter.numel() for item in own)
    assert counting.training_params(configuration, backbone.anatomy) == trained
    before = [item.parameter.detach().clone() for item in own]
    losses = _train(pack, batch, 4)
    assert losses[-1] < losses[0]
    for item, old in zip(own, before, strict=True):
        assert not torch.equal(item.parameter, old), item.name

    trainable = bool(registry[name].schema.sites) or kind in ("TRAINABLE_TOKENS", "SHADOW")
    theirs = _in_peft(backbone, pack, tmp_path, trainable=trainable)
    tasks = {"task_ids": torch.zeros(3, dtype=torch.long)} if kind in TASKS else {}
    expected, found = theirs(**batch.inputs, **tasks).logits, outputs_of(pack, batch)
    assert torch.allclose(found, expected, rtol=0.0, atol=1e-5)
    assert not torch.allclose(found, _plain(name, architecture), rtol=0.0, atol=1e-3)
    if not trainable:
        return  # peft trains no prompt that it has loaded: see test_passed_tokens
    optimizer = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0
    )
    nn.functional.cross_entropy(expected, batch.labels).backward()
    optimizer.step()
    _train(pack, batch, 1)
    stepped = outputs_of(pack, batch)
    assert not torch.allclose(stepped, found, rtol=0.0, atol=1e-2)
    expected = theirs(**batch.inputs, **tasks).logits
    assert torch.allclose(stepped, expected, rtol=0.0, atol=1e-4)  # files hold float32
