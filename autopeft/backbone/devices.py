"""What goes from the host to a device without anybody waiting, and what a device can hold."""

import numpy as np
import torch
from torch import Tensor


def on_device(given: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """An array, or a tensor, as a tensor on the device, without waiting for the device."""
    tensor = torch.from_numpy(given) if isinstance(given, np.ndarray) else given
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def with_float64(device: torch.device) -> torch.device:
    """The device itself; the CPU in place of one that knows no float64 (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device
