"""AdamW for lanes: one flat buffer, one learning rate, clip and step count per lane.

The update is AdamW's (arXiv 1711.05101) as torch computes it, with scalars gathered per element:
  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
  w <- w (1 - lr wd) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
A lane that is not active keeps weights, moments and step count bit for bit: a zero gradient is not
"frozen" to Adam, and nan * 0 is nan, so all updates go through `torch.where`. No update waits for
the device, so that it can be captured.

Where sparsity rules say what trains, step counts go by *segment*, a lane's part in one layer or
its head, and single scalars may be frozen. What does not train at a step keeps everything bit for
bit, and its gradient does not enter the clip's norm, as if it required none. Packs without such
rules have one segment per lane, and take no part in this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPSILON = 1e-8
CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_ adds to the norm


@dataclass(frozen=True)
class Stacked:
    """One stacked trainable tensor.

    Attributes:
        name: Unique within the pack.
        parameter: [k, ...].
        members: Lane of each of the k entries.
        decays: Whether weight decay applies (matrices do, biases do not).
        layer: Where it sits; None for the head.
        rates: Of each member: what its learning rate is in units of the lane's; () where 1.
    """

    name: str
    parameter: nn.Parameter
    members: tuple[int, ...]
    decays: bool
    layer: int | None = None
    rates: tuple[float, ...] = ()


class LaneAdamW:
    """Updates every lane of a pack as if it were alone.

    The parameters become views of one flat buffer, and so do their gradients.

    Args:
        stacked: All trainable tensors.
        lanes: How many lanes there are.
        learning_rates: Peak learning rate per lane.
        weight_decays: Per lane.
        max_grad_norm: Clip of each lane's own gradient norm; 0 or None for no clip.
        layers: Layers of the backbone, where step counts go by layer; 0 where they go by lane.
        by_element: Whether single scalars may be frozen.

    Attributes:
        steps: int64, updates of every segment: [K], or [K * (layers + 1)] with a lane's layers
            and its head one after the other.
        active: bool [K], False once a lane has diverged.
        moving: bool as `steps`, which segments train; None where all do.
        frozen: bool, a flat buffer: scalars that do not train; None where all do.
    """

    def __init__(
        self,
        stacked: Sequence[Stacked],
        lanes: int,
        *,
        learning_rates: Sequence[float],
        weight_decays: Sequence[float],
        max_grad_norm: float | None,
        layers: int = 0,
        by_element: bool = False,
    ) -> None:
        self._stacked = tuple(stacked)
        self._layers = layers
        first = stacked[0].parameter
        dtype, device = first.dtype, first.device
        total = sum(item.parameter.numel() for item in stacked)
        self._weights = torch.empty(total, dtype=dtype, device=device)
        self._grads = torch.zeros(total, dtype=dtype, device=device)
        self.first_moment = torch.zeros(total, dtype=dtype, device=device)
        self.second_moment = torch.zeros(total, dtype=dtype, device=device)
        self._segment = torch.empty(total, dtype=torch.int32, device=device)
        self._decay = torch.zeros(total, dtype=dtype, device=device)
        self._has_rates = any(item.rates for item in stacked)
        self._own_rates = torch.ones(total if self._has_rates else 0, dtype=dtype, device=device)
        self._slices: dict[str, slice] = {}
        decays = torch.tensor(list(weight_decays), dtype=dtype, device=device)
        self._adopt(decays)
        # Scalars are computed in float64 where the device has it: 1 - b2^t is small at first.
        self._scalar = torch.float32 if device.type == "mps" else torch.float64
        self._rates = torch.tensor(list(learning_rates), dtype=self._scalar, device=device)
        self._has_decay = bool(decays.any())
        self._max_norm = max_grad_norm or 0.0
        self.steps = torch.zeros(lanes * (layers + 1), dtype=torch.long, device=device)
        self.active = torch.ones(lanes, dtype=torch.bool, device=device)
        self.moving = torch.ones_like(self.steps, dtype=torch.bool) if layers else None
        self.frozen = torch.zeros(total, dtype=torch.bool, device=device) if by_element else None
        self._parts, segments = self._lane_parts()
        self._part_segments = torch.tensor(segments, device=device)
        self._owners = self._part_segments // (layers + 1)

    def _adopt(self, decays: Tensor) -> None:
        offset = 0
        for item in self._stacked:
            parameter = item.parameter
            part = slice(offset, offset + parameter.numel())
            self._slices[item.name] = part
            self._weights[part] = parameter.detach().reshape(-1)
            parameter.data = self._weights[part].view_as(parameter)
            parameter.grad = self._grads[part].view_as(parameter)
            members = torch.tensor(item.members, device=parameter.device)
            segments = torch.tensor(self._segments(item), device=parameter.device)
            per_lane = parameter.numel() // len(item.members)
            self._segment[part] = segments.repeat_interleave(per_lane).to(torch.int32)
            if item.decays:
                self._decay[part] = decays[members].repeat_interleave(per_lane)
            if item.rates:
                own = torch.tensor(item.rates, dtype=self._decay.dtype, device=parameter.device)
                self._own_rates[part] = own.repeat_interleave(per_lane)
            offset = part.stop

    def _segments(self, item: Stacked) -> list[int]:
        """The segment of each of a tensor's members."""
        part = self._layers if item.layer is None or not self._layers else item.layer
        return [member * (self._layers + 1) + part for member in item.members]

    def _lane_parts(self) -> tuple[list[Tensor], list[int]]:
        """Every lane's part of every tensor's gradient, flat, and its segment."""
        parts: list[Tensor] = []
        segments: list[int] = []
        for item in self._stacked:
            grad = self._grads[self._slices[item.name]].view(len(item.members), -1)
            parts += list(grad.unbind(0))
            segments += self._segments(item)
        return parts, segments

    @property
    def gradients(self) -> Tensor:
        """The flat buffer of gradients, see `view`."""
        return self._grads

    def steps_of(self, lane: int) -> Tensor:
        """A lane's step counts: a view of 1, or of layers + 1, the head's last."""
        return self.steps.view(-1, self._layers + 1)[lane]

    def view(self, buffer: Tensor, name: str) -> Tensor:
        """The part of a flat buffer (a moment) that belongs to a stacked tensor, in its shape."""
        for item in self._stacked:
            if item.name == name:
                return buffer[self._slices[name]].view_as(item.parameter)
        raise KeyError(name)

    def zero_grad(self) -> None:
        """Clear all gradients."""
        self._grads.zero_()

    def gradient_norms(self) -> Tensor:
        """Each lane's gradient norm, [K]; of what moves."""
        norms = torch.stack(torch._foreach_norm(self._parts))
        if self.moving is not None:
            norms = torch.where(self.moving[self._part_segments], norms, torch.zeros_like(norms))
        squares = torch.zeros(len(self.active), dtype=norms.dtype, device=norms.device)
        return squares.index_add_(0, self._owners, norms.square()).sqrt()

    def _by_segment(self, values: Tensor) -> Tensor:
        """[K] -> every segment's."""
        return values.repeat_interleave(self._layers + 1) if self._layers else values

    @torch.no_grad()
    def step(self, factors: Tensor) -> None:
        """One update; a lane whose gradient is not finite becomes inactive and stays as it was.

        Args:
            factors: On each lane's peak learning rate, [K], see `schedule`.
        """
        if self.frozen is not None:
            self._grads.masked_fill_(self.frozen, 0.0)
        norms = self.gradient_norms()
        self.active &= torch.isfinite(norms)
        updated = self._by_segment(self.active)
        if self.moving is not None:
            updated = updated & self.moving
        clip = torch.ones_like(norms)
        if self._max_norm > 0:
            clip = (self._max_norm / (norms + CLIP_EPSILON)).clamp(max=1.0)
        clip = self._by_segment(clip)
        self.steps += updated
        count = self.steps.clamp(min=1).to(self._scalar)
        rate = self._by_segment(self._rates * factors.to(self._scalar))
        beta1, beta2 = BETAS
        size = (rate / (1.0 - beta1**count)).to(clip.dtype)
        root = (1.0 - beta2**count).sqrt().to(clip.dtype)
        segment = self._segment
        keep = updated.index_select(0, segment)
        if self.frozen is not None:
            keep = keep & ~self.frozen
        grads = self._grads * clip.index_select(0, segment)
        first = torch.lerp(self.first_moment, grads, 1.0 - beta1)
        second = self.second_moment * beta2 + grads.square() * (1.0 - beta2)
        weights = self._weights
        by_element = size.index_select(0, segment)
        if self._has_rates:
            by_element = by_element * self._own_rates
        if self._has_decay:
            shrink = rate.to(clip.dtype).index_select(0, segment) * self._decay
            weights = weights * (1.0 - (shrink * self._own_rates if self._has_rates else shrink))
        weights = weights - by_element * first / (
            second.sqrt() / root.index_select(0, segment) + EPSILON
        )
        for target, new in (
            (self.first_moment, first),
            (self.second_moment, second),
            (self._weights, weights),
        ):
            target.copy_(torch.where(keep, new, target))


def schedule(
    scheduler: str, *, total: int, warmup_steps: Sequence[int], device: torch.device
) -> Tensor:
    """Each lane's factor on its peak learning rate at every optimizer step.

    As transformers' schedules: a linear warm-up from 0, then `linear` decay to 0, half a `cosine`,
    or `constant`.

    Args:
        scheduler: `linear`, `cosine` or `constant`.
        total: Steps of the full budget.
        warmup_steps: Warm-up steps per lane.
        device: Where the factors are wanted.

    Returns:
        float64 (float32 on MPS) [total, K]; row s is for the update after s steps.
    """
    dtype = torch.float32 if device.type == "mps" else torch.float64
    rows = [
        [_factor(scheduler, s, total, warmup) for warmup in warmup_steps] for s in range(total)
    ]
    return torch.tensor(rows, dtype=dtype, device=device)


def _factor(scheduler: str, step: int, total: int, warmup: int) -> float:
    if step < warmup:
        return step / max(1, warmup)
    done = (step - warmup) / max(1, total - warmup)
    if scheduler == "linear":
        return max(0.0, 1.0 - done)
    if scheduler == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    return 1.0
