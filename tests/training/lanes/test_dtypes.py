"""A backbone held in bfloat16 trains lanes that are held, and updated, in float32."""

from collections.abc import Callable

import pytest
import torch
from method_cases import configuration
from tiny_backbones import tiny_backbone, tiny_batch
from torch.nn import functional

from autopeft.configuration import Configuration, Group
from autopeft.methods.lane_operator import Call
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.steps import Steps
from autopeft.training.tasks import SequenceTask

TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_mixed_lanes_train_on_a_bfloat16_backbone(name: str, dropout: float) -> None:
    backbone = tiny_backbone(name, torch.bfloat16)
    site = {"alpha": 8.0, "dropout": dropout}
    adapter = {"activation": "gelu", "scale": 1.0, "dropout": dropout}
    groups = [
        Group.of("lora", [0, 1], ["query", "up"], rank=2, **site),
        Group.of("serial_adapter", [1], ["ffn"], size=3, **adapter),
        Group.of("parallel_adapter", [2], ["ffn", "attention"], size=2, **adapter),
        Group.of("prefix", [2], length=2, reparametrise=True, hidden=4),
        Group.of("aligner", [0, 2], length=2),
        Group.of("adalink", [1], rank=2, activation="gelu", dropout=dropout),
        configuration("reft", backbone.anatomy, 2, layers=(2,), dropout=dropout).groups[0],
        configuration("dept", backbone.anatomy, 3, layers=(0,)).groups[0],
    ]
    placements = [groups, groups[:1], groups[2:]]
    configurations = [Configuration.of(each, training=TRAINING) for each in placements]
    lanes = [Lane(number, each) for number, each in enumerate(configurations)]
    pack = Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0))
    before = {name: tensor.clone() for name, tensor in pack.parameters_by_name().items()}
    optimizer = LaneAdamW(
        pack.stacked(), 3, learning_rates=[1e-3] * 3, weight_decays=[0.0] * 3, max_grad_norm=1.0
    )
    with pack.running():
        for step in range(3):
            batch = tiny_batch(name, seed=step)
            optimizer.zero_grad()
            uniform = StepUniform(Seeds(0), step, 0, len(batch), torch.device("cpu"))
            logits = pack(batch, Call(True, uniform))
            assert logits.dtype == torch.float32
            functional.cross_entropy(logits.flatten(0, 1), batch.labels.repeat(3)).backward()
            optimizer.step(torch.ones(3))
    after = pack.parameters_by_name()
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    assert [name for name, tensor in after.items() if torch.equal(tensor, before[name])] == []
    assert optimizer.active.all()


@pytest.mark.parametrize("name", ["bert", "modernbert", "llama", "t5"])
def test_inside_autocast_a_backbone_held_in_bfloat16_keeps_its_stream_in_it(name: str) -> None:
    """Operators alone are cast; autocast would run norms, and what follows them, in float32."""
    backbone = tiny_backbone(name, torch.bfloat16)
    site = {"alpha": 8.0, "dropout": 0.0}
    adapter = {"activation": "gelu", "scale": 1.0, "dropout": 0.0}
    groups = [
        Group.of("lora", [0, 2], ["query", "up"], rank=2, **site),
        Group.of("serial_adapter", [1], ["ffn"], size=3, **adapter),
    ]
    lanes = [Lane(n, Configuration.of(groups[: n + 1], training=TRAINING)) for n in range(2)]
    seen: dict[str, set[torch.dtype]] = {"stream": set(), "operators": set()}

    def note(module: torch.nn.Module, args: object, output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        assert isinstance(hidden, torch.Tensor)
        seen["stream"].add(hidden.dtype)
        assert not torch.is_autocast_enabled("cpu"), "on a GPU, norms would run in float32"

    layers = [
        backbone.model.get_submodule(layer.module).register_forward_hook(note)
        for layer in backbone.anatomy.layers
    ]
    found = {}
    for checkpointing in (False, True):
        pack = Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0), checkpointing=checkpointing)
        for item in pack.operators:
            delta = item.delta

            def noting(*args: object, own: Callable[..., torch.Tensor] = delta) -> torch.Tensor:
                out = own(*args)
                seen["operators"].add((torch.randn(2, 2) @ torch.randn(2, 2)).dtype)
                return out

            item.delta = noting
        batch = tiny_batch(name)
        uniform = StepUniform(Seeds(0), 0, 0, len(batch), torch.device("cpu"))
        with pack.running():
            with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
                logits = pack(batch, Call(True, uniform))
                loss = functional.cross_entropy(logits.flatten(0, 1), batch.labels.repeat(2))
            loss.backward()
        found[checkpointing] = [p.grad for p in pack.parameters() if p.grad is not None]
    for handle in layers:
        handle.remove()
    assert seen == {"stream": {torch.bfloat16}, "operators": {torch.bfloat16}}
    assert len(found[False]) == len(found[True]) > 0
    assert all(torch.equal(a, b) for a, b in zip(found[False], found[True], strict=True))
    assert all(a.dtype == torch.float32 for a in found[False])


