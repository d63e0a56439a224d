"""What is asked of a backbone: the `model` block of a study, and a device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autopeft.backbone import quantization
from autopeft.errors import BackboneError, Fault
from autopeft.study.metrics import CAUSAL_LM, CLASSIFICATION, REGRESSION

DTYPES: Mapping[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
TASKS = (CLASSIFICATION, REGRESSION, CAUSAL_LM)
_ATTENTION_IMPLEMENTATIONS = ("auto", "eager", "sdpa", "flash_attention_2", "flex_attention")


@dataclass(frozen=True)
class BackboneRequest:
    """What the user asks for: the `model` block of a study, and a device.

    Attributes:
        name_or_path: A local folder, a hub id, or `builtin:minilm`.
        revision: A branch, tag or commit of the hub's, or None.
        dtype: `auto` (the checkpoint's own, float32 where that is float16), `float32` or
            `bfloat16`.
        attn_implementation: `auto` or one of transformers' names (`eager`, `sdpa`, ...).
        sites: Regular expressions by role, for architectures that are not recognised.
        task: One of `TASKS`.
        device: A torch device.
        allow_pickle: Whether weights may be read from `.bin` files, which can run code.
        quantization: `none`, `int8` or `nf4`; see `autopeft.backbone.quantization`.
    """

    name_or_path: str
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str = "auto"
    sites: Mapping[str, str] | None = None
    task: str = "sequence-classification"
    device: str = "cpu"
    allow_pickle: bool = False
    quantization: str = quantization.NONE


def activation_dtype(dtype: str, config: Any) -> torch.dtype:
    """What `auto` stands for by the configuration: float32 where it says float16 or nothing."""
    asked = DTYPES[dtype]
    if isinstance(asked, torch.dtype):
        return asked
    declared = getattr(config, "dtype", None)
    return declared if declared in (torch.bfloat16, torch.float64) else torch.float32


def check_request(request: BackboneRequest) -> None:
    """Refuse what no model can be; BackboneError with every fault."""
    faults = []
    if request.dtype not in DTYPES:
        faults.append(Fault("model", "dtype", request.dtype, ", ".join(DTYPES)))
    if request.attn_implementation not in _ATTENTION_IMPLEMENTATIONS:
        allowed = ", ".join(_ATTENTION_IMPLEMENTATIONS)
        faults.append(Fault("model", "attn_implementation", request.attn_implementation, allowed))
    if request.task not in TASKS:
        faults.append(Fault("model", "task", request.task, ", ".join(TASKS)))
    faults += quantization.request_faults(request.quantization)
    if not request.name_or_path:
        faults.append(Fault("model", "name_or_path", "nothing", "a folder, a hub id or a builtin"))
    if faults:
        raise BackboneError(faults)


def torch_device(name: str) -> torch.device:
    """The device of a name; BackboneError where this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackboneError(Fault("execution", "devices", name, "cpu, cuda or mps")) from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        allowed = ", ".join(kind for kind, there in present.items() if there)
        raise BackboneError(Fault("execution", "devices", name, allowed))
    return device
