"""The N-D convolution with a kernel that is not separable: zero-padded FFTs over all axes."""

import torch
from torch import Tensor

from s4nd.ops.fftconv import fft_conv, fft_size


def full_conv(x: Tensor, kernel: Tensor) -> Tensor:
    """y[b, c, t] = Σ_l kernel[c, l] x[b, c, t - l], zero outside, same size out.

    Args:
        x: (B, C, L1, …, Ld), any floating dtype; half precision is computed in float32.
        kernel: (C, K1, …, Kd), all K odd, lag 0 in the middle.

    Raises:
        ValueError: if axes or features do not agree, or the number of lags of an axis is even.
    """
    if kernel.dim() != x.dim() - 1 or kernel.shape[0] != x.shape[1] or min([k % 2 for k in kernel.shape[1:]]) == 0:
        raise ValueError(
            f'expected a kernel ({x.shape[1]}, {x.dim() - 2} odd numbers of lags) for x of shape {list(x.shape)}, '
            f'got {list(kernel.shape)}'
        )
    if x.numel() == 0:
        return torch.zeros_like(x)
    dtype = torch.promote_types(torch.promote_types(x.dtype, kernel.dtype), torch.float32)
    u, kernel = x.to(dtype), kernel.to(dtype)
    if x.dim() == 3:
        return fft_conv(u, kernel, kernel.shape[1] // 2).to(x.dtype)
    axes = list(range(2, x.dim()))
    # What wraps around falls into the first K // 2 samples, which are cut off.
    sizes = [fft_size(n + k // 2) for n, k in zip(x.shape[2:], kernel.shape[1:])]
    spectrum = torch.fft.rfftn(u, sizes, axes) * torch.fft.rfftn(kernel[None], sizes, axes)
    y = torch.fft.irfftn(spectrum, sizes, axes)
    for axis in axes:
        y = y.narrow(axis, kernel.shape[axis - 1] // 2, x.shape[axis])
    return y.to(x.dtype)
