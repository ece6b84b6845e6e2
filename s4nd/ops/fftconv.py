"""One long axis convolved by zero-padded FFTs, a few features at a time.

Temporaries are those of one group of features, which on a CPU stay in the cache, and only the inputs are kept for the
gradients: their spectra are computed again.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from s4nd.ops.dispatch import by_hand, feature_groups, plain_gradients, wants_graph


def fft_conv(x: Tensor, taps: Tensor, center: int) -> Tensor:
    """Convolve x (B, C, L) with lag taps (C, K), lag 0 at `center` -> (B, C, L), of the dtype of x."""
    if by_hand(x):
        return _fft_conv_by_hand(x, taps, center)
    return plain_fft_conv(x, taps, center, 2)


def plain_fft_conv(x: Tensor, taps: Tensor, center: int, dim: int, features: int = 1) -> Tensor:
    """Convolve x with lag taps (C, K) along `dim`, by autograd alone; C is the size of x in dimension `features`."""
    length = x.shape[dim]
    spectrum, size = wrapped_spectrum(taps, center, length)
    shape = [1] * x.dim()
    shape[features], shape[dim] = x.shape[features], size // 2 + 1
    y = torch.fft.irfft(torch.fft.rfft(x, n=size, dim=dim) * spectrum.reshape(shape), n=size, dim=dim)
    return y.narrow(dim, 0, length)


@torch.jit.unused
def _fft_conv_by_hand(x: Tensor, taps: Tensor, center: int) -> Tensor:
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
        for part in feature_groups(x):
            spectrum, size = wrapped_spectrum(taps[part], center, length)
            product = torch.fft.rfft(x[:, part], n=size).mul_(spectrum)
            y[:, part] = torch.fft.irfft(product, n=size)[..., :length]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps = ctx.saved_tensors
        center, length = ctx.center, x.shape[-1]
        if wants_graph(grad):
            plain = partial(plain_fft_conv, center=center, dim=2)
            return (*plain_gradients(plain, (x, taps), ctx.needs_input_grad[:2], grad), None)
        grad_x = torch.empty_like(grad) if ctx.needs_input_grad[0] else None
        grad_taps = torch.zeros_like(taps) if ctx.needs_input_grad[1] else None
        first, last = max(0, center - length + 1), min(taps.shape[1], center + length)
        for part in feature_groups(x):
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
