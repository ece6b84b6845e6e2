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


def denoising_posterior(signal: Tensor, x: Tensor, betas: Tensor, t: int, s: int) -> tuple[Tensor, float]:
    """Mean and variance of x_s given x_t and x_0 by Bayes' rule: N(x_0 → x_s) times N(x_s → x_t), both Gaussian.

    betas (T,) are those of steps 1 … T; 0 < s < t. Products of the steps are taken one by one.
    """
    gain_s = gain_ts = 1.0
    var_s = var_ts = 0.0
    for step in range(1, t + 1):
        beta = float(betas[step - 1])
        if step <= s:
            gain_s, var_s = gain_s * math.sqrt(1 - beta), var_s * (1 - beta) + beta
        else:
            gain_ts, var_ts = gain_ts * math.sqrt(1 - beta), var_ts * (1 - beta) + beta
    precision = 1 / var_s + gain_ts**2 / var_ts
    return (gain_s * signal / var_s + gain_ts * x / var_ts) / precision, 1 / precision


def dss_taps(dt: Tensor, A: Tensor, C: Tensor, length: int, step: float, window: float | None = None) -> Tensor:
    """K[l] = Re Σ_n C_n (e^{A dt s} - 1)/A e^{A dt s l}; with a window T (softmax) over e^{A dt T} - 1, zero after T.

    dt (H, 1), A (H, n), C (c, H, n) -> (c, H, length).
    """
    z = dt * A
    weight = C * (torch.exp(z * step) - 1) / A
    taps = torch.stack([(weight * torch.exp(z * step * lag)).sum(-1).real for lag in range(length)], -1)
    if window is None:
        return taps
    weight = weight / (torch.exp(z * window) - 1)
    times = [lag * step for lag in range(length)]
    taps = [(weight * torch.exp(z * t)).sum(-1).real if t < window else 0 * weight.sum(-1).real for t in times]
    return torch.stack(taps, -1)


def lmu_matrices(d_state: int) -> tuple[Tensor, Tensor]:
    """A and B of the Legendre memory unit with a window of 1, entry by entry (Voelker et al. 2019, equation 2)."""
    A = torch.zeros(d_state, d_state, dtype=torch.float64)
    B = torch.zeros(d_state, dtype=torch.float64)
    for i in range(d_state):
        for j in range(d_state):
            A[i, j] = (2 * i + 1) * (-1 if i < j else (-1) ** (i - j + 1))
        B[i] = (2 * i + 1) * (-1) ** i
    return A, B


def zoh_taps(dt: float, A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """K[l] = C Āˡ B̄ of a dense system by zero-order hold: C (…, N) -> (…, length)."""
    A_bar = torch.matrix_exp(A * dt)
    x = torch.linalg.solve(A, (A_bar - torch.eye(len(A), dtype=A.dtype)) @ B)
    taps = []
    for _ in range(length):
        taps.append(C @ x)
        x = A_bar @ x
    return torch.stack(taps, -1)


def ema_taps(p: Tensor, q: Tensor, beta: Tensor, gamma: Tensor, length: int, step: float = 1.0) -> Tensor:
    """K[l] = Σ_n γ_n/√N g_n β_n q_n^{s l}, where g = p (1 - q^s)/(1 - q) is p at s = 1. p, q, β (H, N), γ (c, H, N)."""
    weight = gamma / math.sqrt(gamma.shape[-1]) * beta * p * (1 - q**step) / (1 - q)
    return torch.stack([(weight * q ** (step * lag)).sum(-1) for lag in range(length)], -1)


def sgconv_taps(weight: Tensor, length: int, step: float = 1.0) -> Tensor:
    """Tap l is s times the multiscale function at (l + ½) s: weight (c, H, S, d) -> (c, H, length), not normalised."""
    scales, d = weight.shape[-2:]
    taps = []
    for lag in range(length):
        t, value = (lag + 0.5) * step, torch.zeros_like(weight[..., 0, 0])
        for i in range(scales):
            stretch = 2 ** max(0, i - 1)
            start = 0 if i == 0 else d * stretch
            if start <= t < start + d * stretch:
                place = min(max((t - start) / stretch - 0.5, 0.0), d - 1.0)
                k, part = int(place), place - int(place)
                value = weight[..., i, k] * (1 - part) + (weight[..., i, k + 1] * part if part > 0 else 0)
                value = value * step / 2**i
        taps.append(value)
    return torch.stack(taps, -1)


def siren(x: Tensor, layers: list[tuple[Tensor, Tensor]], omega_0: float) -> Tensor:
    """One coordinate vector x (D,) -> values: sines of ω0 (W x + b), the last layer linear."""
    for weight, bias in layers[:-1]:
        x = torch.sin(omega_0 * (weight @ x + bias))
    return layers[-1][0] @ x + layers[-1][1]


def magnet(x: Tensor, gabors: list[tuple[Tensor, ...]], layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One coordinate vector x (D,) -> values; a Gabor filter is (γ, μ, W, b)."""
    filters = [
        torch.exp(-0.5 * ((gamma * (x - mu)) ** 2).sum(-1)) * torch.sin(weight @ x + bias)
        for gamma, mu, weight, bias in gabors
    ]
    h = filters[0]
    for (weight, bias), g in zip(layers[:-1], filters[1:], strict=True):
        h = (weight @ h + bias) * g
    return layers[-1][0] @ h + layers[-1][1]
