"""Taps of a sum of damped exponentials, the kernel of every diagonal state-space system.

k[l] = 2 Σ_m Re(w_m a_m^l), l = 0 … L - 1. With l = j·columns + i a power factors as (a^columns)^j · a^i, so that the
taps are one matrix product of √L by √L, and so are both gradients: Σ_l g_l a^l for w, Σ_l l g_l a^(l-1) for a.
Shape legend: c = channels, H = features, n = modes, L = length.
"""

from typing import Any

import torch
from torch import Tensor

from s4nd.ops.dispatch import by_hand, exact_bmm, plain_gradients, wants_graph


def exponential_sum(w_re: Tensor, w_im: Tensor, a_re: Tensor, a_im: Tensor, length: int) -> Tensor:
    """Weights w (c, H, n) and bases a (H, n), |a| <= 1, as real and imaginary parts -> taps (c, H, length)."""
    if by_hand(a_re):
        return _complex_parts(w_re, w_im, a_re, a_im, length)
    return plain_exponential_sum(w_re, w_im, a_re, a_im, length)


def complex_exponential_sum(w: Tensor, a: Tensor, length: int) -> Tensor:
    """Take complex weights w (c, H, n) and bases a (H, n), |a| <= 1 -> real taps (c, H, length).

    Gradients come from the inputs alone, with memory O(√length) per mode.
    """
    return _ExponentialSum.apply(w, a, length)


@torch.jit.unused
def _complex_parts(w_re: Tensor, w_im: Tensor, a_re: Tensor, a_im: Tensor, length: int) -> Tensor:
    return complex_exponential_sum(torch.complex(w_re, w_im), torch.complex(a_re, a_im), length)


def plain_exponential_sum(w_re: Tensor, w_im: Tensor, a_re: Tensor, a_im: Tensor, length: int) -> Tensor:
    """Compute the same in real arithmetic, by autograd alone."""
    channels, features, _ = w_re.shape
    rows, columns = block_split(length)
    v_re, v_im = powers(a_re, a_im, columns)  # (H, n, columns)
    # a^columns carries one block of taps to the next.
    j_re, j_im = v_re[..., -1] * a_re - v_im[..., -1] * a_im, v_re[..., -1] * a_im + v_im[..., -1] * a_re
    j_re, j_im = powers(j_re, j_im, rows)  # (H, n, rows)
    left_re = w_re[..., None] * j_re - w_im[..., None] * j_im  # (c, H, n, rows)
    left_im = w_re[..., None] * j_im + w_im[..., None] * j_re
    left = torch.cat([left_re, -left_im], 2).permute(1, 0, 3, 2)  # (H, c, rows, 2n)
    left = left.reshape(features, channels * rows, left.shape[-1])
    taps = 2 * torch.bmm(left, torch.cat([v_re, v_im], 1))  # (H, c·rows, columns)
    return taps.reshape(features, channels, rows * columns)[..., :length].transpose(0, 1)


class _ExponentialSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, a: Tensor, length: int) -> Tensor:
        taps, *powers = sum_of_powers(w.transpose(0, 1), a, length)
        ctx.save_for_backward(w, a, *powers)
        return 2.0 * taps.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        w, a, *powers = ctx.saved_tensors
        if wants_graph(grad):
            grad_w, grad_a = plain_gradients(
                lambda w, a: plain_exponential_sum(w.real, w.imag, a.real, a.imag, grad.shape[-1]),
                (w, a), ctx.needs_input_grad[:2], grad,
            )  # fmt: skip
            return grad_w, grad_a, None
        by_w, by_a = slopes_of_powers(2.0 * grad.transpose(0, 1), w.transpose(0, 1), *powers)
        return by_w.transpose(0, 1).conj(), by_a.conj(), None


def sum_of_powers(w: Tensor, a: Tensor, length: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Re Σ_n w a^l (H, c, length) of complex w (H, c, n) and a (H, n), and the powers that `slopes_of_powers` takes.

    All is of the dtype of w and a, or computed in `dtype` (complex) from a and one long power of it that are exact to
    that precision: errors grow with √length, not with the length.
    """
    rows, columns = block_split(length)
    if dtype is not None and dtype != a.dtype:
        block = a
        for _ in range(columns.bit_length() - 1):  # columns is a power of two
            block = block * block
        w, a, block = w.to(dtype), a.to(dtype), block.to(dtype)
        column_powers = _complex_powers(a, columns)
    else:
        column_powers = _complex_powers(a, columns)
        block = column_powers[:, -1] * a
    row_powers = _complex_powers(block, rows)
    # Re(x y) is the inner product of x̄ and y as pairs of reals.
    left = (w[:, :, None] * row_powers[:, None]).conj_physical_()  # (H, c, rows, n)
    sums = exact_bmm(_as_rows(left.flatten(1, 2)), _as_rows(column_powers).transpose(1, 2))  # (H, c·rows, columns)
    return sums.reshape(*w.shape[:2], rows * columns)[..., :length], column_powers, row_powers


def slopes_of_powers(grad: Tensor, w: Tensor, column_powers: Tensor, row_powers: Tensor) -> tuple[Tensor, Tensor]:
    """Complex derivatives of Σ grad · Re Σ_n w a^l by w (H, c, n) and a (H, n), for grad (H, c, length).

    A gradient by real and imaginary part is the conjugate of such a derivative.
    """
    features, channels, length = grad.shape
    rows, columns = row_powers.shape[1], column_powers.shape[1]
    g = grad.new_zeros(features, 2, channels, rows * columns)
    g[:, 0, :, :length] = grad
    torch.mul(grad[..., 1:], torch.arange(1, length, device=g.device, dtype=g.dtype), out=g[:, 1, :, : length - 1])
    sums = exact_bmm(g.view(features, 2 * channels * rows, columns), _as_rows(column_powers))
    sums = torch.view_as_complex(sums.view(features, 2, channels, rows, -1, 2))
    # Σ g_l a^l and Σ l g_l a^(l-1): (H, 2, c, n)
    by_w, by_a = sums.mul_(row_powers[:, None, None]).sum(3).unbind(1)
    return by_w, (w * by_a).sum(1)


def block_split(length: int) -> tuple[int, int]:
    """(rows, columns) with columns a power of two near the square root and rows·columns >= length."""
    columns = 1
    while columns * columns < length:
        columns *= 2
    return (length + columns - 1) // columns, columns


def powers(re: Tensor, im: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """z⁰ … z^(count-1) on a new last axis, by doubling: (…) -> (…, count) as real and imaginary part."""
    out_re, out_im = torch.ones_like(re)[..., None], torch.zeros_like(im)[..., None]
    re, im = re[..., None], im[..., None]
    while out_re.shape[-1] < count:
        out_re, out_im = (
            torch.cat([out_re, out_re * re - out_im * im], -1),
            torch.cat([out_im, out_re * im + out_im * re], -1),
        )
        re, im = re * re - im * im, 2 * re * im
    return out_re[..., :count], out_im[..., :count]


def _complex_powers(z: Tensor, count: int) -> Tensor:
    """z⁰ … z^(count-1) for z (H, n): (H, count, n)."""
    factors = z[:, None].expand(-1, count - 1, -1)
    return torch.nn.functional.pad(factors, (0, 0, 1, 0), value=1.0).cumprod(1)


def _as_rows(z: Tensor) -> Tensor:
    """Complex (H, k, n) -> real (H, k, 2n)."""
    return torch.view_as_real(z).flatten(-2)
