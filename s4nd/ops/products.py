"""The separable convolution as matrix products, one an axis, with gradients that keep one copy of the signal.

Shape legend: as in longconv.py. Inside, signals are (C, L1, B, L2, L3), or (C, B, L1) for one axis: the first and the
last axis are then one batched product each, without another copy.
"""

from typing import Any

import torch
from torch import Tensor


def separable_product(x: Tensor, matrices: list[Tensor], skip: Tensor | None) -> Tensor:
    """x (B, C, L1, …, Ld) times the matrices (R, C, L, L) of each axis, summed over ranks, plus skip (C,) times x.

    Its gradients cannot be differentiated again.
    """
    return _SeparableProduct.apply(x, skip, *matrices)


def to_channels(x: Tensor) -> Tensor:
    """(B, C, L1, …) -> (C, L1, B, …) or (C, B, L1), a view."""
    return x.transpose(0, 1) if x.dim() == 3 else x.movedim(0, 2)


def from_channels(x: Tensor) -> Tensor:
    """What `to_channels` made, back: a view."""
    return x.transpose(0, 1) if x.dim() == 3 else x.movedim(2, 0)


def axis_dim(axis: int, axes: int) -> int:
    """Where `to_channels` puts an axis."""
    return 2 if axes == 1 else (1 if axis == 0 else axis + 2)


def apply_matrix(x: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """x (C, …) times (C, L, L) along `dim`: y[i] = Σ_j x[j] matrix[j, i]."""
    channels, length = matrix.shape[0], matrix.shape[1]
    if dim == 1 and x.dim() > 3:
        return torch.bmm(matrix.transpose(1, 2), x.reshape(channels, length, -1)).reshape(x.shape)
    last = x.dim() - 1  # exporters of old ONNX opsets take no -1 here
    rows = x.movedim(dim, last)
    y = torch.bmm(rows.reshape(channels, -1, length), matrix)
    return y.reshape(rows.shape).movedim(last, dim)


class _SeparableProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor | None, *matrices: Tensor) -> Tensor:
        u = to_channels(x).contiguous()
        y = _inputs(u, matrices, 0)[-1]
        for rank in range(1, len(matrices[0])):
            y += _inputs(u, matrices, rank)[-1]
        ctx.save_for_backward(u, skip, *matrices)
        return _add_skip(y, skip, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, skip, *matrices = ctx.saved_tensors
        # Autocast would run the products in half precision.
        with torch.autocast(grad.device.type, enabled=False):
            g = to_channels(grad).contiguous()
            grad_u, grad_matrices = None, [torch.empty_like(matrix) for matrix in matrices]
            for rank in range(len(matrices[0])):
                inputs, back = _inputs(u, matrices, rank), g
                for axis, matrix in enumerate(matrices):
                    dim = axis_dim(axis, len(matrices))
                    if ctx.needs_input_grad[2 + axis]:
                        grad_matrices[axis][rank] = _outer(inputs[-2 - axis], back, dim)
                    back = apply_matrix(back, matrix[rank].transpose(1, 2), dim)
                grad_u = back if grad_u is None else grad_u + back
            grad_x = _add_skip(grad_u, skip, grad) if ctx.needs_input_grad[0] else None
            grad_skip = torch.linalg.vecdot(u.flatten(1), g.flatten(1)) if ctx.needs_input_grad[1] else None
        return grad_x, grad_skip, *grad_matrices


def _inputs(u: Tensor, matrices: tuple[Tensor, ...] | list[Tensor], rank: int) -> list[Tensor]:
    """u, then what every product makes of it, last axis first."""
    values = [u]
    for axis in range(len(matrices) - 1, -1, -1):
        values.append(apply_matrix(values[-1], matrices[axis][rank], axis_dim(axis, len(matrices))))
    return values


def _outer(z: Tensor, back: Tensor, dim: int) -> Tensor:
    """Gradient of the matrix in back = z · matrix: Σ z[j] back[i], (C, L, L)."""
    z, back = (t.movedim(dim, 1).flatten(2) for t in (z, back))
    return torch.bmm(z, back.transpose(1, 2))


def _add_skip(y: Tensor, skip: Tensor | None, x: Tensor) -> Tensor:
    """y as (B, C, L1, …), contiguous, plus skip · x."""
    y = from_channels(y)
    if skip is None:
        return y.contiguous()
    return torch.addcmul(y, skip.reshape([-1] + [1] * (x.dim() - 2)), x, out=torch.empty_like(x))
