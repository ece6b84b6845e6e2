"""The kernels of the separable convolution in one pass, for GPUs, in Triton; `fused` launches them.

A program keeps tiles of a few features on the chip, multiplies them along each axis by the Toeplitz matrix that it
builds from the taps, sums the ranks, adds the skip and writes the tile. Products are in the dtype of the signal, or in
float32, and are summed in float32.

Shape legend: C = features. A tile is (F, P1, P2, P3): F features and three axes, padded to powers of two. The last axes
are those of the signal; where it has fewer than three, P1 counts rows of the batch.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _tile(
    f, row, batch, batch_stride, sizes, strides,
    axes: tl.constexpr, C: tl.constexpr, F: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
):  # fmt: skip
    """Offsets (F, P1, P2, P3) of the tile of one step over the batch, and whether they are inside.

    `sizes` are those of the axes, `strides` those of the features and the axes.
    """
    first = 0 if axes > 2 else row * P1
    c = (f * F + tl.arange(0, F))[:, None, None, None]
    i = (first + tl.arange(0, P1))[None, :, None, None]
    j = tl.arange(0, P2)[None, None, :, None]
    k = tl.arange(0, P3)[None, None, None, :]
    offsets = c * strides[0] + i * strides[1] + j * strides[2] + k * strides[3]
    inside = (c < C) & (i < sizes[0]) & (j < sizes[1]) & (k < sizes[2])
    if axes > 2:
        offsets += row * batch_stride
        inside &= row < batch
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
def _both(taps, f, lags, center, C: tl.constexpr, F: tl.constexpr, P: tl.constexpr, dtype: tl.constexpr):
    """`_matrix` and its transpose."""
    matrix = _matrix(taps, f, lags, center, False, C, F, P, dtype)
    return matrix, _matrix(taps, f, lags, center, True, C, F, P, dtype)


@triton.jit
def _to(x, dtype: tl.constexpr):
    if INTERPRETED and dtype == tl.bfloat16:  # it cuts where a GPU rounds
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
    elif INTERPRETED:  # it takes no bfloat16; products of halves are exact in float32
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
def forward(
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
        offsets, inside = _tile(f, row, batch, batch_stride, sizes, strides, axes, C, F, P1, P2, P3)
        u = tl.load(x + offsets, mask=inside, other=0.0)
        v = u.to(dtype)
        total = tl.zeros((F, P1, P2, P3), tl.float32)
        for rank in tl.static_range(ranks):
            if rank > 0:
                last_3 = _matrix(taps3 + rank * C * lags[2], f, lags[2], centers[2], not transposed, C, F, P3, dtype)
            z = _along_3(v, last_3, exact, F, P1, P2, P3)
            if axes > 1:
                if rank > 0:
                    last_2 = _matrix(taps2 + rank * C * lags[1], f, lags[1], centers[1], transposed, C, F, P2, dtype)
                z = _along_2(_to(z, dtype), last_2, exact, F, P1, P2, P3)
            if axes > 2:
                if rank > 0:
                    last_1 = _matrix(taps1 + rank * C * lags[0], f, lags[0], centers[0], transposed, C, F, P1, dtype)
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
def _outer_3(y, x, exact: tl.constexpr, F: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr):
    """Sum of the products of two tiles (F, P1, P2, P3) over all but the last axis: (F, P3, P3), float32."""
    across = tl.permute(tl.reshape(y, (F, P1 * P2, P3)), (0, 2, 1))
    return _dot(across, tl.reshape(x, (F, P1 * P2, P3)), exact)


@triton.jit
def _outer_2(y, x, exact: tl.constexpr, F: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr):
    """The same over all but the axis before it."""
    ahead = tl.reshape(tl.permute(x, (0, 1, 3, 2)), (F, P1 * P3, P2))
    return _dot(tl.reshape(tl.permute(y, (0, 2, 1, 3)), (F, P2, P1 * P3)), ahead, exact)


@triton.jit
def _outer_1(y, x, exact: tl.constexpr, F: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr):
    """The same over all but the first axis."""
    return _dot(tl.reshape(y, (F, P1, P2 * P3)), tl.permute(tl.reshape(x, (F, P1, P2 * P3)), (0, 2, 1)), exact)


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
def backward(
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
    # Names: x is multiplied by m3 from the right and by m2 from the left; t3 and t2 are their transposes.
    sum_3 = tl.zeros((F, P3, P3), tl.float32)
    sum_skip = tl.zeros((F,), tl.float32)
    t3, m3 = _both(taps3 + rank * C * lags[2], f, lags[2], centers[2], C, F, P3, dtype)
    if axes > 1:
        sum_2 = tl.zeros((F, P2, P2), tl.float32)
        m2, t2 = _both(taps2 + rank * C * lags[1], f, lags[1], centers[1], C, F, P2, dtype)
    if axes > 2:
        sum_1 = tl.zeros((F, P1, P1), tl.float32)
        t1 = _matrix(taps1 + rank * C * lags[0], f, lags[0], centers[0], True, C, F, P1, dtype)
    c = f * F + tl.arange(0, F)
    if has_skip:
        gain = tl.load(skip + c, mask=c < C, other=0.0)[:, None, None, None]
    for step in range(rows):
        row = chunk.to(tl.int64) * rows + step
        offsets, inside = _tile(f, row, batch, batch_stride, sizes, strides, axes, C, F, P1, P2, P3)
        grad_offsets, _ = _tile(f, row, batch, grad_batch_stride, sizes, grad_strides, axes, C, F, P1, P2, P3)
        u = tl.load(x + offsets, mask=inside, other=0.0)
        g = tl.load(grad + grad_offsets, mask=inside, other=0.0)
        if has_skip:
            sum_skip += tl.sum(tl.reshape(u.to(tl.float32) * g.to(tl.float32), (F, P1 * P2 * P3)), 1)
        z, back = u.to(dtype), g.to(dtype)
        if axes > 2:
            ahead = _to(_along_3(z, m3, exact, F, P1, P2, P3), dtype)
            ahead = _to(_along_2(ahead, m2, exact, F, P1, P2, P3), dtype)
            sum_1 += _outer_1(back, ahead, exact, F, P1, P2, P3)
            back = _to(_along_1(back, t1, exact, F, P1, P2, P3), dtype)
        if axes > 1:
            ahead = _to(_along_3(z, m3, exact, F, P1, P2, P3), dtype)
            sum_2 += _outer_2(back, ahead, exact, F, P1, P2, P3)
            back = _to(_along_2(back, t2, exact, F, P1, P2, P3), dtype)
        sum_3 += _outer_3(back, z, exact, F, P1, P2, P3)
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
