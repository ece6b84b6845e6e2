"""The separable convolution in one pass over memory: how `fused_kernels` are launched, and their place in autograd.

The signal is read once and written once; Toeplitz matrices never reach memory.

Shape legend: as in longconv.py. A tile is (F, P1, P2, P3): F features and three axes, padded to powers of two. The last
axes are those of the signal; where it has fewer than three, P1 counts rows of the batch.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s4nd.ops.dispatch import plain_gradients

try:
    from s4nd.ops import fused_kernels as kernels
except ImportError:  # builds of torch for the CPU come without Triton
    kernels = None  # type: ignore[assignment]

_INTERPRETED = kernels is not None and bool(kernels.INTERPRETED.value)
LONGEST = 64  # of an axis
_TILE = 2**14  # elements of a tile at most, for its registers
_SMALLEST = 16  # side of a matrix that the tensor cores take


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run there: on CUDA devices, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1)."""
    return kernels is not None and (device.type == 'cuda' or _INTERPRETED)


def fits(size: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether a tile of such a signal fits on the chip: one to three axes of up to 64 samples, no float64."""
    if len(size) > 3 or max(size) > LONGEST or dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    return math.prod(_padded(size)) <= _TILE


class Launch(NamedTuple):
    """How a signal is cut: features of a tile, its sides, steps over the batch, and those of one program."""

    features: int
    sides: tuple[int, int, int]
    steps: int
    rows: int
    warps: int


def launch(x: Tensor, features: int | None = None, programs: int = 1024) -> Launch:
    """Cut x (B, C, L1, …, Ld) into tiles; `features` of one, by default as many as suit the memory format.

    About `programs` programs share the work; each builds its matrices once.
    """
    batch, channels = x.shape[:2]
    sides = _padded(x.shape[2:])
    if len(sides) < 3:
        # Rows of the batch beside each other, until a tile is worth a product.
        each = math.prod(sides)
        together = max(_SMALLEST if len(sides) == 1 else 1, min(_power(batch), 4096 // each))
        sides = (together, *[1] * (2 - len(sides)), *sides)
    steps = batch if x.dim() == 5 else -(-batch // sides[0])
    if features is None:
        # Side by side in memory, neighbors share the sectors that are read.
        features = max(1, min((_TILE if x.stride(1) == 1 else 4096) // math.prod(sides), 16, _power(channels)))
    groups = -(-channels // features)
    rows = max(1, -(-steps * groups // programs))
    elements = features * math.prod(sides)
    return Launch(features, sides, steps, rows, 4 if elements <= 4096 else 8)  # type: ignore[arg-type]


def fused_conv(x: Tensor, taps: Sequence[Tensor], centers: Sequence[int], skip: Tensor | None, exact: bool) -> Tensor:
    """Convolve x (B, C, L1, …, Ld) with lag taps (R, C, K) and add skip (C,) times x, in one launch.

    exact: whether products are in float32 where x is in half precision. The result has the memory format of x.
    """
    near, middles = [], []
    for k, center, length in zip(taps, centers, x.shape[2:], strict=True):
        # Lags beyond ±(length - 1) never meet the signal.
        first = max(0, center - length + 1)
        near.append(k[..., first : center + length].float().contiguous())
        middles.append(center - first)
    skip = None if skip is None else skip.float().contiguous()
    return torch.ops.s4nd.fused_conv(_dense(x), near, middles, skip, exact)


def _plain(centers: Sequence[int], x: Tensor, skip: Tensor | None, *taps: Tensor) -> Tensor:
    from s4nd.ops.longconv import separable_conv  # which calls this file

    return separable_conv(x, list(taps), list(centers), 'toeplitz', skip, True)


@torch.library.custom_op('s4nd::fused_conv', mutates_args=())
def _fused_conv(x: Tensor, taps: list[Tensor], centers: list[int], skip: Tensor | None, exact: bool) -> Tensor:
    return _run_forward(x, taps, centers, skip, exact, transposed=False)


@_fused_conv.register_fake
def _(x: Tensor, taps: list[Tensor], centers: list[int], skip: Tensor | None, exact: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op('s4nd::fused_conv_backward', mutates_args=())
def _fused_conv_backward(
    grad: Tensor, x: Tensor, taps: list[Tensor], centers: list[int], skip: Tensor | None, exact: bool
) -> list[Tensor]:
    """Gradients of x, of the taps of each axis and, where it exists, of the skip."""
    axes, ranks, channels = len(taps), taps[0].shape[0], x.shape[1]
    cut = launch(x)
    chunks = -(-cut.steps // cut.rows)
    exact = exact or x.dtype == torch.float32
    partial = [k.new_empty(chunks, *k.shape) for k in taps]
    partial_skip = taps[0].new_empty(chunks, channels)
    grad_x = torch.empty_like(x)
    sizes, strides, batch_stride = _geometry(x)
    _, grad_strides, grad_batch_stride = _geometry(grad)
    unused = [taps[0]] * (3 - axes)
    kernels.backward[(-(-channels // cut.features), chunks, ranks)](
        x, grad, grad_x, *unused, *taps, taps[0] if skip is None else skip, *unused, *partial, partial_skip,
        cut.steps, cut.rows, batch_stride, grad_batch_stride, sizes, strides, grad_strides, *_lags(taps, centers),
        axes=axes, ranks=ranks, writes_x=ranks == 1, has_skip=skip is not None, exact=exact,
        C=channels, F=cut.features, P1=cut.sides[0], P2=cut.sides[1], P3=cut.sides[2], num_warps=cut.warps,
    )  # fmt: skip
    if ranks > 1:
        grad_x = _run_forward(_dense(grad), taps, centers, skip, exact, transposed=True)
    found = [grad_x, *(k.sum(0) for k in partial)]
    return found if skip is None else [*found, partial_skip.sum(0)]


@_fused_conv_backward.register_fake
def _(
    grad: Tensor, x: Tensor, taps: list[Tensor], centers: list[int], skip: Tensor | None, exact: bool
) -> list[Tensor]:
    found = [torch.empty_like(x), *(torch.empty_like(k) for k in taps)]
    return found if skip is None else [*found, torch.empty_like(skip)]


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, taps, centers, skip, exact = inputs
    ctx.save_for_backward(x, skip, *taps)
    ctx.centers, ctx.exact = centers, exact


def _gradients(ctx: Any, grad: Tensor) -> tuple:
    x, skip, *taps = ctx.saved_tensors
    if torch.is_grad_enabled():  # of second order
        needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[3], *(k.requires_grad for k in taps)]
        found = plain_gradients(lambda *inputs: _plain(ctx.centers, *inputs), (x, skip, *taps), needed, grad)
        return found[0], found[2:], None, found[1], None
    found = torch.ops.s4nd.fused_conv_backward(grad, x, taps, ctx.centers, skip, ctx.exact)
    return found[0], found[1 : 1 + len(taps)], None, None if skip is None else found[-1], None


_fused_conv.register_autograd(_gradients, setup_context=_save)


def _run_forward(
    x: Tensor, taps: Sequence[Tensor], centers: Sequence[int], skip: Tensor | None, exact: bool, transposed: bool
) -> Tensor:
    axes, channels = len(taps), x.shape[1]
    cut = launch(x)
    y = torch.empty_like(x)
    sizes, strides, batch_stride = _geometry(x)
    kernels.forward[(-(-channels // cut.features), -(-cut.steps // cut.rows))](
        x, y, *[taps[0]] * (3 - axes), *taps, taps[0] if skip is None else skip, cut.steps, cut.rows, batch_stride,
        sizes, strides, *_lags(taps, centers),
        axes=axes, ranks=taps[0].shape[0], transposed=transposed, has_skip=skip is not None,
        exact=exact or x.dtype == torch.float32,
        C=channels, F=cut.features, P1=cut.sides[0], P2=cut.sides[1], P3=cut.sides[2], num_warps=cut.warps,
    )  # fmt: skip
    return y


def _geometry(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Sizes of a tile's three axes in x, strides of the features and of those axes, and the stride of the batch."""
    if x.dim() == 5:
        return tuple(x.shape[2:]), tuple(x.stride()[1:]), x.stride(0)
    missing = 4 - x.dim()  # axes of size 1 between the batch and the axes of x
    sizes = (x.shape[0], *[1] * missing, *x.shape[2:])
    return sizes, (x.stride(1), x.stride(0), *[0] * missing, *x.stride()[2:]), 0


def _lags(taps: Sequence[Tensor], centers: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    missing = 3 - len(taps)
    return (*[1] * missing, *(k.shape[2] for k in taps)), (*[0] * missing, *centers)


def _padded(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(_SMALLEST, _power(length)) for length in size)


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << max(0, int(count) - 1).bit_length()  # (an integer in a trace too)


def _dense(x: Tensor) -> Tensor:
    """x without gaps or overlaps, so that its twin from `empty_like` has its strides."""
    return x if torch.empty_like(x).stride() == x.stride() else x.contiguous()
