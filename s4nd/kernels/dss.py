"""DSS: diagonal state spaces without B, in the forms 'exp' and 'softmax' (arXiv 2203.14343), and the kernel of GSS.

Λ = A_real - i·A_imag, C stands for the paper's w = C∘B, and the real part is taken without S4D's factor 2:

    exp:      K[l] = Re Σ_n C_n Λ_n⁻¹ (e^{z_n} - 1) e^{z_n l}                      Re Λ < 0
    softmax:  K[l] = Re Σ_n C_n Λ_n⁻¹ (e^{z_n} - 1) e^{z_n l} / (e^{z_n L} - 1)    Re Λ free

with z = dt Λ, or dt Re Λ + i dt' Im Λ with two timescales. 1/Λ is Λ̄ / max(|Λ|², 1e-7), as released.

The softmax runs over the L taps, so its kernel depends on L. Here L is the length of the axis on the training grid, a
constant of the kernel, and not the number of taps asked for: e^{z L} is a matter of the time that L samples last, so
with it held fixed the kernel is one continuous function, exact at every step, and equal to the published one where that
is asked for L taps. It ends with its window. Shape legend: see base.py.
"""

import math

import torch
from torch import Tensor

from s4nd import hippo
from s4nd.kernels.base import Kernel, RealPart, Timescale, check_axis, check_state, empty_parameters
from s4nd.kernels.diagonal import DiagonalKernel
from s4nd.ops import at_least_float32, expand_ssm, expm1, exponential_sum, wide

# |Λ|² is at least this in its reciprocal.
EPSILON = 1e-7


class DSSExpKernel(Timescale, RealPart, DiagonalKernel):
    """DSS-exp: Re Λ = -exp(log_A_real) (arXiv 2203.14343, proposition 1a), and its released versions.

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature.
        d_state: N, even and at least 4; N/2 modes are stored, those of the normal part of HiPPO-LegS. (The released
            N counts modes: its 64 are d_state=128.)
        dt_min, dt_max, bandlimit: see `Timescale`.
        n_ssm: S, number of distinct Λ, a divisor of H; None is 1, as published.
        real: 'exp', or the released version 'clip', see `RealPart`.
        scaled: False is the released version 'exp-no-scale', K[l] = Re Σ_n C_n e^{z_n l} at the training step.
        dt_split: whether Re Λ and Im Λ have a timescale each (released 'sep_dt_re_im').

    The released 'exp-re-im' is the same function with log(Im Λ) for a parameter.

    Raises:
        ValueError: for sizes that do not fit, an unknown real, or a bad dt range or bandlimit.
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bandlimit: float | None = None,
        n_ssm: int | None = None,
        real: str = 'exp',
        scaled: bool = True,
        dt_split: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        n_ssm = 1 if n_ssm is None else n_ssm
        check_state(d_model, d_state, n_ssm)
        self.set_timescale(dt_min, dt_max, bandlimit)
        self.d_state, self.n_ssm, self.state_shape = d_state, n_ssm, (d_model, d_state // 2, 2)
        self.scaled, self.dt_split, self.epsilon = scaled, dt_split, EPSILON
        empty = empty_parameters(device, dtype)
        self.log_dt = empty(d_model, 2 if dt_split else 1)
        self.set_real(real, empty(n_ssm, d_state // 2))
        self.A_imag = empty(n_ssm, d_state // 2)
        self.C = empty(channels, d_model, d_state // 2, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as published: Λ the skew part of HiPPO, real and imaginary part of C from N(0, 1)."""
        w = hippo.nplr('legs', self.d_state)[0]
        self.reset_real(w.real)
        with torch.no_grad():
            self.A_imag.copy_(-w.imag)
            self.C.normal_()
        self.reset_timescale()

    def dt(self, step: float) -> Tensor:
        """See `DiagonalKernel`; the timescale of Re Λ."""
        return wide(self.log_dt[:, :1]).exp() * step

    def spectrum(self) -> Tensor:
        """See `DiagonalKernel`; with two timescales z / dt, of every feature."""
        re, im = self.real_part(), -wide(self.A_imag)
        if self.dt_split:
            ratio = (wide(self.log_dt[:, 1:]) - wide(self.log_dt[:, :1])).exp()  # (H, 1)
            re, im = expand_ssm(re, self.d_model), expand_ssm(im, self.d_model) * ratio
        return torch.stack([re, im], -1)

    def input(self) -> Tensor:
        """See `DiagonalKernel`; there is no B."""
        return unit_input(self.spectrum()[..., 0])

    def readout(self) -> Tensor:
        """See `DiagonalKernel`: what makes the gain (e^z - 1) dt / z of the system that of the version."""
        # The half undoes the factor 2 that stands for the conjugate modes of a real system.
        C = self.masked(wide(self.C) / 2, self.A_imag)
        re, im = self.real_part(), -wide(self.A_imag)
        if self.scaled and not self.dt_split:
            norm = re * re + im * im
            return C * expand_ssm(norm / norm.clamp(min=self.epsilon), self.d_model)[..., None]
        rate = expand_ssm(self.spectrum().flatten(1), self.d_model).unflatten(1, [-1, 2])  # (H, n, 2)
        if self.scaled:
            norm = (re * re + im * im).clamp(min=self.epsilon)
            d_re, d_im = expand_ssm(re / norm, self.d_model), expand_ssm(-im / norm, self.d_model)  # 1/Λ
        else:
            e_re, e_im = expm1(rate[..., 0] * self.dt(1.0), rate[..., 1] * self.dt(1.0))
            norm = e_re * e_re + e_im * e_im
            d_re, d_im = e_re / norm, -e_im / norm
        g_re, g_im = rate[..., 0] * d_re - rate[..., 1] * d_im, rate[..., 0] * d_im + rate[..., 1] * d_re
        return torch.stack([C[..., 0] * g_re - C[..., 1] * g_im, C[..., 0] * g_im + C[..., 1] * g_re], -1)


