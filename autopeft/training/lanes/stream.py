"""The lane stream: what gates, operators and attention share during one forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autopeft.methods.lane_operator import Call
from autopeft.training.lanes.members import Members, shared


@dataclass
class Stream:
    """Which lanes are in the running layer call, and how their rows lie.

    Lanes are ordered by branch point, so a lane's position never changes as others join behind it.

    Attributes:
        rows: Examples per lane.
        lanes: Lanes in the running call; 0 while the trunk (or nothing) runs.
        call: The pass's training flag and draws, or None between passes.
        inputs: Of maps and sub-layers on the way to their outputs, by what sits there: the
            input's shape [n, B, T, d], and the parts of it that operators read.
        below: Whether a pass of lanes runs, of which what lies below the layers is a part; a lane
            that trains there has the pass to itself.
        autocast: The type that operators are cast to while the backbone, held in it, is not; None
            where both are, or neither.
    """

    rows: int = 0
    lanes: int = 0
    below: bool = False
    call: Call | None = None
    inputs: dict[object, tuple[torch.Size, list[Tensor]]] = field(default_factory=dict)
    autocast: torch.dtype | None = None

    def split(self, tensor: Tensor) -> Tensor:
        """[n * B, T, d] or [n * B * T, d] -> a view [n, B, T, d]."""
        rows = tensor.shape[0] // self.lanes if tensor.dim() == 3 else self.rows
        return tensor.reshape(self.lanes, rows, -1, tensor.shape[-1])

    def read(
        self, tensor: Tensor, readers: Sequence[Members], *, by_a_map: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """A tensor, to be used in place of the one given, and members' parts; see `shared`.

        Args:
            tensor: As `split` takes it.
            readers: Whose parts.
            by_a_map: Whether nothing but a linear map reads the tensor that is given back.
        """
        return shared(tensor, self.split(tensor).shape, readers, by_a_map=by_a_map)

    @contextmanager
    def running(self, lanes: int, rows: int, call: Call) -> Iterator[None]:
        """These lanes run inside; what the stream said before holds again after."""
        before = self.lanes, self.rows, self.call, self.inputs
        self.lanes, self.rows, self.call, self.inputs = lanes, rows, call, {}
        try:
            yield
        finally:
            self.lanes, self.rows, self.call, self.inputs = before

    def casting(self, device: torch.device) -> AbstractContextManager[None]:
        """The context that operators are called in, see `autocast`."""
        if self.autocast is None:
            return nullcontext()
        context: AbstractContextManager[None] = torch.autocast(
            device.type, dtype=self.autocast, cache_enabled=False
        )
        return context

    def running_call(self) -> Call:
        """The call of the running pass."""
        if self.call is None:
            raise RuntimeError("an operator was called outside a pack's forward pass")
        return self.call
