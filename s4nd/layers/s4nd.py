"""S4ND: a separable state-space convolution over one, two or three axes (arXiv 2210.06583).

Shape legend: B = batch, C = H = d_model, L1…Ld = size per axis, R = tensor rank, c = channels, O = out_channels,
M = O or c, K = lags.
"""

import math

import torch
from torch import Tensor, nn

from s4nd.kernels import make_kernel
from s4nd.layers.memo import Memo
from s4nd.ops import METHODS, joint_matrix, lag_taps, separable_conv, toeplitz, toeplitz_replicate, use_toeplitz
from s4nd.resolution import axis_step, check_grid, warn_if_aliased

# In evaluation, up to as many points, one matrix stands for all axes.
_JOINT_UP_TO = 64


class S4ND(nn.Module):
    """A linear N-D layer whose kernel is an outer product of one continuous kernel per axis, plus a skip D.

    y[c, h, t] = Σ_s K[c, h, t - s] x[h, s] + D[c, h] x[h, t], with K = (1/R) Σ_r Π_τ k_τ^r; zero padding, same size
    out. An input of another size than `grid` is the same scene sampled differently: each axis kernel is evaluated at
    step = grid / size.

    Args:
        d_model: H, number of input features.
        grid: size of each axis at training; None: the step is always 1.
        spatial_dims: number of axes, where `grid` is None.
        kernel, init, dt_min, dt_max, n_ssm, bandlimit, bidirectional, l_max, padding: one value, or a tuple with one
            for each axis. kernel is a key of s4nd.kernels.KERNELS. init None is the kernel's own. n_ssm: distinct
            (A, B) of a kernel, a divisor of H; None is the kernel's least. bandlimit α masks modes at or above α/2
            cycles a sample of the training grid. bidirectional False is causal. l_max: longest lag + 1, in samples of
            the training grid; None: all. padding: what the signal is beyond its ends, 'zeros', or 'replicate' for what
            it is at them (a constant then stays one; the axis is convolved by matrices at every length).
        d_state: N of every axis kernel.
        tensor_rank: R, outer products that are averaged.
        channels: c, kernels a feature; features out are c·H, channel-major.
        out_channels: O, mixes all features: a kernel for every pair (o, h), summed over h. Then there is no D.
        centered: lag l of a two-sided kernel integrates over [l - ½, l + ½], which makes the layer independent of the
            resolution. False is the published layout, whose backward kernel begins at lag -1.
        window: least width, in samples of the training grid, over which a centered lag averages the kernel (one value,
            or one for each axis). 0: the cell of the grid at hand, exactly. 1: never less than a cell of the training
            grid, so that a finer grid sees no more of the kernel than training did.
        skip: whether D exists.
        method: 'auto', 'toeplitz' or 'fft' (ops.separable_conv).
        kernel_options: further keywords of the kernel's class, or a tuple with those of each axis.

    Input (B, H, L1, …, Ld), output (B, c·H or O, L1, …, Ld), of the same dtype.

    Raises:
        ValueError: for arguments that do not fit each other, and in the forward for an input of the wrong rank or
            number of features, or with an empty axis.
    """

    __jit_unused_properties__ = ['grid', 'window']
    bidirectional: list[bool]
    padding: list[str]
    _grid: list[int]
    _fixed_step: list[float]
    _l_max: list[float]
    _window: list[float]

    def __init__(
        self,
        d_model: int,
        grid: tuple[int, ...] | None = None,
        *,
        spatial_dims: int | None = None,
        kernel: str | tuple[str, ...] = 's4d',
        d_state: int = 64,
        init: str | tuple[str, ...] | None = None,
        dt_min: float | tuple[float, ...] = 0.1,
        dt_max: float | tuple[float, ...] = 1.0,
        n_ssm: int | tuple[int | None, ...] | None = None,
        bandlimit: float | tuple[float | None, ...] | None = None,
        tensor_rank: int = 1,
        bidirectional: bool | tuple[bool, ...] = True,
        channels: int = 1,
        out_channels: int | None = None,
        l_max: float | tuple[float | None, ...] | None = None,
        centered: bool = True,
        window: float | tuple[float, ...] = 0.0,
        padding: str | tuple[str, ...] = 'zeros',
        skip: bool = True,
        method: str = 'auto',
        kernel_options: dict | tuple[dict | None, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.spatial_dims = _count_axes(grid, spatial_dims)
        for name, value in (('tensor_rank', tensor_rank), ('channels', channels), ('out_channels', out_channels)):
            if value is not None and value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        if out_channels is not None and channels != 1:
            raise ValueError(
                f'out_channels={out_channels} mixes features by itself: channels must be 1, got {channels}'
            )
        if method not in METHODS:
            raise ValueError(f"unknown method '{method}': expected one of {', '.join(METHODS)}")
        self.d_model, self.tensor_rank = d_model, tensor_rank
        self.channels, self.out_channels = channels, 0 if out_channels is None else out_channels
        self.centered, self.method = centered, method
        self.bidirectional = _per_axis(bidirectional, self.spatial_dims, 'bidirectional')
        self.padding = _per_axis(padding, self.spatial_dims, 'padding')
        if not set(self.padding) <= {'zeros', 'replicate'}:
            raise ValueError(f"padding must be 'zeros' or 'replicate', got {padding!r}")
        self._grid = [] if grid is None else list(grid)
        self._fixed_step = [0.0] * self.spatial_dims  # 0: follows the size
        self._l_max = [math.inf if v is None else float(v) for v in _per_axis(l_max, self.spatial_dims, 'l_max')]
        if min(self._l_max) < 1:
            raise ValueError(f'l_max must be at least 1, got {l_max}')
        self._window = [float(v) for v in _per_axis(window, self.spatial_dims, 'window')]
        if min(self._window) < 0 or (max(self._window) > 0 and not centered):
            raise ValueError(f'window must not be negative, and 0 unless the taps are centered, got {window}')
        options = [
            _per_axis(value, self.spatial_dims, name)
            for name, value in (
                ('kernel', kernel), ('init', init), ('dt_min', dt_min), ('dt_max', dt_max), ('n_ssm', n_ssm),
                ('bandlimit', bandlimit), ('kernel_options', kernel_options),
            )
        ]  # fmt: skip
        self.kernels = nn.ModuleList(
            make_kernel(
                axis_kernel,
                d_model,
                channels=(self.out_channels or channels) * tensor_rank * (2 if self.bidirectional[axis] else 1),
                d_state=d_state,
                init=axis_init,
                dt_min=low,
                dt_max=high,
                n_ssm=axis_n_ssm,
                bandlimit=axis_bandlimit,
                length=min(self._l_max[axis], math.inf if grid is None else grid[axis]),
                options=axis_options,
                device=device,
                dtype=dtype,
            )
            for axis, (axis_kernel, axis_init, low, high, axis_n_ssm, axis_bandlimit, axis_options) in enumerate(
                zip(*options, strict=True)
            )
        )
        has_skip = skip and out_channels is None
        self.register_parameter(
            'D', nn.Parameter(torch.empty(channels, d_model, device=device, dtype=dtype)) if has_skip else None
        )
        self._memo = Memo()
        self._reset_skip()

    def reset_parameters(self) -> None:
        """Initialize all kernels, and D from N(0, 1)."""
        for kernel in self.kernels:
            kernel.reset_parameters()
        self._reset_skip()

    @property
    def grid(self) -> tuple[int, ...] | None:
        """Sizes on which the layer was trained; None: it knows none."""
        return tuple(self._grid) or None

    @property
    def window(self) -> tuple[float, ...]:
        """Least width of the lag window, in samples of the training grid."""
        return tuple(self._window)

    def set_grid(self, grid: tuple[int, ...]) -> None:
        """Re-anchor to another training grid without changing the function: dt, bandlimit, l_max and window change.

        Raises:
            ValueError: if the layer has no grid, or the number of axes differs.
        """
        if len(grid) != self.spatial_dims or not self._grid:
            raise ValueError(
                f'cannot re-anchor a layer with grid {self.grid} to {tuple(grid)}: '
                f'expected {self.spatial_dims} axes and a layer that has a grid'
            )
        check_grid(grid)
        for axis, kernel in enumerate(self.kernels):
            if grid[axis] != self._grid[axis]:
                kernel.rescale_time(self._grid[axis] / grid[axis])
                self._l_max[axis] *= grid[axis] / self._grid[axis]
                self._window[axis] *= grid[axis] / self._grid[axis]
                self._fixed_step[axis] *= grid[axis] / self._grid[axis]
        self._grid = list(grid)

    def set_step(self, axis: int, step: float | None) -> None:
        """Fix the step of one axis, in samples of the training grid; None, the default: grid / size.

        It says how the input at hand is sampled and is no part of the weights.

        Raises:
            ValueError: no such axis, or a step that is not positive and finite.
        """
        if not 0 <= axis < self.spatial_dims:
            raise ValueError(f'expected an axis from 0 to {self.spatial_dims - 1}, got {axis}')
        if step is not None and not 0 < step < math.inf:
            raise ValueError(f'the step must be positive and finite, or None, got {step}')
        self._fixed_step[axis] = 0.0 if step is None else float(step)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != self.spatial_dims + 2 or x.shape[1] != self.d_model:
            raise ValueError(f'expected (batch, {self.d_model}, {self.spatial_dims} sizes), got shape {list(x.shape)}')
        if x.numel() == 0:
            raise ValueError(f'the input is empty: shape {list(x.shape)}')
        size = list(x.shape[2:])
        if torch.jit.is_scripting():
            taps, centers = self.axis_operators(size)
        else:
            taps, centers = self._remembered_operators(size)
        if self.out_channels > 0:
            return self._mix(x, taps, centers)
        u = x if self.channels == 1 else torch.cat([x] * self.channels, 1)
        return self._convolve(u, taps, centers, None if self.D is None else self.D.flatten())

    def axis_taps(self, size: list[int]) -> tuple[list[Tensor], list[int]]:
        """Lag taps (R, M·H, K) of each axis for an input of this size, and the index of lag 0 in each."""
        taps: list[Tensor] = []
        centers: list[int] = []
        for axis, kernel in enumerate(self.kernels):
            step = self.axis_step(axis, size[axis])
            lags = size[axis]
            if self.padding[axis] == 'replicate':
                # What lies beyond the ends counts too. As far as twice the training grid, whatever of it is here, so
                # that the sum of the taps does not follow the size.
                lags = 1 + max(lags, math.ceil(2 * self._grid[axis] / step) if len(self._grid) > 0 else 2 * lags)
            if self._l_max[axis] / step < lags:
                lags = max(1, int(round(self._l_max[axis] / step)))  # noqa: RUF046 (TorchScript's round gives a float)
            bidirectional = self.bidirectional[axis]
            window = max(1.0, self._window[axis] / step)  # in samples of the grid at hand
            cells = bidirectional and self.centered and window == 1.0
            if cells:
                k = kernel.cells(lags, step)
            elif bidirectional and self.centered:
                k = kernel(2 * lags - 2 + math.ceil(window), step / 2)
            else:
                k = kernel(lags, step)
            # (sides·R·M, H, K) -> (sides, R, M·H, K): forward kernels first, then backward ones.
            k = k.reshape(2 if bidirectional else 1, self.tensor_rank, -1, k.shape[-1])
            if axis == 0:
                k = k / self.tensor_rank
            center = 0
            if cells:
                # Lag 0 takes half a cell from each side.
                two_sided = torch.cat([k[1, ..., 1:].flip(-1), k[0, ..., :1] + k[1, ..., :1], k[0, ..., 1:]], -1)
                center = lags - 1
            elif bidirectional:
                two_sided, center = lag_taps(k[0], k[1], self.centered, window)
            else:
                two_sided = k[0]
            taps.append(two_sided)
            centers.append(center)
        return taps, centers

    def axis_step(self, axis: int, size: int) -> float:
        """Step of an axis that holds `size` samples."""
        fixed = self._fixed_step[axis]
        return fixed if fixed > 0.0 else axis_step(self._grid, axis, size)

    def axis_operators(self, size: list[int]) -> tuple[list[Tensor], list[int]]:
        """What `separable_conv` takes: the taps of `axis_taps`, or matrices (R, M·H, L, L) of axes that replicate."""
        taps, centers = self.axis_taps(size)
        for axis, length in enumerate(size):
            if self.padding[axis] == 'replicate':
                taps[axis] = toeplitz_replicate(taps[axis], centers[axis], length)
        return taps, centers

    @torch.jit.unused
    def _remembered_operators(self, size: list[int]) -> tuple[list[Tensor], list[int]]:
        """What `axis_operators` gives, and in evaluation, from memory, the matrices where the convolution uses them."""
        if self.training or torch.compiler.is_compiling():
            return self.axis_operators(size)
        tensors = [*self.kernels.parameters(), *self.kernels.buffers()]
        key = (tuple(size), self.grid, tuple(self._fixed_step), tuple(self._l_max), self.window, self.method)
        return self._memo.get(key, tensors, lambda: self._operators(size))

    @torch.jit.unused
    def _operators(self, size: list[int]) -> tuple[list[Tensor], list[int]]:
        for axis, kernel in enumerate(self.kernels):
            step = self.axis_step(axis, size[axis])
            if step > 1 and hasattr(kernel, 'bandlimit') and not kernel.bandlimit.is_meta:
                warn_if_aliased(axis, float(kernel.bandlimit), step)
        taps, centers = self.axis_operators(size)
        if torch.is_grad_enabled():
            return taps, centers
        short = [taps[axis].dim() == 4 or use_toeplitz(size, axis, self.method) for axis in range(len(size))]
        for axis, length in enumerate(size):
            if short[axis] and taps[axis].dim() == 3:
                taps[axis] = toeplitz(taps[axis], centers[axis], length)
        if all(short) and math.prod(size) <= _JOINT_UP_TO:
            return [joint_matrix(taps)], [0]
        return taps, centers

    def _convolve(self, u: Tensor, taps: list[Tensor], centers: list[int], skip: Tensor | None) -> Tensor:
        if len(taps) < self.spatial_dims:  # one matrix for all axes
            return separable_conv(u.flatten(2), taps, centers, self.method, skip).reshape(u.shape)
        return separable_conv(u, taps, centers, self.method, skip)

    def _mix(self, x: Tensor, taps: list[Tensor], centers: list[int]) -> Tensor:
        """Every input feature to every output: (B, H, …) -> (B, O, …), summed over H."""
        u = torch.cat([x] * self.out_channels, 1)
        y = self._convolve(u, taps, centers, None)
        return y.unflatten(1, [self.out_channels, self.d_model]).sum(2)

    def _reset_skip(self) -> None:
        if self.D is not None:
            nn.init.normal_(self.D)

    def extra_repr(self) -> str:
        return f'{self.d_model}, grid={self.grid}, bidirectional={self.bidirectional}, method={self.method!r}'


def _count_axes(grid: tuple[int, ...] | None, spatial_dims: int | None) -> int:
    if grid is not None:
        check_grid(grid)
        if spatial_dims not in (None, len(grid)):
            raise ValueError(f'spatial_dims={spatial_dims} contradicts grid={tuple(grid)}')
        return len(grid)
    if spatial_dims not in (1, 2, 3):
        raise ValueError(f'without a grid, spatial_dims must be 1, 2 or 3, got {spatial_dims}')
    return spatial_dims


def _per_axis(value: object, axes: int, name: str) -> list:
    if not isinstance(value, (tuple, list)):
        return [value] * axes
    if len(value) != axes:
        raise ValueError(f'{name} must be one value or one for each of {axes} axes, got {value}')
    return list(value)