class DSSSoftmaxKernel(Timescale, Kernel):
    """DSS-softmax: Re Λ is free, and modes that grow are counted from the end of the window (proposition 1b).

    It has no recurrence: a growing mode is bounded in the window only, so a state would overflow beyond it.

    Args:
        length: L, of the axis, in samples of the training grid; the kernel is normalized over it and zero beyond it.
        dt_split and the rest: as DSSExpKernel.

    The reciprocal of x = Λ (e^{Λ dt L} - 1) is x̄ / (|x|² + 1e-7), as published.

    Raises:
        ValueError: as DSSExpKernel, for a length that is not known (infinite) or below 1, and in the forward for a step
            beyond the axis.
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bandlimit: float | None = None,
        n_ssm: int | None = None,
        length: float = math.inf,
        dt_split: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        n_ssm = 1 if n_ssm is None else n_ssm
        check_state(d_model, d_state, n_ssm)
        check_axis('dss-softmax', length, 1)
        self.set_timescale(dt_min, dt_max, bandlimit)
        self.d_state, self.n_ssm, self.length, self.epsilon = d_state, n_ssm, float(length), EPSILON
        empty = empty_parameters(device, dtype)
        self.log_dt = empty(d_model, 2 if dt_split else 1)
        self.A_real = empty(n_ssm, d_state // 2)
        self.A_imag = empty(n_ssm, d_state // 2)
        self.C = empty(channels, d_model, d_state // 2, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as published: Λ the skew part of HiPPO, real and imaginary part of C from N(0, 1)."""
        w = hippo.nplr('legs', self.d_state)[0]
        with torch.no_grad():
            self.A_real.copy_(w.real)
            self.A_imag.copy_(-w.imag)
            self.C.normal_()
        self.reset_timescale()

    def taps(self, length: int, step: float) -> Tensor:
        """See `Kernel.taps`."""
        if step > self.length:
            raise ValueError(
                f"kernel 'dss-softmax' is normalized over an axis of {self.length} samples, which has no two that are "
                f'{step} apart'
            )
        count = min(length, max(1, math.ceil(self.length / step - 1e-6)))
        dt = self.dt(1.0)
        dt_re, dt_im = dt[:, :1], dt[:, -1:]  # (H, 1)
        re, im = expand_ssm(wide(self.A_real), self.d_model), expand_ssm(-wide(self.A_imag), self.d_model)  # (H, n)
        grows = re > 0
        # a = ±Λ decays. A growing mode is e^{a dt (L - step - t)} where a decaying one is e^{a dt t}.
        a_re, a_im = torch.where(grows, -re, re), torch.where(grows, -im, im)
        e_re, e_im = expm1(a_re * dt_re * step, a_im * dt_im * step)
        f_re, f_im = expm1(a_re * dt_re * self.length, a_im * dt_im * self.length)
        x_re, x_im = re * f_re - im * f_im, re * f_im + im * f_re
        norm = x_re * x_re + x_im * x_im + self.epsilon
        g_re, g_im = (e_re * x_re + e_im * x_im) / norm, (e_im * x_re - e_re * x_im) / norm
        C = self.masked(wide(self.C) / 2, self.A_imag)  # as DSS-exp: the half undoes a factor 2
        w_re, w_im = C[..., 0] * g_re - C[..., 1] * g_im, C[..., 0] * g_im + C[..., 1] * g_re  # (c, H, n)
        # The last tap computed is this long before the last one of the window.
        rest = self.length - count * step
        size = torch.exp(a_re * dt_re * rest)
        r_re, r_im = size * torch.cos(a_im * dt_im * rest), size * torch.sin(a_im * dt_im * rest)
        late_re, late_im = (w_re * r_re - w_im * r_im) * grows, (w_re * r_im + w_im * r_re) * grows
        w_re, w_im = torch.cat([w_re * ~grows, late_re]), torch.cat([w_im * ~grows, late_im])
        taps = exponential_sum(w_re, w_im, e_re + 1, e_im, count)
        taps = taps[: self.channels] + taps[self.channels :].flip(-1)
        taps = torch.nn.functional.pad(taps, (0, length - count))
        return taps.to(at_least_float32(self.C.dtype))


