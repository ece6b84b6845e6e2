"""What every kernel is: parameters -> taps, and where it has a recurrence, the one-step form.

Kernel                 taps at any length and step
└─ RecurrentKernel     … and a state: init_state, system, advance
Timescale              a part of those whose time is counted by log_dt: range of dt, band limit
RealPart               a part of those with modes: log_A_real or A_real

Shape legend: H = d_model, S = n_ssm, n = stored modes, c = channels, L = length, N = d_state.
"""

import copy
import math
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from s4nd.ops import at_least_float32, check_exporter, expand_ssm, pair_cells, wide

State = dict[str, Tensor]


class Kernel(nn.Module):
    """A continuous convolution kernel, sampled on demand.

    `kernel(length, step)` gives the taps at lags 0, step, 2·step, … of the training grid, (channels, d_model, length)
    in float32 (float64 in a float64 module). Evaluation changes nothing in the kernel.
    """

    # Whether its formulas hold for parameters with more axes in front; each class says so for itself.
    stacks = False

    def __init__(self, d_model: int, channels: int) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f'd_model must be at least 1, got {d_model}')
        if channels < 1:
            raise ValueError(f'channels must be at least 1, got {channels}')
        self.d_model = d_model
        self.channels = channels

    def forward(self, length: int, step: float = 1.0, cells: bool = False) -> Tensor:
        """Evaluate the taps, (channels, d_model, length).

        Args:
            length: number of taps, at least 1.
            step: their spacing in samples of the training grid, positive and finite.
            cells: centered taps of one side: entry l is the mean of the kernel over [l - ½, l + ½] steps, entry 0 the
                part of it that lies on this side.

        Raises:
            ValueError: for a length or step out of range.
        """
        check_length_and_step(length, step)
        return self.cells(length, step) if cells else self.taps(length, step)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'Kernel':
        super()._apply(flat(fn), recurse)
        return self

    def taps(self, length: int, step: float) -> Tensor:
        """Evaluate point taps; called by `forward` with checked arguments."""
        raise NotImplementedError

    def cells(self, length: int, step: float) -> Tensor:
        """Evaluate centered taps: taps at half the step, summed in pairs."""
        return pair_cells(self.taps(2 * length - 1, step / 2))


def form_of(kernel: nn.Module) -> Hashable:
    """What kernels have in common that `side_by_side` takes together; None: this one is evaluated alone."""
    # The parameters of DataParallel's replicas are no parameters.
    rest = kernel._modules or kernel._buffers or kernel._forward_pre_hooks or kernel._forward_hooks
    if rest or not kernel._parameters or not vars(type(kernel)).get('stacks', False):
        return None
    options = [(name, repr(value)) for name, value in vars(kernel).items() if name[0] != '_']
    parameters = [(name, p if p is None else (p.shape, p.dtype, p.device)) for name, p in kernel._parameters.items()]
    return type(kernel), *options, *parameters


def side_by_side(kernels: Sequence[nn.Module]) -> nn.Module:
    """One kernel that evaluates several of one form at once; the first axis of its taps numbers them."""
    joint = copy.copy(kernels[0])
    of_each = zip(*(kernel._parameters.values() for kernel in kernels), strict=True)
    stacked = (None if each[0] is None else torch.stack(each) for each in of_each)
    joint._parameters = dict(zip(kernels[0]._parameters, stacked, strict=True))
    return joint


