"""The separable convolution as one depthwise convolution per axis, for channels_last on a CPU.

The matrix products of products.py want the features first in memory, two copies away from channels_last. These
convolutions read and write channels_last, and cost half of the products' time there (benchmarks/layer.py). Their own
backward pass is slow, so gradients come from the products.
Shape legend: as in longconv.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from s4nd.ops.dispatch import autocasted, by_hand, half_products, is_channels_last, plain_gradients, wants_graph
from s4nd.ops.products import plain_product, product_gradients, toeplitz

LONGEST = 64  # of an axis; beyond, and with fewer features, matrix products are as fast
NARROWEST = 16


@torch.jit.unused
def use_axis_convs(x: Tensor, ranks: int, method: str, exact: bool) -> bool:
    """Whether a signal (B, C, L1, …, Ld) is convolved so, with kernels of so many ranks."""
    if method != 'auto' or ranks > 1 or not by_hand(x) or x.device.type != 'cpu':
        return False
    if not is_channels_last(x) or max(x.shape[2:]) > LONGEST or x.shape[1] < NARROWEST:
        return False
    few = x[:0] if exact else autocasted(x[:0])  # in the dtype of the products
    multiplied = few.dtype == torch.float32 or (half_products(few) and not exact)
    return multiplied and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled


def axis_convs(x: Tensor, taps: Sequence[Tensor], centers: Sequence[int], skip: Tensor | None) -> Tensor:
    """Convolve x (B, C, L1, …, Ld) with taps (1, C, K) of each axis; skip (C,) adds skip · x."""
    return _AxisConvs.apply(x, None if skip is None else skip.to(x.dtype), centers, *taps)


class _AxisConvs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor | None, centers: Sequence[int], *taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, skip, *taps)
        ctx.centers = centers
        y = x
        for axis, (k, center) in enumerate(zip(taps, centers, strict=True)):
            y = _along(y, axis, _weights(k[0].to(x.dtype), center, x.shape[2 + axis]))
        return y if skip is None else y.addcmul_(skip.reshape([-1] + [1] * (x.dim() - 2)), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, skip, *taps = ctx.saved_tensors

        def plain(x: Tensor, skip: Tensor | None, *taps: Tensor) -> Tensor:
            return plain_product(x, skip, *_matrices(taps, ctx.centers, x))

        needed = [need for i, need in enumerate(ctx.needs_input_grad) if i != 2]
        if wants_graph(grad):
            grad_x, grad_skip, *grad_taps = plain_gradients(plain, (x, skip, *taps), needed, grad)
            return grad_x, grad_skip, None, *grad_taps
        with torch.enable_grad():
            taps = [k.detach().requires_grad_() for k in taps]
            matrices = _matrices(taps, ctx.centers, x)
        grad_x, grad_skip, *slopes = product_gradients(grad, x, skip, [m.detach() for m in matrices], needed)
        grad_taps = torch.autograd.grad(matrices, taps, slopes) if any(needed[2:]) else [None] * len(taps)
        return grad_x, grad_skip, None, *grad_taps


def _matrices(taps: Sequence[Tensor], centers: Sequence[int], x: Tensor) -> list[Tensor]:
    """The matrices of each axis in the dtype of x; gradients of a tap add up in the dtype of the tap."""
    sized = zip(taps, centers, x.shape[2:], strict=True)
    return [toeplitz(k, center, length).to(x.dtype) for k, center, length in sized]


def _weights(taps: Tensor, center: int, length: int) -> Tensor:
    """Taps (C, K) -> weights (C, 2 · length - 1) of a cross-correlation that reaches every sample from every other."""
    # (Weights that are zero keep a NaN from hiding.)
    around = [length - 1 - center, length + center - taps.shape[1]]
    return (F.pad(taps, around) if any(around) else taps).flip(1)


def _along(x: Tensor, axis: int, weights: Tensor) -> Tensor:
    """x in channels_last, correlated with weights (C, 2L - 1) along one axis."""
    reach = x.shape[2 + axis] - 1
    last = axis == x.dim() - 3
    weights, padding = (weights[:, None, None], (0, reach)) if last else (weights[:, None, :, None], (reach, 0))
    if x.dim() == 4:
        return F.conv2d(x, weights, padding=padding, groups=x.shape[1])
    # Clips are pictures too: of the last two axes, or of this axis and all that follow.
    height, width = (x.shape[3], x.shape[4]) if last else (x.shape[2 + axis], x.shape[3 + axis :].numel())
    rows = x.movedim(1, -1)
    pictures = rows.reshape(-1, height, width, x.shape[1]).movedim(-1, 1)
    y = F.conv2d(pictures, weights, padding=padding, groups=x.shape[1])
    return y.movedim(1, -1).reshape(rows.shape).movedim(-1, 1)
