"""Depthwise convolutions over time and space, the mixers of the convolutional video baselines.

Shapes: B batch, C channels, (t, h, w) positions of a clip, k taps in time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function
from torch import Tensor, nn

from s4nd.models._arguments import choose, positive

torch.fx.wrap('pad_time')


class I3DConv(nn.Module):
    """One depthwise k x size x size convolution, as inflated ConvNets have it (I3D, arXiv 1705.07750).

    (B, C, t, h, w) -> the same. In space it sees zeros beyond the border.

    Args:
        kernel_size: height and width of the kernel, odd.
        time_kernel_size: k.
        causal: no frame sees a later one.
        time_padding: beyond the ends of the clip, 'zeros' or 'replicate' (the clip stands still).
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...] | None = None,
        *,
        kernel_size: int = 7,
        time_kernel_size: int = 3,
        causal: bool = False,
        time_padding: str = 'zeros',
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.time_size, self.causal = positive('time_kernel_size', time_kernel_size), causal
        self.padding = choose('time_padding', time_padding, ('zeros', 'replicate'))
        size = (time_kernel_size, kernel_size, kernel_size)
        self.conv = nn.Conv3d(dim, dim, size, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        batch, length = x.shape[0], x.shape[2]
        frames = pad_time(x.transpose(1, 2), self.time_size, self.causal, self.padding)
        weight, bias = self.conv.weight, self.conv.bias
        # A sum over k of convolutions in space: several times faster than conv3d with groups on a CPU.
        y = torch.zeros(1, device=x.device, dtype=x.dtype)
        for i in range(self.time_size):
            part = frames[:, i : i + length].flatten(0, 1)
            y = y + F.conv2d(part, weight[:, :, i], bias if i == 0 else None, 1, weight.shape[-1] // 2, 1, x.shape[1])
        return y.unflatten(0, (batch, length)).transpose(1, 2)


class TimeConv(nn.Module):
    """k taps in time for every channel, without bias, each 1/k at first: (B, t, C, h, w) -> the same."""

    def __init__(
        self,
        dim: int,
        time_kernel_size: int = 3,
        causal: bool = False,
        time_padding: str = 'zeros',
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.time_size, self.causal = positive('time_kernel_size', time_kernel_size), causal
        self.padding = choose('time_padding', time_padding, ('zeros', 'replicate'))
        self.weight = nn.Parameter(torch.empty(time_kernel_size, dim, 1, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every tap 1/k."""
        nn.init.constant_(self.weight, 1 / self.time_size)

    def forward(self, x: Tensor) -> Tensor:
        frames = pad_time(x, self.time_size, self.causal, self.padding)
        y = frames[:, : x.shape[1]] * self.weight[0]
        for i in range(1, self.time_size):
            y = torch.addcmul(y, frames[:, i : i + x.shape[1]], self.weight[i])
        return y


class S3DConv(nn.Module):
    """A depthwise convolution of every frame, then k taps in time for every channel, which begin as their mean (S3D,
    arXiv 1712.04851). Arguments and shapes as `I3DConv`."""

    wraps = TimeConv

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...] | None = None,
        *,
        kernel_size: int = 7,
        device: Any = None,
        dtype: Any = None,
        **time_args: Any,
    ) -> None:
        super().__init__()
        place = {'device': device, 'dtype': dtype}
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **place)
        self.time = TimeConv(dim, **time_args, **place)

    def forward(self, x: Tensor) -> Tensor:
        batch, length = x.shape[0], x.shape[2]
        y = self.conv(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, length))
        return self.time(y).transpose(1, 2)


@register_notrace_function
def pad_time(x: Tensor, size: int, causal: bool, padding: str) -> Tensor:
    """(B, t, …) -> (B, t + size - 1, …), for a convolution over dimension 1 that keeps the length."""
    before = size - 1 if causal else size // 2
    if padding == 'replicate':
        index = torch.arange(-before, x.shape[1] + size - 1 - before, device=x.device)
        return x[:, index.clamp(0, x.shape[1] - 1)]
    return F.pad(x, [0, 0] * (x.dim() - 2) + [before, size - 1 - before])
