"""MoELoRA with every expert's output in full, and its losses pair by pair, in float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def _experts(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], tokens: Tensor
) -> tuple[Tensor, list[list[int]], Tensor]:
    """Gates [S, N] of tokens [S, d_in], their experts, and what every expert makes, [N, S, d]."""
    gates = torch.exp(tokens @ tensors["router"])
    gates = gates / gates.sum(1, keepdim=True)
    order = (-gates.detach()).argsort(1)[:, : settings["top_k"]].tolist()
    scale = settings["alpha"] / settings["rank"]
    experts = range(gates.shape[1])
    made = [scale * tokens @ tensors["A"][:, i] @ tensors["B"][i] for i in experts]
    return gates, order, torch.stack(made)


def output(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """y and what the chosen experts add."""
    gates, order, made = _experts(settings, tensors, x.flatten(0, 1))
    added = [sum(gates[s, i] * made[i, s] for i in own) for s, own in enumerate(order)]
    return y + torch.stack(added).view_as(y)


def row_losses(
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    mask: Tensor,
) -> Tensor:
    """Balance and contrast of every row's real tokens."""
    losses = []
    for row, own, real in zip(x, y, mask.bool(), strict=True):
        gates, order, made = _experts(settings, tensors, row[real])
        lengths = own[real].detach().norm(dim=1) ** 2 + made.square().sum(2)
        units = made / lengths.sqrt().unsqueeze(2)
        anchors = [(i, units[i, s]) for s, chosen in enumerate(order) for i in chosen]
        balance = settings["balance"] * _balance(gates, order)
        losses.append(balance + settings["contrast"] * _contrast(settings, anchors))
    return torch.stack(losses)


def _balance(gates: Tensor, order: list[list[int]]) -> Tensor:
    experts, choices = gates.shape[1], [i for chosen in order for i in chosen]
    share = gates.new_tensor([choices.count(i) / len(choices) for i in range(experts)])
    return experts * (share @ gates.mean(0))


def _contrast(settings: Mapping[str, Any], anchors: list[tuple[int, Tensor]]) -> Any:
    terms = []
    for u, (expert, one) in enumerate(anchors):
        others = [each for v, each in enumerate(anchors) if v != u]
        near = torch.stack([other for _, other in others]) @ one
        alike = torch.exp(near / settings["temperature"])
        same = [k for k, (other, _) in enumerate(others) if other == expert]
        if same:
            terms.append(-torch.log(alike[same] / alike.sum()).mean())
    return sum(terms) / max(1, len(terms))
