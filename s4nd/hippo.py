"""Where A and B come from: HiPPO matrices, their normal-plus-low-rank form, and diagonal initializations.

Everything here is computed in float64 on the CPU and cast by the caller. Shapes: N is the state size (even), n = N/2
the number of stored modes, one of each conjugate pair, with Im <= 0.

Sources: HiPPO (arXiv 2008.07669), S4 (2111.00396) appendix C, S4D (2206.11893) section 4, "How to Train Your HiPPO"
(2206.12037).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MEASURES = ('legs', 'legt', 'lagt', 'fout')
DIAGONAL_INITS = ('lin', 'inv', 'legs', 'real')

_CPU = torch.device('cpu')
_SHIFT = {'legs': -0.5, 'legt': 0.0, 'lagt': 0.0, 'fout': 0.0}


def transition(measure: str, d_state: int) -> tuple[Tensor, Tensor]:
    """The continuous system x' = A x + B u whose state holds a signal's coefficients under `measure`.

    Args:
        measure: 'legs' (scaled Legendre), 'legt' (translated Legendre), 'lagt' (Laguerre) or 'fout' (Fourier).
        d_state: N, at least 2; of 'fout' even and at least 4.

    Returns:
        A (N, N) and B (N,), float64.

    Raises:
        ValueError: for an unknown measure or a state size that does not fit.
    """
    if measure == 'fout' or measure not in MEASURES:
        _check(measure, d_state)
    if d_state < 2:
        raise ValueError(f'd_state must be at least 2 for HiPPO matrices, got {d_state}')
    n = torch.arange(d_state, dtype=torch.float64, device=_CPU)
    row, col = n[:, None], n[None, :]
    if measure == 'legs':
        scale = torch.sqrt(2 * n + 1)
        A = -torch.tril(scale[:, None] * scale[None, :], -1) - torch.diag(n + 1)
        return A, scale
    if measure == 'legt':
        scale = torch.sqrt(2 * n + 1)
        sign = torch.where(row < col, (-1.0) ** (row - col), torch.ones_like(row - col))
        return -0.5 * scale[:, None] * scale[None, :] * sign, 0.5 * scale
    if measure == 'lagt':
        eye = torch.eye(d_state, dtype=torch.float64, device=_CPU)
        return 0.5 * eye - torch.tril(torch.ones_like(eye)), torch.ones_like(n)
    B = torch.zeros_like(n)
    B[0::2] = math.sqrt(2)
    B[0] = 1.0
    A = -B[:, None] * B[None, :]
    for k in range(0, d_state, 2):
        A[k, k + 1] -= math.pi * (k // 2)
        A[k + 1, k] += math.pi * (k // 2)
    return A, B


def low_rank(measure: str, d_state: int) -> Tensor:
    """P (r, N), float64, such that A + PᵀP is normal: r is 1, or 2 for 'legt'. Raises as `transition`."""
    _check(measure, d_state)
    n = torch.arange(d_state, dtype=torch.float64, device=_CPU)
    if measure == 'legs':
        return torch.sqrt(n + 0.5)[None]
    if measure == 'legt':
        scale = torch.sqrt(n + 0.5)
        odd = (n % 2 == 1).to(scale)
        return torch.stack([scale * odd, scale * (1 - odd)])
    if measure == 'lagt':
        return torch.full((1, d_state), math.sqrt(0.5), dtype=torch.float64, device=_CPU)
    return transition('fout', d_state)[1][None]


def nplr(measure: str, d_state: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normal plus low rank: A = [V, V̄] (diag(w, w̄) - P P*) [V, V̄]* with unitary [V, V̄].

    The phase of each eigenvector is fixed by its first non-zero entry, which is real and positive.

    Returns:
        w (n,), P (r, n) = V* Pᵀ, B (n,) = V* B, V (N, n), complex128; modes sorted by imaginary part, ascending.

    Raises:
        ValueError: as `transition`.
    """
    P = low_rank(measure, d_state)
    A, B = transition(measure, d_state)
    shift = _SHIFT[measure]
    skew = A + P.T @ P - shift * torch.eye(d_state, dtype=torch.float64, device=_CPU)
    frequency, vectors = torch.linalg.eigh(torch.complex(torch.zeros_like(skew), -skew))
    frequency, vectors = frequency[: d_state // 2], vectors[:, : d_state // 2]
    null = frequency.abs() < 1e-9 * frequency.abs().max()
    if null.any():
        # 'fout' has one pair of zero eigenvalues, where eigh returns any basis: build v orthogonal to v̄.
        vectors[:, null] = _null_vector(skew)
        frequency = torch.where(null, torch.zeros_like(frequency), frequency)
    first = (vectors.abs() > 1e-9).to(torch.int8).argmax(0)
    pivot = vectors[first, torch.arange(d_state // 2, device=_CPU)]
    vectors = vectors * (pivot.conj() / pivot.abs())
    w = torch.complex(torch.full_like(frequency, shift), frequency)
    adjoint = vectors.conj().T
    return w, P.to(adjoint) @ adjoint.T, adjoint @ B.to(adjoint), vectors


def random_nplr(d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """A random system in the form of `nplr`, without memory by design (the ablation of S4, arXiv 2111.00396, 4.4).

    Re w = -1/2; Im w are eigenvalues of a skew matrix of Gaussian entries, over √N; P and B are complex normal with
    unit variance.

    Returns:
        w (n,), P (1, n), B (n,), complex128.
    """
    place: dict[str, Any] = {'dtype': torch.float64, 'device': _CPU}
    noise = torch.randn(d_state, d_state, **place)
    skew = (noise - noise.T) / (2 * d_state) ** 0.5
    frequency = torch.linalg.eigvalsh(torch.complex(torch.zeros_like(skew), -skew))[: d_state // 2]
    P, B = torch.complex(*torch.randn(2, 2, d_state // 2, **place).mul_(0.5**0.5))
    return torch.complex(torch.full_like(frequency, -0.5), frequency), P[None], B


def diagonal(init: str, modes: int) -> tuple[Tensor, Tensor]:
    """Diagonal initializations of S4D (arXiv 2206.11893, equations 8 and 9), for N = 2 * modes.

    'lin': -1/2 - iπn. 'inv': -1/2 - i(N/π)(N/(2n+1) - 1). 'legs': spectrum of the normal part of LegS, with its B.
    'real': -(n+1).

    Returns:
        A (modes,) and B (modes,), complex128.

    Raises:
        ValueError: for an unknown name, or fewer than 1 mode (2 for 'legs').
    """
    if init not in DIAGONAL_INITS:
        raise ValueError(f"unknown diagonal init '{init}': expected one of {', '.join(DIAGONAL_INITS)}")
    if modes < 1:
        raise ValueError(f'a diagonal initialization needs at least 1 mode, got {modes}')
    n = torch.arange(modes, dtype=torch.float64, device=_CPU)
    one = torch.ones(modes, dtype=torch.complex128, device=_CPU)
    if init == 'real':
        return torch.complex(-(n + 1), torch.zeros_like(n)), one
    half = torch.full_like(n, -0.5)
    if init == 'lin':
        return torch.complex(half, -math.pi * n), one
    if init == 'inv':
        d_state = 2 * modes
        return torch.complex(half, -(d_state / math.pi) * (d_state / (2 * n + 1) - 1)), one
    w, _, B, _ = nplr('legs', 2 * modes)
    return w, B


def basis(measure: str, d_state: int, ages: Tensor) -> Tensor:
    """The functions over which a memory holds the past: u(age) ≈ Σ_n x_n basis[age, n].

    Args:
        measure: see `transition`.
        d_state: N.
        ages: 0 is the present. 'legs': 1 is the beginning of the signal; 'legt' and 'fout': 1 is the end of the window;
            'lagt': in timescales, without an end.

    Returns:
        (len(ages), N), float64.
    """
    _check(measure, d_state)
    r = ages.to(torch.float64)
    if measure == 'lagt':
        columns = [torch.ones_like(r), 1 - r]
        for n in range(1, d_state - 1):
            columns.append(((2 * n + 1 - r) * columns[n] - n * columns[n - 1]) / (n + 1))
        return torch.stack(columns, -1) * torch.exp(-r / 2)[:, None]
    if measure == 'fout':
        phase = 2 * math.pi * r[:, None] * torch.arange(d_state // 2, dtype=torch.float64, device=r.device)
        waves = torch.stack([torch.cos(phase), torch.sin(phase)], -1).flatten(1) * math.sqrt(2)
        waves[:, :2] /= math.sqrt(2)
        return waves
    z = 1 - 2 * r
    columns = [torch.ones_like(z), z]
    for n in range(1, d_state - 1):
        columns.append(((2 * n + 1) * z * columns[n] - n * columns[n - 1]) / (n + 1))
    return torch.stack([math.sqrt(2 * n + 1) * column for n, column in enumerate(columns)], -1)


class Memory:
    """A signal's past in N numbers, updated with every sample, from which the past can be read back.

    'legs' remembers everything since the beginning, at a resolution that falls as 1/t (x' = (A x + B u)/t); 'legt' and
    'fout' a sliding window; 'lagt' an exponentially fading past. The update is exact for an input that is held over
    each sample.

    Args:
        measure: see `transition`.
        d_state: N, even and at least 4.
        window: samples, of the window ('legt', 'fout') or the timescale ('lagt'); None for 'legs', which has none.

    Raises:
        ValueError: as `transition`, and for a window that is missing, not positive, or not wanted.
    """

    def __init__(self, measure: str, d_state: int, window: float | None = None) -> None:
        _check(measure, d_state)
        A, B = transition(measure, d_state)
        if (measure == 'legs') != (window is None):
            raise ValueError(f"'legs' has no window and the other measures need one, got {measure!r} and {window}")
        if window is not None and not 0 < window < math.inf:
            raise ValueError(f'the window must be a positive number of samples, got {window}')
        self.measure, self.d_state, self.window = measure, d_state, window
        self._system = F.pad(torch.cat([A, B[:, None]], 1), (0, 0, 0, 1))
        if window is not None:
            # The windows of 'legt' and 'fout' are 2 units of time.
            self._step = self._discretize((1 if measure == 'lagt' else 2) / window)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """{'x': (B, N) float64, 'seen': (B,)}: coefficients and the number of samples so far."""
        x = torch.zeros(batch, self.d_state, dtype=torch.float64, device=_CPU)
        return {'x': x, 'seen': torch.zeros(batch, dtype=torch.int64, device=_CPU)}

    def step(self, u: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state after one more sample u (B,); `state` is left as it was, its rows must have seen equally many."""
        seen = int(state['seen'][0])
        u = u.to(torch.float64)[:, None]
        if self.measure == 'legs' and seen == 0:
            x = F.pad(u, (0, self.d_state - 1))  # a constant
        else:
            A, B = self._discretize(math.log1p(1 / seen)) if self.measure == 'legs' else self._step
            x = state['x'] @ A.T + u * B
        return {'x': x, 'seen': state['seen'] + 1}

    def reconstruct(self, state: dict[str, Tensor], ages: Tensor) -> Tensor:
        """The remembered signal (B, len(ages)) at `ages`, in the units of `basis`."""
        return state['x'] @ basis(self.measure, self.d_state, ages).T

    def _discretize(self, dt: float) -> tuple[Tensor, Tensor]:
        both = torch.matrix_exp(self._system * dt)
        return both[:-1, :-1], both[:-1, -1]


def _null_vector(skew: Tensor) -> Tensor:
    """(N, 1): v = (a + ib)/√2 for an orthonormal real basis a, b of the null space of a real skew matrix."""
    _, size, basis = torch.linalg.svd(skew)
    rows = basis[size < 1e-9 * size.max()]
    projection = rows.T @ rows
    found: list[Tensor] = []
    for _ in range(2):
        k = int((projection.diagonal() > 1e-6).to(torch.int8).argmax())
        found.append(projection[:, k] / projection[k, k].sqrt())
        projection = projection - torch.outer(found[-1], found[-1])
    return (torch.complex(found[0], found[1]) / math.sqrt(2))[:, None]


def _check(measure: str, d_state: int) -> None:
    if measure not in MEASURES:
        raise ValueError(f"unknown HiPPO measure '{measure}': expected one of {', '.join(MEASURES)}")
    if d_state < 4 or d_state % 2:
        raise ValueError(f'd_state must be even and at least 4 for HiPPO matrices, got {d_state}')
