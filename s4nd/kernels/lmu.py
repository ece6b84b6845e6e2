"""LMU: a fixed memory of a sliding window, read out by trained weights (Voelker et al., NeurIPS 2019).

θ x' = A x + B u with A_ij = (2i+1)·(-1 if i < j else (-1)^{i-j+1}) and B_i = (2i+1)(-1)^i: x holds the coefficients of
the last θ samples over shifted Legendre polynomials, u(t - rθ) ≈ Σ_i P_i(2r - 1) x_i for 0 <= r <= 1. It is HiPPO-LegT
up to the scale of the state (hippo.Memory('legt')). Shape legend: see base.py.
"""

import math

import torch
from torch import Tensor, nn

from s4nd.kernels.base import wide
from s4nd.kernels.dense import DenseKernel


class LMUKernel(DenseKernel):
    """Readout C of a Legendre memory; (A, B) and θ are not trained. Discretized by zero-order hold.

    S4(kernel='lmu') is the linear recurrent layer: memory and readout, streaming in the dense state.

    Args:
        d_model: H, number of features.
        channels: kernels a feature.
        d_state: N, number of polynomials, even.
        theta: θ, the window in samples of the training grid; None is 1/dt_min, the longest timescale of other kernels.
        dt_min: see theta.
        bandlimit: α; masks polynomial n, which has up to n/2 cycles in the window, where n/(2θ) >= α/2.

    C starts normal, with unit variance over the orthonormal polynomials √(2i+1) P_i.

    Raises:
        ValueError: for sizes that do not fit, or a theta, dt_min or bandlimit that is not positive.
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        theta: float | None = None,
        dt_min: float = 1e-3,
        bandlimit: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if theta is not None and not 0 < theta < math.inf:
            raise ValueError(f'theta must be a positive number of samples, got {theta}')
        dt = dt_min if theta is None else 1 / theta
        super().__init__(d_model, channels, d_state, 1, dt, dt, bandlimit, device, dtype)
        # log(1/θ): in the state dict, changed by rescale_time, and not trained.
        self.register_buffer('log_dt', torch.empty(1, 1, device=device, dtype=dtype))
        self.C = nn.Parameter(torch.empty(channels, d_model, d_state, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize C, and θ to its first value."""
        with torch.no_grad():
            degree = torch.arange(self.d_state, device=self.C.device, dtype=torch.float32)
            self.C.normal_().div_((2 * degree + 1).sqrt())
        self.reset_time()

    def _discretize(self, step: float) -> tuple[Tensor, Tensor]:
        A, B = legendre_delay(self.d_state, self.C.device)
        # exp [[A, B], [0, 0]]t = [[Ā, B̄], [0, 1]]
        both = torch.nn.functional.pad(torch.cat([A, B[:, None]], 1), (0, 0, 0, 1))
        both = torch.matrix_exp(both * (wide(self.log_dt).exp() * step))[None]
        return both[:, :-1, :-1], both[:, :-1, -1]

    def _readout(self) -> Tensor:
        degree = torch.arange(self.d_state, device=self.C.device, dtype=torch.float32)
        return wide(self.C) * self.below_bandlimit(math.pi * degree[None])


def legendre_delay(d_state: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N,) of the published memory with θ = 1, float64."""
    n = wide(torch.arange(d_state, device=device, dtype=torch.float32))
    row, col = n[:, None], n[None, :]
    sign = 1 - 2 * torch.remainder(n, 2)  # (-1)^i
    below = -sign[:, None] * sign[None, :]  # (-1)^{i-j+1}
    A = (2 * row + 1) * torch.where(row < col, -torch.ones_like(below), below)
    return A, (2 * n + 1) * sign