class RecurrentKernel(Kernel):
    """A kernel that is also a linear recurrence; running it on a signal equals convolving with the taps.

    A subclass sets `state_shape`, the shape of one clip's state, and gives `discretized`, `advance`,
    `observe` and `response`.
    """

    def init_state(self, batch: int) -> State:
        """Make the zero state {'x': (batch, *state_shape)}."""
        like = next(self.parameters())
        return {'x': torch.zeros(batch, *self.state_shape, device=like.device, dtype=at_least_float32(like.dtype))}

    def system(self, step: float = 1.0) -> list[Tensor]:
        """Discretize at `step`; returns the tensors that `advance` takes. Compute it once before a loop of steps.

        Raises:
            ValueError: for a step that is not positive and finite.
        """
        check_length_and_step(1, step)
        self.refresh()
        dtype = at_least_float32(next(self.parameters()).dtype)
        return [t.to(dtype) for t in self.discretized(step)]

    def discretized(self, step: float) -> list[Tensor]:
        """Compute what `system` returns, in float64."""
        raise NotImplementedError

    @staticmethod
    def advance(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Take one sample u (B, H) from state x (B, *state_shape) -> y (B, c, H) and the new state."""
        raise NotImplementedError

    def systems(self, dt: Tensor) -> list[Tensor]:
        """Discretize at each of the steps dt (…): what `system` holds, float64, with the axes of dt in front."""
        self.refresh()
        found = torch.func.vmap(self.discretized)(wide(dt).flatten())
        return [t.unflatten(0, dt.shape) for t in found]

    def states(self, u: Tensor, x: Tensor, dt: Tensor) -> Tensor:
        """States after all samples at irregular times, (B, L, *state_shape).

        Args:
            u: (B, H, L), where sample k is held over dt[k].
            x: (B, *state_shape), before the first sample.
            dt: (B, L), times between the samples in samples of the training grid, positive.
        """
        systems, states = self.systems(dt), []
        for k, u_k in enumerate(u.unbind(-1)):
            _, x = self.advance(u_k, x, [t[:, k].to(x.dtype) for t in systems])
            states.append(x)
        return torch.stack(states, 1)

    def step(self, u: Tensor, state: State, step: float = 1.0) -> tuple[Tensor, State]:
        """Take one sample u (B, H) -> output (B, c, H) and the new state; `state` itself is left as it was."""
        y, x = self.advance(u, state['x'], self.system(step))
        return y.to(u.dtype), {'x': x}

    def response(self, x: Tensor, length: int, step: float = 1.0) -> Tensor:
        """Zero-input response C Āˡ x of a state x (*state_shape): (channels, d_model, length)."""
        raise NotImplementedError

    @staticmethod
    def observe(x: Tensor, system: list[Tensor]) -> Tensor:
        """Read out a state, C x: x (B, *state_shape) -> y (B, c, H)."""
        raise NotImplementedError

    @staticmethod
    def product(x: Tensor, y: Tensor) -> Tensor:
        """Multiply states (…, *state_shape) entry by entry; entries are complex where they are modes."""
        return x * y

    @torch.jit.unused
    def refresh(self) -> None:
        """Apply reparametrizations that act in a forward pre-hook (torch's pruning, weight norm) now."""
        for hook in self._forward_pre_hooks.values():
            hook(self, ())


class Timescale:
    """A part of kernels whose time is counted by a parameter `log_dt`, (H, 1) or (H, n).

    Args:
        dt_min, dt_max: range of the log-uniform initial timescale, in units of time per sample of the training grid.
        bandlimit: α; modes at or above α/2 cycles per sample of the training grid are masked. None: off.

    Raises:
        ValueError: unless 0 < dt_min <= dt_max < ∞ and the band limit is None or positive.
    """

    log_dt: nn.Parameter
    dt_min: float
    dt_max: float
    bandlimit: float

    def set_timescale(self, dt_min: float, dt_max: float, bandlimit: float | None) -> None:
        check_time(dt_min, dt_max, bandlimit)
        self.dt_min, self.dt_max = float(dt_min), float(dt_max)
        self.bandlimit = math.inf if bandlimit is None else float(bandlimit)

    def reset_timescale(self) -> None:
        """Draw dt, log-uniform in [dt_min, dt_max]."""
        low, high = math.log(self.dt_min), math.log(self.dt_max)
        with torch.no_grad():
            self.log_dt.uniform_(0.0, 1.0).mul_(high - low).add_(low)

    def dt(self, step: float) -> Tensor:
        """Time between two samples, float64."""
        return wide(self.log_dt).exp() * step

    def masked(self, C: Tensor, A_imag: Tensor) -> Tensor:
        """C (c, H, n, 2), zero for modes A_imag (S, n) at α/2 cycles per sample of the training grid or above."""
        if self.bandlimit == math.inf:
            return C
        # (Of two timescales, the last is that of Im A.)
        dt = wide(self.log_dt).exp()
        dt = dt if dt.shape[-1] == A_imag.shape[-1] else dt[..., -1:]
        frequency = dt * expand_ssm(wide(A_imag).abs(), C.shape[-3]) / (2 * math.pi)
        return C * (frequency < self.bandlimit / 2)[..., None].unsqueeze(-4)


class RealPart:
    """A part of kernels whose modes decay: how Re A is parametrized.

    'exp': Re A = -exp(log_A_real), below 0. 'free': A_real itself, which training may turn into growth. 'clip': A_real,
    at most 1e-4 (the version 'clip' of DSS).
    """

    log_A_real: nn.Parameter | None  # noqa: N815
    A_real: nn.Parameter | None
    real_limit: float

    def set_real(self, real: str, parameter: nn.Parameter) -> None:
        """Register the parameter under the name that says what it is. Raises ValueError for an unknown `real`."""
        check_choice('real', real, REAL_PARTS)
        self.real_limit = 1e-4 if real == 'clip' else math.inf
        for name, there in (('log_A_real', real == 'exp'), ('A_real', real != 'exp')):
            self.register_parameter(name, parameter if there else None)  # type: ignore[attr-defined]

    def real_part(self) -> Tensor:
        """Re A (S, n), float64."""
        if self.A_real is None:
            return -wide(self.log_A_real).exp()
        else:  # (TorchScript)
            return wide(self.A_real).clamp(max=self.real_limit)

    def reset_real(self, value: Tensor, rows: slice | None = None) -> None:
        """Set Re A, or some rows of it; where it is exp it is at most -1e-4."""
        rows = slice(None) if rows is None else rows
        with torch.no_grad():
            if self.log_A_real is not None:
                self.log_A_real[rows].copy_((-value).clamp(min=1e-4).log())
            elif self.A_real is not None:
                self.A_real[rows].copy_(value)


REAL_PARTS = ('exp', 'free', 'clip')


def empty_parameters(device: torch.device | str | None, dtype: torch.dtype | None) -> Callable[..., nn.Parameter]:
    """Make a function of sizes that returns an uninitialized parameter."""
    return lambda *shape: nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))


