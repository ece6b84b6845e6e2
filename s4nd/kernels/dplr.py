"""S4: a diagonal-plus-low-rank state matrix (arXiv 2111.00396), in the stable form Λ - PP* of SaShiMi (2202.09729).

x' = A x + B u, y = C x over conjugate pairs; A = diag(Λ, Λ̄) - Σ_r p_r p_r*, Λ = -exp(log_A_real) - i·A_imag; bilinear.
The real state (Re x, Im x) has N = 2n entries, and in it A = [[Re Λ, -Im Λ], [Im Λ, Re Λ]] - 2 Σ_r q_r q_rᵀ with
q = (Re P, Im P). Re Λ < 0 makes Ā a contraction, so its powers are computed directly, by repeated squaring in float64:
exact at every length and step, with nothing (no C(I - Ā^L)) carried from one length to another.
Shape legend: see base.py.
"""

import torch
from torch import Tensor, nn

from s4nd import hippo
from s4nd.kernels.base import SSMKernel, check_length_and_step, eager, expand_ssm, wide
from s4nd.kernels.dense import krylov_taps
from s4nd.kernels.diagonal import S4DKernel

# Up to this length, on a CPU, taps are computed by running the O(N) recurrence: squaring N × N matrices costs more.
_STEPWISE_UP_TO = 128

# 'hippo' is the S4 v2 mixture: rows of A alternate between the two measures.
INITS = {'legs': ('legs',), 'legt': ('legt',), 'lagt': ('lagt',), 'fout': ('fout',), 'hippo': ('legs', 'fout')}


