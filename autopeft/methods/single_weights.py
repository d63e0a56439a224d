"""Single trained weights of a linear map, as a product that forms no gradient of the others.

On a CPU, the trained change of W is a matrix in compressed sparse rows: three products of MKL,
whose cost follows the trained weights (forward, gradient of x, and of the values at their places
alone). Elsewhere, and where more than an eighth is trained, the change is spread into a dense
matrix, made anew in the backward pass: as dear as the frozen map and its weight gradient, but with
nothing dense kept between the two and no dense optimizer state.

Milliseconds per lane forward and backward, MiniLM's maps, 448 tokens, one CPU thread. `gathered`
is the product by reading, multiplying and adding up one column of x per weight:

| map         | density | dense | gathered | sparse rows | LoRA r=8 |
| ----------- | ------- | ----- | -------- | ----------- | -------- |
| 384 x 384   | 0.1 %   | 5.9   | 1.5      | 1.3         | 1.4      |
| 384 x 384   | 1 %     | 5.8   | 3.7      | 1.7         | 1.4      |
| 384 x 384   | 5 %     | 5.9   | 26       | 3.1         | 1.4      |
| 384 x 1,536 | 0.1 %   | 44    | 4.5      | 4.4         | 2.4      |
| 384 x 1,536 | 1 %     | 47    | 23       | 5.4         | 2.4      |
| 384 x 1,536 | 5 %     | 43    | 530      | 21          | 2.4      |
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autopeft.methods.lane_operator import Call, Stack
from autopeft.methods.sparse_operators import SparseOperator

SPARSE_ROWS_MOST = 1.0 / 8.0
"""Density from which a dense product is faster on a CPU (measured: between 0.1 and 0.2)."""


@dataclass(frozen=True)
class SparseRows:
    """Where one lane's weights are, by rows of W and by rows of its transpose; int32.

    Attributes:
        shape: (d_in, d_out).
        rows: First weight of every row of W, and their number, [d_in + 1].
        columns: Column of every weight, [n].
        t_rows: The same of the transpose, [d_out + 1].
        t_columns: [n].
        t_order: The weights in the transpose's order, int64 [n].
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    t_rows: Tensor
    t_columns: Tensor
    t_order: Tensor

    @classmethod
    def of(cls, index: Tensor, shape: tuple[int, int]) -> "SparseRows":
        """Of flat indices into W, ascending."""
        d_in, d_out = shape
        row, column = index // d_out, index % d_out
        order = torch.argsort(column, stable=True)
        return cls(
            shape,
            _starts(row, d_in),
            column.int(),
            _starts(column[order], d_out),
            row[order].int(),
            order,
        )

    def matrix(self, values: Tensor) -> Tensor:
        """[d_in, d_out] with these values."""
        return _compressed(self.rows, self.columns, values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        """[d_out, d_in] with these values."""
        d_in, d_out = self.shape
        return _compressed(self.t_rows, self.t_columns, values[self.t_order], (d_out, d_in))


def _starts(numbers: Tensor, count: int) -> Tensor:
    return torch.searchsorted(numbers.contiguous(), torch.arange(count + 1)).int()


def _compressed(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        return torch.sparse_csr_tensor(rows, columns, values, shape, check_invariants=False)


class SingleWeights(SparseOperator):
    """Values [k, n] at flat indices of W, ascending.

    Padding: a padded value is zero wherever it is added, and the gradient there is set to zero.
    """

    matrix_names = ("values",)

    def __init__(self, stack: Stack, *, compress: bool) -> None:
        super().__init__(stack)
        shape = (stack.place.d_in, stack.place.d_out)
        compress = compress and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        self._lanes = (
            [SparseRows.of(own["index"], shape) for own in stack.tensors] if compress else []
        )

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """x times the change of W."""
        rows = x.flatten(1, 2)
        if self._lanes and x.device.type == "cpu":
            made: Tensor = _CompressedProduct.apply(rows, self.values, self._lanes)  # type: ignore[no-untyped-call]
        else:
            made = _DenseProduct.apply(rows, self.values, self.index, self.valid, self.d_out)  # type: ignore[no-untyped-call]
        return made.view(*x.shape[:3], self.d_out)


class _CompressedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, lanes: Sequence[SparseRows]) -> Tensor:
        """[k, R, d_in] times the lanes' changes, [k, R, d_out]."""
        ctx.save_for_backward(x, values)
        ctx.lanes = lanes
        out = x.new_empty(*x.shape[:2], lanes[0].shape[1])
        with torch.autocast(x.device.type, enabled=False):
            for own, product, lane, weights in zip(x, out, lanes, values, strict=True):
                change = lane.transposed(weights[: len(lane.columns)])
                product.copy_((change @ own.T).T)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, values = ctx.saved_tensors
        grad_x, grad_values = torch.empty_like(x), torch.zeros_like(values)
        for position, lane in enumerate(ctx.lanes):
            number, own = len(lane.columns), grad[position].to(x.dtype)
            grad_x[position] = (lane.matrix(values[position, :number]) @ own.T).T
            nothing = lane.matrix(values.new_zeros(number))
            sampled = torch.sparse.sampled_addmm(
                nothing, x[position].T.contiguous(), own.contiguous(), beta=0.0
            )
            grad_values[position, :number] = sampled.values()
        return grad_x, grad_values, None


class _DenseProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, index: Tensor, valid: Tensor, d_out: int
    ) -> Tensor:
        """[k, R, d_in] times the lanes' changes, [k, R, d_out]."""
        ctx.save_for_backward(x, values, index, valid)
        ctx.d_out = d_out
        return torch.bmm(x, _spread(values, index, x.shape[2], d_out))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, values, index, valid = ctx.saved_tensors
        change = _spread(values, index, x.shape[2], ctx.d_out).to(grad.dtype)
        grad_x = torch.bmm(grad, change.transpose(1, 2)).to(x.dtype)
        del change
        whole = torch.bmm(x.to(grad.dtype).transpose(1, 2), grad).flatten(1)
        own = whole.gather(1, index).to(values.dtype)
        return grad_x, torch.where(valid > 0, own, torch.zeros_like(own)), None, None, None


def _spread(values: Tensor, index: Tensor, d_in: int, d_out: int) -> Tensor:
    """[k, d_in, d_out] with the values at their places; a padded one adds zero to the first."""
    dense = values.new_zeros(len(values), d_in * d_out)
    return dense.scatter_add_(1, index, values).view(-1, d_in, d_out)
