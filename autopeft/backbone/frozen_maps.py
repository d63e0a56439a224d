"""A linear site's frozen map as operators use it: products with its weight, and its SVD.

Nothing here copies a weight, or writes one: a fused map is read as the slice that a site is, a
quantised one runs as it always does. Decompositions are computed once per backbone and kept.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autopeft.backbone import quantization
from autopeft.backbone.anatomy import Site
from autopeft.backbone.products import product

logger = logging.getLogger(__name__)

FORMAT = "svd/v1"
"""Of the files; with another way to fix signs it becomes another."""


@dataclass(frozen=True)
class Svd:
    """W = inputs diag(values) outputs^T of a weight W [d_in, d_out], n = min(d_in, d_out).

    The largest entry (by magnitude) of every column of `inputs` is positive, which fixes the
    signs. A component is as certain as its singular value is apart from the others: computed in
    float64, two machines agree within 1e-16 over the relative gap, which float32 does not notice.

    Attributes:
        inputs: [d_in, n], orthonormal columns.
        values: [n], descending.
        outputs: [d_out, n], orthonormal columns.
    """

    inputs: Tensor
    values: Tensor
    outputs: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Svd":
        """The same somewhere else."""
        parts = (part.to(device, dtype) for part in (self.inputs, self.values, self.outputs))
        return Svd(*parts)


def decomposed(weight: Tensor) -> Svd:
    """The SVD of W [d_in, d_out], computed in float64 on the CPU.

    Float64 for a float64 weight, else rounded to float32: factors within 1e-7 of the exact ones
    wherever singular values are apart by more than 1e-8 of the largest.
    """
    left, values, right = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    at = left.abs().argmax(0, keepdim=True)
    sign = torch.where(left.gather(0, at) < 0, -1.0, 1.0).double()
    kept = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return Svd(
        (left * sign).to(kept).contiguous(),
        values.to(kept),
        (right.T * sign).to(kept).contiguous(),
    )


class Decompositions:
    """The SVDs of one backbone's weights: each is computed once, and once copied per device.

    They live as long as the backbone does in its process, and where a folder is given also there:
    a float64 SVD takes a second for a map of 1,024 x 1,024, and a minute for one of 4,096 x 4,096.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Svd] = {}
        self._copies: dict[tuple[str, int, torch.device, torch.dtype], Svd] = {}
        self._folder: Path | None = None
        self._fingerprint = ""

    def keep_in(self, folder: Path, fingerprint: str) -> None:
        """Read from and write to a folder from now on.

        Args:
            folder: Need not exist yet.
            fingerprint: Of the backbone's weights.
        """
        self._folder, self._fingerprint = folder, fingerprint

    def of(self, site: Site, weight: Callable[[], Tensor]) -> Svd:
        """The SVD of a site's weight, on the CPU; `weight` gives [d_in, d_out]."""
        key = site.module, site.start
        if key not in self._known:
            self._known[key] = self._stored(site, weight())
        return self._known[key]

    def _stored(self, site: Site, weight: Tensor) -> Svd:
        """The SVD from the folder, or computed and then put there."""
        if self._folder is None or not self._fingerprint:
            return decomposed(weight)
        facts = (FORMAT, self._fingerprint, site.module, site.start, weight.dtype)
        name = hashlib.sha256("/".join(map(str, facts)).encode()).hexdigest()[:32]
        path = self._folder / f"{name}.svd.safetensors"
        try:
            return Svd(**load_file(path))
        except (OSError, SafetensorError, TypeError):
            found = decomposed(weight)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}.part")
            save_file(asdict(found), unfinished)
            unfinished.replace(path)
        except (OSError, SafetensorError) as error:
            logger.warning("the SVD of %s is not kept on disk: %s", site.module, error)
        return found

    def on(
        self, site: Site, weight: Callable[[], Tensor], device: torch.device, dtype: torch.dtype
    ) -> Svd:
        """The same on a device, in a type."""
        key = site.module, site.start, device, dtype
        if key not in self._copies:
            self._copies[key] = self.of(site, weight).to(device, dtype)
        return self._copies[key]


class FrozenMap:
    """One site's frozen linear map.

    Args:
        module: The linear module that holds it.
        site: Which of its outputs it is.
        decompositions: The backbone's.
    """

    def __init__(self, module: nn.Module, site: Site, decompositions: Decompositions) -> None:
        self._module: Any = module
        self._site, self._decompositions = site, decompositions

    @property
    def weight(self) -> Tensor:
        """W [d_in, d_out], y = x W, in its own type: a view, but for a quantised map."""
        site, module = self._site, self._module
        whole: Tensor = module.weight
        if quantization.is_packed(module):
            whole = quantization.dense_weight(module)
        own = whole if site.transposed else whole.T
        return own[:, site.start : site.start + site.out_features]

    @property
    def bias(self) -> Tensor | None:
        """Its bias [d_out], a view, where it has one."""
        site, whole = self._site, self._module.bias
        return None if whole is None else whole[site.start : site.start + site.out_features]

    def product(self, x: Tensor) -> Tensor:
        """x W without the bias, [..., d_in] -> [..., d_out], in x's type; keeps nothing of x."""
        site, module = self._site, self._module
        if quantization.is_packed(module):
            made: Tensor = module.forward(x)
            made = made if module.bias is None else made - module.bias
            return made[..., site.start : site.start + site.out_features].to(x.dtype)
        weight = self.weight
        return product(x.to(weight.dtype), weight).to(x.dtype)

    def svd(self, like: Tensor) -> Svd:
        """The SVD of W where a tensor lies and in its type."""
        return self._decompositions.on(self._site, lambda: self.weight, like.device, like.dtype)

    def svd_on_cpu(self) -> Svd:
        """The SVD of W as it is kept, see `decomposed`."""
        return self._decompositions.of(self._site, lambda: self.weight)
