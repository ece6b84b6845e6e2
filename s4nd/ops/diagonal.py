"""Taps of a diagonal state-space system from its continuous parameters, by complex or by real arithmetic.

x' = A x + B u, y = 2 Re(C x) with a diagonal A gives K[l] = 2 Re Σ_n C_n B̄_n Ā_nˡ. Arguments are real: a complex number
is a pair in a last axis of size 2. All is float64.
Shape legend: H = features, S = distinct (A, B), n = modes, c = channels, L = length.
"""

from typing import Any

import torch
from torch import Tensor

from s4nd.ops.dispatch import by_hand
from s4nd.ops.exponentials import complex_exponential_sum, plain_exponential_sum


def discretize(dt: Tensor, re: Tensor, im: Tensor, bilinear: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ā and the gain of B as real and imaginary parts, for A = re + i·im and a step dt.

    Zero-order hold: Ā = e^{A dt}, gain (Ā - 1)/A. Bilinear: Ā = (1 + A dt/2)/(1 - A dt/2), gain dt/(1 - A dt/2).
    """
    if bilinear:
        # Ā = 2/(1 - z/2) - 1.
        d_re, d_im = 1 - re * dt / 2, -im * dt / 2
        norm = d_re * d_re + d_im * d_im
        g_re, g_im = d_re / norm, -d_im / norm
        return 2 * g_re - 1, 2 * g_im, dt * g_re, dt * g_im
    e_re, e_im = expm1(re * dt, im * dt)
    norm = re * re + im * im
    return e_re + 1, e_im, (e_re * re + e_im * im) / norm, (e_im * re - e_re * im) / norm


def expm1(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """e^{x + iy} - 1 without cancellation, as real and imaginary part."""
    return torch.expm1(x) * torch.cos(y) - 2 * torch.sin(y / 2) ** 2, torch.exp(x) * torch.sin(y)


def expand_ssm(x: Tensor, d_model: int) -> Tensor:
    """(…, S, n) -> (…, H, n): feature h uses row h % S."""
    repeats = [1] * x.dim()
    repeats[-2] = d_model // x.shape[-2]
    return x.repeat(repeats)


def diagonal_taps(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, bilinear: bool = False, cells: bool = False
) -> Tensor:
    """Taps (c, H, length) of a diagonal system sampled at dt.

    Args:
        dt: (H, 1 or n), positive.
        A, B: (S, n, 2); feature h uses row h % S.
        C: (c, H, n, 2).
        length: L >= 1.
        bilinear: the bilinear rule in place of zero-order hold.
        cells: entry l is the mean of the kernel over [l - ½, l + ½], entry 0 the part of it that lies after 0.
    """
    if by_hand(C):
        return _complex_taps(dt, A, B, C, length, bilinear, cells)
    features = C.shape[1]
    step = dt / 2 if cells else dt
    A = expand_ssm(A.flatten(1), features).unflatten(1, [-1, 2])
    B = expand_ssm(B.flatten(1), features).unflatten(1, [-1, 2])
    a_re, a_im, g_re, g_im = discretize(step, A[..., 0], A[..., 1], bilinear)
    b_re, b_im = g_re * B[..., 0] - g_im * B[..., 1], g_re * B[..., 1] + g_im * B[..., 0]
    w_re, w_im = C[..., 0] * b_re - C[..., 1] * b_im, C[..., 0] * b_im + C[..., 1] * b_re  # (c, H, n)
    if cells:
        return pair_cells(plain_exponential_sum(w_re, w_im, a_re, a_im, 2 * length - 1))
    return plain_exponential_sum(w_re, w_im, a_re, a_im, length)


def pair_cells(h: Tensor) -> Tensor:
    """Sum taps at half the step in pairs, h[0], h[1] + h[2], h[3] + h[4] …: (…, 2K - 1) -> (…, K)."""
    return torch.cat([h[..., :1], h[..., 1::2] + h[..., 2::2]], -1)


@torch.jit.unused
def _complex_taps(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, bilinear: bool, cells: bool) -> Tensor:
    # Parameters in channels_last have strides that complex views refuse.
    A, B, C = (torch.view_as_complex(pair.contiguous()) for pair in (A, B, C))
    rows = (-1, len(A))
    step = dt / 2 if cells else dt
    z = (step.expand(C.shape[1], -1).unflatten(0, rows) * A).flatten(0, 1)
    if bilinear:
        gain = 1 / (1 - z / 2)
        change = z * gain
        gain = ((step * gain).unflatten(0, rows) * B).flatten(0, 1)
    else:
        change = _Expm1.apply(z)
        gain = (change.unflatten(0, rows) * (B / A)).flatten(0, 1)
    weights, bases = C * gain, 1 + change
    if not cells:
        return complex_exponential_sum(weights, bases, length)
    # h[2l - 1] + h[2l] = 2 Re Σ_n w_n (1 + a_n) a_n^(2l - 1).
    taps = 2 * weights.real.sum(-1, keepdim=True)
    if length == 1:
        return taps
    squares = bases * bases
    return torch.cat([taps, complex_exponential_sum(weights * (bases + squares), squares, length - 1)], -1)


class _Expm1(torch.autograd.Function):
    """`expm1` of a complex z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        result = torch.complex(*expm1(z.real, z.imag))
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return grad * (1 + result).conj()
