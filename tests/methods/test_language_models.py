"""What stands before the text of a language model, or beside its attention, in float64.

Hidden states under transformers' own language model head: logits of all tokens, the loss of the
next tokens, and two steps of AdamW. Prompts, DePT and Aligner are held against hooks (see
`changed_models`), prefixes against transformers' cache of keys and values. Neither shares code
with the lanes. HF peft's forms of the same are in `tests/export/test_peft_causal.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import tiny_causal
import torch
from changed_models import output_of
from lane_case import LaneCase
from method_cases import configuration, variants
from reference_files import reference
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from autopeft.backbone.embeddings import cache_argument
from autopeft.backbone.loading import Backbone, backbone_of
from autopeft.methods import registry
from autopeft.training.batches import Batch
from autopeft.training.lanes.optimizer import LaneAdamW

NEAR = {"gpt2": 1e-9, "llama": 1e-5, "qwen3": 1e-5}
"""transformers computes norms and rotations in float32, which makes 1e-6 of these logits."""
RATE, DECAY = 1e-3, 0.1


def _batch() -> Batch:
    inputs = tiny_causal.tiny_inputs()
    return Batch(inputs, inputs["attention_mask"], torch.zeros(3, dtype=torch.long))


class Case(LaneCase):
    """Compared by transformers' model."""

    def found(self, batch: Batch) -> Tensor:
        """The lane's logits [B, T, V]."""
        assert self.backbone.lm_head is not None
        return self.backbone.lm_head.logits(self.logits(batch))

    def expected(self, causal: Any, batch: Batch) -> Tensor:
        """The reference's."""
        by_layer: dict[int, dict[str, Tensor]] = {}
        for place in registry[self.group.method].places(self.group, self.backbone.anatomy):
            by_layer[place.layer] = self.at(place.layer, place.site)
        if self.group.method == "prefix":
            return _behind_a_cache(causal, self.backbone, by_layer, batch)
        own, settings = reference(self.group.method), dict(self.group.settings)
        out = output_of(self.backbone, own, settings, by_layer, batch)
        return causal.lm_head(out.last_hidden_state)


def _behind_a_cache(
    causal: Any, backbone: Backbone, by_layer: Mapping[int, Mapping[str, Tensor]], batch: Batch
) -> Tensor:
    """Logits of a text whose positions begin at 0, with these keys and values in the cache."""
    rows, tokens = batch.mask.shape
    anatomy, cache = backbone.anatomy, DynamicCache()
    length = 0
    for layer, own in sorted(by_layer.items()):
        keys, values = reference("prefix").keys_values({"reparametrise": "w1" in own}, own)
        length = len(keys)
        heads = [
            each.view(length, anatomy.n_kv_heads, anatomy.head_dim).transpose(0, 1)
            for each in (keys, values)
        ]
        cache.update(*(each.expand(rows, -1, -1, -1) for each in heads), layer)
    own_inputs = {
        "input_ids": batch.inputs["input_ids"],
        "attention_mask": functional.pad(batch.mask, (length, 0), value=1),
        "position_ids": torch.arange(tokens).expand(rows, -1),
        cache_argument(causal): cache,
    }
    return causal(**own_inputs).logits


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    """Of the next tokens, all of them."""
    labels = batch.inputs["input_ids"].masked_fill(batch.mask == 0, -100)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _cases(name: str, architecture: str) -> Iterator[dict[str, Any]]:
    """All variants in both layers of a Llama, the first elsewhere; it at the first layer too."""
    every = variants(name)
    every = every if architecture == "llama" else every[:1]
    yield from ({"layers": (0, 1)} | given for given in every)
    if name != "prefix":
        yield {"layers": (0,)} | every[0]


@pytest.mark.parametrize("architecture", NEAR)
@pytest.mark.parametrize("name", ["prefix", "prompt", "dept", "aligner"])
def test_logits_and_training_steps_are_those_of_the_reference(
    name: str, architecture: str
) -> None:
    batch, near = _batch(), NEAR[architecture]
    seen = batch.mask.bool()
    for given in _cases(name, architecture):
        causal = tiny_causal.tiny_causal(architecture)
        backbone = backbone_of(causal)
        case = Case.of(backbone, configuration(name, backbone.anatomy, 3, **given), moved=0.3)
        plain = causal(**batch.inputs).logits
        theirs = _optimizer(case)
        ours = LaneAdamW(
            case.pack.stacked(), 1, learning_rates=[RATE], weight_decays=[DECAY], max_grad_norm=1.0
        )
        for _ in range(2):
            found, expected = case.found(batch), case.expected(causal, batch)
            assert torch.allclose(found[seen], expected[seen], rtol=0.0, atol=near), given
            assert float((expected - plain)[seen].abs().max().detach()) > 0.01, given
            ours.zero_grad()
            _loss(found, batch).backward()
            ours.step(torch.ones(1))
            theirs.zero_grad()
            _loss(expected, batch).backward()
            torch.nn.utils.clip_grad_norm_(case.tensors.values(), 1.0)
            theirs.step()
        held = case.pack.lane_views(case.pack.parameters_by_name(), 0)
        for tensor_name, view in held.items():
            stepped = case.tensors[tensor_name]
            assert stepped.grad is not None
            assert float(stepped.grad.abs().max()) > 1e-6, (given, tensor_name)
            assert torch.allclose(view, stepped, rtol=0.0, atol=near), (given, tensor_name)


def _optimizer(case: Case) -> torch.optim.Optimizer:
    """torch's own; matrices decay, and a prompt of DePT's has a rate of its own."""
    rate = float(dict(case.group.settings).get("prompt_rate", 1.0))
    groups = [
        {
            "params": [tensor],
            "lr": RATE * (rate if tensor_name.endswith(".tokens") else 1.0),
            "weight_decay": DECAY if tensor.dim() > 1 else 0.0,
        }
        for tensor_name, tensor in case.tensors.items()
    ]
    return torch.optim.AdamW(groups)