def flat(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A conversion of tensors, without memory formats: those are for pictures, and refuse other numbers of axes."""
    return lambda t: fn(t.reshape(-1)).reshape(t.shape)


def check_state(d_model: int, d_state: int, n_ssm: int) -> None:
    """Raise ValueError unless d_state is even and at least 2, and n_ssm divides d_model."""
    if d_state < 2 or d_state % 2:
        raise ValueError(f'd_state must be even and at least 2 (it counts both of each conjugate pair), got {d_state}')
    check_shared(d_model, n_ssm)


def check_shared(d_model: int, n_ssm: int) -> None:
    """Raise ValueError unless n_ssm divides d_model."""
    if n_ssm < 1 or d_model % n_ssm:
        raise ValueError(f'n_ssm must divide d_model, got n_ssm={n_ssm} and d_model={d_model}')


def check_time(dt_min: float, dt_max: float, bandlimit: float | None) -> None:
    """Raise ValueError unless 0 < dt_min <= dt_max and the bandlimit is None (off) or positive."""
    if not 0 < dt_min <= dt_max < math.inf:
        raise ValueError(f'expected 0 < dt_min <= dt_max, got dt_min={dt_min} and dt_max={dt_max}')
    if bandlimit is not None and not bandlimit > 0:
        raise ValueError(f'bandlimit must be positive (1 is the Nyquist limit of the training grid), got {bandlimit}')


def check_length_and_step(length: int, step: float) -> None:
    """Raise ValueError unless length >= 1 and step is positive and finite, and an exporter can follow."""
    check_exporter()
    if length < 1:
        raise ValueError(f'kernel length must be at least 1, got {length}')
    if not (step > 0.0 and step < float('inf')):
        raise ValueError(f'step must be positive and finite, got {step}')


def check_axis(name: str, length: float, minimum: int) -> None:
    """Raise ValueError unless the length of the axis is known and at least `minimum`."""
    if length == math.inf:
        raise ValueError(
            f"kernel '{name}' spans its axis and needs its length: give the layer a grid or l_max, or "
            "kernel_args={'length': samples of the training grid}"
        )
    if not length >= minimum:
        raise ValueError(f"kernel '{name}' needs an axis of at least {minimum} samples, got length {length}")


def check_choice(name: str, value: str, choices: tuple[str, ...], where: str = '') -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f'unknown {name} {value!r}{where}: expected one of {", ".join(choices)}')
