"""The fingerprint of a backbone's weights: what makes two runs' backbones the same.

SHA-256 over the names, types, shapes and bytes of all weights, in the order of their names, so
that it does not depend on how they are split into files or on metadata.
"""

import hashlib
import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autopeft.errors import BackboneError, Fault


def fingerprint_of_files(files: Iterable[Path]) -> str:
    """The fingerprint of the weights in safetensors files, hexadecimal.

    Raises:
        BackboneError: A file is no whole safetensors file.
    """
    tensors: dict[str, tuple[bytes, memoryview]] = {}
    for file in files:
        tensors.update(_tensors(file))
    digest = hashlib.sha256()
    for name in sorted(tensors):
        head, data = tensors[name]
        digest.update(head)
        digest.update(data)
    return digest.hexdigest()


def fingerprint_of_model(model: nn.Module) -> str:
    """The fingerprint of a state dict in memory, hexadecimal.

    It is not comparable with that of files, which use the checkpoint's names and types.
    """
    digest = hashlib.sha256()
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(_head(name, str(tensor.dtype), tensor.shape))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def quantised_fingerprint(fingerprint: str, quantization: str) -> str:
    """The fingerprint of the same weights, quantised while they are loaded."""
    if quantization == "none":
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {quantization}".encode()).hexdigest()


def _head(name: str, dtype: str, shape: Iterable[int]) -> bytes:
    return json.dumps([name, dtype, list(shape)]).encode()


def _tensors(file: Path) -> dict[str, tuple[bytes, memoryview]]:
    """What stands before each tensor, and its bytes, which are mapped and not read."""
    n_bytes = file.stat().st_size
    with file.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = _header(file, stream.read(start - 8)) if start <= n_bytes else {}
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [start + entry["data_offsets"][1] for entry in entries.values()]
        if not ends or max(ends) != n_bytes:
            raise _damaged(file)
        data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    return {
        name: (
            _head(name, entry["dtype"], entry["shape"]),
            data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
        )
        for name, entry in entries.items()
    }


def _header(file: Path, text: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise _damaged(file) from error


def _damaged(file: Path) -> BackboneError:
    given = f"{file}, which is damaged or cut short"
    hint = "download or save it again"
    return BackboneError(Fault("model", "name_or_path", given, "a whole safetensors file", hint))
