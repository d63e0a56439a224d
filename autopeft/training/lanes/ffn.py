"""Training options at the FFN: its inner neurons masked, whole FFNs dropped, density penalised.

Any method may have them, each lane its own, in training alone. They act from a lane's first layer
up: below it, its activations are the frozen backbone's, which lanes share. Notation: `n` lanes in
the stream, `B` rows, `T` tokens, `I` the FFN's inner width; h [n, B, T, I] is what the map `down`
reads, of a gated FFN the product of its two halves.

Masking and dropping are Trans-PEFT's (Gu et al. 2025, arXiv 2506.06844, and gccnlp/Trans-PEFT):
what is trained shall lean on attention, and outlive an update of the backbone's knowledge. An
entry of h is set to 0 at the rate `ffn_masking`, and an FFN's output at the rate `ffn_dropping`;
neither is scaled up for it. Lanes share the draws, each at its own rate; an FFN is dropped for all
rows of a step. What sits on a dropped FFN is dropped with it, where the release keeps an adapter.

The density loss is DEFT's (Runwal et al. 2024, arXiv 2402.01911, and IBM/DEFT): `density_weight`
times the mean over layers, rows, tokens and neurons of h^2 / (h^2 + `density_epsilon`). Here
padding does not count; where the head reads the first token alone, the last layer runs on that
token, and is penalised there. The release reads a gated FFN's activation before the product.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autopeft.backbone.anatomy import EXIT, Anatomy
from autopeft.configuration import Configuration
from autopeft.counting import option_faults
from autopeft.errors import BackboneError
from autopeft.methods.lane_operator import Call
from autopeft.methods.row_losses import real_tokens, with_row_losses
from autopeft.training.lanes.members import Members
from autopeft.training.lanes.stream import Stream


@dataclass(frozen=True)
class FfnOptions:
    """One lane's options; 0 is off.

    Attributes:
        masking: Rate at which entries of h are set to 0.
        dropping: Rate at which an FFN's output is set to 0.
        weight: Of the density loss.
        epsilon: The square of an entry that counts as half dense.
    """

    masking: float = 0.0
    dropping: float = 0.0
    weight: float = 0.0
    epsilon: float = 1.0

    @classmethod
    def of(cls, configuration: Configuration) -> "FfnOptions":
        """Those of a configuration."""
        value = configuration.training_value
        return cls(
            value("ffn_masking"),
            value("ffn_dropping"),
            value("density_weight"),
            value("density_epsilon"),
        )

    @property
    def on(self) -> bool:
        """Whether any does something."""
        return max(self.masking, self.dropping, self.weight) > 0.0


class LaneFfn(nn.Module):
    """The options of a pack's lanes, layer by layer; nothing where all are off.

    Args:
        lanes: Configurations in stream order.
        branch_points: Their first layers, ascending.
        anatomy: The backbone's.
        stream: Tells what pass runs.

    Raises:
        BackboneError: Some are on, and not every layer has a `down` map.
    """

    def __init__(
        self,
        lanes: Sequence[Configuration],
        branch_points: Sequence[int],
        anatomy: Anatomy,
        stream: Stream,
    ) -> None:
        super().__init__()
        for lane in lanes:
            if faults := option_faults(lane, anatomy):
                raise BackboneError(faults)
        options = [FfnOptions.of(lane) for lane in lanes]
        layers = range(len(anatomy.layers)) if any(each.on for each in options) else ()
        self._layers: list[tuple[LayerOptions, str]] = []
        for layer in layers:
            joined = sum(first <= layer for first in branch_points)
            if any(each.on for each in options[:joined]):
                share = 1.0 / len(anatomy.layers)
                own = LayerOptions(layer, options[:joined], share, stream)
                self._layers.append((own, anatomy.site(layer, EXIT["ffn"]).module))
        self.layers = nn.ModuleList(own for own, _ in self._layers)

    def install(self, model: nn.Module) -> Iterator[RemovableHandle]:
        """Hook the FFNs around their operators; the handles remove the hooks."""
        for layer, name in self._layers:
            module = model.get_submodule(name)
            yield module.register_forward_pre_hook(layer.before, prepend=True)
            yield module.register_forward_hook(layer.after)


class LayerOptions(nn.Module):
    """The options of the lanes that run through one layer.

    Args:
        layer: The layer's index.
        options: Of the n lanes that have branched off by this layer.
        share: What the layer counts in the mean over layers.
        stream: Tells what pass runs.
    """

    masking: Tensor
    dropping: Tensor
    weights: Tensor
    epsilons: Tensor
    index: Tensor

    def __init__(
        self, layer: int, options: Sequence[FfnOptions], share: float, stream: Stream
    ) -> None:
        super().__init__()
        self._layer, self._stream = layer, stream
        self._masks = any(each.masking for each in options)
        self._drops = any(each.dropping for each in options)
        self._penalised = tuple(n for n, each in enumerate(options) if each.weight)
        dense = [options[n] for n in self._penalised]
        self.register_buffer(
            "index", torch.tensor(self._penalised, dtype=torch.int64), persistent=False
        )
        for name, values in (
            ("masking", [each.masking for each in options]),
            ("dropping", [each.dropping for each in options]),
            ("weights", [each.weight * share for each in dense]),
            ("epsilons", [each.epsilon for each in dense]),
        ):
            tensor = torch.tensor(values, dtype=torch.float64)
            self.register_buffer(name, tensor, persistent=False)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """What `down` reads: h, its density penalised and its entries masked."""
        call = self._training_call()
        if call is None or not (self._masks or self._penalised):
            return None
        h = self._stream.split(args[0])
        out = h
        if self._penalised:
            out = with_row_losses(out, self._row_losses(h, call), call)
        if self._masks:
            draw = call.uniform(f"ffn_masking.{self._layer}", h.shape[1:])
            out = out * (draw.unsqueeze(0) >= self.masking.view(-1, 1, 1, 1))
        return (out.reshape(args[0].shape), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The FFN's output, or 0 for lanes that drop it in this step."""
        call = self._training_call()
        if call is None or not self._drops:
            return None
        draw = call.uniform(f"ffn_dropping.{self._layer}", [1], per_row=False)
        kept = (draw >= self.dropping).view(-1, 1, 1, 1)
        return (self._stream.split(output) * kept).reshape(output.shape)

    def _training_call(self) -> Call | None:
        """The running call, where lanes train in it."""
        call = self._stream.call if self._stream.lanes else None
        return call if call is not None and call.training else None

    def _row_losses(self, h: Tensor, call: Call) -> Tensor:
        """Every penalised lane's loss of each row, [k, B].

        h^2 / (h^2 + e) is 1 - e / (h^2 + e), of which autograd keeps h and one tensor more.
        """
        h = Members(self._penalised, self.index).take(h)
        h = h if h.dtype == self.weights.dtype else h.to(self.weights.dtype)
        mask = real_tokens(call, h.shape[2]).to(h.dtype)
        epsilons = self.epsilons.view(-1, 1, 1)
        sparse = (h.square() + epsilons.unsqueeze(3)).reciprocal().mean(3) * epsilons
        rows = ((1.0 - sparse) * mask).sum(2) / mask.sum(1)
        return rows * self.weights.unsqueeze(1)
