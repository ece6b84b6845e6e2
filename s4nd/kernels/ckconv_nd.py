"""FlexConv, CCNN: one coordinate network over all axes, a kernel that is not separable (arXiv 2110.08059, 2206.03398).

Shape legend: see base.py; K = lags of an axis, D = number of axes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.kernels.base import check_axis, check_length_and_step
from s4nd.kernels.ckconv import INITIAL_WIDTH, SIREN, MAGNet, check_network
from s4nd.ops import at_least_float32, values_are_known, wide

# The kernel ends where its mask falls below this.
CROP = 0.1


class CKConvKernelND(nn.Module):
    """A coordinate network over all axes at once, times a Gaussian mask about lag 0 with a trained width per axis.

    Lag l of axis τ stands at x_τ = l·step_τ / length_τ, both signs, so that [-1, 1]^D holds all lags. A tap is the
    function in the middle of its cell times the volume of the cell: on another grid the same function is sampled more
    or less densely; cells larger than those of the training grid are sums over smaller parts. The kernel ends where the
    mask of an axis falls below 0.1 (FlexConv), inside a cell or not: a cell on the border counts by its share. Kernels
    are divided by their root mean square norm at initialization, which is kept as a buffer.

    Args:
        d_model: H, number of features.
        lengths: of the axes, in samples of the training grid, at least 2 each.
        network, mask, hidden: as CKConvKernel.
        omega_0: of the network. None: 30 for 'siren'; for 'magnet', on each axis, such that the products of its
            filters begin below the Nyquist limit of the training grid (length / 2 cycles per unit).

    Raises:
        ValueError: as CKConvKernel.
    """

    norm: Tensor
    lengths: list[float]

    def __init__(
        self,
        d_model: int,
        lengths: Sequence[float],
        *,
        network: str = 'magnet',
        mask: bool = True,
        hidden: int = 32,
        omega_0: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f'd_model must be at least 1, got {d_model}')
        for length in lengths:
            check_axis('ckconv', length, 2)
        check_network(network, hidden)
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_model, self.lengths = d_model, [float(length) for length in lengths]
        self.reach = math.sqrt(-2 * math.log(CROP))  # where the kernel ends, in widths of the mask
        dims = len(self.lengths)
        if network == 'siren':
            self.network = SIREN(dims, hidden, d_model, 30.0 if omega_0 is None else omega_0, **dd)
        else:
            nyquist = [length / 22 for length in self.lengths]
            self.network = MAGNet(dims, hidden, d_model, nyquist if omega_0 is None else omega_0, **dd)
        self.register_buffer('norm', torch.empty((), **dd))
        self.register_parameter('log_width', nn.Parameter(torch.empty(dims, **dd)) if mask else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as CKConvKernel: the network, the norm that it gives, the mask (not below a sample)."""
        self.network.reset_parameters()
        with torch.no_grad():
            if self.log_width is not None:
                widths = [math.log(max(INITIAL_WIDTH, 1 / length)) for length in self.lengths]
                self.log_width.copy_(torch.tensor(widths))
            self.norm.fill_(1.0)
            taps = self.forward([math.ceil(length) for length in self.lengths], [1.0] * len(self.lengths))
            self.norm.copy_(taps.flatten(1).square().sum(-1).mean().sqrt())

    def forward(self, lags: list[int], steps: list[float]) -> Tensor:
        """Taps (d_model, K_1, …, K_D) at lags of both signs, lag 0 in the middle; K_τ = 2 lags_τ - 1 or less.

        An axis is cut where the kernel ends, except in graphs that cannot depend on values (compiled, exported), which
        hold the zeros.

        Raises:
            ValueError: unless each axis has lags >= 1 and a positive step.
        """
        weight = self.network.out.weight
        axes: list[Tensor] = []
        windows: list[Tensor] = []
        shape: list[int] = [self.d_model]
        for axis in range(len(self.lengths)):
            check_length_and_step(lags[axis], steps[axis])
            cell, last = steps[axis] / self.lengths[axis], lags[axis] - 1
            if self.log_width is not None and values_are_known(weight):
                end = self.reach * math.exp(float(self.log_width[axis].detach()))
                last = min(last, int(math.ceil(end / cell + 0.5)) - 1)  # noqa: RUF046 (a float in TorchScript)
            parts = 2 * (int(math.ceil(steps[axis] - 1e-6)) // 2) + 1  # noqa: RUF046
            side = parts * last + parts // 2
            x = torch.arange(-side, side + 1, device=weight.device, dtype=wide(weight[:0]).dtype) * (cell / parts)
            axes.append(x)
            windows.append(self._window(x, cell / parts, axis))
            shape += [2 * last + 1, parts]
        points = torch.stack(torch.meshgrid(axes, indexing='ij'), -1)  # (K_1, …, K_D, D)
        taps = self.network(points.flatten(0, -2)).T.reshape([self.d_model] + [x.shape[0] for x in axes])
        for axis, window in enumerate(windows):
            taps = taps * window.reshape([-1] + [1] * (len(axes) - 1 - axis))
        taps = taps.reshape(shape).sum([2 * axis + 2 for axis in range(len(axes))])
        return (taps / wide(self.norm)).to(at_least_float32(weight.dtype))

    def _window(self, x: Tensor, cell: float, axis: int) -> Tensor:
        """The mask at the middles of cells, times their width inside the kernel's reach."""
        if self.log_width is None:
            return torch.full_like(x, cell)
        width = wide(self.log_width[axis]).exp()
        end = self.reach * width
        inside = torch.minimum(x + cell / 2, end) - torch.maximum(x - cell / 2, -end)
        return torch.exp(-0.5 * (x / width).square()) * inside.clamp(min=0.0)
