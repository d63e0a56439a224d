"""LoRA against HF `peft`: the same weights give the same outputs and the same trajectory."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from autopeft.backbone.anatomy import Anatomy
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration, Group
from autopeft.methods.lane_operator import Call
from autopeft.training.batches import Batch
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

RANK, ALPHA, RATE, STEPS = 4, 8.0, 1e-3, 10
TRAINING = {"learning_rate": RATE, "weight_decay": 0.0, "warmup_ratio": 0.0}


def _configuration(anatomy: Anatomy, layers: list[int]) -> Configuration:
    sites = [role for role in ("query", "value", "up", "down") if role in anatomy.roles]
    fused = any(anatomy.site(0, role).fused for role in sites)
    if fused:  # peft adapts a fused map as a whole; only its separate maps can be compared
        sites = [role for role in sites if not anatomy.site(0, role).fused]
    group = Group.of("lora", layers, sites, rank=RANK, alpha=ALPHA, dropout=0.0)
    return Configuration.of([group], training=TRAINING)


def _peft_model(backbone: Backbone, configuration: Configuration, pack: Pack) -> torch.nn.Module:
    """The same LoRA in HF peft, with the lane's initial weights copied across."""
    anatomy = backbone.anatomy
    (group,) = configuration.groups
    modules = [anatomy.site(layer, s).module for layer in group.layers for s in group.sites]
    transposed = anatomy.site(0, group.sites[0]).transposed
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=modules, fan_in_fan_out=transposed
    )
    model = get_peft_model(backbone.model, config, autocast_adapter_dtype=False)
    views = pack.lane_views(pack.parameters_by_name(), 0)
    for layer in group.layers:
        for role in group.sites:
            module = backbone.model.get_submodule(anatomy.site(layer, role).module)
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(views[f"lora.{layer}.{role}.A"].T)
                module.lora_B["default"].weight.copy_(views[f"lora.{layer}.{role}.B"].T)
    return model.double()


def _step_call(step: int, rows: int) -> Call:
    uniform = StepUniform(Seeds(0), step, 0, rows, torch.device("cpu"))
    return Call(training=True, uniform=uniform)


def _our_losses(backbone: Backbone, pack: Pack, batches: list[Batch]) -> list[float]:
    optimizer = LaneAdamW(
        pack.stacked(), 1, learning_rates=[RATE], weight_decays=[0.0], max_grad_norm=1.0
    )
    losses = []
    with pack.running():
        for step, batch in enumerate(batches):
            optimizer.zero_grad()
            logits = pack(batch, _step_call(step, len(batch)))[0]
            loss = functional.cross_entropy(logits, batch.labels)
            loss.backward()
            optimizer.step(torch.ones(1))
            losses.append(float(loss.detach()))
    return losses


def _peft_losses(
    model: torch.nn.Module, pack: Pack, backbone: Backbone, batches: list[Batch]
) -> list[float]:
    """torch's own AdamW, clip and a dense head on peft's model."""
    views = pack.lane_views(pack.parameters_by_name(), 0)
    head = {name: view.clone().requires_grad_() for name, view in views.items() if "head" in name}
    recipe = backbone.head(3)
    trained = [p for p in model.parameters() if p.requires_grad] + list(head.values())
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    losses = []
    for batch in batches:
        out = model(**batch.inputs)
        if recipe.pool == "pooler":
            x = out.pooler_output
        else:
            last = batch.mask.sum(1) - 1 if recipe.pool == "last" else torch.zeros(len(batch))
            x = out.last_hidden_state[torch.arange(len(batch)), last.long()]
        for index, step in enumerate(recipe.steps):
            x = x @ head[f"head.{index}_weight"]
            x = x + head[f"head.{index}_bias"] if step.bias else x
            x = {"none": lambda v: v, "tanh": torch.tanh, "relu": torch.relu}[step.activation](x)
        loss = functional.cross_entropy(x, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("layers", [[0, 1, 2], [2]])
def test_trajectory_equals_peft(
    name: str,
    layers: list[int],
    make_backbone: Callable[..., Backbone],
    make_batch: Callable[..., Batch],
) -> None:
    ours, theirs = make_backbone(name), make_backbone(name)
    configuration = _configuration(ours.anatomy, layers)
    pack = Pack(ours, ours.head(3), [Lane(0, configuration)], seeds=Seeds(3), dtype=torch.float64)
    model = _peft_model(theirs, configuration, pack)
    batches = [make_batch(name, seed=step) for step in range(STEPS)]
    expected = _peft_losses(model, pack, theirs, batches)
    found = _our_losses(ours, pack, batches)
    assert found == pytest.approx(expected, abs=1e-9)
    assert abs(found[0] - found[-1]) > 1e-4, "nothing was learnt"
