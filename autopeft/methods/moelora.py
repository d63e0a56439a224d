"""MoELoRA: a router sends every token to a few of a map's small LoRAs (arXiv 2402.12851).

y + sum over the chosen i of g_i (alpha / r) (dropout(x) A_i) B_i,  g = softmax(x W_g)

The `top_k` experts with the largest g are chosen, token by token, and weighed by g as it is. Each
A_i is drawn kaiming-uniform(a = sqrt 5), as is W_g; each B_i is zero. In training a row (example)
of n tokens adds to its lane's loss

    balance * N sum_i f_i P_i   f_i the share of choices that fell on expert i, P_i its mean g;
    contrast * the mean over anchors u of  -mean_p log(exp(s_up / t) / sum_v exp(s_uv / t))

An anchor is what one chosen expert makes of one token, before g; p runs over the other anchors of
the same expert, v over all others, and s is their cosine. A row of one token adds nothing.

There is no released code, and of the paper only its outline could be read: experts and `top_k` are
its own, alpha and the three coefficients are guesses. What is ours: both losses are taken within a
row, so that micro-batches change nothing; at most `ANCHOR_TOKENS` tokens of a row, drawn anew in
every step, are anchors; and a cosine's lengths have a floor, since B = 0 has no direction and the
gradient of a plain cosine beside it is huge. Which of two experts with all but equal g is chosen
is up to rounding, in which packs differ: rare in float32, and of one token when it happens.
"""

from collections.abc import Hashable

import torch
from torch import Tensor

from autopeft.backbone.anatomy import LINEAR_ROLES, Anatomy
from autopeft.backbone.products import lane_product
from autopeft.configuration import Group
from autopeft.errors import Fault
from autopeft.methods.base import Compared, Kept, Start, registry
from autopeft.methods.inherited import OnLinearMaps
from autopeft.methods.lane_operator import (
    Call,
    LaneDropout,
    LaneOperator,
    Place,
    Stack,
    size_class,
)
from autopeft.methods.lora import kaiming, scaling
from autopeft.methods.row_losses import real_tokens, with_row_losses
from autopeft.space.schema import MethodSchema, ParameterSchema

ANCHOR_TOKENS = 32
"""Similarities of all pairs of 32 tokens' two experts are 4096 numbers a row: less than what the
row's own queries take at any length."""

PAIR_TENSORS, RUNNING_PAIR_TENSORS = 3.4, 3.0
"""What is kept of every pair: three numbers, and masks of a byte; and what comes and goes."""

LENGTH_FLOOR = 1.0
"""Lengths are sqrt(|o|^2 + (this * |y|)^2): an expert's output counts as it grows beside the
frozen map's. At 0.01 the loss drowned the task's: MiniLM on TREC-6 learnt nothing in 80 steps with
`contrast` 0.01, and with 1.0 as much as without it, within what one run can tell."""


