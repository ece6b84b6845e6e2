"""The slow, obvious definitions that everything is held against: float64, direct sums, one line of maths each.

They are torch functions, so their gradients are the oracles of our gradients.
"""

import itertools
import math
from collections.abc import Callable, Sequence

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


def direct_conv(x: Tensor, kernel: Tensor, centers: list[int]) -> Tensor:
    """y[t] = Σ_lag kernel[lag] x[t - lag], zero outside. x (B, C, L1…), kernel (C, K1…), lag 0 at `centers`."""
    size = x.shape[2:]
    y = torch.zeros_like(x)
    for index in itertools.product(*(range(k) for k in kernel.shape[1:])):
        lag = [i - c for i, c in zip(index, centers, strict=True)]
        if any(abs(v) >= n for v, n in zip(lag, size, strict=True)):
            continue
        to = tuple(slice(max(0, v), n + min(0, v)) for v, n in zip(lag, size, strict=True))
        of = tuple(slice(max(0, -v), n - max(0, v)) for v, n in zip(lag, size, strict=True))
        value = kernel[(slice(None), *index)].reshape(1, -1, *[1] * len(size))
        shifted = torch.zeros_like(x)
        shifted[(slice(None), slice(None), *to)] = x[(slice(None), slice(None), *of)]
        y = y + value * shifted
    return y


def circular_conv(x: Tensor, kernel: Tensor, centers: list[int], circular: list[bool]) -> Tensor:
    """What `direct_conv` computes, where the ends of some axes meet: x[t - lag] is taken modulo their size."""
    size = x.shape[2:]
    y = torch.zeros_like(x)
    for to in itertools.product(*map(range, size)):
        for index in itertools.product(*map(range, kernel.shape[1:])):
            of = [t - i + c for t, i, c in zip(to, index, centers, strict=True)]
            of = [o % n if wraps else o for o, n, wraps in zip(of, size, circular, strict=True)]
            if all(0 <= o < n for o, n in zip(of, size, strict=True)):
                y[(slice(None), slice(None), *to)] += kernel[(slice(None), *index)] * x[(slice(None), slice(None), *of)]
    return y


def mixed_conv(x: Tensor, taps: list[Tensor], centers: list[int]) -> Tensor:
    """y[o] = Σ_h K[o, h] * x[h]: taps (R, O·H, K), x (B, H, L1…) -> (B, O, L1…)."""
    features = x.shape[1]
    outputs = taps[0].shape[1] // features
    kernel = full_kernel(taps).unflatten(0, (outputs, features))
    return torch.stack([direct_conv(x, kernel[o], centers).sum(1) for o in range(outputs)], 1)


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


def held_ode(A: Tensor, B: Tensor, C: Tensor, u: Tensor, dt: Tensor, rule: str = 'zoh') -> Tensor:
    """y_k = C x(t_k) of x' = A x + B u(t), where u(t) = u_k over the dt_k before t_k.

    Its exact solution, or that of the trapezoidal rule ('bilinear'). A (N, N), B (N,), C (c, N), u, dt (L,) -> (c, L).
    """
    size, eye, outputs = len(A), torch.eye(len(A), dtype=A.dtype), []
    x = torch.zeros_like(B)
    for u_k, dt_k in zip(u, dt, strict=True):
        if rule == 'zoh':
            both = torch.zeros(size + 1, size + 1, dtype=A.dtype)
            both[:size] = torch.cat([A, B[:, None]], 1) * dt_k
            moved = torch.matrix_exp(both)[:size]
            x = moved[:, :size] @ x + moved[:, size] * u_k
        else:
            x = torch.linalg.solve(eye - dt_k / 2 * A, (eye + dt_k / 2 * A) @ x + dt_k * B * u_k)
        outputs.append((C @ x).real)
    return torch.stack(outputs, -1)


