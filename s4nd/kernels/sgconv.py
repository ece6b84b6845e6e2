"""SGConv: a kernel of several scales, each twice as long and half as large as the one before (arXiv 2210.09298).

S sub-kernels of d taps stand one after the other; the i-th is stretched by 2^max(0, i-1) through linear interpolation
and multiplied by 2^-i. S = 1 + ⌈log2(length/d)⌉, so the parameters grow with the logarithm of the length.
Shape legend: see base.py.
"""

import math

import torch
from torch import Tensor, nn

from s4nd.kernels.base import Kernel, check_axis
from s4nd.ops import at_least_float32, wide


class SGConvKernel(Kernel):
    """Multiscale decaying kernel, a function of time through the interpolation; zero after its last scale.

    A tap at step s is s times the function in the middle of its cell: the published taps at the training step, the
    scales sampled more or less densely at another.

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature.
        d_state: d, taps of a sub-kernel, at most the length.
        length: of the axis, in samples of the training grid.

    A kernel is divided by its norm over `length` taps when it is initialized; the norm is kept as a buffer.

    Raises:
        ValueError: for sizes below 1, or a length that is not known (infinite) or below 1.
    """

    norm: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        length: float = math.inf,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        check_axis('sgconv', length, 1)
        if d_state < 1:
            raise ValueError(f'd_state must be at least 1, got {d_state}')
        self.initial_length = math.ceil(length)
        self.sub_length = min(d_state, self.initial_length)
        self.scales = 1 + math.ceil(math.log2(self.initial_length / self.sub_length))
        self.weight = nn.Parameter(
            torch.empty(channels, d_model, self.scales, self.sub_length, device=device, dtype=dtype)
        )
        self.register_buffer('norm', torch.empty(channels, d_model, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: weights from N(0, 1), and the norm of the kernel they give."""
        with torch.no_grad():
            self.weight.normal_()
            self.norm.fill_(1.0)
            self.norm.copy_(self.forward(self.initial_length).norm(dim=-1, keepdim=True))

    def taps(self, length: int, step: float) -> Tensor:
        """See `Kernel.taps`."""
        t = (
            torch.arange(length, device=self.weight.device, dtype=wide(self.weight[:0]).dtype) + 0.5
        ) * step  # in taps of the first scale
        ends = self.sub_length * torch.exp2(torch.arange(self.scales, device=t.device, dtype=t.dtype))  # scale i: d·2^i
        scale = (t[:, None] >= ends[:-1]).to(t.dtype).sum(-1)
        stretch = torch.exp2((scale - 1).clamp(min=0.0))
        start = torch.where(scale > 0, self.sub_length * stretch, torch.zeros_like(stretch))
        place = ((t - start) / stretch - 0.5).clamp(0.0, float(self.sub_length - 1))
        left = place.floor()
        index = (scale * self.sub_length + left).long()
        weight = wide(self.weight).flatten(2)
        right = weight.index_select(2, (index + 1).clamp(max=weight.shape[2] - 1))  # unused where place is whole
        taps = torch.lerp(weight.index_select(2, index), right, (place - left).expand_as(right))
        taps = taps * (step * torch.exp2(-scale) * (t < ends[-1])) / wide(self.norm)
        return taps.to(at_least_float32(self.weight.dtype))
