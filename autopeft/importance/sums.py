"""What a pass keeps of one site: sums over batches and examples, in the shape of its weight.

Notation: W [d_in, d_out] the weight (y = x W); for an example e of T tokens, x_e [T, d_in] what
enters and d_e [T, d_out] the gradient of the example's own loss l_e with respect to what leaves.
Its weight gradient is g_e = x_e^T d_e; a batch's, of its mean loss, is sum_e g_e / weight, with
the weight of `Task.weight` (rows, or tokens to be predicted).
"""

import torch
from torch import Tensor

from autopeft.backbone.anatomy import Site

CHUNK_BYTES = {"cpu": 1}
DEFAULT_CHUNK_BYTES = 1 << 28
"""Gradients of single examples that exist at once, of one site. On a CPU that is one, which stays
in the cache (many take half as long again); a GPU needs many to be busy."""

ARRAYS = 4
"""Arrays in the shape of the weight that a site's sums hold."""


class SiteSums:
    """The sums of one site.

    Args:
        site: Whose.
        device: Where they are kept.
        dtype: Of the sums.
        single: Every forward pass reads one example, and may call the map several times.

    Attributes:
        gradient: [d_in, d_out], sum of g_e over all examples.
        squared_batches: [d_in, d_out], sum over batches of the squared gradient of the mean loss.
        squared_examples: [d_in, d_out], sum of g_e^2 over all examples.
        squared_inputs: float64 [d_in] (float32 where the device has no other), sum of x^2 over all
            real tokens.
    """

    def __init__(
        self, site: Site, device: torch.device, dtype: torch.dtype, *, single: bool
    ) -> None:
        shape = (site.in_features, site.out_features)
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._single, self._calls = single, 0
        self.gradient = torch.zeros(shape, dtype=dtype, device=device)
        self.squared_batches = torch.zeros_like(self.gradient)
        self.squared_examples = torch.zeros_like(self.gradient)
        self.squared_inputs = torch.zeros(site.in_features, dtype=wide, device=device)
        self._batch = torch.zeros_like(self.gradient)
        self._example = torch.zeros_like(self.gradient) if single else None
        room = CHUNK_BYTES.get(device.type, DEFAULT_CHUNK_BYTES)
        self._chunk = max(1, room // (self.gradient.numel() * self.gradient.element_size()))

    def notice(self, x: Tensor, mask: Tensor) -> None:
        """Add a forward pass's inputs.

        Args:
            x: [R, T, d_in] or [R * T, d_in]; other positions than the batch's tokens (tables of
                relative positions) are left out.
            mask: [R, T], 1 where a token is real.
        """
        rows, tokens = mask.shape
        if x.numel() != rows * tokens * x.shape[-1]:
            return
        squares = x.reshape(-1, x.shape[-1]).to(self.squared_inputs.dtype).square()
        real = mask.reshape(-1, 1).to(squares.dtype)
        self.squared_inputs += (squares * real).sum(0)

    def add(self, x: Tensor, grad: Tensor, rows: int) -> None:
        """Add one call of the map.

        Args:
            x: What entered, [R, T, d_in] or [R * T, d_in].
            grad: Gradient of the summed loss with respect to what left, [..., d_out].
            rows: R; what a call reads beside them is not told apart by rows.
        """
        dtype = self.gradient.dtype
        flat_x = x.reshape(-1, x.shape[-1]).to(dtype)
        flat_grad = grad.reshape(-1, grad.shape[-1]).to(dtype)
        if self._example is not None:
            self._example.addmm_(flat_x.T, flat_grad)
            return
        self._calls += 1
        if self._calls > 1:
            raise RuntimeError("a map is called twice in one pass: read one example at a time")
        self._batch.addmm_(flat_x.T, flat_grad)
        xs = flat_x.view(rows, -1, x.shape[-1]).transpose(1, 2)
        grads = flat_grad.view(rows, -1, grad.shape[-1])
        for start in range(0, rows, self._chunk):
            part = slice(start, start + self._chunk)
            for example in torch.bmm(xs[part], grads[part]):
                self.squared_examples.addcmul_(example, example)

    def end_pass(self) -> None:
        """After every backward pass."""
        self._calls = 0
        if self._example is not None:
            self._batch += self._example
            self.squared_examples.addcmul_(self._example, self._example)
            self._example.zero_()

    def end_batch(self, weight: int) -> None:
        """After all rows of a batch; `weight` is what its loss is a mean over."""
        self.gradient += self._batch
        self._batch /= weight
        self.squared_batches.addcmul_(self._batch, self._batch)
        self._batch.zero_()
