"""S4ND: a separable state-space convolution over one, two or three axes (arXiv 2210.06583).

Shape legend: B = batch, H = d_model, L1…Ld = size per axis, R = tensor rank, c = channels, K = lags.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.kernels import make_kernel
from s4nd.layers.base import GridLayer, check_signal
from s4nd.layers.together import Request, lag_taps_of
from s4nd.ops import (
    joint_matrix,
    lag_taps,
    observed,
    separable_conv,
    sizes_of,
    toeplitz,
    use_axis_convs,
    use_fused,
    use_toeplitz,
    wrap_taps,
)  # fmt: skip
from s4nd.resolution import axis_steps, warn_if_aliased

CELLS = ('training', 'input', 'published')

# In evaluation, up to as many points, one matrix stands for all axes.
_JOINT_UP_TO = 64


class S4ND(GridLayer):
    """A linear N-D layer whose kernel is an outer product of one continuous kernel per axis, plus a skip D.

    y[c, h, t] = Σ_s K[c, h, t - s] x[h, s] + D[c, h] x[h, t], with K = (1/R) Σ_r Π_τ k_τ^r (equation 4); same size out.
    An input of another size than `grid` is the same scene sampled differently: each axis kernel is evaluated at
    step = grid / size. One NaN in the input makes its whole line of outputs NaN.

    Args:
        d_model: H, number of input features.
        grid: size of each of 1 to 3 axes at training, the unit of all lengths below.
        kernel, init, dt_min, dt_max, bandlimit, bidirectional, l_max, padding_mode, kernel_args: one value, or a tuple
            with one for each axis. kernel is a key of s4nd.kernels.KERNELS. init None is the kernel's own. bandlimit α
            masks modes at or above α/2 cycles per sample of the grid. bidirectional False is causal. l_max: longest
            lag + 1; None: all. padding_mode 'circular' joins the ends of an axis (angles, periodic boundaries).
            kernel_args: further keywords of the kernel's class, such as {'n_ssm': 2}.
        d_state: N of every axis kernel.
        tensor_rank: R, outer products that are averaged.
        channels: c, kernels per feature; features out are c·H, channel-major.
        cell: over what a tap of a two-sided kernel averages it. 'training': one sample of the grid, centered at the
            lag, so that a finer input sees the trained kernel ('input' on a coarser one). 'input': one sample of the
            input.
            'published': nothing; point taps, the backward ones from lag -1 on, for published weights.
        skip: whether D exists.

    Input (B, H, L1, …, Ld), output (B, c·H, L1, …, Ld), of the same dtype, device and memory format. `method`, an
    attribute, is 'auto', 'toeplitz', 'fft' or 'triton', and `exact` says whether half precision and autocast are
    computed in float32 (ops.separable_conv).

    Raises:
        ValueError: for arguments that do not fit each other, and in the forward for an input of the wrong rank or
            number of features, of whole numbers, or with an empty axis.
    """

    bidirectional: list[bool]
    _l_max: list[float]
    _circular: list[bool]

    def __init__(
        self,
        d_model: int,
        grid: Sequence[int] | None = None,
        kernel: str | Sequence[str] = 's4d',
        *,
        d_state: int = 64,
        init: str | Sequence[str | None] | None = None,
        dt_min: float | Sequence[float] = 0.1,
        dt_max: float | Sequence[float] = 1.0,
        bandlimit: float | Sequence[float | None] | None = None,
        bidirectional: bool | Sequence[bool] = True,
        l_max: float | Sequence[float | None] | None = None,
        tensor_rank: int = 1,
        channels: int = 1,
        cell: str = 'training',
        padding_mode: str | Sequence[str] = 'zeros',
        skip: bool = True,
        kernel_args: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        axes = self._count_axes(grid)
        super().__init__(grid, device)
        _check(tensor_rank, channels, cell)
        self.d_model, self.spatial_dims, self.tensor_rank, self.channels = d_model, axes, tensor_rank, channels
        self.cell, self.method, self.exact = cell, 'auto', False
        self.bidirectional = per_axis(bidirectional, axes, 'bidirectional')
        self._circular = _are_circular(per_axis(padding_mode, axes, 'padding_mode'))
        self._l_max = [math.inf if v is None else float(v) for v in per_axis(l_max, axes, 'l_max')]
        if not min(self._l_max) >= 1:
            raise ValueError(f'l_max must be at least 1, got {l_max}')
        given = dict(name=kernel, init=init, dt_min=dt_min, dt_max=dt_max, bandlimit=bandlimit, args=kernel_args)
        of_axis = {name: per_axis(value, axes, name) for name, value in given.items()}
        self.kernels = nn.ModuleList(
            make_kernel(
                d_model=d_model,
                channels=channels * tensor_rank * (2 if self.bidirectional[axis] else 1),
                d_state=d_state,
                length=self._span(axis),
                device=device,
                dtype=dtype,
                **{name: values[axis] for name, values in of_axis.items()},
            )
            for axis in range(axes)
        )
        self._own_length = ['length' in (args or {}) for args in of_axis['args']]
        D = nn.Parameter(torch.empty(channels, d_model, device=device, dtype=dtype)) if skip else None
        self.register_parameter('D', D)
        self._reset_skip()

    def _count_axes(self, grid: Sequence[int] | None) -> int:
        if grid is None:
            raise ValueError('give grid=, the size of each axis in training, such as grid=(32, 32)')
        return len(grid)

    def _span(self, axis: int) -> float:
        """Length of an axis in samples of the grid, for kernels that span it; infinite: unknown."""
        return min(self._l_max[axis], self._grid[axis] if self._grid else math.inf)

    @torch.jit.unused
    def grid_changed(self) -> None:
        """Let kernels that span their axis span the new one."""
        for axis, kernel in enumerate(self.kernels):
            if hasattr(kernel, 'length') and not self._own_length[axis]:
                kernel.length = float(self._span(axis))

    def reset_parameters(self) -> None:
        """Initialize all kernels, and D from N(0, 1)."""
        for kernel in self.kernels:
            kernel.reset_parameters()
        self._reset_skip()

    def _reset_skip(self) -> None:
        if self.D is not None:
            nn.init.normal_(self.D)

    def forward(self, x: Tensor, step: list[float] | None = None) -> Tensor:
        """Convolve x (B, H, L1, …, Ld).

        Args:
            x: (B, H, L1, …, Ld), no axis empty.
            step: spacing of the samples per axis, in samples of the grid; None: grid / size.

        Raises:
            ValueError: for an input of another shape or of whole numbers, and steps that are not positive.
        """
        x = check_signal(x, self.d_model, self.spatial_dims)
        size = sizes_of(x)
        steps = axis_steps(self._grid, size) if step is None else step
        if len(steps) != self.spatial_dims or not min(steps) > 0:
            raise ValueError(f'expected a positive step for each of {self.spatial_dims} axes, got {steps}')
        if observed():
            operators, centers = self.operators(size, steps)
        else:
            operators, centers = self._remembered_operators(x, size, steps)
        u = x if self.channels == 1 else torch.cat([x] * self.channels, 1)
        skip = None if self.D is None else self.D.flatten()
        if len(operators) < self.spatial_dims:  # one matrix for all axes
            return separable_conv(u.flatten(2), operators, centers, self.method, skip, self.exact).reshape(u.shape)
        return separable_conv(u, operators, centers, self.method, skip, self.exact)

    def operators(self, size: list[int], steps: list[float]) -> tuple[list[Tensor], list[int]]:
        """What `ops.separable_conv` takes for an input of this size; a subclass may make matrices of the taps."""
        return self.all_taps(self.lags(size, steps), steps)

    def lags(self, size: list[int], steps: list[float]) -> list[int]:
        """Number of lags per axis and side, the present one included, that an input of this size needs."""
        return size

    def all_taps(self, lags: list[int], steps: list[float]) -> tuple[list[Tensor], list[int]]:
        """Lag taps (R, c·H, K) of each axis, and the index of lag 0 in them.

        Args:
            lags: number of lags per axis and side, the present one included; the size of the input.
            steps: spacing of the samples per axis, in samples of the grid.
        """
        operators: list[Tensor] = []
        centers: list[int] = []
        if observed():
            for axis, kernel in enumerate(self.kernels):
                length, step, width = self._request(axis, lags[axis], steps[axis])
                taps, center = self.lag_taps(kernel(length, step, width == 1.0), self.bidirectional[axis], width)
                operators.append(taps)
                centers.append(center)
        else:
            operators, centers = self._taps_together(lags, steps)
        if self.tensor_rank > 1:
            operators[0] = operators[0] / self.tensor_rank
        for axis in range(self.spatial_dims):
            if self._circular[axis]:
                operators[axis], centers[axis] = wrap_taps(operators[axis], centers[axis], lags[axis])
        return operators, centers

    @torch.jit.unused
    def _taps_together(self, lags: list[int], steps: list[float]) -> tuple[list[Tensor], list[int]]:
        operators, centers = zip(*lag_taps_of(self._requests(lags, steps)), strict=True)
        return list(operators), list(centers)

    @torch.jit.unused
    def requests(self, size: list[int]) -> list[Request]:
        """What the forward pass of an input of this size asks the kernel of each axis for."""
        steps = axis_steps(self._grid, size)
        return self._requests(self.lags(size, steps), steps)

    @torch.jit.unused
    def _requests(self, lags: list[int], steps: list[float]) -> list[Request]:
        return [Request(self, axis, *self._request(axis, lags[axis], steps[axis])) for axis in range(len(lags))]

    def _request(self, axis: int, lags: int, step: float) -> tuple[int, float, float]:
        """What an axis asks its kernel for: number of taps, their step, and the width that a lag averages.

        The width is in samples of the input: 0: none; 1: the kernel averages; above: taps at half the step.
        """
        if self._l_max[axis] / step < lags:
            lags = max(1, int(round(self._l_max[axis] / step)))  # noqa: RUF046 (TorchScript's round gives a float)
        if self.cell == 'published' or not self.bidirectional[axis]:
            return lags, step, 0.0
        width = 1.0 / step if self.cell == 'training' and step < 1.0 else 1.0
        if width > 1.0:
            return 2 * lags - 2 + int(math.ceil(width)), step / 2, width  # noqa: RUF046 (as above)
        return lags, step, width

    def lag_taps(self, taps: Tensor, two_sided: bool, width: float) -> tuple[Tensor, int]:
        """One-sided taps (…, sides·R·c, H, M) -> lag taps (…, R, c·H, K) and the index of lag 0."""
        # Forward kernels come first, then backward ones.
        shape = [2 if two_sided else 1, self.tensor_rank, self.channels * self.d_model, taps.shape[-1]]
        sides = taps.reshape(list(taps.shape[:-3]) + shape).unbind(-4)
        if not two_sided:
            return sides[0], 0
        if width != 1.0:
            return lag_taps(sides[0], sides[1], width > 0.0, width)
        # Lag 0 takes half a cell from each side.
        reach = taps.shape[-1] - 1
        return F.pad(sides[0], [reach, 0]) + F.pad(sides[1].flip(-1), [0, reach]), reach

    def axis_taps(self, axis: int, lags: int, step: float) -> tuple[Tensor, int]:
        """What `all_taps` gives for one axis alone."""
        count, steps = [1] * self.spatial_dims, [1.0] * self.spatial_dims
        count[axis], steps[axis] = lags, step
        operators, centers = self.all_taps(count, steps)
        return operators[axis], centers[axis]

    @torch.jit.unused
    def _remembered_operators(self, x: Tensor, size: list[int], steps: list[float]) -> tuple[list[Tensor], list[int]]:
        """What `operators` gives, and in evaluation, from memory, the matrices where the convolution of x uses them."""
        for kernel, step in zip(self.kernels, steps, strict=True):
            warn_if_aliased(getattr(kernel, 'bandlimit', math.inf), step)
        convs = use_axis_convs(x, self.tensor_rank, self.method, self.exact)
        key = (tuple(size), tuple(steps), self.cell, tuple(self._l_max), self.method, convs)
        return self.remembered('operators', key, self.kernels, lambda: self._matrices(size, steps, convs))

    @torch.jit.unused
    def _matrices(self, size: list[int], steps: list[float], convs: bool) -> tuple[list[Tensor], list[int]]:
        operators, centers = self.operators(size, steps)
        if convs and all(operator.dim() == 3 for operator in operators):
            return operators, centers
        if torch.is_grad_enabled() or use_fused(operators[0].device, operators[0].dtype, size, self.method):
            return operators, centers
        for axis, length in enumerate(size):
            if operators[axis].dim() == 3 and use_toeplitz(size, axis, self.method):
                operators[axis] = toeplitz(operators[axis], centers[axis], length)
        if all(operator.dim() == 4 for operator in operators) and math.prod(size) <= _JOINT_UP_TO:
            return [joint_matrix(operators)], [0]
        return operators, centers

    def extra_repr(self) -> str:
        return f'{self.d_model}, grid={self.grid}, bidirectional={self.bidirectional}, cell={self.cell!r}'


def _check(tensor_rank: int, channels: int, cell: str) -> None:
    for name, value in (('tensor_rank', tensor_rank), ('channels', channels)):
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    if cell not in CELLS:
        raise ValueError(f'unknown cell {cell!r}: expected one of {", ".join(CELLS)}')


def _are_circular(modes: list[str]) -> list[bool]:
    for mode in modes:
        if mode not in ('zeros', 'circular'):
            raise ValueError(f"unknown padding_mode {mode!r}: expected 'zeros' or 'circular'")
    return [mode == 'circular' for mode in modes]


def per_axis(value: Any, axes: int, name: str) -> list[Any]:
    """One value, or a sequence with one for each axis, as a list.

    Raises:
        ValueError: for a sequence of another length.
    """
    if not isinstance(value, (tuple, list)):
        return [value] * axes
    if len(value) != axes:
        raise ValueError(f'{name} must be one value or one for each of {axes} axes, got {value}')
    return list(value)
