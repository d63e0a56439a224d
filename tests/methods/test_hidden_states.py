"""Methods on hidden states and inside attention against hooks that share no code with the lanes.

`references/NAME.py` writes a method's formula out, see `changed_models`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_backbones as tiny
import torch
import transformers as tf
from dense_models import head_logits
from lane_training import Training, furthest, without_cache
from method_cases import configuration, variants
from referenced_cases import HiddenCase, named
from torch import Tensor
from torch.nn import functional

from autopeft import counting
from autopeft.backbone.loading import Backbone
from autopeft.configuration import Configuration
from autopeft.errors import BackboneError
from autopeft.methods import registry
from autopeft.methods.lane_operator import Call
from autopeft.training.batches import PaddedExamples
from autopeft.training.data.examples import Examples
from autopeft.training.lanes import attention
from autopeft.training.lanes.density import NEGLIGIBLE, activation_densities
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.seeds import Seeds, StepUniform
from autopeft.training.lanes.slots import LayerSlots
from autopeft.training.lanes.state import LaneState
from autopeft.training.lanes.stream import Stream

NAMES = named("hidden states")
FAMILIES = ("bert", "gpt2", "llama", "vit", "t5", "modernbert", "deberta-v2")
ROUNDED = {"llama": 1e-6, "t5": 1e-6, "modernbert": 1e-6}
"""Where transformers computes norms or rotations in float32, which makes 1e-7 of a last bit."""
STEPS = 4
TRAINING = {"learning_rate": 1e-3, "weight_decay": 0.01, "warmup_ratio": 0.1}


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_the_reference(name: str, architecture: str) -> None:
    backbone, batch = tiny.tiny_backbone(architecture), tiny.tiny_batch(architecture)
    if name not in registry.carried_by(backbone.anatomy):
        assert architecture == "deberta-v2", "its lanes run one by one, and attention is its own"
        assert name in ("prompt", "dept", "aligner", "prefix")
        return
    every = variants(name) if architecture == "bert" else variants(name)[:1]
    for given in every:
        case = HiddenCase.of(backbone, configuration(name, backbone.anatomy, **given), moved=0.3)
        found, expected = case.logits(batch), case.expected(batch)
        near = ROUNDED.get(architecture, 1e-9)
        assert torch.allclose(found, expected, rtol=0.0, atol=near), given
        assert not torch.allclose(found, case.plain(batch), rtol=0.0, atol=1e-3)
        functional.cross_entropy(found, batch.labels).backward()
        grads = {i.name: i.parameter.grad for i in case.pack.stacked()}
        own = case.pack.lane_views(grads, 0)
        theirs = torch.autograd.grad(
            functional.cross_entropy(expected, batch.labels),
            [case.tensors[tensor] for tensor in own],
        )
        for tensor, grad in zip(own, theirs, strict=True):
            assert torch.allclose(own[tensor], grad, rtol=0.0, atol=near), (given, tensor)
        for kind in {tensor.rpartition(".")[2] for tensor in own}:
            moved = [float(t.abs().max()) for n, t in own.items() if n.endswith(kind)]
            assert max(moved) > 1e-9, (given, kind)


@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_late_prompts_are_not_there_below_their_layer(architecture: str) -> None:
    backbone, batch = tiny.tiny_backbone(architecture), tiny.tiny_batch(architecture)
    late = HiddenCase.of(
        backbone, configuration("prompt", backbone.anatomy, 3, layers=(1, 2)), moved=0.3
    )
    lora = configuration("lora", backbone.anatomy, 2, layers=(0,), sites=["query"])
    both = Configuration.of(
        [*late.pack.lanes[0].configuration.groups, *lora.groups], training=TRAINING
    )
    early = HiddenCase.of(backbone, both, moved=0.3)
    views = early.pack.lane_views(early.pack.parameters_by_name(), 0)
    with torch.no_grad():
        for name, view in views.items():
            view.copy_(late.tensors.get(name, torch.zeros(())))
    found = late.logits(batch)
    assert torch.allclose(found, early.logits(batch), rtol=0.0, atol=1e-9)
    assert not torch.allclose(found, late.plain(batch), rtol=0.0, atol=1e-3)


def _mixed(backbone: Backbone) -> list[Lane]:
    """Lanes of all these methods, alone, several at once and none; some are padded to others."""
    anatomy, rate = backbone.anatomy, {"dropout": 0.2}
    given: Sequence[tuple[tuple[str, int, tuple[int, ...], dict[str, Any]], ...]] = (
        (("prompt", 3, (0,), {}),),
        (("prompt", 9, (1, 2), {}), ("lora", 2, (1,), rate)),
        (("lora", 4, (0, 2), rate),),
        (("reft", 3, (0, 2), rate), ("dept", 4, (2,), {"positions": 5, "rank": 4})),
        (("reft", 4, (0, 1), {"positions": "all"}), ("adalink", 3, (0,), rate)),
        (("dept", 3, (0, 2), {"positions": 30, "rank": 3}), ("prefix", 2, (1,), {})),
        (("aligner", 3, (0, 2), {}), ("adalink", 4, (0, 2), rate), ("prompt", 10, (1,), {})),
        (("aligner", 4, (0, 2), {}),),
    )
    lanes = []
    for number, parts in enumerate(given):
        groups = [
            configuration(name, anatomy, size, layers=layers, **own).groups[0]
            for name, size, layers, own in parts
        ]
        lanes.append(Lane(number, Configuration.of(groups, training=TRAINING)))
    return lanes


class _Again:
    """Runs again what it is given, as a graph would: on the buffers it was recorded with."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """`run` itself."""
        return run


@pytest.mark.parametrize("architecture", ["bert", "llama", "vit"])
def test_mixed_packs_equal_solo_runs_and_a_file_goes_on(architecture: str, tmp_path: Path) -> None:
    """With dropout and decay, lanes with prompts beside lanes without."""
    backbone = tiny.tiny_backbone(architecture)
    lanes = _mixed(backbone)
    batches = without_cache(lambda step: tiny.tiny_batch(architecture, seed=step))
    together = Training(backbone, lanes, recorder=_Again())
    packed = together.run(batches, 0, STEPS)
    assert together.steps.replayed == STEPS - 1
    for lane in lanes:
        half = Training(backbone, [lane], checkpointing=True).run(batches, 0, 2)[lane.number]
        half.save(tmp_path / "lane.safetensors")
        loaded = LaneState.load(tmp_path / "lane.safetensors")
        resumed = Training(backbone, [lane], saved={lane.number: loaded.kept()})
        resumed.put({lane.number: loaded})
        after = resumed.run(batches, 2, STEPS)[lane.number]
        assert furthest(after, packed[lane.number]) < 1e-9, lane
        before = Training(backbone, [lane]).run(batches, 0, 0)[lane.number].weights()
        for tensor_name, tensor in before.items():
            if not tensor_name.startswith("head."):
                assert not torch.equal(tensor, after.weights()[tensor_name]), tensor_name


def test_mixed_packs_equal_solo_runs_under_the_backbones_dropout() -> None:
    backbone = tiny.tiny_backbone("bert")
    lanes = _mixed(backbone)[:4]
    batches = without_cache(lambda step: tiny.tiny_batch("bert", seed=step))
    packed = Training(backbone, lanes, backbone_dropout=True).run(batches, 0, 2)
    for lane in lanes:
        alone = Training(backbone, [lane], backbone_dropout=True).run(batches, 0, 2)
        assert furthest(alone[lane.number], packed[lane.number]) < 1e-9, lane


@pytest.mark.parametrize("name", NAMES)
def test_without_gains_a_lane_is_the_backbone(name: str) -> None:
    """IST asks what a lane is worth with some layers' changes left out."""
    backbone, batch = tiny.tiny_backbone("llama"), tiny.tiny_batch("llama")
    case = HiddenCase.of(backbone, configuration(name, backbone.anatomy, layers=(0, 2)), moved=0.3)
    uniform = StepUniform(Seeds(0), 0, 0, len(batch), torch.device("cpu"))
    with torch.no_grad(), case.pack.running():
        none = case.pack(batch, Call(False, uniform, torch.zeros(1, 3)))[0]
        all_ = case.pack(batch, Call(False, uniform, torch.ones(1, 3)))[0]
    assert torch.allclose(none, case.plain(batch), rtol=0.0, atol=1e-6)
    assert torch.allclose(all_, case.logits(batch), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("name", ["prompt", "dept"])
def test_how_dense_activations_are_is_asked_of_the_text_alone(name: str) -> None:
    """Whatever stands before it, in the lane or in a neighbour's; OPT's FFNs have a ReLU."""
    backbone, rng = tiny.tiny_backbone("opt"), np.random.default_rng(0)
    ids = tuple(rng.integers(3, tiny.VOCABULARY, n).astype(np.int32) for n in (4, 9, 6))
    rows = Examples(ids, np.zeros(3, dtype=np.int64))
    examples = PaddedExamples(rows, pad_token_id=0, device=torch.device("cpu"))
    batch = examples.batch(np.arange(3))
    case = HiddenCase.of(backbone, configuration(name, backbone.anatomy, 3), moved=0.3)
    seen: list[Tensor] = []
    handles = [
        backbone.model.get_submodule(layer.sites["down"].module).register_forward_pre_hook(
            lambda module, args: seen.append(args[0].view(3, -1, args[0].shape[-1]))
        )
        for layer in backbone.anatomy.layers
    ]
    case.expected(batch)
    for handle in handles:
        handle.remove()
    dense = torch.stack([(h[:, 3:].square() > NEGLIGIBLE).double().mean(2) for h in seen]).mean(0)
    expected = ((dense * batch.mask).sum(1) / batch.mask.sum(1)).mean()
    assert 0.2 < float(expected) < 0.8
    assert float(activation_densities([case.pack], examples)) == pytest.approx(float(expected))
    lanes = [Lane(n, configuration(name, backbone.anatomy, 3 + 6 * n)) for n in range(2)]
    both, *alone = (
        Pack(backbone, backbone.head(3), own, seeds=Seeds(3), dtype=torch.float64)
        for own in (lanes, lanes[:1], lanes[1:])
    )
    together, apart = (activation_densities(packs, examples) for packs in ([both], alone))
    assert torch.allclose(together, apart, rtol=0.0, atol=1e-9)
    assert abs(float(apart[0] - apart[1])) > 1e-6


def test_an_initial_prompt_is_made_of_the_vocabulary() -> None:
    for architecture in ("bert", "llama"):
        backbone = tiny.tiny_backbone(architecture, torch.float32)
        case = configuration("prompt", backbone.anatomy, 3, layers=(0,), initial="vocabulary")
        pack = Pack(backbone, backbone.head(3), [Lane(0, case)], seeds=Seeds(3))
        tokens = pack.lane_views(pack.parameters_by_name(), 0)["prompt.0.prompt.tokens"]
        model: Any = backbone.model
        if architecture == "llama":
            known = model.embed_tokens.weight
        else:
            ids = torch.arange(tiny.VOCABULARY).unsqueeze(1)
            known = model.embeddings(ids)[:, 0]
        apart = (tokens[:, None] - known[None]).abs().amax(2)
        assert float(apart.amin(1).max()) < 1e-6
    vit = tiny.tiny_backbone("vit").anatomy
    wrong = configuration("prompt", vit, 3, layers=(0,), initial="vocabulary")
    assert [fault.key for fault in counting.faults(wrong, vit)] == ["prompt.initial"]


def test_two_prompts_at_one_layer_are_refused() -> None:
    backbone = tiny.tiny_backbone("bert")
    groups = [
        configuration(name, backbone.anatomy, 2, layers=(0,)).groups[0]
        for name in ("prompt", "dept")
    ]
    lane = Lane(0, Configuration.of(groups, training=TRAINING))
    (fault,) = counting.faults(lane.configuration, backbone.anatomy)
    assert fault.key == "prompt.layers"
    assert fault.given == "layers 0, where dept puts tokens before the text as well"
    with pytest.raises(BackboneError, match="before the text at layer 0"):
        Pack(backbone, backbone.head(3), [lane], seeds=Seeds(0))
    apart = [groups[0], replace(groups[1], layers=(2,))]
    assert not counting.faults(Configuration.of(apart, training=TRAINING), backbone.anatomy)


def test_reft_edits_some_token_of_a_subspace_that_there_is() -> None:
    anatomy = tiny.tiny_backbone("bert").anatomy
    wrong = configuration("reft", anatomy, tiny.HIDDEN + 1, first=0, last=0)
    keys = [fault.key for fault in counting.faults(wrong, anatomy)]
    assert keys == ["reft.rank", "reft.first"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_aligner_of_a_decoder_gives_what_adaption_prompts_of_peft_do() -> None:
    """Where all layers have the same prompt, and all heads of a layer one gate."""
    from peft import AdaptionPromptConfig, get_peft_model

    backbone, batch = tiny.tiny_backbone("llama"), tiny.tiny_batch("llama")
    case = HiddenCase.of(
        backbone, configuration("aligner", backbone.anatomy, 3, layers=(0, 1, 2)), moved=0.3
    )
    case = _with_one_gate(case)
    theirs = tiny.tiny_backbone("llama")
    config = AdaptionPromptConfig(
        target_modules="self_attn", adapter_len=3, adapter_layers=3, task_type="CAUSAL_LM"
    )
    wrapped = tf.LlamaForCausalLM(theirs.config).double()
    wrapped.model = theirs.model
    get_peft_model(wrapped, config).double()
    for layer, module in enumerate(theirs.model.layers):
        own = module.self_attn
        own.adaption_gate.data.fill_(case.tensors[f"aligner.{layer}.aligner.gate"][0].item())
        own.adaption_prompt.data.copy_(case.tensors["aligner.0.aligner.tokens"])
    out = SimpleNamespace(last_hidden_state=theirs.model(**batch.inputs).last_hidden_state)
    expected = head_logits(out, batch, backbone.head(3), case.tensors)
    assert torch.allclose(case.logits(batch), expected, rtol=0.0, atol=1e-6)


def _with_one_gate(case: HiddenCase) -> HiddenCase:
    """The same with one gate for all heads of a layer."""
    views = case.pack.lane_views(case.pack.parameters_by_name(), 0)
    for name, view in views.items():
        if name.endswith("gate"):
            view.fill_(view[0].item())
            case.tensors[name].data.fill_(view[0].item())
    return case


def test_masks_of_numbers_hide_what_masks_of_truth_hide() -> None:
    """Attention reads both kinds; tokens of a prompt are seen under both."""
    rows, tokens, count = 2, 5, 3
    generator = torch.Generator().manual_seed(0)
    shape = rows, 2, tokens + count, 4
    query, key, value = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    mask = torch.ones(rows, tokens)
    mask[1, 3:] = 0
    module, refuse = torch.nn.Module(), StepUniform(Seeds(0), 0, 0, rows, torch.device("cpu"))
    stream = Stream(rows=rows, lanes=1, call=Call(False, refuse, mask=mask))
    valid = torch.tensor([[True, True, False]])
    slots = LayerSlots(valid, torch.tensor([0]), torch.tensor([True]))
    attention.bind(module, attention.LayerAttention("name", [], stream, layer=0, slots=slots))
    seen = (mask > 0)[:, None, None].expand(-1, -1, tokens, -1)
    numbers = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -1e9)
    outs = [
        attention.lane_attention(module, query, key, value, own, scaling=0.5)[0]
        for own in (seen, numbers)
    ]
    assert torch.allclose(*outs, rtol=0.0, atol=1e-12)
    keys = [0, 1, 2, 5, 6]
    scores = torch.einsum("hw,hkw->hk", query[1, :, 0], key[1][:, keys]) * 0.5
    expected = torch.einsum("hk,hkw->hw", scores.softmax(-1), value[1][:, keys])
    assert torch.allclose(outs[0][1, 0], expected, rtol=0.0, atol=1e-12)