@pytest.mark.parametrize("method", ["lora", "serial_adapter", "parallel_adapter"])
def test_autocast_gives_what_it_would_of_inputs_that_were_cast_up_before(method: str) -> None:
    """Bit for bit: a round trip through float32 changes no bfloat16, and costs two passes."""
    backbone = tiny_backbone("bert", torch.bfloat16)
    settings: dict[str, object] = {"rank": 3, "alpha": 8.0, "dropout": 0.2}
    if method != "lora":
        settings = {"size": 3, "activation": "gelu", "scale": 4.0, "dropout": 0.2}
    sites = ["query"] if method == "lora" else ["ffn"]
    group = Group.of(method, [0], sites, **settings)
    pack = Pack(
        backbone,
        backbone.head(3),
        [Lane(0, Configuration.of([group], training=TRAINING))],
        seeds=Seeds(0),
    )
    (placed,) = pack._placed
    with torch.no_grad():
        for parameter in placed.operator.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    draws = StepUniform(Seeds(0), 0, 0, 4, torch.device("cpu"))
    x, y = torch.randn(2, 1, 4, 7, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for products_only in (True, False):
        placed.operator.products_only = products_only
        placed.operator.zero_grad()
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            delta = placed.delta(own, y if method != "serial_adapter" else own, Call(True, draws))
        delta.float().square().sum().backward()
        found.append([delta.detach(), own.grad, *(p.grad for p in placed.operator.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_adapters_and_mixtures_train_in_bfloat16_with_their_losses(name: str) -> None:
    backbone = tiny_backbone(name, torch.bfloat16)
    methods = ("linear_adapter", "adapter_plus", "compacter", "moelora", "adamix")
    given = {"layers": (0, 1)}
    cases = [configuration(each, backbone.anatomy, 3, **given) for each in methods]
    lanes = [Lane(number, case) for number, case in enumerate(cases)]
    pack = Pack(backbone, backbone.head(3), lanes, seeds=Seeds(0))
    before = {name: tensor.clone() for name, tensor in pack.parameters_by_name().items()}
    rates, none = [1e-3] * len(lanes), [0.0] * len(lanes)
    optimizer = LaneAdamW(
        pack.stacked(), len(lanes), learning_rates=rates, weight_decays=none, max_grad_norm=1.0
    )
    task = SequenceTask(backbone.head(3), 3)
    steps = Steps(
        pack, optimizer, task.loss_sums, divergence=task.divergence_sums, precision="bf16"
    )
    with pack.running():
        for step in range(3):
            batch = tiny_batch(name, rows=4, seed=step)
            optimizer.zero_grad()
            draws = StepUniform(Seeds(0), step, 0, 4, torch.device("cpu"))
            assert bool(torch.isfinite(steps.accumulate(batch, {}, draws, weight=4)).all())
            steps.update(torch.ones(len(lanes)))
    after = pack.parameters_by_name()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    assert [name for name, tensor in after.items() if torch.equal(tensor, before[name])] == []
    assert optimizer.active.all()
