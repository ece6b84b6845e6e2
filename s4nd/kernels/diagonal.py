"""S4D and its relatives: a diagonal state matrix (arXiv 2206.11893).

x' = A x + B u, y = 2 Re(C x), A = -exp(log_A_real) - i·A_imag: K[l] = 2 Re Σ_n C_n B̄_n Ā_n^l, exact at every step.
Shape legend: see base.py. Parameters are real, a complex number a pair of them.
"""

import torch
from torch import Tensor, nn

from s4nd import hippo
from s4nd.kernels.base import (
    RealPart,
    RecurrentKernel,
    Timescale,
    check_choice,
    check_state,
    empty_parameters,
)
from s4nd.ops import at_least_float32, diagonal_taps, discretize, expand_ssm, exponential_sum, varying_scan, wide

# 'inv+lin' is a mixture: rows of A alternate between the two.
INITS = (*hippo.DIAGONAL_INITS, 'inv+lin', 'random')
DISCRETIZATIONS = ('zoh', 'bilinear')


class DiagonalKernel(RecurrentKernel):
    """A diagonal system, whatever its parameters: a subclass gives dt, A, B and C.

    The state {'x': (B, H, n, 2)} holds real and imaginary part of every mode.
    """

    C: nn.Parameter

    def __init__(self, d_model: int, channels: int, bilinear: bool = False) -> None:
        super().__init__(d_model, channels)
        self.bilinear = bilinear

    def dt(self, step: float) -> Tensor:
        """Time between two samples, (H, 1 or n), float64."""
        raise NotImplementedError

    def spectrum(self) -> Tensor:
        """A as pairs (S, n, 2), float64."""
        raise NotImplementedError

    def input(self) -> Tensor:
        """B as pairs (S, n, 2), float64."""
        raise NotImplementedError

    def readout(self) -> Tensor:
        """C as it is applied, pairs (c, H, n, 2), float64: modes above the band limit set to zero."""
        raise NotImplementedError

    def taps(self, length: int, step: float) -> Tensor:
        """See `Kernel.taps`."""
        return self._taps(length, step, False)

    def cells(self, length: int, step: float) -> Tensor:
        """See `Kernel.cells`; here in closed form."""
        return self._taps(length, step, True)

    def _taps(self, length: int, step: float, cells: bool) -> Tensor:
        dt = self.dt(step / 2 if cells else step)
        A, B, C, dtype = self.spectrum(), self.input(), self.readout(), at_least_float32(self.C.dtype)
        return diagonal_taps(dt, A, B, C, length, self.bilinear, cells, dtype)

    def discretized(self, step: float) -> list[Tensor]:
        """Ā, B̄ (H, n) and C (c, H, n), each as real and imaginary part."""
        return [*self._transition(self.dt(step), gained=True), *self.readout().unbind(-1)]

    def _transition(self, dt: Tensor, gained: bool) -> list[Tensor]:
        A = expand_ssm(self.spectrum().flatten(1), self.d_model).unflatten(1, (-1, 2))
        a_re, a_im, g_re, g_im = discretize(dt, A[..., 0], A[..., 1], self.bilinear)
        if not gained:
            return [a_re, a_im]
        B = expand_ssm(self.input().flatten(1), self.d_model).unflatten(1, (-1, 2))
        return [a_re, a_im, g_re * B[..., 0] - g_im * B[..., 1], g_re * B[..., 1] + g_im * B[..., 0]]

    def gains(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Ā and B̄ at each of the steps dt (B, L), pairs (B, L, H, n, 2) in float64."""
        self.refresh()
        a_re, a_im, b_re, b_im = self._transition(self.dt(1.0) * wide(dt)[..., None, None], gained=True)
        return torch.stack([a_re, a_im], -1), torch.stack([b_re, b_im], -1)

    def states(self, u: Tensor, x: Tensor, dt: Tensor) -> Tensor:
        """See `RecurrentKernel.states`; here by a scan."""
        A, B = (t.to(x.dtype) for t in self.gains(dt))
        return scan_from(x, A, B * u.to(x.dtype).transpose(1, 2)[..., None, None])

    @staticmethod
    def advance(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
        """x_k = Ā x_{k-1} + B̄ u_k, y_k = 2 Re(C x_k): u (B, H), x (B, H, n, 2) -> y (B, c, H), new x."""
        a_re, a_im, b_re, b_im = system[:4]
        x_re, x_im = x[..., 0], x[..., 1]
        u = u.to(x.dtype)[..., None]
        x_re, x_im = a_re * x_re - a_im * x_im + b_re * u, a_re * x_im + a_im * x_re + b_im * u
        x = torch.stack([x_re, x_im], -1)
        return DiagonalKernel.observe(x, system), x

    @staticmethod
    def observe(x: Tensor, system: list[Tensor]) -> Tensor:
        """See `RecurrentKernel.observe`."""
        c_re, c_im = system[4:]
        return 2 * (c_re * x[:, None, ..., 0] - c_im * x[:, None, ..., 1]).sum(-1)

    def response(self, x: Tensor, length: int, step: float = 1.0) -> Tensor:
        """See `RecurrentKernel.response`; x (H, n, 2)."""
        self.refresh()
        a_re, a_im = self._transition(self.dt(step), gained=False)
        c_re, c_im = self.readout().unbind(-1)
        x_re, x_im = wide(x).unbind(-1)
        taps = exponential_sum(c_re * x_re - c_im * x_im, c_re * x_im + c_im * x_re, a_re, a_im, length)
        return taps.to(at_least_float32(self.C.dtype))

    @staticmethod
    def product(x: Tensor, y: Tensor) -> Tensor:
        """See `RecurrentKernel.product`."""
        re = x[..., 0] * y[..., 0] - x[..., 1] * y[..., 1]
        return torch.stack([re, x[..., 0] * y[..., 1] + x[..., 1] * y[..., 0]], -1)


class S4DKernel(Timescale, RealPart, DiagonalKernel):
    """Diagonal SSM kernel (S4D, arXiv 2206.11893).

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature.
        d_state: N, size of the real state; N/2 complex modes are stored (init 'real': N real modes).
        init: 'lin', 'inv', 'legs' or 'real' (hippo.diagonal), 'inv+lin' (features take them in turn), or 'random': A
            drawn from -|N(0, 1)| - i·N(0, 1) and B = 1, a baseline without memory by design.
        dt_min, dt_max, bandlimit: see `Timescale`.
        n_ssm: S, number of distinct (A, B), a divisor of H; None is the number of inits that are mixed.
        discretization: 'zoh' or 'bilinear'.
        dt_tied: one dt per feature (True) or one per mode.
        real: 'exp', 'free' or 'clip', see `RealPart`.

    Raises:
        ValueError: for sizes that do not fit, an unknown init, discretization or real, or a bad dt range or bandlimit.
    """

    stacks = True

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        init: str = 'lin',
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bandlimit: float | None = None,
        n_ssm: int | None = None,
        discretization: str = 'zoh',
        dt_tied: bool = True,
        real: str = 'exp',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels, discretization == 'bilinear')
        check_choice('init', init, INITS, " for kernel 's4d'")
        self.mixed = init.split('+')
        n_ssm = len(self.mixed) if n_ssm is None else n_ssm
        check_state(d_model, d_state, n_ssm)
        if n_ssm % len(self.mixed):
            raise ValueError(f"init '{init}' mixes {len(self.mixed)} spectra, which must divide n_ssm, got {n_ssm}")
        check_choice('discretization', discretization, DISCRETIZATIONS)
        self.set_timescale(dt_min, dt_max, bandlimit)
        self.d_state, self.n_ssm, self.init, self.discretization = d_state, n_ssm, init, discretization
        self.is_real = init == 'real'
        modes = d_state if self.is_real else d_state // 2
        pair = () if self.is_real else (2,)
        self.state_shape = (d_model, modes, 2)
        empty = empty_parameters(device, dtype)
        self.log_dt = empty(d_model, 1 if dt_tied else modes)
        self.set_real(real, empty(n_ssm, modes))
        self.register_parameter('A_imag', None if self.is_real else empty(n_ssm, modes))
        self.B = empty(n_ssm, modes, *pair)
        self.C = empty(channels, d_model, modes, *pair)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: A and B by `init`, C complex normal with unit variance, dt log-uniform."""
        modes = self.B.shape[1]
        with torch.no_grad():
            if self.init == 'random':
                self.reset_real(-torch.randn(self.n_ssm, modes, device=self.B.device).abs())
                self.A_imag.normal_()
                self.B.copy_(torch.tensor([1.0, 0.0]))
            else:
                for first, init in enumerate(self.mixed):
                    A, B = hippo.diagonal(init, modes)
                    rows = slice(first, None, len(self.mixed))
                    self.reset_real(A.real, rows)
                    if self.A_imag is not None:
                        self.A_imag[rows].copy_(-A.imag)
                    self.B[rows].copy_(B.real if self.is_real else torch.view_as_real(B))
            self.C.normal_(std=1.0 if self.is_real else 0.5**0.5)
        self.reset_timescale()

    def spectrum(self) -> Tensor:
        """See `DiagonalKernel`."""
        re = self.real_part()
        return torch.stack([re, torch.zeros_like(re) if self.A_imag is None else -wide(self.A_imag)], -1)

    def input(self) -> Tensor:
        """See `DiagonalKernel`."""
        return as_pairs(self.B, self.is_real)

    def readout(self) -> Tensor:
        """See `DiagonalKernel`."""
        C = as_pairs(self.C, self.is_real)
        return C if self.A_imag is None else self.masked(C, self.A_imag)


def scan_from(x: Tensor, factor: Tensor, drive: Tensor) -> Tensor:
    """All states x_k = factor_k x_{k-1} + drive_k from x (B, H, n, 2); factor and drive (B, L, H, n, 2) -> the same."""
    first = drive[:, :1] + DiagonalKernel.product(factor[:, :1], x[:, None])
    drive = torch.cat([first, drive[:, 1:]], 1)
    return varying_scan(factor.flatten(2, 3), drive.flatten(2, 3)).unflatten(2, drive.shape[2:4])


def as_pairs(x: Tensor, is_real: bool) -> Tensor:
    """Complex pairs (…, 2) in float64, of pairs or of real numbers (…)."""
    x = wide(x)
    return torch.stack([x, torch.zeros_like(x)], -1) if is_real else x
