"""The separable N-D convolution, applied axis by axis.

Shape legend: B = batch, C = features, L1…Ld = size per axis (d = 1, 2, 3), R = tensor rank, K = lags of one axis.
An axis kernel is a tensor of lag taps (R, C, K) and the index of lag 0 in it, its `center`: entry k acts at lag
k - center.
Zero padding, same size out, no wraparound: y[t] = Σ_r Σ_s Π_τ k_τ^r[t_τ - s_τ] x[s].
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from s4nd.ops import fused
from s4nd.ops.axis_convs import axis_convs, use_axis_convs
from s4nd.ops.dispatch import autocasted, by_hand, half_products, in_format_of, takes_operators
from s4nd.ops.fftconv import fft_conv, plain_fft_conv
from s4nd.ops.products import apply_matrix, axis_dim, from_channels, separable_product, to_channels, toeplitz

METHODS = ('auto', 'toeplitz', 'fft', 'triton')


def lag_taps(forward: Tensor, backward: Tensor, centered: bool, window: float = 1.0) -> tuple[Tensor, int]:
    """Two one-sided kernels -> two-sided lag taps and the index of lag 0.

    Args:
        forward, backward: (…, M). Centered: taps at half the step, M = 2K - 2 + ⌈window⌉ for lags up to K - 1.
            Otherwise at the full step, M = K.
        centered: lag l is the mean of the kernel over [l - window/2, l + window/2]; backward taps stand before 0. With
            a window of one sample, lag l is h[2l - 1] + h[2l], and lag 0 takes h[0] of each side. If not, as in the
            published code of S4ND (arXiv 2210.06583): forward[t] acts at lag t, backward[t] at lag -t - 1.
        window: in samples, at least 1.

    Returns:
        (…, 2K - 1) with lag 0 at K - 1, or (…, 2K) with lag 0 at K.
    """
    both = torch.cat([backward.flip(-1), forward], -1)  # half samples; the one that begins at lag 0 stands at M
    if not centered:
        return both, backward.shape[-1]
    reach = math.ceil(window)  # half samples to each side that the window covers, the last one perhaps in part
    span = 2 * (forward.shape[-1] - reach) + 1  # K lags to each side are `span` half samples apart
    taps = both[..., reach - 1 : reach - 1 + span : 2] + both[..., reach : reach + span : 2]
    for j in range(1, reach):
        part = min(1.0, window - j)
        taps = taps + part * (both[..., reach - 1 - j :][..., :span:2] + both[..., reach + j :][..., :span:2])
    return taps / window if window > 1.0 else taps, (span - 1) // 4


def wrap_taps(taps: Tensor, center: int, length: int) -> tuple[Tensor, int]:
    """Lag taps (…, K) of a line -> those of a circle of `length` samples, (…, 2·length - 1), and the index of lag 0.

    Lags that differ by whole turns meet the same sample, so their taps add up.
    """
    before = (length - center % length) % length  # lags to put before, so that the first is a multiple of the length
    after = (length - (before + taps.shape[-1]) % length) % length
    turn = F.pad(taps, (before, after)).unflatten(-1, [-1, length]).sum(-2)
    return torch.cat([turn[..., 1:], turn], -1), length - 1


def separable_conv(
    x: Tensor,
    taps: list[Tensor],
    centers: list[int],
    method: str = 'auto',
    skip: Tensor | None = None,
    exact: bool = False,
) -> Tensor:
    """Convolve x with a separable kernel, one axis after the other.

    Args:
        x: (B, C, L1, …, Ld), any floating dtype. Under autocast it is cast as for `torch.conv2d`. Halves are multiplied
            as they are, with sums in float32, where the device does that (relative error up to 1e-2 in bfloat16); FFTs
            are in float32.
        taps: for each axis (R, C, K), or the matrices (R, C, L, L) that `toeplitz` made of them for this size; R is the
            same on all axes, and the R products are summed.
        centers: index of lag 0 on each axis (0: causal).
        method: 'toeplitz' (matrix products), 'fft', 'triton' (one pass, `s4nd.ops.fused`, for axes up to 64), or
            'auto': 'triton' on a GPU where it can, else by `use_toeplitz`.
        skip: (C,), adds skip · x.
        exact: compute in float32 at least, under autocast too.

    Returns:
        (B, C, L1, …, Ld), of the dtype and memory format of x. One NaN or infinity makes all outputs of its feature and
        batch row NaN, earlier ones too: zero taps do not hide it.

    Raises:
        ValueError: if numbers of axes, features or ranks do not agree, an axis is empty, the method is unknown, or it
            is 'triton' where that cannot run.
    """
    _check(x, taps, centers, method)
    if torch.jit.is_scripting() or x.is_meta or x.numel() == 0:
        return torch.zeros_like(x) if x.numel() == 0 else _separable_conv(x, taps, centers, method, skip, True)
    if not exact:
        x = autocasted(x)
    # What follows chooses its dtypes itself.
    with torch.autocast(x.device.type, enabled=False):
        if use_fused(x.device, x.dtype, list(x.shape[2:]), method) and _are_taps(taps, method):
            return _one_pass(x, taps, centers, skip, exact)
        if use_axis_convs(x, len(taps[0]), method, exact) and _are_taps(taps, method):
            return axis_convs(x, taps, centers, skip)
        return _separable_conv(x, taps, centers, method, skip, exact)


def _check(x: Tensor, taps: list[Tensor], centers: list[int], method: str) -> None:
    axes = x.dim() - 2
    if len(taps) != axes or len(centers) != axes or axes < 1:
        raise ValueError(
            f'expected one tensor of taps and one center for each of {axes} axes, got {len(taps)} and {len(centers)}'
        )
    if method != 'auto' and method != 'toeplitz' and method != 'fft' and method != 'triton':
        raise ValueError(f"unknown method '{method}': expected 'auto', 'toeplitz', 'fft' or 'triton'")
    for axis in range(axes):
        k, length = taps[axis], x.shape[axis + 2]
        matrix = k.dim() == 4 and k.shape[2] == length and k.shape[3] == length
        if not (k.dim() == 3 or matrix) or k.shape[0] != taps[0].shape[0] or k.shape[1] != x.shape[1]:
            raise ValueError(
                f'taps of axis {axis} must be (rank, {x.shape[1]}, lags), or matrices of that size, as x has shape '
                f'{list(x.shape)}, got {list(k.shape)}'
            )
        if length < 1:
            raise ValueError(f'x has an empty axis: shape {list(x.shape)}')
        if not matrix and (centers[axis] < 0 or centers[axis] >= k.shape[2]):
            raise ValueError(f'center {centers[axis]} of axis {axis} is outside its {k.shape[2]} lags')


@torch.jit.unused
def use_fused(device: torch.device, dtype: torch.dtype, size: list[int], method: str = 'auto') -> bool:
    """Whether a signal (B, C, *size) is convolved in one pass, from its taps ('auto': on a GPU, where it can be).

    Raises:
        ValueError: for method 'triton' where it cannot be.
    """
    can = fused.runs_on(device) and fused.fits(size, dtype) and takes_operators()
    if method == 'triton' and not can:
        raise ValueError(
            "method 'triton' takes up to three axes of up to 64 samples in float32, float16 or bfloat16, on a CUDA "
            f'device (or a CPU with TRITON_INTERPRET=1), eagerly or compiled, got size {size} in {dtype} on {device}'
        )
    return can and (method == 'triton' or (method == 'auto' and device.type == 'cuda'))


@torch.jit.unused
def _one_pass(x: Tensor, taps: list[Tensor], centers: list[int], skip: Tensor | None, exact: bool) -> Tensor:
    return fused.fused_conv(x, taps, centers, skip, exact)


@torch.jit.unused
def _are_taps(taps: list[Tensor], method: str) -> bool:
    found = all(k.dim() == 3 for k in taps)
    if method == 'triton' and not found:
        raise ValueError("method 'triton' takes taps, got matrices")
    return found


def use_toeplitz(size: list[int], axis: int, method: str = 'auto') -> bool:
    """Whether `axis` of a signal (B, C, *size) is convolved by matrix products ('auto': up to a length) or FFTs.

    The rule does not know the batch: results do not depend on it, and a compiled or exported model takes any.
    """
    if method != 'auto':
        return method == 'toeplitz'
    others = 1
    for k in range(len(size)):
        others *= size[k] if k != axis else 1
    # Matrices pay where many lines share them. Measured on a CPU, batch 16, by benchmarks/axis_methods.py; other
    # devices take the same limits.
    return size[axis] <= min(512, 64 * others)


def _separable_conv(
    x: Tensor, taps: list[Tensor], centers: list[int], method: str, skip: Tensor | None, exact: bool
) -> Tensor:
    dtype = x.dtype
    half = dtype == torch.float16 or dtype == torch.bfloat16
    axes = x.dim() - 2
    size = list(x.shape[2:])
    operators: list[Tensor] = []
    all_matrices = True
    for axis in range(axes):
        # Taps of one dtype before halves are made of the matrices, so that gradients of a tap add up in float32.
        k = taps[axis].to(torch.float32 if half else dtype)
        if k.dim() == 3 and use_toeplitz(size, axis, method):
            k = toeplitz(k, centers[axis], size[axis])
        all_matrices = all_matrices and k.dim() == 4
        operators.append(k)
    if half and (exact or not all_matrices or not half_products(x)):
        x = x.float()
    if half and all_matrices:
        operators = [k.to(x.dtype) for k in operators]
    if skip is not None:
        skip = skip.to(x.dtype)
    if by_hand(x) and (all_matrices or axes == 1):
        return _by_hand(x, operators, centers, skip).to(dtype)
    u = to_channels(x)
    y = u
    for rank in range(taps[0].shape[0]):
        z = u
        for axis in range(axes):
            k = operators[axis][rank]
            dim = axis_dim(axis, axes)
            if k.dim() == 3:
                z = apply_matrix(z, k, dim)
            else:
                z = plain_fft_conv(z, k, centers[axis], dim, 0)
        y = z if rank == 0 else y + z
    y = in_format_of(from_channels(y), x)
    if skip is not None:
        y = y + skip.reshape([-1] + [1] * axes) * x
    return y.to(dtype)


@torch.jit.unused
def _by_hand(x: Tensor, operators: list[Tensor], centers: list[int], skip: Tensor | None) -> Tensor:
    if operators[0].dim() == 4:
        return separable_product(x, operators, skip)
    # One axis: ranks add up before the convolution, and so does the skip, at lag 0.
    k = operators[0].sum(0)
    if skip is not None:
        k = k + torch.nn.functional.pad(skip[:, None], (centers[0], k.shape[1] - 1 - centers[0]))
    return fft_conv(x, k, centers[0])