class S4Kernel(SSMKernel):
    """Diagonal-plus-low-rank SSM kernel, discretized by the bilinear rule.

    Args:
        d_model: H, number of features.
        channels: kernels a feature.
        d_state: N, size of the real state, even and at least 4; N/2 complex modes are stored.
        init: 'legs', 'legt', 'lagt', 'fout', or 'hippo' (legs and fout in turn; S4 v2, arXiv 2206.12037).
        dt_min, dt_max: range of the log-uniform initial timescale, in units of time a sample of the training grid.
        n_ssm: S, number of distinct (A, B, P), a divisor of H; None is the number of measures in `init`.
        bandlimit: α; C is masked where a mode of the diagonal part has α/2 cycles a training sample or more.
        rank: of P; None is the measure's own (2 for 'legt', else 1). Rows beyond it start as noise of scale 0.01, since
            a row of zeros would never learn.

    The real part of Λ starts at -1e-4 where the measure has 0 ('legt', 'lagt', 'fout').

    Raises:
        ValueError: for sizes that do not fit, an unknown init, or a bad dt range, rank or bandlimit.
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
        n_ssm: int | None = None,
        bandlimit: float | None = None,
        rank: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if init not in INITS:
            raise ValueError(f"unknown init '{init}' for kernel 's4': expected one of {', '.join(INITS)}")
        measures = INITS[init]
        n_ssm = len(measures) if n_ssm is None else n_ssm
        super().__init__(d_model, channels, d_state, n_ssm, dt_min, dt_max, bandlimit, device, dtype)
        if n_ssm % len(measures):
            raise ValueError(f"init '{init}' mixes {len(measures)} measures, which must divide n_ssm, got {n_ssm}")
        natural = max(len(hippo.low_rank(m, d_state)) for m in measures)
        rank = natural if rank is None else rank
        if rank < natural:
            raise ValueError(f"init '{init}' needs rank {natural} or more, got {rank}")
        self.measures, self.rank = measures, rank
        modes = d_state // 2

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.log_dt = parameter(d_model, 1)
        self.log_A_real = parameter(n_ssm, modes)
        self.A_imag = parameter(n_ssm, modes)
        self.B = parameter(n_ssm, modes, 2)
        self.P = parameter(rank, n_ssm, modes, 2)
        self.C = parameter(channels, d_model, modes, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: Λ, P, B from hippo.nplr, C complex normal with unit variance, dt log-uniform."""
        with torch.no_grad():
            self.P.normal_(std=0.01)
            self.C.normal_(std=0.5**0.5)
            for first, measure in enumerate(self.measures):
                w, P, B, _ = hippo.nplr(measure, self.d_state)
                rows = slice(first, None, len(self.measures))
                self.log_A_real[rows].copy_((-w.real).clamp(min=1e-4).log())
                self.A_imag[rows].copy_(-w.imag)
                self.B[rows].copy_(torch.view_as_real(B))
                self.P[: len(P), rows].copy_(torch.view_as_real(P.resolve_conj())[:, None])
        self.reset_time()

    def forward(self, length: int, step: float = 1.0) -> Tensor:
        """Taps (channels, d_model, length) at spacing `step`; raises ValueError unless length >= 1 and step > 0."""
        check_length_and_step(length, step)
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        # TorchScript needs the outer condition to stand alone.
        if not torch.jit.is_scripting():  # noqa: SIM102
            if eager(self.C) and length <= _STEPWISE_UP_TO and self.C.device.type == 'cpu':
                return self._impulse_response(length, step).to(dtype)
        A, B = self._discretize(step)
        return krylov_taps(A, B[..., 0], self._readout(), length).to(dtype)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """{'x': (B, H, N)}: the real parts of the n modes, then the imaginary parts."""
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        return {'x': torch.zeros(batch, self.d_model, self.d_state, device=self.C.device, dtype=dtype)}

    def system(self, step: float = 1.0) -> list[Tensor]:
        """The one-step form in O(N) [F re, F im, G, Q, B̄, C], for `advance`: Ā = 2R - I with R = F - G Qᵀ."""
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        f_re, f_im, G, Q, B = self._resolvent(step)
        return [t.to(dtype) for t in [f_re, f_im, G, Q, B, self._readout()]]

    @staticmethod
    def advance(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
        """x_k = R (2 x_{k-1} + dt B u_k) - x_{k-1}, y_k = C x_k: u (B, H), x (B, H, N) -> y (B, c, H), new x."""
        f_re, f_im, G, Q, B, C = system
        n = f_re.shape[-1]
        z = 2 * x + B * u.to(x.dtype)[..., None]
        z_re, z_im = z[..., :n], z[..., n:]
        diagonal = torch.cat([f_re * z_re - f_im * z_im, f_re * z_im + f_im * z_re], -1)
        # G, Q: (H, N, r)
        low_rank = (G * (z[..., None] * Q).sum(-2, keepdim=True)).sum(-1)
        x = diagonal - low_rank - x
        return (C * x[:, None]).sum(-1), x

    def response(self, x: Tensor, length: int, step: float = 1.0) -> Tensor:
        """See `Kernel.response`; x (H, N)."""
        taps = krylov_taps(self._discretize(step)[0], wide(x), self._readout(), length)
        return taps.to(torch.promote_types(self.C.dtype, torch.float32))

    @staticmethod
    def power(x: Tensor, degree: int) -> Tensor:
        """See `Kernel.power`; entries are the complex modes whose parts make the halves of the last axis."""
        modes = torch.stack(x.chunk(2, -1), -1)
        return torch.cat(S4DKernel.power(modes, degree).unbind(-1), -1)

    def _impulse_response(self, length: int, step: float) -> Tensor:
        """The taps as what the recurrence answers to 1, 0, 0, …"""
        system = [*self._resolvent(step), self._readout()]
        u = torch.ones(1, self.d_model, device=self.C.device, dtype=system[0].dtype)
        x = torch.zeros(1, self.d_model, self.d_state, device=u.device, dtype=u.dtype)
        taps = []
        for _ in range(length):
            y, x = self.advance(u, x, system)
            taps.append(y[0])
            u = torch.zeros_like(u)
        return torch.stack(taps, -1)

    def _resolvent(self, step: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """R = (I - dt A/2)⁻¹ = F - G Qᵀ (Woodbury), F in 2 × 2 blocks: f_re, f_im (H, n); G, Q (H, N, r); dt B."""
        H = self.d_model
        dt = wide(self.log_dt).exp() * step  # (H, 1)
        d_re = 1 + dt / 2 * expand_ssm(wide(self.log_A_real).exp(), H)
        d_im = dt / 2 * expand_ssm(wide(self.A_imag), H)
        norm = d_re * d_re + d_im * d_im
        f_re, f_im = d_re / norm, -d_im / norm
        q_re = expand_ssm(wide(self.P)[..., 0], H).permute(1, 2, 0)  # (H, n, r)
        q_im = expand_ssm(wide(self.P)[..., 1], H).permute(1, 2, 0)
        Q = torch.cat([q_re, q_im], 1)
        F_re, F_im = f_re[..., None], f_im[..., None]
        FQ = torch.cat([F_re * q_re - F_im * q_im, F_re * q_im + F_im * q_re], 1)
        QF = torch.cat([F_re * q_re + F_im * q_im, F_re * q_im - F_im * q_re], 1)
        dt = dt[..., None]
        core = torch.eye(self.rank, device=Q.device, dtype=Q.dtype) + dt * torch.bmm(Q.transpose(1, 2), FQ)
        G = dt * (FQ / core if self.rank == 1 else torch.linalg.solve(core, FQ, left=False))
        B = torch.cat([expand_ssm(wide(self.B)[..., 0], H), expand_ssm(wide(self.B)[..., 1], H)], -1)
        return f_re, f_im, G, QF, dt[..., 0] * B

    def _discretize(self, step: float) -> tuple[Tensor, Tensor]:
        """Ā = 2R - I (H, N, N) and B̄ = R dt B (H, N, 1), float64."""
        f_re, f_im, G, Q, B = self._resolvent(step)
        re, im = torch.diag_embed(f_re), torch.diag_embed(f_im)
        R = torch.cat([torch.cat([re, -im], 2), torch.cat([im, re], 2)], 1) - torch.bmm(G, Q.transpose(1, 2))
        eye = torch.eye(self.d_state, device=R.device, dtype=R.dtype)
        return 2 * R - eye, torch.bmm(R, B[..., None])

    def _readout(self) -> Tensor:
        """(c, H, N): 2 (Re C, -Im C), modes beyond the bandlimit set to zero."""
        keep = 2.0 * self.below_bandlimit(self.A_imag)
        return torch.cat([wide(self.C)[..., 0] * keep, -wide(self.C)[..., 1] * keep], -1)
