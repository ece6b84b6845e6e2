"""LMU: a fixed memory of a sliding window, read out by trained weights (Voelker et al., NeurIPS 2019).

θ x' = A x + B u with A_ij = (2i+1)·(-1 if i < j else (-1)^{i-j+1}) and B_i = (2i+1)(-1)^i: x holds the coefficients of
the last θ samples over shifted Legendre polynomials, u(t - rθ) ≈ Σ_i P_i(2r - 1) x_i for 0 <= r <= 1. It is HiPPO-LegT
up to the scale of the state (hippo.Memory('legt')). Shape legend: see base.py.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from s4nd.kernels.base import check_choice, check_time, empty_parameters
from s4nd.kernels.dense import DenseKernel
from s4nd.ops import wide

DISCRETIZATIONS = ('zoh', 'euler')


class LMUKernel(DenseKernel):
    """Readout C of a Legendre memory; (A, B) are not trained.

    S4(kernel='lmu') is the linear recurrent layer: memory and readout, streaming in the dense state. With encoders and
    a nonlinear cell: `s4nd.layers.LMU`.

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature.
        d_state: N, number of polynomials.
        theta: θ, the window in samples of the training grid; None is 1/dt_min, the longest timescale of other kernels.
        dt_min: see theta.
        train_theta: whether θ is trained, as log_theta.
        discretization: 'zoh', or 'euler' (Ā = I + A/θ, for θ well above N).
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
        train_theta: bool = False,
        discretization: str = 'zoh',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        if d_state < 1:
            raise ValueError(f'd_state must be at least 1, got {d_state}')
        if theta is not None and not 0 < theta < math.inf:
            raise ValueError(f'theta must be a positive number of samples, got {theta}')
        check_time(dt_min, dt_min, bandlimit)
        check_choice('discretization', discretization, DISCRETIZATIONS, " for kernel 'lmu'")
        self.d_state, self.state_shape = d_state, (d_model, d_state)
        self.theta = 1 / dt_min if theta is None else float(theta)
        self.bandlimit = math.inf if bandlimit is None else float(bandlimit)
        self.discretization = discretization
        empty = empty_parameters(device, dtype)
        self.C = empty(channels, d_model, d_state)
        self.register_parameter('log_theta', empty(1) if train_theta else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize C, and θ where it is trained."""
        with torch.no_grad():
            if self.log_theta is not None:
                self.log_theta.fill_(math.log(self.theta))
            degree = torch.arange(self.d_state, device=self.C.device, dtype=torch.float32)
            self.C.normal_().div_((2 * degree + 1).sqrt())

    def matrices(self, step: float) -> tuple[Tensor, Tensor]:
        """See `DenseKernel`."""
        change, B = discretize_delay(self.d_state, self.window(), step, self.discretization)
        eye = torch.eye(self.d_state, device=B.device, dtype=B.dtype)
        return (change + eye)[None], B[None]

    def window(self) -> Tensor:
        """θ in samples, (1,), float64."""
        if self.log_theta is None:
            return wide(torch.full((1,), self.theta, device=self.C.device))
        else:  # (TorchScript)
            return wide(self.log_theta).exp()

    def readout(self) -> Tensor:
        """See `DenseKernel`."""
        if self.bandlimit == math.inf:
            return wide(self.C)
        degree = torch.arange(self.d_state, device=self.C.device)
        return wide(self.C) * (degree / (2 * self.window()) < self.bandlimit / 2)


def discretize_delay(d_state: int, theta: Tensor, step: float, rule: str) -> tuple[Tensor, Tensor]:
    """Ā - I (N, N) and B̄ (N,) of the published memory, float64. rule: one of DISCRETIZATIONS."""
    A, B = legendre_delay(d_state, theta.device)
    both = torch.cat([A, B[:, None]], 1) * (step / theta)
    if rule == 'euler':
        return both[:, :-1], both[:, -1]
    # exp [[A, B], [0, 0]]t = [[Ā, B̄], [0, 1]]
    both = torch.matrix_exp(F.pad(both, (0, 0, 0, 1)))
    eye = torch.eye(d_state, device=both.device, dtype=both.dtype)
    return both[:-1, :-1] - eye, both[:-1, -1]


def legendre_delay(d_state: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N,) of the published memory with θ = 1, float64."""
    n = wide(torch.arange(d_state, device=device, dtype=torch.float32))
    row, col = n[:, None], n[None, :]
    sign = 1 - 2 * torch.remainder(n, 2)  # (-1)^i
    below = -sign[:, None] * sign[None, :]  # (-1)^{i-j+1}
    A = (2 * row + 1) * torch.where(row < col, -torch.ones_like(below), below)
    return A, (2 * n + 1) * sign
