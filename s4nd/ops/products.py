"""The separable convolution as matrix products, one an axis, a few features at a time.

Only the inputs are kept for the gradients. Temporaries are those of one group of features, which on a CPU stay in the
cache: fresh memory would cost more than the arithmetic.
Shape legend: as in longconv.py. Inside, signals are (C, L1, B, L2, L3), or (C, B, L1) for one axis: the first and the
last axis are then one batched product each, without another copy.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from s4nd.ops.dispatch import feature_groups, plain_gradients, wants_graph


def separable_product(x: Tensor, matrices: Sequence[Tensor], skip: Tensor | None) -> Tensor:
    """x (B, C, L1, …, Ld) times the matrices (R, C, L, L) of each axis, summed over ranks, plus skip (C,) times x.

    The result has the memory format of x.
    """
    return _SeparableProduct.apply(x, skip, *matrices)


def plain_product(x: Tensor, skip: Tensor | None, *matrices: Tensor) -> Tensor:
    """Compute `separable_product` by autograd alone."""
    u = to_channels(x)
    y = _inputs(u, matrices, 0, slice(None))[-1]
    for rank in range(1, len(matrices[0])):
        y = y + _inputs(u, matrices, rank, slice(None))[-1]
    y = from_channels(y)
    return y if skip is None else y + skip.reshape([-1] + [1] * (x.dim() - 2)) * x


def joint_matrix(matrices: Sequence[Tensor]) -> Tensor:
    """Matrices (R, C, L, L) of all axes -> one (1, C, P, P) for the P = L1 ··· Ld flattened points.

    On a few points one larger product is faster than one an axis, and it holds all ranks.
    """
    joint = matrices[0]
    for matrix in matrices[1:]:
        joint = torch.einsum('rcab,rcde->rcadbe', joint, matrix).flatten(4).flatten(2, 3)
    return joint.sum(0, keepdim=True)


def toeplitz(taps: Tensor, center: int, length: int) -> Tensor:
    """Lag taps (R, C, K) -> matrices (R, C, L, L) that stand for the convolution: row j, column i holds k[i - j]."""
    # Lags beyond ±(length - 1) never meet the signal.
    before, after = length - 1 - center, length - (taps.shape[2] - center)
    if before < 0 or after < 0:
        taps = taps[..., max(0, -before) : taps.shape[2] - max(0, -after)]
    if before > 0 or after > 0:
        taps = F.pad(taps, [max(0, before), max(0, after)])
    return taps.unfold(2, length, 1).flip(2)  # of (R, C, 2L - 1)


def toeplitz_replicate(taps: Tensor, center: int, length: int) -> Tensor:
    """The matrices (R, C, L, L) for a signal that goes on beyond its ends as it is there: every column sums to Σ k.

    Column i of the first row holds Σ_{l >= i} k[l], that of the last row what lies beyond the other end.
    """
    k = F.pad(taps, (max(0, length - 1 - center), max(0, length - (taps.shape[2] - center))))
    center = max(center, length - 1)
    before = k.cumsum(-1)
    after = k.sum(-1, keepdim=True) - before
    first = F.pad(after[..., center : center + length].unsqueeze(2), (0, 0, 0, length - 1))
    last = F.pad((before - k)[..., center - length + 1 : center + 1].unsqueeze(2), (0, 0, length - 1, 0))
    return toeplitz(k, center, length) + first + last


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
        y = torch.bmm(matrix.transpose(1, 2), x.reshape(channels, length, -1))
        return y.reshape(_any_batch(x))
    last = x.dim() - 1  # exporters of old ONNX opsets take no -1 here
    rows = x.movedim(dim, last)
    y = torch.bmm(rows.reshape(channels, -1, length), matrix)
    return y.reshape(_any_batch(rows)).movedim(last, dim)


def _any_batch(x: Tensor) -> list[int]:
    """The shape of x, the batch as what follows from the rest: the older ONNX exporter would fix it."""
    shape = list(x.shape)
    shape[1 if x.dim() == 3 else 2] = -1
    return shape


class _SeparableProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor | None, *matrices: Tensor) -> Tensor:
        ctx.save_for_backward(x, skip, *matrices)
        y = torch.empty_like(x)
        for part in feature_groups(x):
            u = to_channels(x[:, part]).contiguous()
            total = _inputs(u, matrices, 0, part)[-1]
            for rank in range(1, len(matrices[0])):
                total += _inputs(u, matrices, rank, part)[-1]
            y[:, part] = from_channels(_add_skip(total, skip, part, u))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, skip, *matrices = ctx.saved_tensors
        if wants_graph(grad):
            return tuple(plain_gradients(plain_product, (x, skip, *matrices), ctx.needs_input_grad, grad))
        return product_gradients(grad, x, skip, matrices, ctx.needs_input_grad)


def product_gradients(
    grad: Tensor, x: Tensor, skip: Tensor | None, matrices: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of `separable_product` by x, skip and each of the matrices; `needed` says for which of them."""
    grad_x = torch.empty_like(x) if needed[0] else None
    grad_skip = torch.empty_like(skip) if skip is not None and needed[1] else None
    grad_matrices = [torch.empty_like(matrix) for matrix in matrices]
    # Autocast would run the products in half precision.
    with torch.autocast(grad.device.type, enabled=False):
        for part in feature_groups(x):
            u, g = to_channels(x[:, part]).contiguous(), to_channels(grad[:, part]).contiguous()
            total = None
            for rank in range(len(matrices[0])):
                inputs, back = _inputs(u, matrices, rank, part, 1), g
                for axis, matrix in enumerate(matrices):
                    dim = axis_dim(axis, len(matrices))
                    if needed[2 + axis]:
                        grad_matrices[axis][rank, part] = _outer(inputs[-1 - axis], back, dim)
                    back = apply_matrix(back, matrix[rank, part].transpose(1, 2), dim)
                total = back if total is None else total + back
            if grad_skip is not None:
                grad_skip[part] = torch.bmm(u.flatten(1)[:, None], g.flatten(1)[..., None]).flatten()
            if grad_x is not None:
                grad_x[:, part] = from_channels(_add_skip(total, skip, part, g))
    return grad_x, grad_skip, *grad_matrices


def _inputs(u: Tensor, matrices: Sequence[Tensor], rank: int, part: slice, first: int = 0) -> list[Tensor]:
    """u, then what every product makes of it, from the last axis down to `first`, for the features of `part`."""
    values = [u]
    for axis in range(len(matrices) - 1, first - 1, -1):
        values.append(apply_matrix(values[-1], matrices[axis][rank, part], axis_dim(axis, len(matrices))))
    return values


def _outer(z: Tensor, back: Tensor, dim: int) -> Tensor:
    """Gradient of the matrix in back = z · matrix: Σ z[j] back[i], (C, L, L)."""
    channels, length = z.shape[0], z.shape[dim]
    if dim == 1 and z.dim() > 3:
        z, back = (t.reshape(channels, length, -1) for t in (z, back))
        return torch.bmm(z, back.transpose(1, 2))
    z, back = (t.movedim(dim, -1).reshape(channels, -1, length) for t in (z, back))
    return torch.bmm(z.transpose(1, 2), back)


def _add_skip(y: Tensor, skip: Tensor | None, part: slice, u: Tensor) -> Tensor:
    """y += skip · u, features first."""
    return y if skip is None else y.addcmul_(skip[part].reshape([-1] + [1] * (u.dim() - 1)), u)
