"""S4D: a diagonal state matrix (arXiv 2206.11893).

x' = A x + B u, y = 2 Re(C x), A = -exp(log_A_real) - i·A_imag: K[l] = 2 Re Σ_n C_n B̄_n Ā_n^l, exact at every step.
Shape legend: see base.py. Parameters are real, a complex number a pair of them. Eager taps take complex arithmetic and
hand-written gradients (ops/exponentials.py); compilers, exporters and TorchScript see real arithmetic throughout.
"""

from typing import Any

import torch
from torch import Tensor, nn

from s4nd import hippo
from s4nd.kernels.base import (
    SSMKernel,
    check_length_and_step,
    eager,
    expand_ssm,
    expm1,
    pair_cells,
    wide,
    zero_order_hold,
)
from s4nd.ops.exponentials import exponential_sum, plain_exponential_sum

INITS = (*hippo.DIAGONAL_INITS, 'random')
DISCRETIZATIONS = ('zoh', 'bilinear')


class S4DKernel(SSMKernel):
    """Diagonal SSM kernel.

    Args:
        d_model: H, number of features.
        channels: kernels a feature.
        d_state: N, size of the real state; N/2 complex modes are stored (init 'real': N real modes).
        init: 'lin', 'inv', 'legs' or 'real' (hippo.diagonal), or 'random': A drawn from -|N(0, 1)| - i·N(0, 1) and
            B = 1, which knows nothing of memory and is there to compare with.
        dt_min, dt_max: range of the log-uniform initial timescale, in units of time a sample of the training grid.
        n_ssm: S, number of distinct (A, B), a divisor of H; None is 1.
        bandlimit: α; modes at or above α/2 cycles a sample of the training grid are masked. None: off.
        discretization: 'zoh' or 'bilinear'.
        dt_tied: one dt a feature (True) or one a mode.

    Raises:
        ValueError: for sizes that do not fit, an unknown init or discretization, or a bad dt range or bandlimit.
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        init: str = 'lin',
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        n_ssm: int | None = None,
        bandlimit: float | None = None,
        discretization: str = 'zoh',
        dt_tied: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        n_ssm = 1 if n_ssm is None else n_ssm
        super().__init__(d_model, channels, d_state, n_ssm, dt_min, dt_max, bandlimit, device, dtype)
        if init not in INITS:
            raise ValueError(f"unknown init '{init}' for kernel 's4d': expected one of {', '.join(INITS)}")
        if discretization not in DISCRETIZATIONS:
            raise ValueError(f"unknown discretization '{discretization}': expected one of {', '.join(DISCRETIZATIONS)}")
        self.init, self.discretization = init, discretization
        self.is_real = init == 'real'
        modes = d_state if self.is_real else d_state // 2
        pair = () if self.is_real else (2,)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.log_dt = parameter(d_model, 1 if dt_tied else modes)
        self.log_A_real = parameter(n_ssm, modes)
        self.register_parameter('A_imag', None if self.is_real else parameter(n_ssm, modes))
        self.B = parameter(n_ssm, modes, *pair)
        self.C = parameter(channels, d_model, modes, *pair)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: A and B by `init`, C complex normal with unit variance, dt log-uniform."""
        modes = self.log_A_real.shape[-1]
        with torch.no_grad():
            if self.init == 'random':
                self.log_A_real.normal_().abs_().log_()
                self.A_imag.normal_()
                self.B.copy_(torch.tensor([1.0, 0.0]))
            else:
                A, B = hippo.diagonal(self.init, modes)
                self.log_A_real.copy_((-A.real).log())
                if self.A_imag is not None:
                    self.A_imag.copy_(-A.imag)
                self.B.copy_(B.real if self.is_real else torch.view_as_real(B))
            self.C.normal_(std=1.0 if self.is_real else 0.5**0.5)
        self.reset_time()

    def forward(self, length: int, step: float = 1.0) -> Tensor:
        """Taps (channels, d_model, length) at spacing `step`; raises ValueError unless length >= 1 and step > 0."""
        check_length_and_step(length, step)
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        # TorchScript needs the outer condition to stand alone.
        if not torch.jit.is_scripting():  # noqa: SIM102
            if eager(self.C):
                weights, bases = self._exponentials(step)
                return exponential_sum(weights, bases, length).to(dtype)
        a_re, a_im, b_re, b_im = self._discretize(step)
        c_re, c_im = self._readout()
        w_re, w_im = c_re * b_re - c_im * b_im, c_re * b_im + c_im * b_re  # (c, H, n)
        return plain_exponential_sum(w_re, w_im, a_re, a_im, length).to(dtype)

    def cells(self, length: int, step: float = 1.0) -> Tensor:
        """See `Kernel.cells`; here in closed form: h[2l - 1] + h[2l] = 2 Re Σ_n w_n (1 + ā_n) ā_n^(2l - 1)."""
        if not torch.jit.is_scripting():  # noqa: SIM102
            if eager(self.C):
                check_length_and_step(length, step)
                weights, bases = self._exponentials(step / 2)
                taps = 2 * weights.real.sum(-1, keepdim=True)
                if length > 1:
                    squares = bases * bases
                    rest = exponential_sum(weights * (bases + squares), squares, length - 1)
                    taps = torch.cat([taps, rest], -1)
                return taps.to(torch.promote_types(self.C.dtype, torch.float32))
        return pair_cells(self.forward(2 * length - 1, step / 2))

    @torch.jit.unused
    def _exponentials(self, step: float) -> tuple[Tensor, Tensor]:
        """The kernel as 2 Re Σ_n w_n a_n^l: complex w (c, H, n) and a (H, n)."""
        A, B = self._complex_system()  # (S, n)
        dt = wide(self.log_dt).exp() * step  # (H, 1 or n)
        z = (dt.unflatten(0, (-1, self.n_ssm)) * A).flatten(0, 1)  # feature h uses row h % S of A
        if self.discretization == 'zoh':
            change = _Expm1.apply(z)
            Bd = (change.unflatten(0, (-1, self.n_ssm)) * (B / A)).flatten(0, 1)
        else:
            gain = 1 / (1 - z / 2)
            change = z * gain
            Bd = ((dt * gain).unflatten(0, (-1, self.n_ssm)) * B).flatten(0, 1)
        if self.A_imag is None:
            return wide(self.C) * Bd, 1 + change
        return torch.view_as_complex(wide(self.C)) * (Bd * self.below_bandlimit(self.A_imag)), 1 + change

    @torch.jit.unused
    def _complex_system(self) -> tuple[Tensor, Tensor]:
        re = -wide(self.log_A_real).exp()
        if self.A_imag is None:
            B = wide(self.B)
            return torch.complex(re, torch.zeros_like(re)), torch.complex(B, torch.zeros_like(B))
        return torch.complex(re, -wide(self.A_imag)), torch.view_as_complex(wide(self.B))

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """{'x': (B, H, n, 2)}, real and imaginary part of every mode."""
        modes = self.log_A_real.shape[-1]
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        return {'x': torch.zeros(batch, self.d_model, modes, 2, device=self.C.device, dtype=dtype)}

    def system(self, step: float = 1.0) -> list[Tensor]:
        """The discretized one-step form [Ā re, Ā im, B̄ re, B̄ im, C re, C im], for `advance`."""
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        return [t.to(dtype) for t in [*self._discretize(step), *self._readout()]]

    @staticmethod
    def advance(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
        """x_k = Ā x_{k-1} + B̄ u_k, y_k = 2 Re(C x_k): u (B, H), x (B, H, n, 2) -> y (B, c, H), new x."""
        a_re, a_im, b_re, b_im, c_re, c_im = system
        x_re, x_im = x[..., 0], x[..., 1]
        u = u.to(x.dtype)[..., None]
        x_re, x_im = a_re * x_re - a_im * x_im + b_re * u, a_re * x_im + a_im * x_re + b_im * u
        y = 2 * (c_re * x_re[:, None] - c_im * x_im[:, None]).sum(-1)
        return y, torch.stack([x_re, x_im], -1)

    def response(self, x: Tensor, length: int, step: float = 1.0) -> Tensor:
        """See `Kernel.response`; x (H, n, 2)."""
        a_re, a_im, _, _ = self._discretize(step)
        c_re, c_im = self._readout()
        x = wide(x)
        w_re, w_im = c_re * x[..., 0] - c_im * x[..., 1], c_re * x[..., 1] + c_im * x[..., 0]
        taps = sum_modes(w_re, w_im, a_re, a_im, length)
        return taps.to(torch.promote_types(self.C.dtype, torch.float32))

    @staticmethod
    def power(x: Tensor, degree: int) -> Tensor:
        """See `Kernel.power`; entries are complex modes (…, 2)."""
        re, im = x[..., 0], x[..., 1]
        for _ in range(degree - 1):
            re, im = re * x[..., 0] - im * x[..., 1], re * x[..., 1] + im * x[..., 0]
        return torch.stack([re, im], -1)

    def _discretize(self, step: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ā and B̄, each (H, n) as real and imaginary part, in float64."""
        dt = wide(self.log_dt).exp() * step
        re = expand_ssm(-wide(self.log_A_real).exp(), self.d_model)
        if self.A_imag is None:
            im = torch.zeros_like(re)
            B_re, B_im = expand_ssm(wide(self.B), self.d_model), im
        else:
            im = expand_ssm(-wide(self.A_imag), self.d_model)
            B_re, B_im = expand_ssm(wide(self.B)[..., 0], self.d_model), expand_ssm(wide(self.B)[..., 1], self.d_model)
        if self.discretization == 'zoh':
            a_re, a_im, g_re, g_im = zero_order_hold(re, im, dt)
        else:
            # Ā = 2/(1 - z/2) - 1 and B̄ = dt/(1 - z/2) B.
            d_re, d_im = 1 - re * dt / 2, -im * dt / 2
            norm = d_re * d_re + d_im * d_im
            g_re, g_im = d_re / norm, -d_im / norm
            a_re, a_im = 2 * g_re - 1, 2 * g_im
            g_re, g_im = dt * g_re, dt * g_im
        return a_re, a_im, g_re * B_re - g_im * B_im, g_re * B_im + g_im * B_re

    def _readout(self) -> tuple[Tensor, Tensor]:
        """C (c, H, n) as real and imaginary part, modes beyond the bandlimit set to zero."""
        if self.A_imag is None:
            C = wide(self.C)
            return C, torch.zeros_like(C)
        keep = self.below_bandlimit(self.A_imag)
        return wide(self.C)[..., 0] * keep, wide(self.C)[..., 1] * keep


def sum_modes(w_re: Tensor, w_im: Tensor, a_re: Tensor, a_im: Tensor, length: int) -> Tensor:
    """2 Re Σ_n w_n a_nˡ for l = 0 … length - 1: w (c, H, n), a (H, n) -> (c, H, length)."""
    if torch.jit.is_scripting() or not eager(a_re):
        return plain_exponential_sum(w_re, w_im, a_re, a_im, length)
    return exponential_sum(torch.complex(w_re, w_im), torch.complex(a_re, a_im), length)


class _Expm1(torch.autograd.Function):
    """`expm1` of a complex z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        result = torch.complex(*expm1(z.real, z.imag))
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return grad * (1 + result).conj()