def ema_taps(p: Tensor, q: Tensor, beta: Tensor, gamma: Tensor, length: int, step: float = 1.0) -> Tensor:
    """K[l] = Σ_n γ_n/√N g_n β_n q_n^{s l}, where g = p (1 - q^s)/(1 - q) is p at s = 1. p, q, β (H, N), γ (c, H, N)."""
    weight = gamma / math.sqrt(gamma.shape[-1]) * beta * p * (1 - q**step) / (1 - q)
    return torch.stack([(weight * q ** (step * lag)).sum(-1) for lag in range(length)], -1)


def sgconv_taps(
    weight: Tensor,
    length: int,
    step: float = 1.0,
    mode: str = 'cat',
    interpolation: str = 'linear',
    decay: Tensor | float = 2.0,
) -> Tensor:
    """Tap l is s times the multiscale function at (l + ½) s: weight (c, H, S, d), decay (H,) -> (c, H, length), not
    normalized."""
    scales, d = weight.shape[-2:]
    taps = []
    for lag in range(length):
        t, value = (lag + 0.5) * step, torch.zeros_like(weight[..., 0, 0])
        for i in range(scales):
            stretch = 2 ** max(0, i - 1) if mode == 'cat' else 2**i
            start = d * stretch if mode == 'cat' and i > 0 else 0
            if start <= t < start + d * stretch:
                place = (t - start) / stretch
                if interpolation == 'nearest':
                    found = weight[..., i, int(place)]
                else:
                    place = min(max(place - 0.5, 0.0), d - 1.0)
                    k, part = int(place), place - int(place)
                    found = weight[..., i, k] * (1 - part) + (weight[..., i, k + 1] * part if part > 0 else 0)
                value = value + found * step * decay ** (scales - 1 - i)
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


