"""Achieved and possible FLOP/s: what a pack's step computes, and the device's fastest product."""

import time
from collections.abc import Sequence

import torch

from autopeft.backbone.anatomy import Anatomy
from autopeft.counting import first_layer, training_params
from autopeft.training.lanes.pack import Lane

SIZES = {"cuda": (2048, 4096, 8192), "cpu": (128, 256)}
SECONDS = 0.3


def pack_flops(lanes: Sequence[Lane], anatomy: Anatomy, rows: int, tokens: int) -> float:
    """FLOPs of one training step of a pack, 2 per multiply-add; norms and heads left out.

    The trunk goes forward once, up to the deepest branch point; every lane goes forward and
    backward (activations alone, weights are frozen) above its own. Attention's two products of
    T x T are counted in full, also where they are causal.

    Args:
        lanes: The pack.
        anatomy: The backbone.
        rows: Rows per lane.
        tokens: T, tokens of each row.
    """
    linear = [
        2.0 * sum(site.in_features * site.out_features for site in layer.sites.values())
        for layer in anatomy.layers
    ]
    scores = 4.0 * tokens * anatomy.n_heads * anatomy.head_dim
    per_token = [each + scores for each in linear]
    branches = [first_layer(lane.configuration, anatomy) for lane in lanes]
    total = sum(per_token[: max(branches)])
    for lane, branch in zip(lanes, branches, strict=True):
        total += 2.0 * sum(per_token[branch:])
        total += 6.0 * training_params(lane.configuration, anatomy)
    return total * rows * tokens


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest square product found, the best of several sizes and tries."""
    best = 0.0
    for size in SIZES.get(device.type, SIZES["cpu"]):
        a = torch.randn(size, size, device=device, dtype=dtype)
        b = torch.randn(size, size, device=device, dtype=dtype)
        a @ b
        best = max(best, 2.0 * size**3 / _fastest(a, b))
    return best


def bf16_is_slow(device: torch.device) -> str:
    """Why bfloat16 is not worth measuring (no such units: nothing could make up for it), or ""."""
    ratio = matmul_peak(device, torch.float32) / matmul_peak(device, torch.bfloat16)
    return "a bf16 product takes over twice the time of an fp32 one here" if ratio > 2 else ""


def _fastest(a: torch.Tensor, b: torch.Tensor) -> float:
    fastest, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        began = _now(a.device)
        for _ in range(4):
            a @ b
        fastest = min(fastest, (_now(a.device) - began) / 4)
    return fastest


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
