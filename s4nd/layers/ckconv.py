"""CKConv in N dimensions: a convolution whose kernel is a network of the coordinates (arXiv 2102.02611, 2110.08059).

Shape legend: B = batch, H = d_model, L1…Ld = size per axis, K = lags.
"""

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
        hidden: width of the network.
        omega_0: largest initial frequency of the network, see `CKConvKernelND`.

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
        omega_0: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(grid, device)
        self.d_model = d_model
        self.kernel = CKConvKernelND(
            d_model, grid, network=network, mask=mask, hidden=hidden, omega_0=omega_0, device=device, dtype=dtype
        )
        self.bias = nn.Parameter(torch.zeros(d_model, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Initialize the kernel; no bias."""
        self.kernel.reset_parameters()
        nn.init.zeros_(self.bias)

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
        bias = self.bias.reshape([-1] + [1] * len(size))
        return full_conv(x, taps) + bias.to(x.dtype)

    @torch.jit.unused
    def _remembered_taps(self, size: list[int], steps: list[float]) -> Tensor:
        return self.remembered('taps', (tuple(size), tuple(steps)), self.kernel, lambda: self.kernel(size, steps))

    def extra_repr(self) -> str:
        return f'{self.d_model}, grid={self.grid}'
