"""The separable N-D convolution, applied axis by axis.

Shape legend: B = batch, C = features, L1…Ld = size per axis (d = 1, 2, 3), R = tensor rank, K = lags of one axis.
An axis kernel is a tensor of lag taps (R, C, K) and the index of lag 0 in it, its `centre`: entry k acts at lag
k - centre.
Zero padding, same size out, no wraparound: y[t] = Σ_r Σ_s Π_τ k_τ^r[t_τ - s_τ] x[s].
"""

import math

import torch
from torch import Tensor

METHODS = ('auto', 'toeplitz', 'fft')


def lag_taps(forward: Tensor, backward: Tensor, centred: bool, window: float = 1.0) -> tuple[Tensor, int]:
    """Two one-sided kernels -> two-sided lag taps and the index of lag 0.

    Args:
        forward, backward: (…, M). Centred: taps at half the step, M = 2K - 2 + ⌈window⌉ for lags up to K - 1. Otherwise
            at the full step, M = K.
        centred: lag l is the mean of the kernel over [l - window/2, l + window/2]; backward taps stand before 0. With a
            window of one sample, lag l is h[2l - 1] + h[2l], and lag 0 takes h[0] of each side. If not, as in the
            published code of S4ND (arXiv 2210.06583): forward[t] acts at lag t, backward[t] at lag -t - 1.
        window: in samples, at least 1.

    Returns:
        (…, 2K - 1) with lag 0 at K - 1, or (…, 2K) with lag 0 at K.
    """
    both = torch.cat([backward.flip(-1), forward], -1)  # half samples; the one that begins at lag 0 stands at M
    if not centred:
        return both, backward.shape[-1]
    reach = math.ceil(window)  # half samples to each side that the window covers, the last one perhaps in part
    span = 2 * (forward.shape[-1] - reach) + 1  # K lags to each side are `span` half samples apart
    taps = both[..., reach - 1 : reach - 1 + span : 2] + both[..., reach : reach + span : 2]
    for j in range(1, reach):
        part = min(1.0, window - j)
        taps = taps + part * (both[..., reach - 1 - j :][..., :span:2] + both[..., reach + j :][..., :span:2])
    return taps / window if window > 1.0 else taps, (span - 1) // 4


def separable_conv(x: Tensor, taps: list[Tensor], centres: list[int], method: str = 'auto') -> Tensor:
    """Convolve x with a separable kernel, one axis after the other.

    Args:
        x: (B, C, L1, …, Ld), any floating dtype; half precision is computed in float32.
        taps: one (R, C, K) for each axis; R is the same on all axes, and the R products are summed.
        centres: index of lag 0 on each axis (0: causal).
        method: 'toeplitz' (matrix products), 'fft', or 'auto' (by the length of each axis and how many lines share it).

    Returns:
        (B, C, L1, …, Ld), dtype of x.

    Raises:
        ValueError: if numbers of axes, features or ranks do not agree, an axis is empty, or the method is unknown.
    """
    axes = x.dim() - 2
    if len(taps) != axes or len(centres) != axes or axes < 1:
        raise ValueError(
            f'expected one tensor of taps and one centre for each of {axes} axes, got {len(taps)} and {len(centres)}'
        )
    if method != 'auto' and method != 'toeplitz' and method != 'fft':
        raise ValueError(f"unknown method '{method}': expected 'auto', 'toeplitz' or 'fft'")
    for axis in range(axes):
        k = taps[axis]
        if k.dim() != 3 or k.shape[0] != taps[0].shape[0] or k.shape[1] != x.shape[1]:
            raise ValueError(
                f'taps of axis {axis} must be (rank, {x.shape[1]}, lags) as x has shape {list(x.shape)}, '
                f'got {list(k.shape)}'
            )
        if x.shape[axis + 2] < 1:
            raise ValueError(f'x has an empty axis: shape {list(x.shape)}')
        if centres[axis] < 0 or centres[axis] >= k.shape[2]:
            raise ValueError(f'centre {centres[axis]} of axis {axis} is outside its {k.shape[2]} lags')
    if torch.jit.is_scripting() or x.is_meta:
        return _separable_conv(x, taps, centres, method)
    # Autocast would run the matrix products in half precision.
    with torch.autocast(x.device.type, enabled=False):
        return _separable_conv(x, taps, centres, method)


def _separable_conv(x: Tensor, taps: list[Tensor], centres: list[int], method: str) -> Tensor:
    dtype = x.dtype
    if dtype == torch.float16 or dtype == torch.bfloat16:
        x = x.float()
    # (C, L1, B, L2, L3): the first and the last axis are then one matrix product each, without another copy.
    axes = x.dim() - 2
    u = x.transpose(0, 1) if axes == 1 else x.movedim(0, 2)
    y = u
    for rank in range(taps[0].shape[0]):
        z = u
        for axis in range(axes):
            k = taps[axis][rank].to(x.dtype)
            dim = 2 if axes == 1 else (1 if axis == 0 else axis + 2)
            z = _conv_axis(z, k, centres[axis], dim, method)
        y = z if rank == 0 else y + z
    y = y.transpose(0, 1) if axes == 1 else y.movedim(2, 0)
    # Contiguous: what follows is elementwise beside contiguous tensors, and slow over mixed strides.
    return y.to(dtype).contiguous()


def _conv_axis(x: Tensor, taps: Tensor, centre: int, dim: int, method: str) -> Tensor:
    """x (C, …) along `dim` with lag taps (C, K), lag 0 at `centre`."""
    length = x.shape[dim]
    # Lags beyond ±(length - 1) never meet the signal.
    first, last = max(0, centre - length + 1), min(taps.shape[1], centre + length)
    taps, centre = taps[:, first:last], centre - first
    # Building a Toeplitz matrix pays where enough lines share it; past 512 it is too much memory. Measured on a CPU by
    # benchmarks/axis_methods.py.
    lines = x.numel() // (x.shape[0] * length)
    short = length <= 4 * lines and length <= 512
    if method == 'toeplitz' or (method == 'auto' and short):
        return _apply_toeplitz(x, taps, centre, dim)
    return _apply_fft(x, taps, centre, dim)


def _apply_toeplitz(x: Tensor, taps: Tensor, centre: int, dim: int) -> Tensor:
    """Multiply by T[i, j] = k[i - j], (L, L) for each feature."""
    length, channels = x.shape[dim], x.shape[0]
    padded = torch.nn.functional.pad(taps, (length - 1 - centre, length - (taps.shape[1] - centre)))  # (C, 2L - 1)
    transposed = padded.unfold(1, length, 1).flip(1)  # row j holds k[i - j] for i = 0 … L - 1
    if dim == 1 and x.dim() > 3:
        y = torch.bmm(transposed.transpose(1, 2), x.reshape(channels, length, -1))
        return y.reshape(x.shape)
    rows = x.movedim(dim, -1)
    y = torch.bmm(rows.reshape(channels, -1, length), transposed)
    return y.reshape(rows.shape).movedim(-1, dim)


def _apply_fft(x: Tensor, taps: Tensor, centre: int, dim: int) -> Tensor:
    """Zero-padded FFT product along `dim`."""
    length = x.shape[dim]
    size = fft_size(length + taps.shape[1] - 1)
    shape = [1] * x.dim()
    shape[0], shape[dim] = x.shape[0], size // 2 + 1
    spectrum = torch.fft.rfft(taps, n=size).reshape(shape)
    y = torch.fft.irfft(torch.fft.rfft(x, n=size, dim=dim) * spectrum, n=size, dim=dim)
    return y.narrow(dim, centre, length)


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
