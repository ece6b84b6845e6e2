"""LSSL: a dense state matrix that is trained, as it is or in a structure that HiPPO has (arXiv 2110.13985).

x' = A x + B u, y = C x with a full real A, discretized by the bilinear rule; the taps C Āˡ B̄ are a Krylov sequence, by
repeated squaring. Meant for small states: it costs O(N³) per feature, and nothing keeps a trained A stable (S4 does).

    'dense'         A and B themselves
    'tridiagonal'   A = -diag(p_l) (T⁻¹ + diag(c)) diag(p_r), B = p_l b, T tridiagonal (legs, legt, lagt; section 4)
    'cumsum'        A = -(lower triangle of ones + a I), B = b (lagt)

Shape legend: see base.py.
"""

import torch
from torch import Tensor

from s4nd import hippo
from s4nd.kernels.base import Timescale, check_choice, check_shared, empty_parameters
from s4nd.kernels.dense import DenseKernel
from s4nd.ops import expand_ssm, wide

# The measures that a structure can start from.
STRUCTURES = {
    'dense': hippo.MEASURES,
    'tridiagonal': ('legs', 'legt', 'lagt'),
    'cumsum': ('lagt',),
}


class LSSLKernel(Timescale, DenseKernel):
    """Dense SSM kernel, A, B, C and dt trained.

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature.
        d_state: N, at least 2; with init 'fout' even and at least 4.
        init: measure from which A and B start: 'legs', 'legt', 'lagt' or 'fout' (hippo.transition).
        dt_min, dt_max: see `Timescale`.
        n_ssm: S, number of distinct (A, B), a divisor of H; None is 1.
        structure: of the trained A and B, 'dense', 'tridiagonal' or 'cumsum', see above.

    The parameters of 'tridiagonal' are T_diag (S, N), T_lower and T_upper (S, N - 1), P_left, P_right, A_diag (c) and B
    (b) (S, N); those of 'cumsum' A_diag (a) and B (b), (S, 1).

    A dense A has no modes of its own to mask, so there is no bandlimit.

    Raises:
        ValueError: for sizes that do not fit, an unknown init or structure, a structure that the init does not have, or
            a bad dt range.
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
        structure: str = 'dense',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        n_ssm = 1 if n_ssm is None else n_ssm
        check_shared(d_model, n_ssm)
        check_choice('init', init, hippo.MEASURES, " for kernel 'lssl'")
        check_choice('structure', structure, tuple(STRUCTURES), " for kernel 'lssl'")
        check_choice('init', init, STRUCTURES[structure], f" for the structure '{structure}'")
        self.set_timescale(dt_min, dt_max, None)
        self.d_state, self.n_ssm, self.init, self.state_shape = d_state, n_ssm, init, (d_model, d_state)
        self.structure = structure
        empty = empty_parameters(device, dtype)
        self.log_dt = empty(d_model, 1)
        is_dense, is_tridiagonal = structure == 'dense', structure == 'tridiagonal'
        width = 1 if structure == 'cumsum' else d_state
        self.register_parameter('A', empty(n_ssm, d_state, d_state) if is_dense else None)
        for name, size in (('T_lower', d_state - 1), ('T_diag', d_state), ('T_upper', d_state - 1)):
            self.register_parameter(name, empty(n_ssm, size) if is_tridiagonal else None)
        for name in ('P_left', 'P_right'):
            self.register_parameter(name, empty(n_ssm, d_state) if is_tridiagonal else None)
        self.register_parameter('A_diag', None if is_dense else empty(n_ssm, width))
        self.B = empty(n_ssm, width)
        self.C = empty(channels, d_model, d_state)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: A and B of hippo.transition, C normal with unit variance, dt log-uniform."""
        with torch.no_grad():
            for name, value in self._initial().items():
                getattr(self, name).copy_(value)
            self.C.normal_()
        self.reset_timescale()

    @torch.jit.unused
    def _initial(self) -> dict[str, Tensor]:
        A, B = hippo.transition(self.init, self.d_state)
        if self.structure == 'dense':
            return {'A': A, 'B': B}
        if self.structure == 'cumsum':
            return {'A_diag': torch.full_like(B[:1], -0.5), 'B': B[:1]}
        # A = -diag(s) (M + diag(c)) diag(s), where M⁻¹ is tridiagonal: the sum over the past, or its like on a window.
        left, right = B, hippo.transition('legs', self.d_state)[1] if self.init == 'legt' else B
        inner = -A / (left[:, None] * right)
        diagonal = torch.zeros_like(B)
        if self.init != 'legt':
            diagonal = inner.diagonal() - 1
            inner = torch.tril(torch.ones_like(inner))
        T = torch.linalg.inv(inner)
        return {
            'T_lower': T.diagonal(-1), 'T_diag': T.diagonal(), 'T_upper': T.diagonal(1),
            'P_left': left, 'P_right': right, 'A_diag': diagonal, 'B': torch.ones_like(B),
        }  # fmt: skip

    def transition(self) -> tuple[Tensor, Tensor]:
        """A (S, N, N) and B (S, N), float64."""
        if self.A is not None:
            return wide(self.A), wide(self.B)
        else:  # (TorchScript, here and below)
            diagonal, B = wide(self.A_diag), wide(self.B).expand(-1, self.d_state)
            eye = torch.eye(self.d_state, device=B.device, dtype=B.dtype)
            if self.P_left is None:
                return -(torch.tril(torch.ones_like(eye)) + diagonal[..., None] * eye), B
            else:
                T = torch.diag_embed(wide(self.T_diag))
                T = T + torch.diag_embed(wide(self.T_lower), -1) + torch.diag_embed(wide(self.T_upper), 1)
                left, right = wide(self.P_left), wide(self.P_right)
                A = -left[..., None] * (torch.linalg.inv(T) + torch.diag_embed(diagonal)) * right[:, None]
                return A, left * B

    def matrices(self, step: float) -> tuple[Tensor, Tensor]:
        """Ā = (I - dt A/2)⁻¹ (I + dt A/2) and B̄ = (I - dt A/2)⁻¹ dt B, of every feature."""
        A, B = self.transition()
        dt = self.dt(step)[..., None]  # (H, 1, 1)
        half = dt / 2 * expand_ssm(A.flatten(1), self.d_model).unflatten(1, [self.d_state, self.d_state])
        eye = torch.eye(self.d_state, device=half.device, dtype=half.dtype)
        B = dt * expand_ssm(B, self.d_model)[..., None]
        both = torch.linalg.solve(eye - half, torch.cat([eye + half, B], 2))
        return both[..., : self.d_state], both[..., self.d_state]