class MoeLoraOperator(LaneOperator):
    """Stacked A [k, d_in, N, r], B [k, N, r, d_out] and W_g [k, d_in, N].

    Padded ranks stay zero: A's padded columns meet B's zero rows and the other way round, in the
    output as in the similarities, so both gradients are exactly zero.
    """

    A: Tensor
    B: Tensor
    router: Tensor
    scale: Tensor
    balance: Tensor
    contrast: Tensor
    temperature: Tensor

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._top_k = int(stack.groups[0]["top_k"])
        scales = [scaling(group) for group in stack.groups]
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        for parameter in ("balance", "contrast", "temperature"):
            values = stack.floats(parameter)
            self.register_buffer(parameter, torch.tensor(values, dtype=torch.float64))
        self._contrasts = any(stack.floats("contrast"))
        self.dropout = LaneDropout.of(stack)

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """What the chosen experts make of x, weighed; in training with both losses hung on it."""
        shape = x.shape[:3]
        gates = lane_product(x.flatten(1, 2), self.router).softmax(-1).view(*shape, -1)
        experts = gates.topk(self._top_k, dim=-1).indices
        chosen = torch.zeros_like(gates).scatter(3, experts, 1.0)
        low = lane_product(self.dropout(x, call).flatten(1, 2), self.A.flatten(2))
        low = low.view(*gates.shape, -1) * self.scale.to(low.dtype).view(-1, 1, 1, 1, 1)
        weighed = (low * (gates * chosen).unsqueeze(-1)).view(len(low), -1, low[0, 0, 0].numel())
        out = lane_product(weighed, self.B.flatten(1, 2)).view(*shape, -1)
        if call.row_share is None or shape[2] == 1:
            return out
        real = real_tokens(call, shape[2])
        losses = self.balance.unsqueeze(1) * balance_losses(gates, chosen, real)
        if self._contrasts:
            floor = LENGTH_FLOOR**2 * y.detach().to(self.B.dtype).square().sum(3)
            with torch.autocast(x.device.type, enabled=False):  # cosines of large dimensions
                contrasts = self._contrast_losses(low.to(self.B.dtype), experts, floor, call)
            losses = losses + self.contrast.unsqueeze(1) * contrasts
        return with_row_losses(out, losses, call)

    def _contrast_losses(self, low: Tensor, experts: Tensor, floor: Tensor, call: Call) -> Tensor:
        """See `contrast_losses`, on some tokens: [k, B]."""
        tokens, real = self._anchor_tokens(call)
        rows = torch.arange(len(real), device=real.device).unsqueeze(1)
        low, experts, floor = (each[:, rows, tokens] for each in (low, experts, floor))
        own = low.gather(3, experts.unsqueeze(-1).expand(*experts.shape, low.shape[-1]))
        every = torch.arange(low.shape[3], device=low.device)
        slots = (experts.unsqueeze(-1) == every).to(low.dtype)
        apart = (slots.unsqueeze(-1) * own.unsqueeze(-2)).flatten(4).flatten(2, 3)
        flat = self.B.flatten(1, 2)
        gram = lane_product(flat, flat.transpose(1, 2))
        across = lane_product(apart.flatten(1, 2), gram).view_as(apart)
        dots = across @ apart.transpose(2, 3)
        each = real.repeat_interleave(self._top_k, 1)
        lengths = dots.diagonal(dim1=2, dim2=3) + floor.repeat_interleave(self._top_k, 2)
        scale = lengths.clamp_min(torch.finfo(lengths.dtype).tiny).rsqrt()
        cosines = dots * scale.unsqueeze(2) * scale.unsqueeze(3)
        temperature = self.temperature.to(dots.dtype).view(-1, 1, 1, 1)
        return contrast_losses(cosines / temperature, experts.flatten(2), each.bool())

    def _anchor_tokens(self, call: Call) -> tuple[Tensor, Tensor]:
        """Positions of each row's anchors, real ones first, and which are real, [B, n] each."""
        real = real_tokens(call, 0 if call.mask is None else call.mask.shape[1])
        rows, tokens = real.shape
        if tokens <= ANCHOR_TOKENS:
            return torch.arange(tokens, device=real.device).expand(rows, -1), real
        draw = call.uniform(f"{self.name}/anchors", (rows, tokens))
        chosen = (draw + (1 - real)).topk(ANCHOR_TOKENS, dim=1, largest=False).indices
        return chosen, real.gather(1, chosen)


def balance_losses(gates: Tensor, chosen: Tensor, real: Tensor) -> Tensor:
    """N sum_i f_i P_i of every row, 1 where all experts serve alike; 0 for a row of one token.

    Args:
        gates: [k, B, T, N].
        chosen: 1 where an expert serves a token, likewise.
        real: [B, T], 1 where a token is real.

    Returns:
        [k, B].
    """
    own = real.to(gates.dtype)
    weights = (own / own.sum(1, keepdim=True)).unsqueeze(2)
    served, likely = ((each * weights).sum(2) for each in (chosen, gates))
    losses = gates.shape[3] * (served * likely).sum(2) / served.sum(2)
    return losses * (real.sum(1) > 1)


