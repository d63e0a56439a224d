"""How dense the FFN's inner activations are: what a sparse kernel would have to compute.

`activation_density` is the share of entries of h, what the map `down` reads, whose square is above
`NEGLIGIBLE`: a ReLU's zeros and the tail of a GELU are not. It is the mean over layers, rows, real
tokens and neurons, in eval mode. Below a lane's first layer, h is the frozen backbone's. Where the
head reads the first token alone, lanes run the last layer on that token, and it is that one's.

DEFT's release counts what is not exactly 0, which a GELU hardly ever is; NEGLIGIBLE is the square
that counts as half in its loss at the default epsilon.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.backbone.anatomy import EXIT
from autopeft.configuration import TRAINING_OPTIONS
from autopeft.methods.lane_operator import SILENT
from autopeft.methods.row_losses import real_tokens
from autopeft.training.batches import PaddedExamples, token_batches
from autopeft.training.lanes.pack import Pack
from autopeft.training.lanes.stream import Stream
from autopeft.training.lanes.trunk import SharedTrunk
from autopeft.training.step_shape import evaluation_tokens

NEGLIGIBLE = TRAINING_OPTIONS["density_epsilon"]
"""An entry counts as dense where its square is above this."""


@torch.no_grad()
def activation_densities(packs: Sequence[Pack], examples: PaddedExamples) -> Tensor:
    """Every lane's `activation_density`, float64 [K].

    Nothing kept of the trunk is used: its layers are looked at as well, in the one run of it that
    the packs share.

    Args:
        packs: The lanes, in packs that run one after the other over each batch.
        examples: What they are measured on.
    """
    lanes = max(len(pack.lanes) for pack in packs)
    order = token_batches(examples.lengths, evaluation_tokens(examples.device.type) // lanes)
    taps, trunk = [_Tap(pack) for pack in packs], SharedTrunk(packs)
    for numbers in order:
        batch = examples.batch(numbers)
        with packs[0].running(), taps[0].looking():
            known = trunk.known(batch, numbers)
        for pack, tap in zip(packs, taps, strict=True):
            with pack.running(), tap.looking():
                pack(batch, SILENT, known)
    frozen = torch.stack([tap.trunk for tap in taps]).amax(
        0
    )  # each saw all of a layer, or nothing
    return torch.cat([tap.means(frozen) for tap in taps]) / len(examples)


class _Tap:
    """Sums of rows' densities by lane and layer, and of the trunk's by layer.

    Args:
        pack: Whose passes are looked at.

    Attributes:
        trunk: Sums of the layers that ran without lanes, [n_layers].
    """

    def __init__(self, pack: Pack) -> None:
        self._pack, n_layers = pack, pack.n_layers
        shape, device = (len(pack.lanes), n_layers), pack.device
        self._lanes = torch.zeros(shape, device=device)
        self.trunk = torch.zeros(n_layers, device=device)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Hooks are in place inside, and gone after."""
        handles = [
            module.register_forward_pre_hook(_LayerTap(layer, self._pack.stream, self))
            for layer, module in enumerate(self._pack.modules_of(EXIT["ffn"]))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, layer: int, rows: Tensor, *, trunk: bool) -> None:
        """Densities of rows, [n, B]; of the trunk, [1, B]."""
        if trunk:
            self.trunk[layer] += rows.sum()
        else:
            self._lanes[: len(rows), layer] += rows.sum(1)

    def means(self, trunk: Tensor) -> Tensor:
        """Every lane's sum over rows of the mean over layers, [K].

        Args:
            trunk: Sums of the frozen layers that lanes share, [n_layers]; 0 where none do.
        """
        layers = torch.arange(self._pack.n_layers, device=trunk.device)
        firsts = torch.tensor(self._pack.branch_points, device=trunk.device)
        below = layers.unsqueeze(0) < firsts.unsqueeze(1)
        return (self._lanes + below * trunk).mean(1).double().cpu()


class _LayerTap:
    def __init__(self, layer: int, stream: Stream, tap: _Tap) -> None:
        self._layer, self._stream, self._tap = layer, stream, tap

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Look at h: [n * B, T, I] or [n * B * T, I]."""
        stream, h = self._stream, args[0]
        lanes = stream.lanes or 1
        h = h.reshape(lanes, stream.rows, -1, h.shape[-1])
        mask = real_tokens(stream.running_call(), h.shape[2])
        dense = (h.float().square() > NEGLIGIBLE).float().mean(3)
        rows = (dense * mask).sum(2) / mask.sum(1)
        self._tap.add(self._layer, rows, trunk=not stream.lanes)
