"""The separable convolution in one pass over memory: kernels for GPUs, written in Triton.

A program keeps tiles of a few features on the chip, multiplies them along each axis by the Toeplitz matrix that it
builds from the taps, sums the ranks, adds the skip and writes the tile. The signal is read once and written once;
matrices never reach memory. Products are in the dtype of the signal, or in float32, and are summed in float32.

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
    import triton
    import triton.language as tl
except ImportError:  # builds of torch for the CPU come without
    triton = None

_INTERPRETER = triton is not None and triton.knobs.runtime.interpret
LONGEST = 64  # of an axis
_TILE = 2**14  # elements of a tile at most, for its registers
_SMALLEST = 16  # side of a matrix that the tensor cores take

if triton is not None:
    _INTERPRETED = tl.constexpr(_INTERPRETER)

    @triton.jit
    def _tile(
        f, first, sizes, strides, C: tl.constexpr, F: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr
    ):
        """Offsets (F, P1, P2, P3) of a tile and whether they are inside; `sizes` and `strides` of C and the axes."""
        c = (f * F + tl.arange(0, F))[:, None, None, None]
        i = (first + tl.arange(0, P1))[None, :, None, None]
        j = tl.arange(0, P2)[None, None, :, None]
        k = tl.arange(0, P3)[None, None, None, :]
        offsets = c * strides[0] + i * strides[1] + j * strides[2] + k * strides[3]
        inside = (c < C) & (i < sizes[0]) & (j < sizes[1]) & (k < sizes[2])
        return offsets, inside

    @triton.jit
    def _matrix(
        taps,
        f,
        lags,
        center,
        transposed: tl.constexpr,
        C: tl.constexpr,
        F: tl.constexpr,
        P: tl.constexpr,
        dtype: tl.constexpr,
    ):
        """(F, P, P) of taps (C, lags): row i, column j holds k[center + i - j], or, `transposed`, k[center + j - i]."""
        c = (f * F + tl.arange(0, F))[:, None, None]
        i, j = tl.arange(0, P)[None, :, None], tl.arange(0, P)[None, None, :]
        at = center + (j - i if transposed else i - j)
        return _to(tl.load(taps + c * lags + at, mask=(c < C) & (at >= 0) & (at < lags), other=0.0), dtype)

    @triton.jit
    def _to(x, dtype: tl.constexpr):
        if _INTERPRETED and dtype == tl.bfloat16:  # it cuts where a GPU rounds
            bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            return bits.to(tl.uint32).to(tl.float32, bitcast=True).to(dtype)
        else:
            return x.to(dtype)

    @triton.jit
    def _dot(a, b, exact: tl.constexpr):
        # Three passes of tf32 give float32's precision at a third of the tensor cores' rate.
        if exact:
            return tl.dot(a, b, input_precision='tf32x3', out_dtype=tl.float32)
        elif _INTERPRETED:  # it takes no bfloat16; products of halves are exact in float32
            return tl.dot(a.to(tl.float32), b.to(tl.float32), out_dtype=tl.float32)
        else:
            return tl.dot(a, b, out_dtype=tl.float32)

    @triton.jit
    def _along_3(x, matrix, exact: tl.constexpr, F: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr):
        """x (F, P1, P2, P3) times matrix (F, P3, P3) along the last axis, float32."""
        return tl.reshape(_dot(tl.reshape(x, (F, P1 * P2, P3)), matrix, exact), (F, P1, P2, P3))

    @triton.jit
    def _along_2(x, matrix, exact: tl.constexpr, F: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr):
        """The same along the axis before it."""
        y = _dot(matrix, tl.reshape(tl.permute(x, (0, 2, 1, 3)), (F, P2, P1 * P3)), exact)
        return tl.permute(tl.reshape(y, (F, P2, P1, P3)), (0, 2, 1, 3))

    @triton.jit
    def _along_1(x, matrix, exact: tl.constexpr, F: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr):
        """The same along the first axis."""
        return tl.reshape(_dot(matrix, tl.reshape(x, (F, P1, P2 * P3)), exact), (F, P1, P2, P3))

    @triton.jit
    def _forward(
        x, y, taps1, taps2, taps3, skip, batch, rows, batch_stride,
        sizes, strides, lags, centers,
        axes: tl.constexpr, ranks: tl.constexpr, transposed: tl.constexpr, has_skip: tl.constexpr, exact: tl.constexpr,
        C: tl.constexpr, F: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
    ):  # fmt: skip
        """y = Σ_r x ×₁ k1_r ×₂ k2_r ×₃ k3_r + skip · x for F features and `rows` steps over the batch."""
        f, chunk = tl.program_id(0), tl.program_id(1)
        dtype: tl.constexpr = tl.float32 if exact else x.dtype.element_ty
        last_3 = _matrix(taps3, f, lags[2], centers[2], not transposed, C, F, P3, dtype)
        if axes > 1:
            last_2 = _matrix(taps2, f, lags[1], centers[1], transposed, C, F, P2, dtype)
        if axes > 2:
            last_1 = _matrix(taps1, f, lags[0], centers[0], transposed, C, F, P1, dtype)
        c = f * F + tl.arange(0, F)
        if has_skip:
            gain = tl.load(skip + c, mask=c < C, other=0.0)[:, None, None, None]
        for step in range(rows):
            row = chunk.to(tl.int64) * rows + step
            offsets, inside = _tile(f, 0 if axes > 2 else row * P1, sizes, strides, C, F, P1, P2, P3)
            if axes > 2:
                offsets += row * batch_stride
                inside &= row < batch
            u = tl.load(x + offsets, mask=inside, other=0.0)
            v = u.to(dtype)
            total = tl.zeros((F, P1, P2, P3), tl.float32)
            for rank in tl.static_range(ranks):
                if rank > 0:
                    last_3 = _matrix(
                        taps3 + rank * C * lags[2], f, lags[2], centers[2], not transposed, C, F, P3, dtype
                    )
                z = _along_3(v, last_3, exact, F, P1, P2, P3)
                if axes > 1:
                    if rank > 0:
                        last_2 = _matrix(
                            taps2 + rank * C * lags[1], f, lags[1], centers[1], transposed, C, F, P2, dtype
                        )
                    z = _along_2(_to(z, dtype), last_2, exact, F, P1, P2, P3)
                if axes > 2:
                    if rank > 0:
                        last_1 = _matrix(
                            taps1 + rank * C * lags[0], f, lags[0], centers[0], transposed, C, F, P1, dtype
                        )
                    z = _along_1(_to(z, dtype), last_1, exact, F, P1, P2, P3)
                total += z
            if ranks > 1:  # the next row begins with the first rank again
                last_3 = _matrix(taps3, f, lags[2], centers[2], not transposed, C, F, P3, dtype)
                if axes > 1:
                    last_2 = _matrix(taps2, f, lags[1], centers[1], transposed, C, F, P2, dtype)
                if axes > 2:
                    last_1 = _matrix(taps1, f, lags[0], centers[0], transposed, C, F, P1, dtype)
            if has_skip:
                total += gain * u.to(tl.float32)
            tl.store(y + offsets, _to(total, y.dtype.element_ty), mask=inside)

    @triton.jit
    def _store_diagonals(matrix, out, f, lags, center, C: tl.constexpr, F: tl.constexpr, P: tl.constexpr):
        """Sum (F, P, P) over the entries of each tap, row - column = lag, into out (C, lags)."""
        row, shift = tl.arange(0, P)[None, :, None], tl.arange(0, 2 * P)[None, None, :] - P
        column = row - shift
        valid = (column >= 0) & (column < P)
        index = tl.broadcast_to(tl.minimum(tl.maximum(column, 0), P - 1), (F, P, 2 * P))
        sums = tl.sum(tl.where(valid, tl.gather(matrix, index, 2), 0.0), 1)  # (F, 2P)
        c, at = (f * F + tl.arange(0, F))[:, None], center + (tl.arange(0, 2 * P)[None, :] - P)
        tl.store(out + c * lags + at, sums, mask=(c < C) & (at >= 0) & (at < lags))

    @triton.jit
    def _backward(
        x, grad, grad_x, taps1, taps2, taps3, skip, out1, out2, out3, out_skip, batch, rows, batch_stride,
        grad_batch_stride, sizes, strides, grad_strides, lags, centers,
        axes: tl.constexpr, ranks: tl.constexpr, writes_x: tl.constexpr, has_skip: tl.constexpr, exact: tl.constexpr,
        C: tl.constexpr, F: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
    ):  # fmt: skip
        """Gradients of the taps of one rank, of the skip and, where that rank is the only one, of x.

        Partial sums over `rows` steps over the batch go to out (chunks, ranks, C, lags) and out_skip (chunks, C).
        """
        f, chunk, rank = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        dtype: tl.constexpr = tl.float32 if exact else x.dtype.element_ty
        # Names: m3 is the matrix that x is multiplied by from the right, t3 its transpose, and so on.
        taps3 += rank * C * lags[2]
        taps2 += rank * C * lags[1]
        taps1 += rank * C * lags[0]
        sum_3 = tl.zeros((F, P3, P3), tl.float32)
        sum_skip = tl.zeros((F,), tl.float32)
        m3 = _matrix(taps3, f, lags[2], centers[2], True, C, F, P3, dtype)
        t3 = _matrix(taps3, f, lags[2], centers[2], False, C, F, P3, dtype)
        if axes > 1:
            sum_2 = tl.zeros((F, P2, P2), tl.float32)
            m2 = _matrix(taps2, f, lags[1], centers[1], False, C, F, P2, dtype)
            t2 = _matrix(taps2, f, lags[1], centers[1], True, C, F, P2, dtype)
        if axes > 2:
            sum_1 = tl.zeros((F, P1, P1), tl.float32)
            t1 = _matrix(taps1, f, lags[0], centers[0], True, C, F, P1, dtype)
        c = f * F + tl.arange(0, F)
        if has_skip:
            gain = tl.load(skip + c, mask=c < C, other=0.0)[:, None, None, None]
        for step in range(rows):
            row = chunk.to(tl.int64) * rows + step
            offsets, inside = _tile(f, 0 if axes > 2 else row * P1, sizes, strides, C, F, P1, P2, P3)
            grad_offsets, _ = _tile(f, 0 if axes > 2 else row * P1, sizes, grad_strides, C, F, P1, P2, P3)
            if axes > 2:
                offsets += row * batch_stride
                inside &= row < batch
                grad_offsets += row * grad_batch_stride
            u = tl.load(x + offsets, mask=inside, other=0.0)
            g = tl.load(grad + grad_offsets, mask=inside, other=0.0)
            if has_skip:
                products = u.to(tl.float32) * g.to(tl.float32)
                sum_skip += tl.sum(tl.reshape(products, (F, P1 * P2 * P3)), 1)
            z, back = u.to(dtype), g.to(dtype)
            if axes > 2:
                ahead = _to(_along_3(z, m3, exact, F, P1, P2, P3), dtype)
                ahead = _to(_along_2(ahead, m2, exact, F, P1, P2, P3), dtype)
                ahead = tl.permute(tl.reshape(ahead, (F, P1, P2 * P3)), (0, 2, 1))
                sum_1 += _dot(tl.reshape(back, (F, P1, P2 * P3)), ahead, exact)
                back = _to(_along_1(back, t1, exact, F, P1, P2, P3), dtype)
            if axes > 1:
                ahead = _to(_along_3(z, m3, exact, F, P1, P2, P3), dtype)
                ahead = tl.reshape(tl.permute(ahead, (0, 1, 3, 2)), (F, P1 * P3, P2))
                across = tl.reshape(tl.permute(back, (0, 2, 1, 3)), (F, P2, P1 * P3))
                sum_2 += _dot(across, ahead, exact)
                back = _to(_along_2(back, t2, exact, F, P1, P2, P3), dtype)
            across = tl.permute(tl.reshape(back, (F, P1 * P2, P3)), (0, 2, 1))
            sum_3 += _dot(across, tl.reshape(z, (F, P1 * P2, P3)), exact)
            if writes_x:
                total = _along_3(back, t3, exact, F, P1, P2, P3)
                if has_skip:
                    total += gain * g.to(tl.float32)
                tl.store(grad_x + offsets, _to(total, grad_x.dtype.element_ty), mask=inside)
        place = chunk * ranks + rank
        _store_diagonals(sum_3, out3 + place * C * lags[2], f, lags[2], centers[2], C, F, P3)
        if axes > 1:
            _store_diagonals(sum_2, out2 + place * C * lags[1], f, lags[1], centers[1], C, F, P2)
        if axes > 2:
            _store_diagonals(sum_1, out1 + place * C * lags[0], f, lags[0], centers[0], C, F, P1)
        if has_skip:  # noqa: SIM102 (known when compiled, unlike the rank)
            if rank == 0:
                tl.store(out_skip + chunk * C + c, sum_skip, mask=c < C)


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run there: on CUDA devices, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1)."""
    return triton is not None and (device.type == 'cuda' or _INTERPRETER)


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
    _backward[(-(-channels // cut.features), chunks, ranks)](
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
    _forward[(-(-channels // cut.features), -(-cut.steps // cut.rows))](
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