def contrast_losses(logits: Tensor, experts: Tensor, real: Tensor) -> Tensor:
    """The mean over a row's anchors of what it takes to tell their own expert's from others'.

    Anchors whose expert has no other anchor are left out.

    Args:
        logits: Similarities of anchors, [k, B, U, U].
        experts: Their experts, [k, B, U].
        real: Whether they are of a real token, [B, U].

    Returns:
        [k, B].
    """
    others = ~torch.eye(logits.shape[2], dtype=torch.bool, device=logits.device)
    pairs = others & real.unsqueeze(1) & real.unsqueeze(2)
    same = pairs & (experts.unsqueeze(2) == experts.unsqueeze(3))
    masked = logits.masked_fill(~pairs, torch.finfo(logits.dtype).min)
    surprises = (masked.logsumexp(3, keepdim=True) - logits) * same
    positives = same.sum(3)
    anchors = surprises.sum(3) / positives.clamp_min(1)
    return anchors.sum(2) / (positives > 0).sum(2).clamp_min(1)


class MoeLora(OnLinearMaps):
    """The method `moelora`."""

    operator_type = MoeLoraOperator
    schema = MethodSchema(
        name="moelora",
        size="rank",
        parameters=(
            ParameterSchema("rank", "int", minimum=1),
            ParameterSchema("experts", "int", default=8, minimum=2),
            ParameterSchema("top_k", "int", default=2, minimum=1),
            ParameterSchema("alpha", "float", default=16.0, minimum=0.0),
            ParameterSchema("dropout", "float", default=0.0, minimum=0.0, maximum=0.9),
            ParameterSchema("balance", "float", default=0.01, minimum=0.0),
            ParameterSchema("contrast", "float", default=0.001, minimum=0.0),
            ParameterSchema("temperature", "float", default=0.07, minimum=0.01),
        ),
        sites=LINEAR_ROLES,
        default_sites=("query", "value"),
    )
    source = "Luo et al. 2024, MoELoRA, arXiv 2402.12851; coefficients unverified"
    identity = "exact"

    def faults(self, group: Group, anatomy: Anatomy) -> list[Fault]:
        """More chosen experts than there are; maps that run on more than tokens."""
        faults = []
        if int(group["top_k"]) > int(group["experts"]):
            allowed = f"at most {group['experts']}, the experts"
            faults.append(Fault("configuration", "moelora.top_k", str(group["top_k"]), allowed))
        twice = [site for site in group.sites if site in anatomy.run_twice]
        if twice:
            own = [role for role in LINEAR_ROLES if role in anatomy.roles]
            allowed = ", ".join(role for role in own if role not in anatomy.run_twice)
            hint = "relative attention runs the others on positions too, which no router may judge"
            faults.append(Fault("configuration", "moelora.sites", ", ".join(twice), allowed, hint))
        return faults

    def count(self, group: Group, place: Place) -> int:
        """N (r (d_in + d_out) + d_in)."""
        rank = int(group["rank"])
        return int(group["experts"]) * (rank * (place.d_in + place.d_out) + place.d_in)

    def kept_widths(self, group: Group, place: Place) -> Kept:
        """x, the gates, x A before and behind them; what anchors keep; B B^T, and its gradient."""
        rank, experts, top_k = (int(group[name]) for name in ("rank", "experts", "top_k"))
        inner, gates = 2 * experts * rank, 3 * experts
        if not float(group["contrast"]):
            return Kept(inner, exact=gates)
        # Of an anchor: x A, which experts and the choice (int64), the chosen in every expert's
        # place, times B B^T too, the slots; lengths three times and how many are alike (int64).
        each = experts * rank * (1 + 2 * top_k) + top_k * (experts + 2 + 3 + 2)
        pair, running = PAIR_TENSORS * top_k**2, RUNNING_PAIR_TENSORS * top_k**2
        compared, gram = Compared(ANCHOR_TOKENS, each, pair, running), (experts * rank) ** 2
        return Kept(inner, exact=gates, lasting=gram, weights=gram, compared=compared)

    def initial(self, group: Group, place: Place, start: Start) -> dict[str, Tensor]:
        """A and W_g uniform in +-1/sqrt(d_in), B zero."""
        rank, experts = int(group["rank"]), int(group["experts"])
        return {
            "A": kaiming(place.d_in, (place.d_in, experts, rank), start.draw("A")),
            "B": torch.zeros(experts, rank, place.d_out),
            "router": kaiming(place.d_in, (place.d_in, experts), start.draw("router")),
        }

    def stack_key(self, group: Group) -> Hashable:
        """Ranks of one size class, with as many experts of which as many serve."""
        return size_class(int(group["rank"])), group["experts"], group["top_k"]


registry.register(MoeLora())
