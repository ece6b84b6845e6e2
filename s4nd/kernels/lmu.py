"""LMU: a fixed memory of a sliding window, read out by trained weights (Voelker et al., NeurIPS 2019).

θ x' = A x + B u with A_ij = (2i+1)·(-1 if i < j else (-1)^{i-j+1}) and B_i = (2i+1)(-1)^i: x holds the coefficients of
the last θ samples over shifted Legendre polynomials, u(t - rθ) ≈ Σ_i P_i(2r - 1) x_i for 0 <= r <= 1. It is HiPPO-LegT
up to the scale of the state (hippo.Memory('legt')). Shape legend: see base.py.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from s4nd.kernels.base import check_state, check_time, empty_parameters
from s4nd.kernels.dense import DenseKernel
from s4nd.ops import wide


class LMUKernel(DenseKernel):
    """Readout C of a Legendre memory; (A, B) and θ are not trained. Discretized by zero-order hold.

    S4(kernel='lmu') is the linear recurrent layer: memory and readout, streaming in the dense state.

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature.
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
        dt_min: float = 1e-3,
        bandlimit: float | None = None,
        theta: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        check_state(d_model, d_state, 1)
        if theta is not None and not 0 < theta < math.inf:
            raise ValueError(f'theta must be a positive number of samples, got {theta}')
        check_time(dt_min, dt_min, bandlimit)
        self.d_state, self.state_shape = d_state, (d_model, d_state)
        self.theta = 1 / dt_min if theta is None else float(theta)
        self.bandlimit = math.inf if bandlimit is None else float(bandlimit)
        self.C = empty_parameters(device, dtype)(channels, d_model, d_state)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize C."""
        with torch.no_grad():
            degree = torch.arange(self.d_state, device=self.C.device, dtype=torch.float32)
            self.C.normal_().div_((2 * degree + 1).sqrt())

    def matrices(self, step: float) -> tuple[Tensor, Tensor]:
        """See `DenseKernel`."""
        A, B = legendre_delay(self.d_state, self.C.device)
        # exp [[A, B], [0, 0]]t = [[Ā, B̄], [0, 1]]
        both = F.pad(torch.cat([A, B[:, None]], 1), (0, 0, 0, 1))
        both = torch.matrix_exp(both * (step / self.theta))[None]
        return both[:, :-1, :-1], both[:, :-1, -1]

    def readout(self) -> Tensor:
        """See `DenseKernel`."""
        if self.bandlimit == math.inf:
            return wide(self.C)
        degree = torch.arange(self.d_state, device=self.C.device)
        return wide(self.C) * (degree / (2 * self.theta) < self.bandlimit / 2)


def legendre_delay(d_state: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N,) of the published memory with θ = 1, float64."""
    n = wide(torch.arange(d_state, device=device, dtype=torch.float32))
    row, col = n[:, None], n[None, :]
    sign = 1 - 2 * torch.remainder(n, 2)  # (-1)^i
    below = -sign[:, None] * sign[None, :]  # (-1)^{i-j+1}
    A = (2 * row + 1) * torch.where(row < col, -torch.ones_like(below), below)
    return A, (2 * n + 1) * sign
