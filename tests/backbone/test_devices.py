"""What goes to a device, and what it can hold."""

import numpy as np
import torch

from autopeft.backbone.devices import on_device, with_float64

CPU = torch.device("cpu")


def test_arrays_and_tensors_arrive_as_they_are() -> None:
    array = np.array([[1.5, 2.5], [3.5, 4.5]])
    found = on_device(array, CPU)
    assert found.dtype == torch.float64
    assert found.tolist() == array.tolist()
    tensor = torch.arange(3)
    assert torch.equal(on_device(tensor, CPU), tensor)


def test_what_needs_float64_is_on_the_cpu_where_the_device_has_none() -> None:
    assert with_float64(torch.device("mps")) == CPU
    assert with_float64(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert with_float64(CPU) == CPU
