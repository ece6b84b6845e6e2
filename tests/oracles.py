"""The slow, obvious definitions that everything is held against: float64, direct sums, one line of maths each.

They are torch functions, so their gradients are the oracles of our gradients.
"""

import itertools
import math

import torch
from torch import Tensor


def diagonal_taps(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, rule: str = 'zoh') -> Tensor:
    """K[l] = 2 Re Σ_n C_n B̄_n Ā_n^l. dt (H, 1 or n), A and B (H, n), C (c, H, n) complex -> (c, H, length)."""
    z = dt * A
    if rule == 'zoh':
        A_bar, B_bar = torch.exp(z), (torch.exp(z) - 1) / A * B
    else:
        A_bar, B_bar = (1 + z / 2) / (1 - z / 2), dt / (1 - z / 2) * B
    return torch.stack([2 * (C * B_bar * A_bar**lag).sum(-1).real for lag in range(length)], -1)


def dplr_matrices(w: Tensor, P: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The dense system over (x, x̄): A = diag(w, w̄) - Σ_r p_r p_r*, for one feature. w, B (n,), P (r, n), C (c, n)."""
    p = torch.cat([P, P.conj()], -1)
    A = torch.diag(torch.cat([w, w.conj()])) - torch.einsum('ri,rj->ij', p, p.conj())
    return A, torch.cat([B, B.conj()]), torch.cat([C, C.conj()], -1)


def bilinear_taps(dt: float | Tensor, A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """K[l] = C Āˡ B̄ of a dense system by the bilinear rule, one feature: (c, length)."""
    eye = torch.eye(len(A), dtype=A.dtype)
    A_bar = torch.linalg.solve(eye - dt / 2 * A, eye + dt / 2 * A)
    x = torch.linalg.solve(eye - dt / 2 * A, dt * B)
    taps = []
    for _ in range(length):
        taps.append((C @ x).real)
        x = A_bar @ x
    return torch.stack(taps, -1)


def cell_integral(A: Tensor, B: Tensor, C: Tensor, low: float, high: float) -> Tensor:
    """∫ k(t) dt over [low, high] of the continuous diagonal kernel k(t) = 2 Re Σ_n C_n B_n e^{A_n t}: (c, H)."""
    return 2 * (C * B * (torch.exp(A * high) - torch.exp(A * low)) / A).sum(-1).real


def full_kernel(taps: list[Tensor]) -> Tensor:
    """Outer product over axes, summed over rank: d tensors (R, C, K_τ) -> (C, K_1, …, K_d)."""
    kernel = taps[0]
    for axis in taps[1:]:
        kernel = kernel[..., None] * axis.reshape(*axis.shape[:2], *[1] * (kernel.dim() - 2), axis.shape[-1])
    return kernel.sum(0)


def direct_conv(x: Tensor, kernel: Tensor, centres: list[int]) -> Tensor:
    """y[t] = Σ_lag kernel[lag] x[t - lag], zero outside. x (B, C, L1…), kernel (C, K1…), lag 0 at `centres`."""
    size = x.shape[2:]
    y = torch.zeros_like(x)
    for index in itertools.product(*(range(k) for k in kernel.shape[1:])):
        lag = [i - c for i, c in zip(index, centres, strict=True)]
        if any(abs(v) >= n for v, n in zip(lag, size, strict=True)):
            continue
        to = tuple(slice(max(0, v), n + min(0, v)) for v, n in zip(lag, size, strict=True))
        of = tuple(slice(max(0, -v), n - max(0, v)) for v, n in zip(lag, size, strict=True))
        value = kernel[(slice(None), *index)].reshape(1, -1, *[1] * len(size))
        shifted = torch.zeros_like(x)
        shifted[(slice(None), slice(None), *to)] = x[(slice(None), slice(None), *of)]
        y = y + value * shifted
    return y


def mixed_conv(x: Tensor, taps: list[Tensor], centres: list[int]) -> Tensor:
    """y[o] = Σ_h K[o, h] * x[h]: taps (R, O·H, K), x (B, H, L1…) -> (B, O, L1…)."""
    features = x.shape[1]
    outputs = taps[0].shape[1] // features
    kernel = full_kernel(taps).unflatten(0, (outputs, features))
    return torch.stack([direct_conv(x, kernel[o], centres).sum(1) for o in range(outputs)], 1)


def hippo_legs(d_state: int) -> Tensor:
    """A of LegS entry by entry (HiPPO, arXiv 2008.07669, theorem 2)."""
    A = torch.zeros(d_state, d_state, dtype=torch.float64)
    for n in range(d_state):
        for k in range(n):
            A[n, k] = -math.sqrt((2 * n + 1) * (2 * k + 1))
        A[n, n] = -(n + 1)
    return A
