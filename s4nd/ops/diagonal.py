"""Taps of a diagonal state-space system from its continuous parameters, by complex or by real arithmetic.

x' = A x + B u, y = 2 Re(C x) with a diagonal A gives K[l] = 2 Re Σ_n C_n B̄_n Ā_nˡ. Arguments are real: a complex number
is a pair in a last axis of size 2. All is float64; for float32 taps, up to 1024, sums of powers of Ā are float32.
Shape legend: H = features, S = distinct (A, B), n = modes, c = channels, L = length.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s4nd.ops.dispatch import by_hand, plain_gradients, wants_graph
from s4nd.ops.exponentials import plain_exponential_sum, slopes_of_powers, sum_of_powers


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
    # cos y = 1 - 2 sin² y/2 and sin y = 2 sin y/2 cos y/2.
    change, sine, cosine = torch.expm1(x), torch.sin(0.5 * y), torch.cos(0.5 * y)
    height = torch.addcmul(sine, sine, change)
    return torch.addcmul(change, sine, height, value=-2.0), 2.0 * cosine * height


def expand_ssm(x: Tensor, d_model: int) -> Tensor:
    """(…, S, n) -> (…, H, n): feature h uses row h % S."""
    repeats = [1] * x.dim()
    repeats[-2] = d_model // x.shape[-2]
    return x.repeat(repeats)


# Up to so many taps, sums of float32 powers err by at most 2e-6 of the largest tap, damped or not.
_SHORT = 1024


def diagonal_taps(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    length: int,
    bilinear: bool = False,
    paired: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Taps (c, H, length) of a diagonal system sampled at dt.

    Args:
        dt: (H, 1 or n), positive.
        A, B: (S, n, 2); feature h uses row h % S.
        C: (c, H, n, 2).
        length: L >= 1.
        bilinear: the bilinear rule in place of zero-order hold.
        paired: taps h summed in pairs, h[0], h[1] + h[2], h[3] + h[4] …; of a zero-order hold with half a sample for
            dt, entry l is the mean of the kernel over [l - ½, l + ½], entry 0 the part of it that lies after 0.
        dtype: of the taps.

    Eagerly all may have more axes in front, those of systems side by side.
    """
    if by_hand(C):
        return _complex_taps(dt, A, B, C, length, bilinear, paired, dtype)
    return _plain_taps(dt, A, B, C, length, bilinear, paired).to(dtype)


def _plain_taps(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, bilinear: bool, paired: bool) -> Tensor:
    features = C.shape[1]
    A = expand_ssm(A.flatten(1), features).unflatten(1, [-1, 2])
    B = expand_ssm(B.flatten(1), features).unflatten(1, [-1, 2])
    a_re, a_im, g_re, g_im = discretize(dt, A[..., 0], A[..., 1], bilinear)
    b_re, b_im = g_re * B[..., 0] - g_im * B[..., 1], g_re * B[..., 1] + g_im * B[..., 0]
    w_re, w_im = C[..., 0] * b_re - C[..., 1] * b_im, C[..., 0] * b_im + C[..., 1] * b_re  # (c, H, n)
    if paired:
        return pair_cells(plain_exponential_sum(w_re, w_im, a_re, a_im, 2 * length - 1))
    return plain_exponential_sum(w_re, w_im, a_re, a_im, length)


def pair_cells(h: Tensor) -> Tensor:
    """Sum taps at half the step in pairs, h[0], h[1] + h[2], h[3] + h[4] …: (…, 2K - 1) -> (…, K)."""
    return torch.cat([h[..., :1], h[..., 1::2] + h[..., 2::2]], -1)


@torch.jit.unused
def _complex_taps(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, bilinear: bool, paired: bool, dtype: torch.dtype
) -> Tensor:
    return _DiagonalTaps.apply(dt, A, B, C, length, bilinear, paired, dtype)


