"""FlexConv, CCNN: one coordinate network over all axes, a kernel that is not separable (arXiv 2110.08059, 2206.03398).

Shape legend: see base.py; K = lags of an axis, D = number of axes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.kernels.base import check_axis, check_length_and_step
from s4nd.kernels.ckconv import INITIAL_REACH, INITIAL_WIDTH, SIREN, MAGNet, check_network, mean_frequency
from s4nd.ops import at_least_float32, values_are_known, wide


class CKConvKernelND(nn.Module):
    """A coordinate network over all axes at once, times a Gaussian mask about lag 0 with a trained width per axis.

    On each axis n points are spread over [-1, 1], h = 2 / (n - 1) apart. Centered kernels have lag 0 at 0, and lag l at
    -l·h (as a cross-correlation has it); causal ones have lag 0 at 1 and lag l at 1 - l·h. At another step the same
    function is sampled every step·h, and taps are multiplied by the step, so that sums over lags stay; cells larger
    than those of the training grid are averages over smaller parts. On the training grid the last lag is that before
    the mask falls below `crop`, or ±1; at other steps the kernel ends there too, and a cell on its border counts by its
    share.

    Args:
        d_model: H, number of features.
        lengths: of the axes, in samples of the training grid, at least 2 each.
        network, mask, hidden, layers: as CKConvKernel.
        omega_0: of the network. None: 30 for 'siren'; for 'magnet', on each axis, such that the products of its filters
            begin below the Nyquist limit of the training grid. (Published, by data set: 500 to 4200.)
        points: n, one number or one per axis. None: the length of the axis; odd, where not causal, so one more for an
            even length.
        causal: lags from 0 on; for one axis.
        crop: the mask's value where the kernel ends; None: it ends at ±1 only.

    Raises:
        ValueError: as CKConvKernel, for a causal kernel of several axes, and for points or crop out of range.
    """

    lengths: list[float]
    points: list[int]
    extent: float

    def __init__(
        self,
        d_model: int,
        lengths: Sequence[float],
        *,
        network: str = 'magnet',
        mask: bool = True,
        hidden: int = 32,
        layers: int = 3,
        omega_0: float | None = None,
        points: int | Sequence[int] | None = None,
        causal: bool = False,
        crop: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f'd_model must be at least 1, got {d_model}')
        for length in lengths:
            check_axis('ckconv', length, 2)
        check_network(network, hidden)
        if causal and len(lengths) != 1:
            raise ValueError(f'a causal kernel has one axis, got {len(lengths)}')
        if crop is not None and not 0 < crop < 1:
            raise ValueError(f'crop must be between 0 and 1, or None, got {crop}')
        dims = len(lengths)
        # Empty: they follow from the lengths.
        self.points = [] if points is None else [points] * dims if isinstance(points, int) else list(points)
        if points is not None and (len(self.points) != dims or min(self.points) < 2):
            raise ValueError(f'points must be at least 2, one number or one for each of {dims} axes, got {points}')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_model, self.lengths, self.causal = d_model, [float(length) for length in lengths], causal
        # Where the kernel ends, in widths of the mask.
        self.extent = math.inf if crop is None else math.sqrt(-2 * math.log(crop))
        near = INITIAL_REACH * max(self._initial_widths()) / INITIAL_WIDTH
        centers = (1.0 - near, 1.0) if causal else (-near, near)
        if network == 'siren':
            self.network = SIREN(dims, hidden, d_model, 30.0 if omega_0 is None else omega_0, layers, **dd)
        else:
            # Half a cycle per sample.
            nyquist = [1 / (2 * h * mean_frequency(layers)) for h in self.spacings()]
            self.network = MAGNet(dims, hidden, d_model, nyquist if omega_0 is None else omega_0, layers, centers, **dd)
        self.register_parameter('log_width', nn.Parameter(torch.empty(dims, **dd)) if mask else None)
        self.reset_parameters()

    def spacings(self) -> list[float]:
        """h of each axis: what a sample of the training grid is in coordinates."""
        found: list[float] = []
        for axis, length in enumerate(self.lengths):
            n = int(math.ceil(length))  # noqa: RUF046 (a float in TorchScript)
            if len(self.points) > 0:
                n = self.points[axis]
            elif not self.causal:
                n += 1 - n % 2
            found.append(2.0 / (n - 1))
        return found

    @torch.jit.unused
    def _initial_widths(self) -> list[float]:
        """0.075, but on short axes not below a sample: lag 0 alone would be sin(0)."""
        return [max(INITIAL_WIDTH, h) for h in self.spacings()]

    @torch.jit.unused
    def reset_parameters(self) -> None:
        """Initialize the mask and the network, whose output is divided by the root of the number of taps."""
        self.network.reset_parameters()
        count = 1
        widths = self._initial_widths()
        for h, width in zip(self.spacings(), widths, strict=True):
            reach = width * self.extent if self.log_width is not None else math.inf
            last = _last_lag(h, reach, self.causal)
            count *= last + 1 if self.causal else 2 * last + 1
        with torch.no_grad():
            if self.log_width is not None:
                self.log_width.copy_(torch.tensor([math.log(width) for width in widths]))
            self.network.out.weight.div_(math.sqrt(count))

    def forward(self, lags: list[int], steps: list[float]) -> Tensor:
        """Taps (d_model, K_1, …, K_D) at lags of both signs, lag 0 in the middle; K_τ = 2 lags_τ - 1 or less.

        An axis is cut where the kernel ends, except on a GPU and in graphs that cannot depend on values (compiled,
        exported), which hold the zeros. Of a causal kernel negative lags are zeros.

        Raises:
            ValueError: unless each axis has lags >= 1 and a positive step.
        """
        weight = self.network.out.weight
        axes: list[Tensor] = []
        windows: list[Tensor] = []
        shape: list[int] = [self.d_model]
        for axis, h in enumerate(self.spacings()):
            check_length_and_step(lags[axis], steps[axis])
            step, last = steps[axis], lags[axis] - 1
            parts = 2 * (int(math.ceil(step - 1e-6)) // 2) + 1  # noqa: RUF046 (a float in TorchScript)
            part = step / parts  # of a sample of the training grid
            end = self._end(axis, h)
            if values_are_known(weight):
                reached = int(math.ceil(float(end) / part + 0.5)) - 1  # noqa: RUF046
                last = min(last, (reached + parts // 2) // parts)
            side = parts * last + parts // 2
            lag = torch.arange(-side, side + 1, device=weight.device, dtype=wide(weight[:0]).dtype)
            axes.append((1.0 if self.causal else 0.0) - lag * (part * h))
            windows.append(self._window(lag, part, h, end, axis))
            shape += [2 * last + 1, parts]
        points = torch.stack(torch.meshgrid(axes, indexing='ij'), -1)  # (K_1, …, K_D, D)
        taps = self.network(points.flatten(0, -2)).T.reshape([self.d_model] + [x.shape[0] for x in axes])
        for axis, window in enumerate(windows):
            taps = taps * window.reshape([-1] + [1] * (len(axes) - 1 - axis))
        taps = taps.reshape(shape).sum([2 * axis + 2 for axis in range(len(axes))])
        return taps.to(at_least_float32(weight.dtype))

    def _end(self, axis: int, h: float) -> Tensor:
        """Where the kernel ends, in samples of the training grid: half a sample beyond the last lag that it has there.

        `_last_lag`, as a tensor for graphs that cannot depend on values.
        """
        whole = (2.0 if self.causal else 1.0) / h + 1e-6
        like = self.network.out.weight.detach()
        last = torch.full([], whole, device=like.device, dtype=wide(like[:0]).dtype).floor()
        if self.log_width is not None and self.extent < math.inf:
            reach = wide(self.log_width[axis].detach()).exp() * self.extent
            if self.causal:
                last = last - torch.floor((2.0 - reach) / h + 1e-8).clamp(min=0.0)
            else:
                last = torch.where(reach < 1.0, torch.ceil(reach / h + 1e-8) - 1, last)
        return last + 0.5

    def _window(self, lag: Tensor, part: float, h: float, end: Tensor, axis: int) -> Tensor:
        """The mask at lags in parts of a sample, times the share of a part that lies inside the kernel's end."""
        window = (end / part - lag.abs() + 0.5).clamp(0.0, 1.0) * part
        if self.causal:
            window = window * (lag >= 0)
        if self.log_width is None:
            return window
        return window * torch.exp(-0.5 * (lag * (part * h) / wide(self.log_width[axis]).exp()).square())


def _last_lag(h: float, reach: float, causal: bool) -> int:
    """The last lag at step 1, by the published rule, of points h apart and a mask that reaches `reach` from lag 0.

    (1e-8 keeps a reach that is a whole number of points where it belongs.)
    """
    whole = math.floor((2.0 if causal else 1.0) / h + 1e-6)
    if causal:
        return whole - (math.floor((2.0 - reach) / h + 1e-8) if reach < 2.0 else 0)
    return math.ceil(reach / h + 1e-8) - 1 if reach < 1.0 else whole
