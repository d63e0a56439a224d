"""A backbone that works between its layers: discovery says so, and the gates would notice."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf
from lane_training import Training

from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.configuration import Configuration, Group
from autopeft.errors import BackboneError
from autopeft.training.batches import Batch
from autopeft.training.lanes.pack import Lane

CALM = {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0}
BETWEEN = "works between its layers 0 and 1"


def _lanes(*layers: int) -> list[Lane]:
    groups = [
        Group.of(
            "serial_adapter", [layer], ["ffn"], size=2, activation="relu", scale=1.0, dropout=0
        )
        for layer in layers
    ]
    return [
        Lane(number, Configuration.of([group], training=CALM))
        for number, group in enumerate(groups)
    ]


def _forced(backbone: Backbone) -> Backbone:
    """As if discovery had not seen why its lanes cannot share a pass."""
    return replace(backbone, anatomy=replace(backbone.anatomy, packable=True, why_not=""))


@pytest.fixture
def batch(by_name: Mapping[str, Any], batch_for: Any) -> Batch:
    inputs = batch_for(by_name["deberta-v2-conv"])
    return Batch(inputs, inputs["attention_mask"], torch.tensor([0, 1, 2]))


@pytest.fixture
def convolution(by_name: Mapping[str, Any]) -> Backbone:
    """DeBERTa-v2 whose first layer's output a convolution is added to."""
    return backbone_of(by_name["deberta-v2-conv"].base())


def test_discovery_lets_no_lanes_share_it(convolution: Backbone) -> None:
    with pytest.raises(BackboneError, match="2 lanes"):
        Training(convolution, _lanes(0, 1))


@pytest.mark.parametrize("layers", [(0, 1), (1, 1), (0,), (1,)])
def test_forced_to_share_it_is_refused_and_left_as_it_was(
    layers: tuple[int, ...], convolution: Backbone, batch: Batch
) -> None:
    model: Any = convolution.model
    before = model(**batch.inputs).last_hidden_state
    training = Training(_forced(convolution), _lanes(*layers))
    weights = {name: tensor.clone() for name, tensor in training.pack.named_parameters()}
    with pytest.raises(BackboneError, match=BETWEEN):
        training.run(lambda step, pack: (batch, {}))
    assert all(torch.equal(weights[n], tensor) for n, tensor in training.pack.named_parameters())
    assert torch.equal(model(**batch.inputs).last_hidden_state, before)


def test_its_trunk_is_refused_above_the_convolution(convolution: Backbone, batch: Batch) -> None:
    pack = Training(_forced(convolution), _lanes(1, 1)).pack
    with pack.running(), pytest.raises(BackboneError, match=BETWEEN):
        pack.trunk(batch, [1], {})


def test_without_the_convolution_the_gates_have_nothing_to_refuse(
    by_name: Mapping[str, Any], batch: Batch
) -> None:
    """So it is the convolution that they notice: the adapters' places are used once a pass."""
    backbone = _forced(backbone_of(by_name["deberta-v2"].base()))
    states = Training(backbone, _lanes(0, 1)).run(lambda step, pack: (batch, {}), 0, 2)
    assert all(state.updates == 2 for state in states.values())


def test_layers_that_pass_several_streams_on_are_refused() -> None:
    """Gemma 3n's; the published ones share keys and values too, which discovery refuses."""
    config = tf.Gemma3nTextConfig(
        vocab_size=64,
        vocab_size_per_layer_input=64,
        hidden_size=16,
        hidden_size_per_layer_input=8,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_kv_shared_layers=0,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 2,
    )
    backbone = backbone_of(tf.Gemma3nTextModel(config))
    mask = torch.ones(3, 6, dtype=torch.long)
    batch = Batch({"input_ids": mask, "attention_mask": mask}, mask, torch.tensor([0, 1, 2]))
    for lanes in (_lanes(0), _lanes(0, 1)):
        with pytest.raises(BackboneError, match="one stream"):
            Training(backbone, lanes).run(lambda step, pack: (batch, {}))
