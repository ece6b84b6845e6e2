"""LSSL: a dense state matrix that is trained as it is (arXiv 2110.13985).

x' = A x + B u, y = C x with a full real A, discretized by the bilinear rule; the taps C Āˡ B̄ are a Krylov sequence, by
repeated squaring. Meant for small states: it costs O(N³) a feature, and nothing keeps a trained A stable (S4 does).
Shape legend: see base.py.
"""

import torch
from torch import Tensor, nn

from s4nd import hippo
from s4nd.kernels.base import expand_ssm, wide
from s4nd.kernels.dense import DenseKernel


class LSSLKernel(DenseKernel):
    """Dense SSM kernel, A, B, C and dt trained.

    Args:
        d_model: H, number of features.
        channels: kernels a feature.
        d_state: N, even and at least 4.
        init: measure from which A and B start: 'legs', 'legt', 'lagt' or 'fout' (hippo.transition).
        dt_min, dt_max: range of the log-uniform initial timescale, in units of time a sample of the training grid.
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
        n_ssm = 1 if n_ssm is None else n_ssm
        super().__init__(d_model, channels, d_state, n_ssm, dt_min, dt_max, None, device, dtype)
        if init not in hippo.MEASURES:
            raise ValueError(f"unknown init '{init}' for kernel 'lssl': expected one of {', '.join(hippo.MEASURES)}")
        self.init = init

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.log_dt = parameter(d_model, 1)
        self.A = parameter(n_ssm, d_state, d_state)
        self.B = parameter(n_ssm, d_state)
        self.C = parameter(channels, d_model, d_state)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: A and B from hippo.transition, C normal with unit variance, dt log-uniform."""
        A, B = hippo.transition(self.init, self.d_state)
        with torch.no_grad():
            self.A.copy_(A)
            self.B.copy_(B)
            self.C.normal_()
        self.reset_time()

    def _discretize(self, step: float) -> tuple[Tensor, Tensor]:
        """Ā = (I - dt A/2)⁻¹ (I + dt A/2) and B̄ = (I - dt A/2)⁻¹ dt B, of every feature."""
        dt = (wide(self.log_dt).exp() * step)[..., None]  # (H, 1, 1)
        half = dt / 2 * expand_ssm(wide(self.A).flatten(1), self.d_model).unflatten(1, [self.d_state, self.d_state])
        eye = torch.eye(self.d_state, device=half.device, dtype=half.dtype)
        B = dt * expand_ssm(wide(self.B), self.d_model)[..., None]
        both = torch.linalg.solve(eye - half, torch.cat([eye + half, B], 2))
        return both[..., : self.d_state], both[..., self.d_state]

    def _readout(self) -> Tensor:
        return wide(self.C)
