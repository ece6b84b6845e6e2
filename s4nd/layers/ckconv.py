"""CKConv in N dimensions: a convolution whose kernel is a network of the coordinates (arXiv 2102.02611, 2110.08059).

Shape legend: B = batch, H = d_model, L1…Ld = size per axis, K = lags.
"""

import torch
from torch import Tensor, nn

from s4nd.kernels.ckconv_nd import CKConvKernelND
from s4nd.layers.memo import Memo
from s4nd.ops.fullconv import full_conv
from s4nd.resolution import axis_step, check_grid


class CKConv(nn.Module):
    """y[h, t] = Σ_s K[h, t - s] x[h, s] + bias[h], where K is one function of all axes: it need not be separable.

    An input of another size than `grid` is the same scene sampled differently: the kernel is evaluated at
    step = grid / size. (One coordinate network an axis: `S4ND(kernel='ckconv')`.)

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

    __jit_unused_properties__ = ['grid']
    _grid: list[int]

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
        super().__init__()
        check_grid(grid)
        self.d_model, self._grid = d_model, list(grid)
        self.kernel = CKConvKernelND(
            d_model, grid, network=network, mask=mask, hidden=hidden, omega_0=omega_0, device=device, dtype=dtype
        )
        self.bias = nn.Parameter(torch.zeros(d_model, device=device, dtype=dtype))
        self._memo = Memo()

    def reset_parameters(self) -> None:
        """Initialize the kernel; no bias."""
        self.kernel.reset_parameters()
        nn.init.zeros_(self.bias)

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes on which the layer was trained."""
        return tuple(self._grid)

    def set_grid(self, grid: tuple[int, ...]) -> None:
        """Re-anchor to another training grid without changing the function.

        Raises:
            ValueError: if the number of axes differs, or a size is below 1.
        """
        if len(grid) != len(self._grid):
            raise ValueError(f'cannot re-anchor a layer with grid {self.grid} to {tuple(grid)}: other number of axes')
        check_grid(grid)
        self.kernel.re_anchor(grid)
        self._grid = list(grid)

    def forward(self, x: Tensor) -> Tensor:
        axes = len(self._grid)
        if x.dim() != axes + 2 or x.shape[1] != self.d_model:
            raise ValueError(f'expected (batch, {self.d_model}, {axes} sizes), got shape {list(x.shape)}')
        if x.numel() == 0:
            raise ValueError(f'the input is empty: shape {list(x.shape)}')
        size = list(x.shape[2:])
        taps = self._taps(size) if torch.jit.is_scripting() else self._remembered_taps(size)
        bias = self.bias.reshape([-1] + [1] * axes)
        return full_conv(x, taps) + bias.to(x.dtype)

    def _taps(self, size: list[int]) -> Tensor:
        """Lag taps (H, K1, …, Kd) for an input of this size."""
        steps = [axis_step(self._grid, axis, size[axis]) for axis in range(len(size))]
        return self.kernel(size, steps)

    @torch.jit.unused
    def _remembered_taps(self, size: list[int]) -> Tensor:
        """In evaluation, from memory."""
        if self.training or torch.compiler.is_compiling():
            return self._taps(size)
        tensors = [*self.kernel.parameters(), *self.kernel.buffers()]
        return self._memo.get((tuple(size), self.grid), tensors, lambda: self._taps(size))

    def extra_repr(self) -> str:
        return f'{self.d_model}, grid={self.grid}'
