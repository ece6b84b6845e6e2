"""One long axis convolved by zero-padded FFTs, a few features at a time.

Temporaries are those of one group of features, which on a CPU stay in the cache, and only the inputs are kept for the
gradients: their spectra are computed again.
"""

from typing import Any

import torch
from torch import Tensor


def fft_conv(x: Tensor, taps: Tensor, center: int) -> Tensor:
    """x (B, C, L) with lag taps (C, K), lag 0 at `center` -> (B, C, L); gradients cannot be differentiated again."""
    return _FFTConv.apply(x, taps, center)


def wrapped_spectrum(taps: Tensor, center: int, length: int) -> tuple[Tensor, int]:
    """Spectrum (C, size/2 + 1) of lag taps (C, K) for a signal of `length`, and the size.

    Lags below 0 stand at the end: lags -q … p act on `length` samples without wrapping onto each other where
    size >= length + max(p, q).
    """
    # Lags beyond ±(length - 1) never meet the signal.
    first, last = max(0, center - length + 1), min(taps.shape[1], center + length)
    ahead, behind = taps[:, center:last], taps[:, first:center]
    size = fft_size(length + max(ahead.shape[1] - 1, behind.shape[1]))
    gap = torch.zeros(taps.shape[0], size - (last - first), device=taps.device, dtype=taps.dtype)
    return torch.fft.rfft(torch.cat([ahead, gap, behind], 1)), size


def fft_size(minimum: int) -> int:
    """The least even size >= minimum of the form 2^a, 3·2^a or 5·2^a: FFT sizes with small primes are the fast ones."""
    size = 2
    while size < minimum:
        size *= 2
    best = size
    for factor in [3, 5]:
        size = 2 * factor
        while size < minimum:
            size *= 2
        best = min(best, size)
    return best


class _FFTConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, center: int) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.center = center
        length, y = x.shape[-1], torch.empty_like(x, memory_format=torch.contiguous_format)
        for part in _groups(x):
            spectrum, size = wrapped_spectrum(taps[part], center, length)
            product = torch.fft.rfft(x[:, part], n=size).mul_(spectrum)
            y[:, part] = torch.fft.irfft(product, n=size)[..., :length]
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, taps = ctx.saved_tensors
        center, length = ctx.center, x.shape[-1]
        grad_x = torch.empty_like(grad) if ctx.needs_input_grad[0] else None
        grad_taps = torch.zeros_like(taps) if ctx.needs_input_grad[1] else None
        first, last = max(0, center - length + 1), min(taps.shape[1], center + length)
        for part in _groups(x):
            spectrum, size = wrapped_spectrum(taps[part], center, length)
            g = torch.fft.rfft(grad[:, part], n=size)
            if grad_taps is not None:
                product = torch.fft.rfft(x[:, part], n=size).conj_physical_().mul_(g).sum(0)
                lags = torch.fft.irfft(product, n=size)
                grad_taps[part, center:last] = lags[:, : last - center]
                grad_taps[part, first:center] = lags[:, size - (center - first) :]
            if grad_x is not None:
                grad_x[:, part] = torch.fft.irfft(g.mul_(spectrum.conj_physical_()), n=size)[..., :length]
        return grad_x, grad_taps, None


def _groups(x: Tensor) -> list[slice]:
    """Features in groups of about a megabyte a CPU thread, or 256 MB elsewhere."""
    elements = 2**18 * torch.get_num_threads() if x.device.type == 'cpu' else 2**26
    count = max(1, elements // (x.shape[0] * x.shape[2]))
    return [slice(start, start + count) for start in range(0, x.shape[1], count)]
