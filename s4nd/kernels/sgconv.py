"""SGConv: a kernel of several scales, each twice as long as the one before and less in weight (arXiv 2210.09298).

S sub-kernels of d taps are stretched through interpolation; the i-th has the weight m^(S - 1 - i), with a decay m of 2
as published. 'cat': stretched by 2^max(0, i - 1) they stand one after the other. 'sum': stretched by 2^i they all begin
at lag 0. S = 1 + ⌈log2(length/d)⌉, so the parameters grow with the logarithm of the length.
Shape legend: see base.py; S' = scales that a tap takes part in.
"""

import math

import torch
from torch import Tensor, nn

from s4nd.kernels.base import Kernel, check_axis, check_choice
from s4nd.ops import at_least_float32, wide

MODES = ('cat', 'sum')
INTERPOLATIONS = ('linear', 'nearest')


class SGConvKernel(Kernel):
    """Multiscale decaying kernel, a function of time through the interpolation; zero after its last scale.

    A tap at step s is s times the function in the middle of its cell: the published taps at the training step, the
    scales sampled more or less densely at another.

    Args:
        d_model: H, number of features.
        channels: c, kernels per feature.
        d_state: d, taps of a sub-kernel, at most the length.
        length: of the axis, in samples of the training grid.
        mode: 'cat' or 'sum', see above.
        interpolation: 'linear' (between the middles of taps, constant at the ends) or 'nearest'.
        decay: m of the first and of the last feature; equally spaced between.

    A kernel is divided by its norm over all its taps, `length` or more, when it is initialized; the norm is kept as a
    buffer. (The released code does so at its first call, which is the same for weights that have not been trained.)

    Raises:
        ValueError: for sizes below 1, a length that is not known (infinite) or below 1, an unknown mode or
            interpolation, or a decay that is not positive.
    """

    norm: Tensor
    decay: Tensor
    total_length: int

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        d_state: int = 64,
        length: float = math.inf,
        mode: str = 'cat',
        interpolation: str = 'linear',
        decay: tuple[float, float] = (2.0, 2.0),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels)
        check_axis('sgconv', length, 1)
        check_choice('mode', mode, MODES, " for kernel 'sgconv'")
        check_choice('interpolation', interpolation, INTERPOLATIONS, " for kernel 'sgconv'")
        if d_state < 1:
            raise ValueError(f'd_state must be at least 1, got {d_state}')
        if not min(decay) > 0:
            raise ValueError(f'decay must be positive, got {decay}')
        whole = math.ceil(length)
        self.sub_length = min(d_state, whole)
        self.scales = 1 + math.ceil(math.log2(whole / self.sub_length))
        self.total_length = self.sub_length * 2 ** (self.scales - 1)
        self.mode, self.interpolation, self.decay_range = mode, interpolation, (float(decay[0]), float(decay[1]))
        self.weight = nn.Parameter(
            torch.empty(channels, d_model, self.scales, self.sub_length, device=device, dtype=dtype)
        )
        self.register_buffer('norm', torch.empty(channels, d_model, 1, device=device, dtype=dtype))
        self.register_buffer('decay', torch.empty(d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: weights from N(0, 1), and the norm of the kernel they give."""
        with torch.no_grad():
            self.weight.normal_()
            self.decay.copy_(torch.linspace(*self.decay_range, self.d_model))
            self.reset_norm()

    @torch.jit.unused
    def reset_norm(self) -> None:
        """Take the norm of the kernel as it is."""
        with torch.no_grad():
            self.norm.fill_(1.0)
            self.norm.copy_(self.forward(self.total_length).norm(dim=-1, keepdim=True))

    def taps(self, length: int, step: float) -> Tensor:
        """See `Kernel.taps`."""
        weight = wide(self.weight).flatten(2)  # (c, H, S·d)
        # Middles of the cells, in taps of the first scale.
        t = (torch.arange(length, device=weight.device, dtype=weight.dtype) + 0.5) * step
        log_decay = wide(self.decay).log()[:, None]
        if self.mode == 'cat':
            ends = self.sub_length * torch.exp2(torch.arange(self.scales, device=t.device, dtype=t.dtype))
            scale = (t[:, None] >= ends[:-1]).to(t.dtype).sum(-1)
            stretch = torch.exp2((scale - 1).clamp(min=0.0))
            start = torch.where(scale > 0, self.sub_length * stretch, torch.zeros_like(stretch))
            taps = self._at(weight, scale, (t - start) / stretch) * (t < ends[-1])
            taps = taps * torch.exp(log_decay * (self.scales - 1 - scale))
        else:
            taps = torch.zeros_like(weight[..., :1])
            for i in range(self.scales):
                place = t / 2.0**i
                part = self._at(weight, torch.full_like(t, float(i)), place) * (place < self.sub_length)
                taps = taps + part * torch.exp(log_decay * (self.scales - 1 - i))
        return (taps * step / wide(self.norm)).to(at_least_float32(self.weight.dtype))

    def _at(self, weight: Tensor, scale: Tensor, place: Tensor) -> Tensor:
        """Sub-kernels `scale` (K,) at `place` (K,), where tap i reaches from i to i + 1: (c, H, K)."""
        first, last = scale * self.sub_length, float(self.sub_length - 1)
        if self.interpolation == 'nearest':
            return weight.index_select(2, (first + place.floor().clamp(0.0, last)).long())
        place = (place - 0.5).clamp(0.0, last)
        left = place.floor()
        index = (first + left).long()
        right = weight.index_select(2, (index + 1).clamp(max=weight.shape[2] - 1))  # unused where place is whole
        return torch.lerp(weight.index_select(2, index), right, (place - left).expand_as(right))
