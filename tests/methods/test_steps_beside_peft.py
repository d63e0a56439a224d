"""Which methods take their training steps beside HF `peft`, and those that stand before the text.

Every method takes steps beside its reference, see `test_training_steps`. Where `peft` trains the
same, it takes them beside `peft` too: methods on maps and norms in `test_linear_maps`, prompts and
prefixes here.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_backbones as tiny
import torch
from dense_models import head_logits
from method_cases import configuration, variants
from reference_files import reference
from referenced_cases import FORMS, HiddenCase, form_of
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import rotate_half

from autopeft.backbone.loading import Backbone
from autopeft.export.peft_folding import folds
from autopeft.methods import registry
from autopeft.training.batches import Batch
from autopeft.training.lanes.optimizer import LaneAdamW

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning",
    "ignore:.past_key_values. is deprecated:FutureWarning",
)

PUT_INTO = {"dense": "fill", "output": "fill", "hidden states": "encoded"}
"""By form, what of a reference puts a lane's tensors into `peft`'s model, for steps beside it."""
BESIDE_PEFT = [
    name
    for name in registry.names()
    if form_of(name) and hasattr(reference(name), PUT_INTO[form_of(name)])
]
WITH_ENCODERS = [name for name in BESIDE_PEFT if hasattr(reference(name), "encoded")]
RATE, DECAY, CLIP, STEPS = 1e-2, 0.1, 0.5, 2


def _peft_trains_the_same(name: str) -> bool:
    """Whether some variant of it is, as it trains, a type of `peft`.

    Not what is folded into LoRA once it is trained, nor what a type holds and trains otherwise.
    """
    method, anatomy = registry[name], tiny.tiny_backbone("bert").anatomy
    if not method.peft_type or folds(name):
        return False
    groups = [configuration(name, anatomy, **given).groups[0] for given in variants(name)]
    return any(not method.peft_trains(group) for group in groups)


@pytest.mark.parametrize("name", registry.names())
def test_what_peft_trains_takes_its_steps_beside_peft_and_all_else_beside_its_reference(
    name: str,
) -> None:
    """A new method is in one of the two lists, or this says where it is missing."""
    form = form_of(name)
    assert form in FORMS, f"no reference holds {name}, so that it takes no step beside any"
    if _peft_trains_the_same(name):
        assert name in BESIDE_PEFT, (
            f"peft trains {name} as {registry[name].peft_type}: give its reference `peft_config` "
            f"and `{PUT_INTO[form]}`"
        )
    if name in BESIDE_PEFT:
        assert hasattr(reference(name), "peft_config")


def test_both_lists_hold_what_they_are_known_to_hold() -> None:
    """So that neither the rule above nor the lists are empty of what they are about."""
    alone = set(registry.names()) - set(BESIDE_PEFT)
    assert {"lora", "hira", "norm", "prompt", "prefix"} <= set(BESIDE_PEFT)
    assert {"surm", "ssf", "reft", "svft", "melora"} <= alone
    assert [n for n in BESIDE_PEFT if form_of(n) == "hidden states"] == WITH_ENCODERS


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("turns", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("name", WITH_ENCODERS)
def test_steps_before_the_text_are_those_of_peft(
    name: str, turns: bool, architecture: str
) -> None:
    """Prefixes too: where positions turn keys, along the gradient.

    `peft` moves the text behind keys, which are the same then if they are turned as far. AdamW's
    steps are by each number's own scale, and other ones for turned numbers: they are the same
    where positions turn nothing.
    """
    from peft import get_peft_model

    said, batch = reference(name), tiny.tiny_batch(architecture)
    backbone, theirs = (_backbone(architecture, turns=turns) for _ in range(2))
    layers = (0,) if name == "prompt" else (0, 1, 2)
    given = {} if name == "prompt" else {"reparametrise": False}
    case = HiddenCase.of(
        backbone, configuration(name, backbone.anatomy, 3, layers=layers, **given), moved=0.3
    )
    settings = dict(case.group.settings)
    config = said.peft_config(settings, backbone.anatomy)
    model = get_peft_model(theirs.model, config, autocast_adapter_dtype=False).double()
    table = model.prompt_encoder["default"].embedding.weight

    def encoded() -> Tensor:
        """The lane's tensors as `peft` holds them."""
        views = case.pack.lane_views(case.pack.parameters_by_name(), 0)
        own = {
            layer: {t: views[f"{name}.{layer}.{name}.{t}"] for t in case.at(layer, name)}
            for layer in layers
        }
        made: Tensor = said.encoded(settings, own, lambda keys: _turned(keys, theirs))
        return made

    start = encoded().clone()
    table.data.copy_(start)
    head = {
        n: t.detach().clone().requires_grad_() for n, t in case.tensors.items() if "head." in n
    }
    trained = [table, *head.values()]
    along = name == "prefix" and turns
    ours, their_steps = _optimizers(case, trained, along_the_gradient=along)
    for _ in range(STEPS):
        found, expected = case.logits(batch), _logits(model, theirs, batch, head)
        assert torch.allclose(found, expected, rtol=0.0, atol=1e-6)
        ours.zero_grad()
        functional.cross_entropy(found, batch.labels).backward()
        their_steps.zero_grad()
        functional.cross_entropy(expected, batch.labels).backward()
        if along:
            ours.step()
        else:
            ours.step(torch.ones(1))
            assert torch.nn.utils.clip_grad_norm_(trained, CLIP) > 0
        their_steps.step()
    assert torch.allclose(encoded(), table, rtol=0.0, atol=1e-6)
    assert not torch.allclose(encoded(), start, rtol=0.0, atol=1e-3)
    assert torch.allclose(
        case.logits(batch), _logits(model, theirs, batch, head), rtol=0.0, atol=1e-6
    )


def _backbone(architecture: str, *, turns: bool) -> Backbone:
    backbone = tiny.tiny_backbone(architecture)
    rotary: Any = backbone.model.rotary_emb
    if not turns:
        rotary.inv_freq.zero_()
    return backbone


def _turned(keys: Tensor, backbone: Backbone) -> Tensor:
    """As transformers turns keys that stand at position P, P their number."""
    rotary: Any = backbone.model.rotary_emb
    width = backbone.anatomy.head_dim
    heads = keys.view(len(keys), -1, width)
    cosine, sine = rotary(keys, torch.tensor([[len(keys)]]))
    return (heads * cosine[0] + rotate_half(heads) * sine[0]).flatten(1)


def _logits(model: Any, theirs: Backbone, batch: Batch, head: dict[str, Tensor]) -> Tensor:
    """Of the text alone, where tokens stand before it."""
    hidden = model(**batch.inputs).last_hidden_state[:, -batch.mask.shape[1] :]
    out = SimpleNamespace(last_hidden_state=hidden)
    return head_logits(out, batch, theirs.head(3), head)


def _optimizers(
    case: HiddenCase, trained: list[Tensor], *, along_the_gradient: bool
) -> tuple[Any, Any]:
    """The lane's, and torch's of the same steps."""
    if along_the_gradient:
        own = [item.parameter for item in case.pack.stacked()]
        return torch.optim.SGD(own, lr=1.0), torch.optim.SGD(trained, lr=1.0)
    ours = LaneAdamW(
        case.pack.stacked(), 1, learning_rates=[RATE], weight_decays=[DECAY], max_grad_norm=CLIP
    )
    groups = [
        {"params": [t for t in trained if t.dim() > 1], "weight_decay": DECAY},
        {"params": [t for t in trained if t.dim() == 1], "weight_decay": 0.0},
    ]
    return ours, torch.optim.AdamW(groups, lr=RATE)
