"""Taps of a dense state-space system, C Aˡ B for l = 0 … L - 1, by powers of A: no eigenvectors, no inverse.

With l = j·columns + i the taps are (C A^(j·columns)) (Aⁱ B): a product of two small Krylov matrices, of which the right
one grows by doubling (A, A², A⁴ …) and the left one row by row with A^columns.
Shape legend: H = features, N = state, c = channels, L = length.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from s4nd.ops.dispatch import by_hand, plain_gradients, wants_graph
from s4nd.ops.exponentials import block_split


def krylov(A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """A (H, N, N) with powers that stay bounded, B (H, N), C (c, H, N) -> taps (c, H, length).

    Only the inputs are kept for the gradients.
    """
    if by_hand(C):
        return _krylov_by_hand(A, B, C, length)
    return plain_krylov(A, B, C, length)


@torch.jit.unused
def _krylov_by_hand(A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    return _Krylov.apply(A, B, C, length)


def plain_krylov(A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """Compute the same by autograd, with both sides doubled."""
    channels, features, _ = C.shape
    rows, columns = block_split(length)
    right = B[..., None]  # (H, N, 1 … columns)
    left = C.transpose(0, 1)  # (H, c, N), below (H, rows·c, N)
    while right.shape[-1] < columns:
        right = torch.cat([right, torch.bmm(A, right)], -1)
        if right.shape[-1] < columns or rows > 1:
            A = torch.bmm(A, A)
    while left.shape[1] < rows * channels:
        left = torch.cat([left, torch.bmm(left, A)], 1)
        if left.shape[1] < rows * channels:
            A = torch.bmm(A, A)
    taps = torch.bmm(left[:, : rows * channels], right).reshape(features, rows, channels, columns)
    return taps.permute(2, 0, 1, 3).reshape(channels, features, rows * columns)[..., :length]


class _Krylov(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(A, B, C)
        ctx.length = length
        return torch.cat([_taps(A[part], B[part], C[:, part], length) for part in _parts(A)], 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        A, B, C = ctx.saved_tensors
        if wants_graph(grad):
            plain = partial(plain_krylov, length=ctx.length)
            return (*plain_gradients(plain, (A, B, C), ctx.needs_input_grad[:3], grad), None)
        grads = [_gradients(A[part], B[part], C[:, part], grad[:, part]) for part in _parts(A)]
        grad_A, grad_B, grad_C = zip(*grads, strict=True)
        return torch.cat(grad_A), torch.cat(grad_B), torch.cat(grad_C, 1), None


def _parts(A: Tensor) -> list[slice]:
    """On a CPU, features in groups whose matrices stay in the cache through all the products."""
    size = len(A) if A.device.type != 'cpu' else max(1, 2**16 // A[0].numel())
    return [slice(start, start + size) for start in range(0, len(A), size)]


def _taps(A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    rows, columns = block_split(length)
    left, right = _left_right(_squares(A, columns), B, C, rows)
    taps = torch.bmm(left, right)  # (H, rows·c, columns)
    taps = taps.reshape(len(A), rows, -1, columns).permute(2, 0, 1, 3)
    return taps.reshape(*C.shape[:2], rows * columns)[..., :length]


def _gradients(A: Tensor, B: Tensor, C: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    channels, features, length = grad.shape
    rows, columns = block_split(length)
    squares = _squares(A, columns)
    left, right = _left_right(squares, B, C, rows)
    grad = torch.nn.functional.pad(grad, (0, rows * columns - length))
    grad = grad.reshape(channels, features, rows, columns).permute(1, 2, 0, 3).reshape(features, -1, columns)
    grad_right = torch.bmm(left.transpose(1, 2), grad)  # (H, N, columns)
    grad_left = torch.bmm(grad, right.transpose(1, 2))  # (H, rows·c, N)
    # left[j] = left[j - 1] A^columns
    last = squares[-1].transpose(1, 2)
    for j in range(rows - 1, 0, -1):
        here, before = slice(j * channels, (j + 1) * channels), slice((j - 1) * channels, j * channels)
        grad_left[:, before] += torch.bmm(grad_left[:, here], last)
    grad_A = torch.bmm(left[:, :-channels].transpose(1, 2), grad_left[:, channels:])
    for square in reversed(squares[:-1]):
        # The step from `square` to its square, and right = [known, square · known].
        turned = square.transpose(1, 2)
        grad_A = torch.baddbmm(torch.bmm(grad_A, turned), turned, grad_A)
        known = grad_right.shape[-1] // 2
        grad_A.baddbmm_(grad_right[..., known:], right[..., :known].transpose(1, 2))
        grad_right = torch.baddbmm(grad_right[..., :known], turned, grad_right[..., known:])
    return grad_A, grad_right[..., 0], grad_left[:, :channels].transpose(0, 1)


def _squares(A: Tensor, columns: int) -> list[Tensor]:
    """A, A², A⁴ … A^columns."""
    squares = [A]
    while 2 ** (len(squares) - 1) < columns:
        squares.append(torch.bmm(squares[-1], squares[-1]))
    return squares


def _left_right(squares: list[Tensor], B: Tensor, C: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """C A^(j·columns) as (H, rows·c, N), and Aⁱ B as (H, N, columns)."""
    right = B[..., None]
    for square in squares[:-1]:
        right = torch.cat([right, torch.bmm(square, right)], -1)
    left = [C.transpose(0, 1)]
    for _ in range(rows - 1):
        left.append(torch.bmm(left[-1], squares[-1]))
    return torch.cat(left, 1), right
