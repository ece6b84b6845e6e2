"""LSSL: a dense state matrix that is trained as it is (arXiv 2110.13985).

x' = A x + B u, y = C x with a full real A, discretized by the bilinear rule; the taps C Āˡ B̄ are a Krylov sequence, by
repeated squaring. Meant for small states: it costs O(N³) per feature, and nothing keeps a trained A stable (S4 does).
Shape legend: see base.py.
"""

import torch
from torch import Tensor

from s4nd import hippo
from s4nd.kernels.base import Timescale, check_choice, check_state, empty_parameters
from s4nd.kernels.dense import DenseKernel
from s4nd.ops import expand_ssm, wide


class LSSLKernel(Timescale, DenseKernel):
    """Dense SSM kernel, A, B, C and dt trained.

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature.
        d_state: N, even and at least 4.
        init: measure from which A and B start: 'legs', 'legt', 'lagt' or 'fout' (hippo.transition).
        dt_min, dt_max: see `Timescale`.
        n_ssm: S, number of distinct (A, B), a divisor of H; None is 1.

    A dense A has no modes of its own to mask, so there is no bandlimit.

    Raises:
        ValueError: for sizes that do not fit, an unknown init, or a bad dt range.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        n_ssm = 1 if n_ssm is None else n_ssm
        check_state(d_model, d_state, n_ssm)
        check_choice('init', init, hippo.MEASURES, " for kernel 'lssl'")
        self.set_timescale(dt_min, dt_max, None)
        self.d_state, self.n_ssm, self.init, self.state_shape = d_state, n_ssm, init, (d_model, d_state)
        empty = empty_parameters(device, dtype)
        self.log_dt = empty(d_model, 1)
        self.A = empty(n_ssm, d_state, d_state)
        self.B = empty(n_ssm, d_state)
        self.C = empty(channels, d_model, d_state)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: A and B from hippo.transition, C normal with unit variance, dt log-uniform."""
        A, B = hippo.transition(self.init, self.d_state)
        with torch.no_grad():
            self.A.copy_(A)
            self.B.copy_(B)
            self.C.normal_()
        self.reset_timescale()

    def matrices(self, step: float) -> tuple[Tensor, Tensor]:
        """Ā = (I - dt A/2)⁻¹ (I + dt A/2) and B̄ = (I - dt A/2)⁻¹ dt B, of every feature."""
        dt = self.dt(step)[..., None]  # (H, 1, 1)
        half = dt / 2 * expand_ssm(wide(self.A).flatten(1), self.d_model).unflatten(1, [self.d_state, self.d_state])
        eye = torch.eye(self.d_state, device=half.device, dtype=half.dtype)
        B = dt * expand_ssm(wide(self.B), self.d_model)[..., None]
        both = torch.linalg.solve(eye - half, torch.cat([eye + half, B], 2))
        return both[..., : self.d_state], both[..., self.d_state]
