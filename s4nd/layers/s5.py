"""S5: one state-space system with many inputs and outputs, by an associative scan (arXiv 2208.04933).

x' = Λ x + B̃ u, y = 2 Re(C̃ x) + D u, where all H features drive one diagonal state and all are read from it; with
zero-order hold or the bilinear rule x_k = Λ̄ x_{k-1} + B̄ u_k. There is no kernel to convolve with (it would be H × H):
states are scanned.
Shape legend: B = batch, H = d_model, L = length, N = d_state, n = N/2 stored modes (N without conj_sym), J = blocks.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd import hippo
from s4nd.kernels.base import Timescale, check_choice, check_length_and_step, empty_parameters, flat
from s4nd.kernels.diagonal import DISCRETIZATIONS
from s4nd.layers.base import GridLayer, check_dt, check_sample, check_signal
from s4nd.layers.streaming import State
from s4nd.ops import (
    at_least_float32,
    diagonal_scan,
    discretize,
    exact_bmm,
    observed,
    values_are_known,
    varying_scan,
    wide,
)
from s4nd.resolution import axis_steps, warn_if_aliased

CELLS = ('input', 'published')
C_INITS = ('trunc_standard_normal', 'lecun_normal', 'complex_normal')


class S5(Timescale, GridLayer):
    """A linear layer over one axis that mixes features, plus a skip D.

    Args:
        d_model: H, number of features.
        grid: (length,) at training; None: the step is 1 unless it is given.
        d_state: N, size of the real state that all features share; N/2 complex modes are stored.
        blocks: J; Λ starts as J copies of the spectrum of HiPPO-N (the normal part of LegS) with N/J states each.
        dt_min, dt_max: range of the log-uniform initial timescales, one per mode, in units of time per sample of
            the training grid.
        bidirectional: adds a scan from the end, with a C of its own.
        cell: of a two-sided layer. 'input': both sides are centered as those of S4ND, lag l holds the system's response
            over [l - ½, l + ½], lag 0 half a cell of each side. 'published': both scans count the present sample, so
            that lag 0 counts twice.
        discretization: 'zoh' or 'bilinear'.
        C_init: 'trunc_standard_normal' (|C̃|² has the mean 2/N), 'lecun_normal' (2/NH), both C̃ = CV, or
            'complex_normal' (1, no V).
        conj_sym: whether one mode of each conjugate pair is stored and y = 2 Re(C̃ x); else N of them and y = Re(C̃ x).
        bandlimit: α; modes at or above α/2 cycles per sample of the training grid are masked. None: off.
        skip: whether D exists.

    `forward`: (B, H, L) -> (B, H, L), same dtype, any length. `step` in it, in `system` and in the paper (its step
    rescale) is the spacing of the samples relative to the training grid: ½ for twice as many samples. It is grid / L
    where it is not given, and may differ from sample to sample. `step(x, state)`: one sample; stepping through a clip
    from `init_state` equals the forward.

    Raises:
        ValueError: for arguments that do not fit each other, an input of another shape, a step that is not positive or
            of another shape, or stepping a bidirectional layer.
    """

    def __init__(
        self,
        d_model: int,
        grid: tuple[int] | None = None,
        *,
        d_state: int = 64,
        blocks: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bidirectional: bool = False,
        cell: str = 'input',
        discretization: str = 'zoh',
        C_init: str = 'trunc_standard_normal',
        conj_sym: bool = True,
        bandlimit: float | None = None,
        skip: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_grid(grid)
        super().__init__(grid, device)
        if d_model < 1:
            raise ValueError(f'd_model must be at least 1, got {d_model}')
        if blocks < 1 or d_state % (2 * blocks) or d_state < 4 * blocks:
            raise ValueError(
                f'every one of the blocks needs an even number of at least 4 states, got d_state={d_state} and '
                f'blocks={blocks}'
            )
        check_choice('cell', cell, CELLS)
        check_choice('discretization', discretization, DISCRETIZATIONS)
        check_choice('C_init', C_init, C_INITS)
        self.set_timescale(dt_min, dt_max, bandlimit)
        self.d_model, self.d_state, self.blocks, self.bidirectional = d_model, d_state, blocks, bidirectional
        self.cell, self.bilinear, self.C_init, self.conj_sym = cell, discretization == 'bilinear', C_init, conj_sym
        modes, empty = d_state // 2 if conj_sym else d_state, empty_parameters(device, dtype)
        self.log_dt = empty(modes)
        self.log_A_real = empty(modes)
        self.A_imag = empty(modes)
        self.B = empty(modes, d_model, 2)
        self.C = empty(2 if bidirectional else 1, d_model, modes, 2)
        self.register_parameter('D', empty(d_model) if skip else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as the released code does: Λ, V of HiPPO-N in blocks; B̃ = V⁻¹B with B real and of variance 1/N
        whatever H is; C̃ by `C_init`; D from N(0, 1), dt log-uniform."""
        w, _, _, V = hippo.nplr('legs', self.d_state // self.blocks)
        if not self.conj_sym:
            w, V = torch.cat([w, w.conj()]), torch.cat([V, V.conj()], 1)
        size, sides = self.d_state, len(self.C)
        B = _normal(self.blocks, len(V), self.d_model, std=size**-0.5).to(V)
        if self.C_init == 'complex_normal':
            parts = torch.randn(2, sides, self.d_model, len(self.log_dt), device=V.device, dtype=V.real.dtype)
            C = torch.complex(*parts.mul_(0.5**0.5))
        else:
            std = (size * (self.d_model if self.C_init == 'lecun_normal' else 1)) ** -0.5
            C = torch.complex(*_normal(2, sides, self.d_model, self.blocks, len(V), std=std)) @ V
        with torch.no_grad():
            self.log_A_real.copy_((-w.real).log().repeat(self.blocks))
            self.A_imag.copy_(-w.imag.repeat(self.blocks))
            self.B.copy_(torch.view_as_real((V.mH @ B).flatten(0, 1)))
            self.C.copy_(torch.view_as_real(C.reshape(sides, self.d_model, -1)))
        self.reset_timescale()
        if self.D is not None:
            nn.init.normal_(self.D)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'S5':
        super()._apply(flat(fn), recurse)
        return self

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        step: float | Tensor | None = None,
        *,
        dt: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Filter x (B, H, L); with a state, go on from it and return the output and the state after x.

        Args:
            x: (B, H, L), L >= 1.
            state: from `init_state` or an earlier call; None: there is nothing before x, and no state is returned.
            step: spacing of the samples in samples of the grid: a number, or for samples at irregular times a tensor
                (L,) or (B, L), where sample k is held over step[k]. None: grid / L, but 1 where a state is given.
            dt: (B, L), the same steps under the name that all layers have for them; in place of step.

        Raises:
            ValueError: for an input of another shape or of whole numbers, steps that do not fit, and dt beside step.
        """
        x = check_signal(x, self.d_model, 1)
        if dt is not None:
            check_dt(dt, x)
            if step is not None:
                raise ValueError(f'dt stands in place of step: expected step=None beside it, got {step}')
            step = dt
        if step is None:
            step = axis_steps(self._grid, [x.shape[2]])[0] if state is None else 1.0
        self._check_step(step, x)
        if state is None:
            return self._filter(x, step, None)[0]
        self._check_causal()
        y, after = self._filter(x, step, state['x'])
        return y, {'x': after.to(state['x'].dtype)}

    def _check_step(self, step: float | Tensor, x: Tensor) -> None:
        if isinstance(step, Tensor):
            sizes = list(step.shape)
            if sizes != [x.shape[2]] and sizes != [x.shape[0], x.shape[2]]:
                raise ValueError(
                    f'step must be a number, ({x.shape[2]},) or ({x.shape[0]}, {x.shape[2]}), got shape {sizes}'
                )
            if not values_are_known(step) or not step.numel():
                return
            if not (step > 0).all():
                raise ValueError(f'steps must be positive, got {float(step.min())}')
            warn_if_aliased(self.bandlimit, float(step.max()))
            return
        check_length_and_step(x.shape[2], step)
        if not observed():
            warn_if_aliased(self.bandlimit, step)

    def init_state(self, batch: int) -> State:
        """Make the zero state {'x': (B, n, 2)}, real and imaginary part of every mode."""
        self._check_causal()
        dtype = at_least_float32(self.C.dtype)
        return {'x': torch.zeros(batch, len(self.log_dt), 2, device=self.C.device, dtype=dtype)}

    def system(self, step: float = 1.0) -> list[Tensor]:
        """Discretize: [Λ̄ (n, 2), B̄ (H, N), C̃ (N, H)] at `step`; compute it once before a loop of steps.

        An axis of N entries holds pairs (Re, Im) of modes; C̃ takes in the factors of y = 2 Re(C̃ x).
        """
        self._check_causal()
        check_length_and_step(1, step)
        dtype = at_least_float32(self.C.dtype)
        a, gain = self._discretize(step)
        return [t.to(dtype) for t in [a, self._input(gain), self._readout()[0]]]

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, H) -> (B, H) and the new state; `state` is left as it was.

        `system` None discretizes anew at step 1.
        """
        check_sample(x, self.d_model)
        a, B, C = self.system() if system is None else system
        before = state['x']
        drive = exact_bmm(x.to(before.dtype)[None], B[None])[0].unflatten(-1, (-1, 2))
        after = _multiply(a, before) + drive
        y = exact_bmm(after.flatten(1)[None], C[None])[0].to(x.dtype)
        return (y if self.D is None else y + self.D.to(x.dtype) * x), {'x': after}

    def _filter(self, x: Tensor, step: float | Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output and the last state (B, n, 2) from the state before x, which a two-sided layer does not have."""
        u = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.bidirectional:
            y, last = self._two_sided(u, step), u.new_zeros(())
        else:
            a, gain = self._discretize(step)
            drive = self._drive(u, gain)  # (B, L, n, 2)
            if state is not None:
                before = a if a.dim() == 2 else a[..., 0, :, :]
                first = drive[:, :1] + _multiply(before.to(u.dtype), state.to(u.dtype))[:, None]
                drive = torch.cat([first, drive[:, 1:]], 1)
            states = _scan(a, drive, False)
            y, last = _out(states, self._readout()[0]), states[:, -1]
        if self.D is not None:
            y = y + self.D.to(u.dtype)[:, None] * u
        return y.to(x.dtype), last

    def _two_sided(self, u: Tensor, step: float | Tensor) -> Tensor:
        """Both scans. Centered, a side reads in the middle of cell k: its state at the edge, half a cell on, and half
        of u_k."""
        a, gain = self._discretize(step)
        drive = self._drive(u, gain)  # (B, L, n, 2)
        y = torch.zeros_like(u)
        if self.cell == 'published':
            for side, C in enumerate(self._readout()):
                y = y + _out(_scan(a, drive, side == 1), C)
            return y
        on, half = self._discretize(step / 2)
        within = self._drive(u, half)
        for side, C in enumerate(self._readout()):
            # Shifted by a row: states without the sample itself.
            shift = (0, 0, 0, 0, 1 - 2 * side, 2 * side - 1)
            edge = _scan(a if a.dim() == 2 else F.pad(a, shift), F.pad(drive, shift), side == 1)
            y = y + _out(_multiply(on.to(u.dtype), edge) + within, C)
        return y

    def _discretize(self, step: float | Tensor) -> tuple[Tensor, Tensor]:
        """Λ̄ and the gain of B̃ as pairs (n, 2), or (…, L, n, 2) for steps (…, L); float64."""
        dt = self.dt(1.0) * (wide(step)[..., None] if isinstance(step, Tensor) else step)
        a_re, a_im, g_re, g_im = discretize(dt, -wide(self.log_A_real).exp(), -wide(self.A_imag), self.bilinear)
        return torch.stack([a_re, a_im], -1), torch.stack([g_re, g_im], -1)

    def _input(self, gain: Tensor) -> Tensor:
        """B̄ (H, N) in pairs, float64."""
        return _multiply(gain[:, None], wide(self.B)).transpose(0, 1).flatten(1)

    def _drive(self, u: Tensor, gain: Tensor) -> Tensor:
        """B̄ u of every sample, (B, L, n, 2)."""
        if gain.dim() == 2:
            return _in(u, self._input(gain))
        return _multiply(gain.to(u.dtype), _in(u, wide(self.B).transpose(0, 1).flatten(1)))

    def _readout(self) -> list[Tensor]:
        """C̃ (N, H) of each side in pairs (Re, -Im), twice them with conj_sym, masked by the band limit; float64."""
        frequency = self.dt(1.0) * wide(self.A_imag).abs() / (2 * math.pi)
        keep = (frequency < self.bandlimit / 2) * (2.0 if self.conj_sym else 1.0)
        C = wide(self.C) * torch.stack([keep, -keep], -1)
        return [side.flatten(1).T for side in C]

    def _check_causal(self) -> None:
        if self.bidirectional:
            raise ValueError('a bidirectional S5 cannot step: it needs the whole clip')

    def extra_repr(self) -> str:
        return f'{self.d_model}, grid={self.grid}, d_state={self.d_state}, bidirectional={self.bidirectional}'


def _in(u: Tensor, B: Tensor) -> Tensor:
    """u (B, H, L) -> (B, L, n, 2) by B̄ (H, N). (A batched product transposes on its way; a copy would cost more.)"""
    y = exact_bmm(u.transpose(1, 2), B.to(u.dtype).expand(u.shape[0], -1, -1))
    return y.unflatten(-1, (B.shape[1] // 2, 2))


def _out(x: Tensor, C: Tensor) -> Tensor:
    """x (B, L, n, 2) -> (B, H, L) by C̃ (N, H)."""
    return exact_bmm(C.T.to(x.dtype).expand(x.shape[0], -1, -1), x.flatten(-2).transpose(1, 2))


def _scan(a: Tensor, drive: Tensor, reverse: bool) -> Tensor:
    """States after all samples, or in reverse before them: Λ̄ (n, 2) or (…, L, n, 2), drive (B, L, n, 2) -> the same."""
    if a.dim() == 2:
        return diagonal_scan(a[:, 0], a[:, 1], drive, reverse)
    return varying_scan(a, drive, reverse)


def _normal(*shape: int, std: float) -> Tensor:
    """Normal numbers without those beyond two deviations, as jax draws them, of the deviation `std`; float64."""
    # 0.8796… is the deviation of a normal variable cut at ±2.
    numbers = torch.empty(*shape, dtype=torch.float64, device=torch.device('cpu'))
    return nn.init.trunc_normal_(numbers, a=-2.0, b=2.0).mul_(std / 0.87962566103423978)


def _multiply(a: Tensor, x: Tensor) -> Tensor:
    """The product of complex numbers as pairs (…, 2)."""
    re = a[..., 0] * x[..., 0] - a[..., 1] * x[..., 1]
    im = a[..., 0] * x[..., 1] + a[..., 1] * x[..., 0]
    return torch.stack([re, im], -1)


def _check_grid(grid: tuple[int] | None) -> None:
    if grid is not None and len(grid) != 1:
        raise ValueError(f'S5 has one axis: expected a grid of one size, got {tuple(grid)}')
