"""CKConv in N dimensions: a convolution whose kernel is a network of the coordinates (arXiv 2102.02611, 2110.08059).

Shape legend: B = batch, H = d_model, L1…Ld = size per axis, K = lags.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from s4nd.kernels.ckconv_nd import CKConvKernelND
from s4nd.layers.base import GridLayer, check_signal
from s4nd.ops import full_conv, observed
from s4nd.resolution import axis_steps


class CKConv(GridLayer):
    """y[h, t] = Σ_s K[h, t - s] x[h, s] + bias[h], where K is one function of all axes: it need not be separable.

    An input of another size than `grid` is the same scene sampled differently: the kernel is evaluated at
    step = grid / size. (One coordinate network per axis: `S4ND(kernel='ckconv')`.)

    Args:
        d_model: H, number of features; each has a kernel of its own.
        grid: size of each of 1 to 3 axes at training, at least 2 each.
        network: 'magnet' (FlexConv, CCNN) or 'siren' (CKConv).
        mask: whether the kernel has a Gaussian mask of trained width, and ends with it (FlexConv).
        hidden, layers, omega_0, points, causal, crop: see `CKConvKernelND`.
        out_channels: O; None: depthwise. A number: every output has a kernel per input, (B, O, L1, …, Ld) out.

    Input (B, H, L1, …, Ld), output the same shape and dtype.

    Raises:
        ValueError: for arguments out of range, an axis too short for a network, and in the forward for an input of the
            wrong rank or number of features, or with an empty axis.
    """

    def __init__(
        self,
        d_model: int,
        grid: tuple[int, ...],
        *,
        network: str = 'magnet',
        mask: bool = True,
        hidden: int = 32,
        layers: int = 3,
        omega_0: float | None = None,
        points: int | Sequence[int] | None = None,
        causal: bool = False,
        crop: float | None = 0.1,
        out_channels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(grid, device)
        if out_channels is not None and out_channels < 1:
            raise ValueError(f'out_channels must be at least 1, or None, got {out_channels}')
        self.d_model, self.out_channels = d_model, out_channels
        self.kernel = CKConvKernelND(
            d_model * (out_channels or 1), grid, network=network, mask=mask, hidden=hidden, layers=layers,
            omega_0=omega_0, points=points, causal=causal, crop=crop, device=device, dtype=dtype,
        )  # fmt: skip
        self.bias = nn.Parameter(torch.zeros(out_channels or d_model, device=device, dtype=dtype))
        self._scale_output()

    def reset_parameters(self) -> None:
        """Initialize the kernel; no bias."""
        self.kernel.reset_parameters()
        self._scale_output()
        nn.init.zeros_(self.bias)

    @torch.jit.unused
    def _scale_output(self) -> None:
        """Keep the variance of sums over the input features."""
        if self.out_channels is not None:
            with torch.no_grad():
                self.kernel.network.out.weight.div_(math.sqrt(self.d_model))

    @torch.jit.unused
    def grid_changed(self) -> None:
        """Let the kernel span the new axes."""
        self.kernel.lengths = [float(size) for size in self._grid]

    def forward(self, x: Tensor, step: list[float] | None = None) -> Tensor:
        """Convolve x (B, H, L1, …, Ld); `step`: spacing of the samples per axis, in samples of the grid."""
        x = check_signal(x, self.d_model, len(self._grid))
        size = list(x.shape[2:])
        steps = axis_steps(self._grid, size) if step is None else step
        taps = self.kernel(size, steps) if observed() else self._remembered_taps(size, steps)
        bias = self.bias.reshape([-1] + [1] * len(size)).to(x.dtype)
        if self.out_channels is None:
            return full_conv(x, taps) + bias
        y = full_conv(torch.cat([x] * self.out_channels, 1), taps)
        return y.unflatten(1, (self.out_channels, self.d_model)).sum(2) + bias

    @torch.jit.unused
    def _remembered_taps(self, size: list[int], steps: list[float]) -> Tensor:
        return self.remembered('taps', (tuple(size), tuple(steps)), self.kernel, lambda: self.kernel(size, steps))

    def extra_repr(self) -> str:
        return f'{self.d_model}, grid={self.grid}'
