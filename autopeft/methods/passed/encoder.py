"""What makes the tokens, or the keys and values, that `peft` puts before every text.

`peft` calls it a prompt encoder. It stands beside a model, of which it has to know a few widths
and, where it starts from the vocabulary, the table of tokens: so it is built on a stand-in that
has those and nothing else of the backbone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbone.anatomy import Anatomy
from autopeft.methods.passed.build import as_faults, told_quietly
from autopeft.methods.passed.parameters import arguments, config_class
from autopeft.methods.passed.types import NAME, PeftType
from autopeft.space.schema import Scalar

FOLDED: Mapping[str, Scalar] = {"inference_mode": True}
"""Settings of an encoder that is a table of what it has come to."""


@dataclass(frozen=True)
class Widths:
    """What an encoder has to know of a backbone.

    Attributes:
        token: Width of a token's embedding; for keys and values, of all heads of one layer.
        heads: Heads of keys and values.
        layers: All layers.
    """

    token: int
    heads: int
    layers: int

    @classmethod
    def of(cls, kind: PeftType, anatomy: Anatomy) -> "Widths":
        """Those of a backbone that carries the type."""
        layers = len(anatomy.layers)
        if kind.where == "prefix":
            return cls(anatomy.n_kv_heads * anatomy.head_dim, anatomy.n_kv_heads, layers)
        if anatomy.embeddings is None:
            raise ValueError(f"{kind.name} was asked of a backbone that does not carry it")
        return cls(anatomy.embeddings.width, anatomy.n_heads, layers)


def encoder_config(
    kind: PeftType, settings: Mapping[str, Scalar], widths: Widths, **options: Any
) -> Any:
    """The `PeftConfig` of a group, all widths said: `peft` does not find them in every model.

    Raises:
        BackboneError: `peft` refuses the settings.
    """
    own = config_class(kind.name)
    given = {
        **arguments(kind, settings),
        "token_dim": widths.token,
        "num_attention_heads": widths.heads,
        "num_layers": widths.layers,
        "num_transformer_submodules": 1,
        **options,
    }
    if "encoder_hidden_size" in own.__dataclass_fields__:
        given.setdefault("encoder_hidden_size", widths.token)
    with told_quietly(), as_faults(kind):
        return own(**given)


def bare_encoder(kind: PeftType, settings: Mapping[str, Scalar], widths: Widths) -> nn.Module:
    """`peft`'s encoder by itself, on the current device, starting from nothing of a model.

    Raises:
        BackboneError: `peft` refuses the settings.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    config = encoder_config(kind, settings, widths)
    if hasattr(config, "prompt_tuning_init"):
        config.prompt_tuning_init = "RANDOM"
    own = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    table = (None,) if hasattr(config, "prompt_tuning_init") else ()
    with told_quietly(), as_faults(kind), torch.random.fork_rng([]):
        encoder: nn.Module = own(config, *table)
    return encoder


def folded(
    kind: PeftType, settings: Mapping[str, Scalar], tensors: Mapping[str, Tensor]
) -> Tensor:
    """What an encoder of these tensors makes: a row per token.

    Args:
        kind: A type whose encoder is needed in training alone.
        settings: With an encoder.
        tensors: All of it, by name.
    """
    table = tensors["embedding.weight"]
    width = table.shape[1]
    layers = len(tensors["transform.2.bias"]) // (2 * width) if kind.where == "prefix" else 1
    encoder = bare_encoder(kind, settings, Widths(width, 1, layers))
    encoder.to(table.dtype).load_state_dict({n: t.cpu() for n, t in tensors.items()})
    with torch.no_grad():
        made: Tensor = encoder.eval()(torch.arange(len(table)).unsqueeze(0))[0]
    return made.to(table.device)


class BuiltEncoder:
    """An encoder beside a model.

    Args:
        model: `peft`'s model of a stand-in.
        kind: Its type.
    """

    def __init__(self, model: Any, kind: PeftType) -> None:
        self.model, self.kind = model, kind

    @property
    def encoder(self) -> nn.Module:
        """`peft`'s module."""
        found: nn.Module = self.model.prompt_encoder[NAME]
        return found

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in the encoder."""
        return {n: p for n, p in self.encoder.named_parameters() if p.requires_grad}

    def fixed(self) -> dict[str, Tensor]:
        """What is kept beside it, likewise."""
        return {n: p.data for n, p in self.encoder.named_parameters() if not p.requires_grad}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over tensors by their names in the encoder."""
        with torch.no_grad():
            for name, tensor in state.items():
                self.encoder.get_parameter(name).copy_(tensor)

    def saved(self) -> dict[str, Tensor]:
        """What `peft` saves, by the names that it gives: what the encoder has come to."""
        from peft import get_peft_model_state_dict

        with told_quietly():
            state: dict[str, Tensor] = get_peft_model_state_dict(
                self.model, save_embedding_layers=False
            )
        return state

    def made(self, rows: int) -> Any:
        """What `peft` puts before so many texts: tokens [rows, P, d], or a cache."""
        device = next(self.encoder.parameters()).device
        tasks = torch.zeros(rows, dtype=torch.long, device=device)
        return self.model.get_prompt(batch_size=rows, task_ids=tasks)


def build_encoder(
    kind: PeftType,
    settings: Mapping[str, Scalar],
    widths: Widths,
    model: nn.Module,
    *,
    seed: int,
) -> BuiltEncoder:
    """An encoder beside a model.

    Args:
        kind: Its type.
        settings: Its parameters.
        widths: Of the model.
        model: The base model, of which nothing is changed.
        seed: Of all that it draws.

    Raises:
        BackboneError: `peft` refuses the settings.
    """
    from peft import PeftModel

    config = encoder_config(kind, settings, widths)
    beside = _Beside(model)
    devices = [beside.device] if beside.device.type == "cuda" else []
    with torch.random.fork_rng(devices), told_quietly(), as_faults(kind):
        torch.manual_seed(seed)
        return BuiltEncoder(PeftModel(beside, config, NAME), kind)


class _Beside(nn.Module):
    """What `peft` looks at of a model beside which it puts an encoder."""

    is_gradient_checkpointing = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = model.get_input_embeddings()
