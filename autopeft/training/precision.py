"""Precision of a study's training: what is fixed for equality, and whether bf16 pays.

Weights and moments of the lanes are float32 always. `fp32` means IEEE float32 on every device:
TF32, which rounds inputs of matrix products to 10 bits, stays off, because packed and solo runs
are promised to agree within 1e-5. `bf16` is autocast.
"""

from collections.abc import Sequence
from statistics import median

import torch

HYSTERESIS = 1.15
"""bf16 must be this much faster: noise of a few per cent must not decide a study's results."""

LOSS_TOLERANCE = 0.02
"""Relative difference of the mean training loss of some steps beyond which bf16 is not trusted."""


def forbid_tf32() -> None:
    """IEEE float32 products from now on, in this process."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def bf16_possible(device: torch.device) -> bool:
    """Whether autocast to bf16 is known to work on a device, and may pay.

    On a CPU without oneDNN's own bf16 products (AVX2, say) they are computed number by number:
    a step takes twenty times as long, and so would finding that out.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # No public call tells in all versions that are allowed; torch's own compiler asks this one.
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def bf16_speedup(fp32_s: Sequence[float], bf16_s: Sequence[float]) -> float:
    """How much faster bf16 is: the median over the same steps, taken in turns."""
    return median(a / b for a, b in zip(fp32_s, bf16_s, strict=True))


def chosen_precision(speedup: float, losses: tuple[float, float]) -> str:
    """`bf16` where it pays and trains alike, else `fp32`.

    Args:
        speedup: Of bf16 over fp32.
        losses: Mean training loss of the same steps in fp32 and in bf16.
    """
    fp32, bf16 = losses
    alike = abs(bf16 - fp32) <= LOSS_TOLERANCE * abs(fp32)  # False where one is not a number
    return "bf16" if speedup >= HYSTERESIS and alike else "fp32"