class GSSKernel(DiagonalKernel):
    """The kernel of gated state spaces: DSS-exp with dt = 1 and one Λ for all features (arXiv 2206.13947, section 3).

    K[l] = Re Σ_n C_n Λ_n⁻¹ (e^{Λ_n} - 1) e^{Λ_n l}, Λ = -e^a ± i e^b. Under Re the sign of Im Λ is immaterial; here it
    is minus, as in all kernels.

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature.
        d_state: N, even; N/2 modes are stored (the paper's 512 are d_state=1024).

    Raises:
        ValueError: for sizes that do not fit.
    """

    bandlimit = math.inf

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 1024,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        check_state(d_model, d_state, 1)
        self.d_state, self.state_shape = d_state, (d_model, d_state // 2, 2)
        empty = empty_parameters(device, dtype)
        self.log_A_real = empty(1, d_state // 2)
        self.log_A_imag = empty(1, d_state // 2)
        self.C = empty(channels, d_model, d_state // 2, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as published: a, b and both parts of C from N(0, 1)."""
        for parameter in (self.log_A_real, self.log_A_imag, self.C):
            torch.nn.init.normal_(parameter)

    def dt(self, step: float) -> Tensor:
        """See `DiagonalKernel`."""
        return torch.full_like(wide(self.log_A_real[:, :1]), step).expand(self.d_model, 1)

    def spectrum(self) -> Tensor:
        """See `DiagonalKernel`."""
        return torch.stack([-wide(self.log_A_real).exp(), -wide(self.log_A_imag).exp()], -1)

    def input(self) -> Tensor:
        """See `DiagonalKernel`; there is no B."""
        return unit_input(self.log_A_real)

    def readout(self) -> Tensor:
        """See `DiagonalKernel`."""
        return wide(self.C) / 2


def unit_input(like: Tensor) -> Tensor:
    """B = 1 as pairs (S, n, 2), float64."""
    one = torch.ones_like(wide(like))
    return torch.stack([one, torch.zeros_like(one)], -1)
