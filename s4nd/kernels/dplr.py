"""S4: a diagonal-plus-low-rank state matrix (arXiv 2111.00396), in the stable form Λ - PP* of SaShiMi (2202.09729).

x' = A x + B u, y = C x over conjugate pairs; A = diag(Λ, Λ̄) - Σ_r p_r p_r*, Λ = -exp(log_A_real) - i·A_imag; bilinear.
In the real state (Re x, Im x) of N = 2n entries A = [[Re Λ, -Im Λ], [Im Λ, Re Λ]] - 2 Σ_r q_r q_rᵀ, q = (Re P, Im P).
Re Λ < 0 makes Ā a contraction, so its powers are computed directly in float64: exact at every length and step, with
nothing (no C(I - Ā^L)) carried from one length to another.
Shape legend: see base.py; r = rank of P.
"""

import torch
from torch import Tensor

from s4nd import hippo
from s4nd.kernels.base import RealPart, RecurrentKernel, Timescale, check_choice, check_state, empty_parameters
from s4nd.kernels.diagonal import DiagonalKernel
from s4nd.ops import at_least_float32, expand_ssm, krylov, wide
from s4nd.ops.lowrank import lowrank_matrices, lowrank_step, lowrank_taps

# 'hippo' is the S4 v2 mixture: rows of A alternate between the two measures.
# 'random' has no measure: a random normal matrix plus low rank, without memory by design.
INITS = {
    'random': ('random',),
    'legs': ('legs',),
    'legt': ('legt',),
    'lagt': ('lagt',),
    'fout': ('fout',),
    'hippo': ('legs', 'fout'),
}