class _DiagonalTaps(torch.autograd.Function):
    """`diagonal_taps` in complex numbers.

    What the backward pass computes are complex derivatives; those by real and imaginary part are the conjugates. Python
    numbers are of the dtype of what they are added to, or another operator would convert them.
    """

    @staticmethod
    def forward(
        ctx: Any, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, bilinear: bool, paired: bool,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        change = _change(_rows(dt, A) * A.unsqueeze(-4), bilinear)  # (…, H/S, S, n)
        ratio, readout = _as_complex(B) / _as_complex(A), _as_complex(C.transpose(-4, -3))  # (…, S, n), (…, H, c, n)
        ratio = ratio.unsqueeze(-3)
        _, weights, bases = _discrete(change, ratio, readout)
        fine = dtype.to_complex() if length <= _SHORT else bases.dtype
        if paired and length > 1:
            # h[2l - 1] + h[2l] is of weights w_n (a_n + a_n²) and bases a_n².
            squares = bases * bases
            taps, *powers = sum_of_powers(weights * (bases + squares)[:, None], squares, length - 1, fine)
            taps = torch.cat([weights.real.sum(-1, keepdim=True).to(taps.dtype), taps], -1)
        else:
            taps, *powers = sum_of_powers(weights, bases, length, fine)
        ctx.save_for_backward(dt, A, B, C, change, ratio, readout, *powers)
        ctx.bilinear, ctx.paired = bilinear, paired
        return 2.0 * taps.view(*readout.shape[:-1], length).transpose(-3, -2).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dt, A, B, C, change, ratio, readout, *powers = ctx.saved_tensors
        if wants_graph(grad):
            rest = grad.shape[-1], ctx.bilinear, ctx.paired, grad.dtype
            found = plain_gradients(lambda *x: _plainly(x, *rest), (dt, A, B, C), ctx.needs_input_grad[:4], grad)
            return *found, None, None, None, None
        gain, weights, bases = _discrete(change, ratio, readout)
        grad = 2.0 * grad.transpose(-3, -2).reshape(*weights.shape[:2], -1).to(weights.real.dtype)
        if ctx.paired and grad.shape[-1] > 1:
            both = torch.addcmul(bases, bases, bases)
            by_weights, by_squares = _slopes(grad[..., 1:], weights * both[:, None], *powers)
            by_both = (by_weights * weights).sum(1)
            by_weights = torch.addcmul(grad[..., :1], by_weights, both[:, None])
            by_bases = torch.addcmul(by_both, bases, by_both + by_squares, value=2.0)
        else:
            by_weights, by_bases = _slopes(grad, weights, *powers)
        by_weights = by_weights.view(readout.shape)
        by_C = (by_weights * gain).transpose(-3, -2)
        by_gain = (by_weights * readout).sum(-2).view(change.shape)
        by_B = (by_gain * change).sum(-3) / _as_complex(A)
        by_change = torch.addcmul(by_bases.view(change.shape), by_gain, ratio)
        by_z = _as_pairs(by_change * _slope(change, bases, ctx.bilinear))
        by_A = (by_z * _rows(dt, A)).sum(-4) - _as_pairs(by_B * ratio.squeeze(-3))
        by_dt = (by_z * A.unsqueeze(-4)).sum(-1)
        by_dt = by_dt.sum(-1) if dt.shape[-1] == 1 else by_dt
        return by_dt.view(dt.shape), by_A, _as_pairs(by_B), _as_pairs(by_C), None, None, None, None


def _slopes(grad: Tensor, weights: Tensor, *powers: Tensor) -> tuple[Tensor, Tensor]:
    """`slopes_of_powers` in the dtype of the powers, then in that of the weights again."""
    fine = powers[0].dtype
    by_weights, by_bases = slopes_of_powers(grad.to(fine.to_real()), weights.to(fine), *powers)
    return by_weights.to(weights.dtype), by_bases.to(weights.dtype)


def _rows(dt: Tensor, A: Tensor) -> Tensor:
    """dt (…, H, m) for pairs (…, H/S, S, n, 2), as feature h uses row h % S of A (…, S, n, 2)."""
    return dt.unflatten(-2, (-1, A.shape[-3])).unsqueeze(-1)


def _change(z: Tensor, bilinear: bool) -> Tensor:
    """Ā - 1 for pairs z = A dt: e^z - 1, or z / (1 - z/2)."""
    if bilinear:
        z = torch.view_as_complex(z)
        return z / (1 - z / 2)
    return torch.complex(*expm1(*z.unbind(-1)))


def _slope(change: Tensor, bases: Tensor, bilinear: bool) -> Tensor:
    """Derivative of `_change` by z."""
    return (1 + change / 2) ** 2 if bilinear else bases.view(change.shape)


def _discrete(change: Tensor, ratio: Tensor, readout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """B̄ (…, H, 1, n), C B̄ (·, c, n) and Ā (·, n) for Ā - 1 (…, H/S, S, n), B / A (…, 1, S, n) and C (…, H, c, n)."""
    gain = (change * ratio).view(*readout.shape[:-2], 1, -1)
    return gain, (readout * gain).view(-1, *readout.shape[-2:]), (change + (1 + 0j)).view(-1, change.shape[-1])


def _as_complex(pairs: Tensor) -> Tensor:
    # Parameters in channels_last have strides that complex views refuse.
    return torch.view_as_complex(pairs.contiguous())


def _as_pairs(slope: Tensor) -> Tensor:
    """A complex derivative, which is overwritten, as gradient of real and imaginary part."""
    return torch.view_as_real(slope.conj_physical_())


def _plainly(systems: Sequence[Tensor], length: int, bilinear: bool, paired: bool, dtype: torch.dtype) -> Tensor:
    """`_plain_taps`, one system after the other where there are several."""
    if systems[-1].dim() == 4:
        dt, A, B, C = systems
        return _plain_taps(dt, A, B, C, length, bilinear, paired).to(dtype)
    return torch.stack([_plainly(system, length, bilinear, paired, dtype) for system in zip(*systems, strict=True)])
