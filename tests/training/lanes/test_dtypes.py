"""A backbone held in bfloat16 trains lanes that are held, and updated, in float32."""

import pytest
import torch
from tiny_backbones import tiny_backbone, tiny_batch
from torch.nn import functional

from autopeft.configuration import Configuration, Group
from autopeft.methods.base import Call
from autopeft.training.lanes.optimizer import LaneAdamW
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform

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
