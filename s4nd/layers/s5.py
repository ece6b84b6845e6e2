"""S5: one state-space system with many inputs and outputs, by an associative scan (arXiv 2208.04933).

x' = Λ x + B̃ u, y = 2 Re(C̃ x) + D u, where all H features drive one diagonal state and all are read from it; with
zero-order hold x_k = Λ̄ x_{k-1} + B̄ u_k. There is no kernel to convolve with (it would be H × H): states are scanned.
Shape legend: B = batch, H = d_model, L = length, N = d_state, n = N/2 stored modes, J = blocks.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd import hippo
from s4nd.kernels.base import check_length_and_step, check_time, eager, wide, zero_order_hold
from s4nd.layers.checks import check_clip, check_sample
from s4nd.ops.scan import diagonal_scan, plain_diagonal_scan
from s4nd.resolution import axis_step, check_grid, warn_if_aliased


class S5(nn.Module):
    """A linear layer over one axis that mixes features, plus a skip D.

    Args:
        d_model: H, number of features.
        grid: (length,) at training; None: the step is 1 unless it is given.
        d_state: N, size of the real state that all features share; N/2 complex modes are stored.
        blocks: J; Λ starts as J copies of the spectrum of HiPPO-N (the normal part of LegS) with N/J states each.
        dt_min, dt_max: range of the log-uniform initial timescales, one a mode, in units of time a sample of the
            training grid.
        bidirectional: adds a scan from the end, with a C of its own. Both sides are centered as those of S4ND: lag l
            holds the system's response over [l - ½, l + ½], lag 0 half a cell of each side.
        bandlimit: α; modes at or above α/2 cycles a sample of the training grid are masked. None: off.
        skip: whether D exists.

    `forward`: (B, H, L) -> (B, H, L), same dtype, any length. `step` in it, in `system` and in the paper (its step
    rescale) is the spacing of the samples relative to the training grid: ½ for twice as many samples. It is grid / L
    where it is not given. `step(x, state)`: one sample; stepping through a clip from `init_state` equals the forward.

    Raises:
        ValueError: for arguments that do not fit each other, an input of another shape, a step that is not positive,
            or stepping a bidirectional layer.
    """

    __jit_unused_properties__ = ['grid']
    bandlimit: Tensor
    _grid: list[int]

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
        bandlimit: float | None = None,
        skip: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f'd_model must be at least 1, got {d_model}')
        if blocks < 1 or d_state % (2 * blocks) or d_state < 4 * blocks:
            raise ValueError(
                f'every one of the blocks needs an even number of at least 4 states, got d_state={d_state} and '
                f'blocks={blocks}'
            )
        check_time(dt_min, dt_max, bandlimit)
        _check_grid(grid)
        self.d_model, self.d_state, self.blocks, self.bidirectional = d_model, d_state, blocks, bidirectional
        self.dt_min, self.dt_max = dt_min, dt_max
        self._initial_bandlimit = math.inf if bandlimit is None else float(bandlimit)
        self._grid = [] if grid is None else list(grid)
        modes = d_state // 2

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.log_dt = parameter(modes)
        self.log_A_real = parameter(modes)
        self.A_imag = parameter(modes)
        self.B = parameter(modes, d_model, 2)
        self.C = parameter(2 if bidirectional else 1, d_model, modes, 2)
        self.register_parameter('D', parameter(d_model) if skip else None)
        # In the state dict, as that of the kernels: re-anchoring changes it together with dt.
        self.register_buffer('bandlimit', torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as published: Λ, V of HiPPO-N in blocks, B̃ = V⁻¹B and C̃ = CV with B and C real and LeCun normal
        (variance 1/H and 1/N), D from N(0, 1), dt log-uniform."""
        w, _, _, V = hippo.nplr('legs', self.d_state // self.blocks)
        place = {'device': V.device, 'dtype': V.real.dtype}
        B = torch.randn(self.blocks, len(V), self.d_model, **place).mul_(self.d_model**-0.5).to(V)
        C = torch.randn(len(self.C), self.d_model, self.blocks, len(V), **place).mul_(self.d_state**-0.5).to(V)
        low, high = math.log(self.dt_min), math.log(self.dt_max)
        with torch.no_grad():
            self.log_A_real.copy_((-w.real).log().repeat(self.blocks))
            self.A_imag.copy_(-w.imag.repeat(self.blocks))
            self.B.copy_(torch.view_as_real((V.mH @ B).flatten(0, 1)))
            self.C.copy_(torch.view_as_real((C @ V).flatten(2)))
            self.log_dt.uniform_(0.0, 1.0).mul_(high - low).add_(low)
            self.bandlimit.fill_(self._initial_bandlimit)
        if self.D is not None:
            nn.init.normal_(self.D)

    @property
    def grid(self) -> tuple[int, ...] | None:
        """(length,) on which the layer was trained; None: it knows none."""
        return tuple(self._grid) or None

    def set_grid(self, grid: tuple[int]) -> None:
        """Re-anchor to another training grid without changing the function: dt and bandlimit change.

        Raises:
            ValueError: if the layer has no grid, or this is not one of one axis.
        """
        _check_grid(grid)
        if not self._grid:
            raise ValueError(f'cannot re-anchor a layer with grid None to {tuple(grid)}')
        factor = self._grid[0] / grid[0]
        with torch.no_grad():
            self.log_dt.add_(math.log(factor))
            self.bandlimit.mul_(factor)
        self._grid = list(grid)

    def forward(self, x: Tensor, step: float | None = None) -> Tensor:
        check_clip(x, self.d_model)
        if step is None:
            step = axis_step(self._grid, 0, x.shape[2])
        check_length_and_step(x.shape[2], step)
        if torch.jit.is_scripting() or x.is_meta:
            return self._filter(x, step)
        if step > 1 and not self.bandlimit.is_meta and not torch.compiler.is_compiling():
            warn_if_aliased(0, float(self.bandlimit), step)
        # Autocast would run the matrix products in half precision.
        with torch.autocast(x.device.type, enabled=False):
            return self._filter(x, step)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """The zero state {'x': (B, n, 2)}, real and imaginary part of every mode."""
        self._check_causal()
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        return {'x': torch.zeros(batch, self.d_state // 2, 2, device=self.C.device, dtype=dtype)}

    def system(self, step: float = 1.0) -> list[Tensor]:
        """The discretized recurrence [Λ̄ (n, 2), B̄ (H, N), C̃ (N, H)] at `step`: compute it once before a loop of steps.

        An axis of N entries holds pairs (Re, Im) of modes; C̃ takes in the factors of y = 2 Re(C̃ x).
        """
        self._check_causal()
        check_length_and_step(1, step)
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        a_re, a_im, B = self._discretize(step)
        return [t.to(dtype) for t in [torch.stack([a_re, a_im], -1), B, self._readout()[0]]]

    def step(
        self, x: Tensor, state: dict[str, Tensor], system: list[Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One sample (B, H) -> (B, H) and the new state; `state` is left as it was. `system` None discretizes anew."""
        check_sample(x, self.d_model)
        a, B, C = self.system() if system is None else system
        before = state['x']
        with torch.autocast(x.device.type, enabled=False):
            drive = (x.to(before.dtype) @ B).unflatten(-1, (-1, 2))
            after = _multiply(a, before) + drive
            y = (after.flatten(1) @ C).to(x.dtype)
        return (y if self.D is None else y + self.D.to(x.dtype) * x), {'x': after}

    def _filter(self, x: Tensor, step: float) -> Tensor:
        u = x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x
        if self.bidirectional:
            y = self._two_sided(u, step)
        else:
            a_re, a_im, B = self._discretize(step)
            y = _out(_scan(a_re, a_im, _in(u, B), False), self._readout()[0])
        if self.D is not None:
            y = y + self.D.to(u.dtype)[:, None] * u
        return y.to(x.dtype)

    def _two_sided(self, u: Tensor, step: float) -> Tensor:
        """What both sides read in the middle of cell k: their states at its edges, half a cell on, and half of u_k."""
        a_re, a_im, B = self._discretize(step)
        h_re, h_im, half = self._discretize(step / 2)
        drive, within = _in(u, B), _in(u, half)  # (B, L, N)
        on = torch.stack([h_re, h_im], -1).to(u.dtype)
        y = torch.zeros_like(u)
        for side, C in enumerate(self._readout()):
            # Shifted by a row: states without the sample itself.
            shifted = F.pad(drive, (0, 0, 1 - 2 * side, 2 * side - 1))
            edge = _scan(a_re, a_im, shifted, side == 1)
            middle = _multiply(on, edge.unflatten(-1, [-1, 2])).flatten(-2) + within
            y = y + _out(middle, C)
        return y

    def _discretize(self, step: float) -> tuple[Tensor, Tensor, Tensor]:
        """Λ̄ (n,) as real and imaginary part, and B̄ (H, N) in pairs, float64."""
        dt = wide(self.log_dt).exp() * step
        a_re, a_im, g_re, g_im = zero_order_hold(-wide(self.log_A_real).exp(), -wide(self.A_imag), dt)
        B = _multiply(torch.stack([g_re, g_im], -1)[:, None], wide(self.B))  # (n, H, 2)
        return a_re, a_im, B.transpose(0, 1).flatten(1)

    def _readout(self) -> list[Tensor]:
        """C̃ (N, H) of each side in pairs (2 Re, -2 Im), modes beyond the bandlimit set to zero, float64."""
        frequency = wide(self.log_dt).exp() * wide(self.A_imag).abs() / (2 * math.pi)
        keep = (frequency < self.bandlimit / 2) * 2.0
        C = wide(self.C) * torch.stack([keep, -keep], -1)
        return [side.flatten(1).T for side in C]

    def _check_causal(self) -> None:
        if self.bidirectional:
            raise ValueError('a bidirectional S5 cannot step: it needs the whole clip')

    def extra_repr(self) -> str:
        return f'{self.d_model}, grid={self.grid}, d_state={self.d_state}, bidirectional={self.bidirectional}'


def _in(u: Tensor, B: Tensor) -> Tensor:
    """u (B, H, L) -> (B, L, N) by B̄ (H, N). (A batched product transposes on its way; a copy would cost more.)"""
    return torch.bmm(u.transpose(1, 2), B.to(u.dtype).expand(u.shape[0], -1, -1))


def _out(x: Tensor, C: Tensor) -> Tensor:
    """x (B, L, N) -> (B, H, L) by C̃ (N, H)."""
    return torch.bmm(C.T.to(x.dtype).expand(x.shape[0], -1, -1), x.transpose(1, 2))


def _scan(a_re: Tensor, a_im: Tensor, drive: Tensor, reverse: bool) -> Tensor:
    """States after all samples, or in reverse before them: Λ̄ (n,), drive (B, L, N) -> (B, L, N), N in pairs."""
    pairs = drive.unflatten(-1, [-1, 2])
    # TorchScript needs the outer condition to stand alone.
    if not torch.jit.is_scripting():  # noqa: SIM102
        if eager(drive):
            x = diagonal_scan(torch.complex(a_re, a_im), torch.view_as_complex(pairs), reverse)
            return torch.view_as_real(x).flatten(-2)
    x_re, x_im = plain_diagonal_scan(a_re, a_im, pairs[..., 0], pairs[..., 1], reverse)
    return torch.stack([x_re, x_im], -1).flatten(-2)


def _multiply(a: Tensor, x: Tensor) -> Tensor:
    """The product of complex numbers as pairs (…, 2)."""
    re = a[..., 0] * x[..., 0] - a[..., 1] * x[..., 1]
    im = a[..., 0] * x[..., 1] + a[..., 1] * x[..., 0]
    return torch.stack([re, im], -1)


def _check_grid(grid: tuple[int] | None) -> None:
    if grid is not None:
        check_grid(grid)
        if len(grid) != 1:
            raise ValueError(f'S5 has one axis: expected a grid of one size, got {tuple(grid)}')