class S4Kernel(Timescale, RealPart, RecurrentKernel):
    """Diagonal-plus-low-rank SSM kernel, discretized by the bilinear rule (S4, arXiv 2111.00396).

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature.
        d_state: N, size of the real state, even and at least 4; N/2 complex modes are stored.
        init: 'legs', 'legt', 'lagt', 'fout', 'hippo' (legs and fout in turn; S4 v2, arXiv 2206.12037), or 'random' (the
            ablation of S4, section 4.4): Re Λ = -1/2, Im Λ those of a random skew matrix of Gaussian entries, P and B
            complex normal with unit variance.
        dt_min, dt_max, bandlimit: see `Timescale`; C is masked where a mode of the diagonal part is above the limit.
        n_ssm: S, number of distinct (A, B, P), a divisor of H; None is the number of measures in `init`.
        rank: of P; None is the measure's own (2 for 'legt', else 1). Rows beyond it start as noise of scale 0.01, since
            a row of zeros would never learn.
        dt_tied: one dt per feature (True) or one per mode: then A and B are diag(dt) A and diag(dt) B.
        real: 'exp', 'free' or 'clip', see `RealPart`. Only 'exp' keeps Ā a contraction in training.

    The real part of Λ starts at -1e-4 where the measure has 0 ('legt', 'lagt', 'fout'). The state {'x': (B, H, N)}
    holds the real parts of the n modes, then the imaginary parts.

    Raises:
        ValueError: for sizes that do not fit, an unknown init or real, or a bad dt range, rank or bandlimit.
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        init: str = 'legs',
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bandlimit: float | None = None,
        n_ssm: int | None = None,
        rank: int | None = None,
        dt_tied: bool = True,
        real: str = 'exp',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        check_choice('init', init, tuple(INITS), " for kernel 's4'")
        measures = INITS[init]
        n_ssm = len(measures) if n_ssm is None else n_ssm
        check_state(d_model, d_state, n_ssm)
        self.set_timescale(dt_min, dt_max, bandlimit)
        if n_ssm % len(measures):
            raise ValueError(f"init '{init}' mixes {len(measures)} measures, which must divide n_ssm, got {n_ssm}")
        natural = max(1 if m == 'random' else len(hippo.low_rank(m, d_state)) for m in measures)
        rank = natural if rank is None else rank
        if rank < natural:
            raise ValueError(f"init '{init}' needs rank {natural} or more, got {rank}")
        self.d_state, self.n_ssm, self.measures, self.rank = d_state, n_ssm, measures, rank
        self.state_shape = (d_model, d_state)
        modes, empty = d_state // 2, empty_parameters(device, dtype)
        self.log_dt = empty(d_model, 1 if dt_tied else modes)
        self.set_real(real, empty(n_ssm, modes))
        self.A_imag = empty(n_ssm, modes)
        self.B = empty(n_ssm, modes, 2)
        self.P = empty(rank, n_ssm, modes, 2)
        self.C = empty(channels, d_model, modes, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: Λ, P, B from hippo.nplr, C complex normal with unit variance, dt log-uniform."""
        with torch.no_grad():
            self.P.normal_(std=0.01)
            self.C.normal_(std=0.5**0.5)
            for first, measure in enumerate(self.measures):
                w, P, B = (
                    hippo.random_nplr(self.d_state) if measure == 'random' else hippo.nplr(measure, self.d_state)[:3]
                )
                rows = slice(first, None, len(self.measures))
                # (A real part of 0 would have no gradient from exp.)
                self.reset_real(w.real.clamp(max=-1e-4), rows)
                self.A_imag[rows].copy_(-w.imag)
                self.B[rows].copy_(torch.view_as_real(B))
                self.P[: len(P), rows].copy_(torch.view_as_real(P.resolve_conj())[:, None])
        self.reset_timescale()

    def taps(self, length: int, step: float) -> Tensor:
        """See `Kernel.taps`."""
        return lowrank_taps(self.discretized(step), length).to(at_least_float32(self.C.dtype))

    @staticmethod
    def advance(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
        """x_k = R (2 x_{k-1} + dt B u_k) - x_{k-1}, y_k = C x_k: u (B, H), x (B, H, N) -> y (B, c, H), new x."""
        return lowrank_step(u, x, system)

    def response(self, x: Tensor, length: int, step: float = 1.0) -> Tensor:
        """See `RecurrentKernel.response`; x (H, N)."""
        self.refresh()
        system = self.discretized(step)
        taps = krylov(lowrank_matrices(system)[0], wide(x), system[5], length)
        return taps.to(at_least_float32(self.C.dtype))

    @staticmethod
    def observe(x: Tensor, system: list[Tensor]) -> Tensor:
        """See `RecurrentKernel.observe`."""
        return (system[5] * x[:, None]).sum(-1)

    @staticmethod
    def product(x: Tensor, y: Tensor) -> Tensor:
        """See `RecurrentKernel.product`; the halves of the last axis are the parts of complex modes."""
        modes = [torch.stack(t.chunk(2, -1), -1) for t in (x, y)]
        return torch.cat(DiagonalKernel.product(*modes).unbind(-1), -1)

    def discretized(self, step: float) -> list[Tensor]:
        """F re, F im (H, n), G, Q (H, N, r), dt B (H, N), C (c, H, N), see ops/lowrank.py; in O(N) operations."""
        H = self.d_model
        dt = self.dt(step)  # (H, 1 or n)
        d_re = 1 - dt / 2 * expand_ssm(self.real_part(), H)
        d_im = dt / 2 * expand_ssm(wide(self.A_imag), H)
        norm = d_re * d_re + d_im * d_im
        f_re, f_im = d_re / norm, -d_im / norm
        q_re = expand_ssm(wide(self.P)[..., 0], H).permute(1, 2, 0)  # (H, n, r)
        q_im = expand_ssm(wide(self.P)[..., 1], H).permute(1, 2, 0)
        Q = torch.cat([q_re, q_im], 1)
        F_re, F_im = f_re[..., None], f_im[..., None]
        FQ = torch.cat([F_re * q_re - F_im * q_im, F_re * q_im + F_im * q_re], 1)
        QF = torch.cat([F_re * q_re + F_im * q_im, F_re * q_im - F_im * q_re], 1)
        # Both parts of a mode have its dt.
        dt = (dt if dt.shape[1] == 1 else torch.cat([dt, dt], 1))[..., None]
        core = torch.eye(self.rank, device=Q.device, dtype=Q.dtype) + torch.bmm(Q.transpose(1, 2), dt * FQ)
        G = dt * (FQ / core if self.rank == 1 else torch.linalg.solve(core, FQ, left=False))
        B = torch.cat([expand_ssm(wide(self.B)[..., 0], H), expand_ssm(wide(self.B)[..., 1], H)], -1)
        return [f_re, f_im, G, QF, dt[..., 0] * B, self.readout()]

    def readout(self) -> Tensor:
        """(c, H, N): 2 (Re C, -Im C), modes above the band limit set to zero, float64."""
        C = self.masked(2 * wide(self.C), self.A_imag)
        return torch.cat([C[..., 0], -C[..., 1]], -1)