def sssd_block(
    x: Tensor,
    known: Tensor,
    condition: Tensor,
    maps: dict[str, tuple[Tensor, Tensor]],
    norms: list[tuple[Tensor, Tensor]],
    kernels: list[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """One block of SSSD-S4, sample by sample: x (L, H), known (L, 2C), condition (E,) -> the next x, the skip.

    maps: weight and bias of 'condition', 'conv' (2H, H, 3), 's4_1', 's4_2', 'known' and 'out'; norms: scale and shift
    of each S4 layer; kernels: its forward taps (acting at lag 0, 1, …) and backward taps (at lag -1, -2, …), each
    (2H, L), and its skip D (2H,).
    """
    length, width = x.shape

    def affine(name: str, v: Tensor) -> Tensor:
        return v @ maps[name][0].T + maps[name][1]

    def s4(layer: int, x: Tensor) -> Tensor:
        forward, backward, skip = kernels[layer]
        y = []
        for t in range(length):
            past = sum(forward[:, t - s] * x[s] for s in range(t + 1))
            y.append(past + sum(backward[:, s - t - 1] * x[s] for s in range(t + 1, length)) + skip * x[t])
        y = torch.stack(y)
        z = x + affine(f's4_{layer + 1}', y * (1 + torch.erf(y / math.sqrt(2))) / 2)
        return layer_norm(z, *norms[layer])

    u, (weight, bias) = x + affine('condition', condition), maps['conv']
    rows = [
        bias + sum(weight[:, :, j] @ u[t + j - 1] for j in range(3) if 0 <= t + j - 1 < length) for t in range(length)
    ]
    y = s4(1, s4(0, torch.stack(rows)) + affine('known', known))
    gated = torch.tanh(y[:, :width]) / (1 + torch.exp(-y[:, width:]))
    z = affine('out', gated)
    return (x + z[:, :width]) / math.sqrt(2), z[:, width:]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(x - mean)/√(variance + 1e-5), scaled and shifted: (…, H)."""
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def rotary_bias(i: int, j: int, alpha: Tensor, beta: Tensor) -> Tensor:
    """⟨R_i α, R_j β⟩: pair m of the entries (E, 2) is turned by i (or j) times 1e4^(-m/E)."""
    total = alpha.new_zeros(())
    for m, (a, b) in enumerate(zip(alpha, beta, strict=True)):
        left, right = (t * 1e4 ** (-m / len(alpha)) for t in (i, j))
        turned_a = (a[0] * math.cos(left) - a[1] * math.sin(left), a[0] * math.sin(left) + a[1] * math.cos(left))
        turned_b = (b[0] * math.cos(right) - b[1] * math.sin(right), b[0] * math.sin(right) + b[1] * math.cos(right))
        total = total + turned_a[0] * turned_b[0] + turned_a[1] * turned_b[1]
    return total


def attention_weight(score: Tensor, kind: str) -> Tensor:
    """What an unnormalized attention makes of a score, with the decimals of Mega's code."""
    if kind == 'relu2':
        return score.clamp(min=0) ** 2
    return (1 + torch.erf((score - 0.707107) / (0.282095 * math.sqrt(2)))) / 2


def chunked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Callable[[int, int], Tensor],
    chunk: int,
    causal: bool,
    kind: str = 'softmax',
    padding: Sequence[bool] | None = None,
) -> Tensor:
    """Query by query, over the keys of its own chunk: q, k (L, E), v (L, V), bias(i, j) -> (L, V)."""
    rows = []
    for i in range(len(q)):
        first = i // chunk * chunk
        whole = range(first, min(first + chunk, len(q)))
        open_keys = [j for j in whole if padding is None or not padding[j]]
        keys = [j for j in (whole if kind == 'softmax' and not open_keys else open_keys) if j <= i or not causal]
        if kind == 'softmax':
            weights = torch.stack(
                [q[i] @ k[j] / math.sqrt(q.shape[1]) + bias(i - first, j - first) for j in keys]
            ).exp()
            rows.append(sum(w * v[j] for w, j in zip(weights / weights.sum(), keys, strict=True)))
            continue
        count = i - first + 1 if causal else max(1, len(open_keys))
        scores = [q[i] @ k[j] / count + bias(i - first, j - first) for j in keys]
        total = sum(attention_weight(s, kind) * v[j] for s, j in zip(scores, keys, strict=True))
        rows.append(total + torch.zeros_like(v[i]))
    return torch.stack(rows)


def gss(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """The GSS layer sample by sample, with a complex state: x (L, C), its parameters by name -> (L, C)."""

    def gelu(t: Tensor) -> Tensor:
        return t * (1 + torch.erf(t / math.sqrt(2))) / 2

    width = len(p['D'])
    pole = torch.complex(-p['kernel.log_A_real'].exp(), p['kernel.log_A_imag'].exp())[0]  # (n,)
    readout = torch.view_as_complex(p['kernel.C'])[0].conj()  # (H, n); conjugate, as the pole is
    state, rows = torch.zeros(width, len(pole), dtype=readout.dtype), []
    for row in x:
        projected = gelu(p['inputs.weight'] @ layer_norm(row, p['norm.weight'], p['norm.bias']))
        u, v = projected[:-width], layer_norm(projected[-width:], p['norm_ssm.weight'], p['norm_ssm.bias'])
        state = torch.exp(pole) * state + (torch.exp(pole) - 1) / pole * v[:, None]
        s = (readout * state).sum(-1).real + p['D'] * v
        rows.append(row + p['out.weight'] @ (u * (p['gate.weight'] @ s)) + p['out.bias'])
    return torch.stack(rows)


def mega(x: Tensor, p: dict[str, Tensor], chunk: int, bidirectional: bool, kind: str = 'softmax') -> Tensor:
    """The Mega layer by its equations, averages sample by sample: x (L, C), its parameters by name -> (L, C)."""

    def bias(i: int, j: int) -> Tensor:
        if 'attention.bias.weight' in p:
            table = p['attention.bias.weight'][0]
            return table[len(table) // 2 + j - i]
        return rotary_bias(i, j, p['attention.bias.alpha'][0], p['attention.bias.beta'][0])

    width, d_value, d_key = x.shape[1], p['hidden.weight'].shape[1], p['scale'].shape[1]
    decay = 1 - torch.sigmoid(p['average.kernel.alpha']) * torch.sigmoid(p['average.kernel.delta'])  # (C or 2C, N)
    gain = torch.sigmoid(p['average.kernel.alpha']) * p['average.kernel.beta']
    readout = p['average.kernel.gamma'][0] / math.sqrt(decay.shape[1])

    def silu(t: Tensor) -> Tensor:
        return t / (1 + torch.exp(-t))

    def averages(u: Tensor, part: slice) -> Tensor:
        state, rows = torch.zeros_like(decay[part]), []
        for u_t in u:
            state = decay[part] * state + gain[part] * u_t[:, None]
            rows.append((readout[part] * state).sum(-1))
        return torch.stack(rows)

    u = layer_norm(x, p['norm.weight'], p['norm.bias'])
    average = averages(u, slice(0, width))
    if bidirectional:  # both sides count the present sample
        average = average + averages(u.flip(0), slice(width, 2 * width)).flip(0)
    average = silu(average + p['average.omega'] * u)
    gates = average @ p['gates.weight'].T + p['gates.bias']
    z, reset, update, h = gates.split([d_key, d_value, width, width], -1)
    q, k = (silu(z) * p['scale'][i] + p['shift'][i] for i in range(2))
    v = silu(u @ p['value.weight'].T + p['value.bias'])
    o = chunked_attention(q, k, v, bias, chunk, not bidirectional, kind)
    h = silu(h + (silu(reset) * o) @ p['hidden.weight'].T + p['hidden.bias'])
    return x + torch.sigmoid(update) * (h - x)


def coordinate_taps(
    network: Callable[[Tensor], Tensor],
    spacings: Sequence[float],
    widths: Sequence[Tensor] | None,
    lags: Sequence[int],
    steps: Sequence[float],
    crop: float = 0.1,
) -> Tensor:
    """Tap at lag l, one at a time: network(x) times the steps, x_τ = -l·step_τ·h_τ; (H, 2 lags - 1, …).

    Where a step is above 1 a cell is an odd number of equal parts, which are averaged. An axis ends half a sample of
    the training grid beyond its last lag there: the last in ±1, and with widths σ of a Gaussian mask exp(-x²/2σ²) the
    last before that falls to `crop`. Cells on the border count by their share.
    """
    parts = [1 if step <= 1 else math.ceil(step) + 1 - math.ceil(step) % 2 for step in steps]
    cells = [step * h / part for step, h, part in zip(steps, spacings, parts, strict=True)]

    def value_at(point: Sequence[int]) -> Tensor:
        x = torch.tensor([-place * cell for place, cell in zip(point, cells, strict=True)], dtype=torch.float64)
        value = network(x) * math.prod(steps) / math.prod(parts)
        for axis, (cell, h) in enumerate(zip(cells, spacings, strict=True)):
            last = math.floor(1 / h + 1e-6)
            if widths is not None:
                reach = float(widths[axis].detach()) * math.sqrt(2 * math.log(1 / crop))
                last = math.ceil(reach / h) - 1 if reach < 1 else last
                value = value * torch.exp(-0.5 * (x[axis] / widths[axis]) ** 2)
            border = (last + 0.5) * h
            low, high = max(x[axis] - cell / 2, -border), min(x[axis] + cell / 2, border)
            value = value * max(float(high - low) / cell, 0.0)
        return value

    taps = []
    for index in itertools.product(*(range(1 - n, n) for n in lags)):
        within = (
            range(lag * part - part // 2, lag * part + part // 2 + 1) for lag, part in zip(index, parts, strict=True)
        )
        taps.append(sum(value_at(point) for point in itertools.product(*within)))
    return torch.stack(taps, -1).unflatten(-1, [2 * n - 1 for n in lags])


def diagonal_states(a: Tensor, b: Tensor) -> Tensor:
    """x_k = a x_{k-1} + b_k, one after the other: a (P,), b (…, L, P) -> (…, L, P)."""
    states = [b[..., 0, :]]
    for k in range(1, b.shape[-2]):
        states.append(a * states[-1] + b[..., k, :])
    return torch.stack(states, -2)


def s5(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, step: float | Tensor = 1.0, rule: str = 'zoh'
) -> Tensor:
    """S5 sample by sample: u (H, L), dt and A (n,), B (n, H), C (H, n) complex, D (H,), one step or (L,) -> (H, L)."""
    x, outputs = torch.zeros_like(A), []
    for k, u_k in enumerate(u.T):
        h = dt * (step[k] if isinstance(step, Tensor) else step)
        if rule == 'zoh':
            A_bar, gain = torch.exp(A * h), (torch.exp(A * h) - 1) / A
        else:
            A_bar, gain = (1 + A * h / 2) / (1 - A * h / 2), h / (1 - A * h / 2)
        x = A_bar * x + gain * (B @ u_k.to(A))
        outputs.append(2 * (C @ x).real + D * u_k)
    return torch.stack(outputs, -1)


def published_two_sided_s5(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, step: float | Tensor = 1.0, rule: str = 'zoh'
) -> Tensor:
    """Two scans that both count the present sample, C (2, H, n): (H, L) -> (H, L)."""
    turned = step.flip(0) if isinstance(step, Tensor) else step
    back = s5(u.flip(1), dt, A, B, C[1], torch.zeros_like(D), turned, rule).flip(1)
    return s5(u, dt, A, B, C[0], D, step, rule) + back


def two_sided_s5(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, step: float = 1.0) -> Tensor:
    """Lag l weighs with ∫ 2 Re(C e^{A|t|} B) dt over [l - ½, l + ½], C (2, H, n) that of the side: (H, L) -> (H, L)."""

    def integral(side: int, low: float, high: float) -> Tensor:
        scale = (torch.exp(A * dt * step * high) - torch.exp(A * dt * step * low)) / A
        return 2 * ((C[side] * scale) @ B).real

    def weight(lag: int) -> Tensor:
        if lag == 0:
            return integral(0, 0.0, 0.5) + integral(1, 0.0, 0.5)
        return integral(int(lag < 0), abs(lag) - 0.5, abs(lag) + 0.5)

    length = u.shape[1]
    weights = {lag: weight(lag) for lag in range(1 - length, length)}
    rows = [sum(weights[t - s] @ u[:, s] for s in range(length)) + D * u[:, t] for t in range(length)]
    return torch.stack(rows, -1)


def liquid(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The whole liquid recurrence x_k = (Ā + diag(B̄) u_k) x_{k-1} + B̄ u_k, y = Re C x, of one feature: (L,) -> (L,)."""
    x, outputs = torch.zeros_like(B), []
    for u_k in u:
        x = A @ x + B * u_k * x + B * u_k
        outputs.append((C @ x).real)
    return torch.stack(outputs)


def liquid_terms(u: Tensor, A: Tensor, B: Tensor, C: Tensor, degree: int, mode: str) -> Tensor:
    """The parts of `liquid`: 'exact' all of it, 'allcombs' products of up to `degree` inputs (a state for each degree).

    Of neighbors alone: 'kb' drives the state with them, 'pb' adds C B̄^p times them to the output.
    """
    if mode == 'exact':
        return liquid(u, A, B, C)
    if mode == 'allcombs':
        states, outputs = [torch.zeros_like(B) for _ in range(degree)], []
        for u_k in u:
            drives = [B * u_k, *(B * u_k * x for x in states[:-1])]
            states = [A @ x + drive for x, drive in zip(states, drives, strict=True)]
            outputs.append((C @ sum(states)).real)
        return torch.stack(outputs)
    x, outputs = torch.zeros_like(B), []
    for k in range(len(u)):
        x, extra = A @ x + B * u[k], torch.zeros_like(B)
        for p in range(2, min(degree, k + 1) + 1):
            extra = extra + B**p * u[k - p + 1 : k + 1].prod()
        outputs.append((C @ (x + extra)).real)
        x = x + extra if mode == 'kb' else x
    return torch.stack(outputs)
