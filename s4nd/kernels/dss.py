"""DSS: diagonal state spaces without B, in the forms 'exp' and 'softmax' (arXiv 2203.14343).

Λ = A_real - i·A_imag, C stands for the paper's w = C∘B, and the real part is taken without S4D's factor 2:

    exp:      K[l] = Re Σ_n C_n Λ_n⁻¹ (e^{Λ_n dt} - 1) e^{Λ_n dt l}                      Re Λ < 0
    softmax:  K[l] = Re Σ_n C_n Λ_n⁻¹ (e^{Λ_n dt} - 1) e^{Λ_n dt l} / (e^{Λ_n dt L} - 1)  Re Λ free

The softmax runs over the L taps, so its kernel depends on L. Here L is the length of the axis on the training grid, a
constant of the kernel, and not the number of taps asked for: e^{Λ dt L} is a matter of the time that L samples last, so
with it held fixed the kernel is one continuous function, exact at every step, and equal to the published one where that
is asked for L taps. It ends with its window. Shape legend: see base.py.
"""

import math

import torch
from torch import Tensor, nn

from s4nd import hippo
from s4nd.kernels.base import (
    Kernel,
    SSMKernel,
    check_axis,
    check_length_and_step,
    expand_ssm,
    expm1,
    wide,
    zero_order_hold,
)
from s4nd.kernels.diagonal import S4DKernel, sum_modes


