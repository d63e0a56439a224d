"""The backbone's own dropout, where a study asks for it: the same for every lane.

A frozen backbone runs without dropout by default, which is also what lets its activations be
kept. Where it is wanted, all draws are pure functions of (seeds, place, step) and shared by lanes
and trunk, so that a lane still ends where its solo run ends; the module stays in eval mode.
"""

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autopeft.backbone.loading import Backbone
from autopeft.errors import BackboneError, Fault
from autopeft.training.lanes.stream import Stream

_ATTENTION_RATES = (
    "attention_probs_dropout_prob",
    "attention_dropout",
    "attn_pdrop",
    "dropout_rate",
)
_HIDDEN_RATES = ("hidden_dropout_prob", "dropout", "resid_pdrop", "dropout_rate", "hidden_dropout")


class BackboneDropout:
    """Dropout at every `nn.Dropout` of a backbone, and of its attention probabilities.

    Args:
        backbone: Its configuration gives the rates.
        stream: Tells what pass runs.

    Raises:
        BackboneError: It drops in a way that cannot be reached from outside.
    """

    def __init__(self, backbone: Backbone, stream: Stream) -> None:
        self._stream = stream
        self._modules = [
            (name, module)
            for name, module in backbone.model.named_modules()
            if isinstance(module, nn.Dropout) and module.p > 0.0
        ]
        config, anatomy = backbone.config, backbone.anatomy
        self.attention_rate = _rate(config, _ATTENTION_RATES)
        hidden = _rate(config, _HIDDEN_RATES)
        if (hidden and not self._modules) or (self.attention_rate and not anatomy.carries_prefix):
            raise BackboneError(
                Fault(
                    "training",
                    "backbone_dropout",
                    f"true, for {anatomy.architecture}, whose dropout is not made of modules",
                    "false, or a backbone such as BERT, RoBERTa, ModernBERT, GPT-2 or Llama",
                )
            )

    def install(self) -> list[RemovableHandle]:
        """Hook every dropout module; the handles remove them again."""
        return [
            module.register_forward_hook(_DropoutHook(f"backbone.{name}", module.p, self._stream))
            for name, module in self._modules
        ]


class _DropoutHook:
    def __init__(self, name: str, rate: float, stream: Stream) -> None:
        self._name, self._rate, self._stream = name, rate, stream

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Inverted dropout of [n * B, ...] from one draw of [B, ...]."""
        call, rows = self._stream.call, self._stream.rows
        if call is None or not call.training:
            return None
        kept = call.uniform(self._name, [rows, *output.shape[1:]]) >= self._rate
        factors = (kept / (1.0 - self._rate)).to(output.dtype)
        lanes = output.shape[0] // rows
        return output * factors.repeat(lanes, *[1] * (output.dim() - 1))


def _rate(config: Any, names: tuple[str, ...]) -> float:
    """The first of some configuration values that is there, or 0."""
    found = (getattr(config, name, None) for name in names)
    return float(next((rate for rate in found if rate is not None), 0.0))
