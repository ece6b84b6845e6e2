"""What every kernel is: parameters -> taps, and where it has a recurrence, the one-step form.

Shape legend: H = d_model, S = n_ssm, n = stored modes, c = channels, L = length, r = rank of P.
"""

import math

import torch
from torch import Tensor, nn


class Kernel(nn.Module):
    """A continuous convolution kernel, sampled on demand.

    `kernel(length, step)` gives the taps at lags 0, step, 2·step, … of the training grid, (channels, d_model, length)
    in float32 (float64 in a float64 module). Evaluation changes nothing in the kernel.
    """

    has_recurrence: bool = False

    def __init__(self, d_model: int, channels: int) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f'd_model must be at least 1, got {d_model}')
        if channels < 1:
            raise ValueError(f'channels must be at least 1, got {channels}')
        self.d_model = d_model
        self.channels = channels

    def forward(self, length: int, step: float = 1.0) -> Tensor:
        raise NotImplementedError

    def cells(self, length: int, step: float = 1.0) -> Tensor:
        """Centered lag taps of one side, (channels, d_model, length): entry l is the mean of the kernel over
        [l - ½, l + ½], entry 0 the part of it that lies on this side. Taps at half the step, summed in pairs."""
        return pair_cells(self.forward(2 * length - 1, step / 2))

    def rescale_time(self, factor: float) -> None:
        """Multiply the unit of time by `factor` in place: afterwards kernel(L, s) is what kernel(L, s·factor) was."""
        raise NotImplementedError

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """The zero state of the recurrence, batch first."""
        raise ValueError(f'{type(self).__name__} has no recurrence, so it has no state and cannot step')

    def step(self, u: Tensor, state: dict[str, Tensor], step: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """One sample u (B, H) -> output (B, c, H) and the new state; `state` itself is left as it was."""
        raise ValueError(f'{type(self).__name__} has no recurrence, so it cannot step')

    def response(self, x: Tensor, length: int, step: float = 1.0) -> Tensor:
        """What a state x (H, …) reads out with no further input, C Āˡ x: (channels, d_model, length). That of B̄, the
        state after an impulse, are the taps."""
        raise ValueError(f'{type(self).__name__} has no recurrence, so it has no state to respond')

    @staticmethod
    def power(x: Tensor, degree: int) -> Tensor:
        """A state (H, …) raised to a power, entry by entry."""
        return x**degree


class SSMKernel(Kernel):
    """A kernel that is a state-space system with a timescale a feature (`log_dt`) and a `bandlimit` buffer."""

    has_recurrence = True
    log_dt: Tensor
    bandlimit: Tensor

    def __init__(
        self,
        d_model: int,
        channels: int,
        d_state: int,
        n_ssm: int,
        dt_min: float,
        dt_max: float,
        bandlimit: float | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(d_model, channels)
        if d_state < 2 or d_state % 2:
            raise ValueError(
                f'd_state must be even and at least 2 (it counts both of each conjugate pair), got {d_state}'
            )
        if n_ssm < 1 or d_model % n_ssm:
            raise ValueError(f'n_ssm must divide d_model, got n_ssm={n_ssm} and d_model={d_model}')
        check_time(dt_min, dt_max, bandlimit)
        self.d_state, self.n_ssm = d_state, n_ssm
        self.dt_min, self.dt_max = dt_min, dt_max
        self._initial_bandlimit = math.inf if bandlimit is None else float(bandlimit)
        # In the state dict: re-anchoring to another grid changes it together with dt. Infinity: off.
        self.register_buffer('bandlimit', torch.empty((), device=device, dtype=dtype))

    def reset_time(self) -> None:
        """Initialize dt, log-uniform in [dt_min, dt_max], and the bandlimit."""
        with torch.no_grad():
            low, high = math.log(self.dt_min), math.log(self.dt_max)
            self.log_dt.uniform_(0.0, 1.0).mul_(high - low).add_(low)
            self.bandlimit.fill_(self._initial_bandlimit)

    def rescale_time(self, factor: float) -> None:
        """dt and the bandlimit's grid change together, so the same modes stay masked."""
        with torch.no_grad():
            self.log_dt.add_(math.log(factor))
            self.bandlimit.mul_(factor)

    def system(self, step: float = 1.0) -> list[Tensor]:
        """The discretized one-step form at `step`, as `advance` takes it."""
        raise NotImplementedError

    @staticmethod
    def advance(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
        """One sample: u (B, H), state x -> y (B, c, H), new x."""
        raise NotImplementedError

    def step(self, u: Tensor, state: dict[str, Tensor], step: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        y, x = self.advance(u, state['x'], self.system(step))
        return y.to(u.dtype), {'x': x}

    def below_bandlimit(self, A_imag: Tensor) -> Tensor:
        """Mask (H, n): modes of A_imag (S, n) under α/2 cycles a sample of the training grid."""
        frequency = wide(self.log_dt).exp() * expand_ssm(wide(A_imag).abs(), self.d_model) / (2 * math.pi)
        return frequency < self.bandlimit / 2


def pair_cells(h: Tensor) -> Tensor:
    """h[0], h[1] + h[2], h[3] + h[4] …: (…, 2K - 1) -> (…, K)."""
    return torch.cat([h[..., :1], h[..., 1::2] + h[..., 2::2]], -1)


def check_time(dt_min: float, dt_max: float, bandlimit: float | None) -> None:
    """Raise ValueError unless 0 < dt_min <= dt_max and the bandlimit is None (off) or positive."""
    if not 0 < dt_min <= dt_max < math.inf:
        raise ValueError(f'expected 0 < dt_min <= dt_max, got dt_min={dt_min} and dt_max={dt_max}')
    if bandlimit is not None and not bandlimit > 0:
        raise ValueError(f'bandlimit must be positive (1 is the Nyquist limit of the training grid), got {bandlimit}')


def check_length_and_step(length: int, step: float) -> None:
    """Raise ValueError unless length >= 1 and step is positive and finite."""
    if length < 1:
        raise ValueError(f'kernel length must be at least 1, got {length}')
    if not (step > 0.0 and step < float('inf')):
        raise ValueError(f'step must be positive and finite, got {step}')


def check_axis(name: str, length: float, minimum: int) -> None:
    """Raise ValueError unless the length of the axis is known and at least `minimum`."""
    if length == math.inf:
        raise ValueError(
            f"kernel '{name}' spans its axis and needs its length: give the layer a grid or l_max, or the kernel the "
            "option {'length': samples of the training grid}"
        )
    if not length >= minimum:
        raise ValueError(f"kernel '{name}' needs an axis of at least {minimum} samples, got length {length}")


@torch.jit.unused
def eager(x: Tensor) -> bool:
    """Whether hand-written gradients and complex arithmetic can be used: no compiler looks on, the device has them."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and x.device.type in ('cpu', 'cuda')


def wide(x: Tensor) -> Tensor:
    """x in float64, where discretization and powers are computed (float32 on devices that have no float64)."""
    return x.float() if x.device.type == 'mps' else x.double()


def expm1(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """e^{x + iy} - 1 without cancellation, as real and imaginary part."""
    return torch.expm1(x) * torch.cos(y) - 2 * torch.sin(y / 2) ** 2, torch.exp(x) * torch.sin(y)


def zero_order_hold(re: Tensor, im: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ā = e^{A dt} and the gain (Ā - 1)/A of B, as real and imaginary parts, for A = re + i·im."""
    e_re, e_im = expm1(re * dt, im * dt)
    norm = re * re + im * im
    return e_re + 1, e_im, (e_re * re + e_im * im) / norm, (e_im * re - e_re * im) / norm


def expand_ssm(x: Tensor, d_model: int) -> Tensor:
    """(…, S, n) -> (…, H, n): feature h uses row h % S."""
    repeats = [1] * x.dim()
    repeats[-2] = d_model // x.shape[-2]
    return x.repeat(repeats)