class _DSSKernel(SSMKernel):
    """What both forms have: dt, Λ and C, and the published initialization. Re Λ is the subclass's parameter."""

    def __init__(
        self,
        real_part: str,
        d_model: int,
        channels: int,
        d_state: int,
        dt_min: float,
        dt_max: float,
        n_ssm: int | None,
        bandlimit: float | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        n_ssm = 1 if n_ssm is None else n_ssm
        super().__init__(d_model, channels, d_state, n_ssm, dt_min, dt_max, bandlimit, device, dtype)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.log_dt = parameter(d_model, 1)
        self.register_parameter(real_part, parameter(n_ssm, d_state // 2))
        self.A_imag = parameter(n_ssm, d_state // 2)
        self.C = parameter(channels, d_model, d_state // 2, 2)

    def reset_parameters(self) -> None:
        """Initialize as published: Λ the skew part of HiPPO, real and imaginary part of C from N(0, 1)."""
        w = hippo.nplr('legs', self.d_state)[0]
        with torch.no_grad():
            self._set_real_part(w.real)
            self.A_imag.copy_(-w.imag)
            self.C.normal_()
        self.reset_time()

    def _set_real_part(self, real: Tensor) -> None:
        raise NotImplementedError

    def _readout(self) -> tuple[Tensor, Tensor]:
        """C/2 (c, H, n) as real and imaginary part, modes beyond the bandlimit set to zero."""
        # The half undoes the factor 2 that S4D takes for the conjugate modes.
        keep = 0.5 * self.below_bandlimit(self.A_imag)
        return wide(self.C)[..., 0] * keep, wide(self.C)[..., 1] * keep


class DSSExpKernel(_DSSKernel):
    """DSS-exp: Re Λ = -exp(log_A_real).

    Args:
        d_model: H, number of features.
        channels: kernels a feature.
        d_state: N, even and at least 4; N/2 modes are stored, those of the normal part of HiPPO-LegS.
        dt_min, dt_max: range of the log-uniform initial timescale, in units of time a sample of the training grid.
        n_ssm: S, number of distinct Λ, a divisor of H; None is 1, as published.
        bandlimit: α; modes at or above α/2 cycles a sample of the training grid are masked. None: off.

    Raises:
        ValueError: for sizes that do not fit, or a bad dt range or bandlimit.
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        n_ssm: int | None = None,
        bandlimit: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__('log_A_real', d_model, channels, d_state, dt_min, dt_max, n_ssm, bandlimit, device, dtype)
        self.reset_parameters()

    def _set_real_part(self, real: Tensor) -> None:
        self.log_A_real.copy_((-real).log())

    def forward(self, length: int, step: float = 1.0) -> Tensor:
        """Taps (channels, d_model, length) at spacing `step`; raises ValueError unless length >= 1 and step > 0."""
        check_length_and_step(length, step)
        a_re, a_im, b_re, b_im = self._discretize(step)
        c_re, c_im = self._readout()
        w_re, w_im = c_re * b_re - c_im * b_im, c_re * b_im + c_im * b_re  # (c, H, n)
        taps = sum_modes(w_re, w_im, a_re, a_im, length)
        return taps.to(torch.promote_types(self.C.dtype, torch.float32))

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """{'x': (B, H, n, 2)}, real and imaginary part of every mode."""
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        return {'x': torch.zeros(batch, self.d_model, self.d_state // 2, 2, device=self.C.device, dtype=dtype)}

    def system(self, step: float = 1.0) -> list[Tensor]:
        """The one-step form of S4D [Ā re, Ā im, B̄ re, B̄ im, C re, C im], for `advance`."""
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        c_re, c_im = self._readout()
        return [t.to(dtype) for t in [*self._discretize(step), c_re, c_im]]

    @staticmethod
    def advance(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
        """x_k = Ā x_{k-1} + B̄ u_k, y_k = Re(C x_k): u (B, H), x (B, H, n, 2) -> y (B, c, H), new x."""
        return S4DKernel.advance(u, x, system)

    # The state is that of S4D, and so is what follows from it.
    response = S4DKernel.response
    power = staticmethod(S4DKernel.power)

    def _discretize(self, step: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ā = e^{Λ dt} and B̄ = Λ⁻¹ (Ā - 1), each (H, n) as real and imaginary part, float64."""
        dt = wide(self.log_dt).exp() * step
        re = expand_ssm(-wide(self.log_A_real).exp(), self.d_model)
        im = expand_ssm(-wide(self.A_imag), self.d_model)
        return zero_order_hold(re, im, dt)


class DSSSoftmaxKernel(_DSSKernel):
    """DSS-softmax: Re Λ is free, and modes that grow are counted from the end of the window.

    It has no recurrence: a growing mode is bounded in the window only, so a state would overflow beyond it.

    Args:
        length: L, of the axis, in samples of the training grid; the kernel is normalized over it and zero beyond it.
        The rest: as DSSExpKernel.

    The reciprocal of x = Λ (e^{Λ dt L} - 1) is x̄ / (|x|² + 1e-7), as published.

    Raises:
        ValueError: as DSSExpKernel, and for a length that is not known (infinite) or below 1.
    """

    has_recurrence = False
    step = Kernel.step  # which says so

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        n_ssm: int | None = None,
        bandlimit: float | None = None,
        length: float = math.inf,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__('A_real', d_model, channels, d_state, dt_min, dt_max, n_ssm, bandlimit, device, dtype)
        check_axis('dss-softmax', length, 1)
        self.length = float(length)
        self.epsilon = 1e-7
        self.reset_parameters()

    def _set_real_part(self, real: Tensor) -> None:
        self.A_real.copy_(real)

    def rescale_time(self, factor: float) -> None:
        """As SSMKernel; the length is in samples of the training grid too."""
        super().rescale_time(factor)
        self.length /= factor

    def forward(self, length: int, step: float = 1.0) -> Tensor:
        """Taps (channels, d_model, length) at spacing `step`; raises ValueError unless length >= 1 and step > 0, and
        for a step beyond the axis."""
        check_length_and_step(length, step)
        if step > self.length:
            raise ValueError(
                f"kernel 'dss-softmax' is normalized over an axis of {self.length} samples, which has no two that are "
                f'{step} apart'
            )
        window = max(1, math.ceil(self.length / step - 1e-6))
        count = min(length, window)
        dt = wide(self.log_dt).exp()  # (H, 1)
        re, im = expand_ssm(wide(self.A_real), self.d_model), expand_ssm(-wide(self.A_imag), self.d_model)  # (H, n)
        grows = re > 0
        # a = ±Λ decays. A growing mode is e^{a dt (L - step - t)} where a decaying one is e^{a dt t}.
        a_re, a_im = torch.where(grows, -re, re), torch.where(grows, -im, im)
        e_re, e_im = expm1(a_re * dt * step, a_im * dt * step)
        f_re, f_im = expm1(a_re * dt * self.length, a_im * dt * self.length)
        x_re, x_im = re * f_re - im * f_im, re * f_im + im * f_re
        norm = x_re * x_re + x_im * x_im + self.epsilon
        g_re, g_im = (e_re * x_re + e_im * x_im) / norm, (e_im * x_re - e_re * x_im) / norm
        c_re, c_im = self._readout()
        w_re, w_im = c_re * g_re - c_im * g_im, c_re * g_im + c_im * g_re  # (c, H, n)
        # The last tap computed is this long before the last one of the window.
        rest = (self.length - count * step) * dt
        size = torch.exp(a_re * rest)
        r_re, r_im = size * torch.cos(a_im * rest), size * torch.sin(a_im * rest)
        late_re, late_im = (w_re * r_re - w_im * r_im) * grows, (w_re * r_im + w_im * r_re) * grows
        w_re, w_im = torch.cat([w_re * ~grows, late_re]), torch.cat([w_im * ~grows, late_im])
        taps = sum_modes(w_re, w_im, e_re + 1, e_im, count)
        taps = taps[: self.channels] + taps[self.channels :].flip(-1)
        taps = torch.nn.functional.pad(taps, (0, length - count))
        return taps.to(torch.promote_types(self.C.dtype, torch.float32))
