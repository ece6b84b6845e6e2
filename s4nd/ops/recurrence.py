"""A linear recurrence run over a stretch of signal at once, from any state to the state after it.

Shape legend: B = batch, H = features, c = channels, L = length, N = entries of a state, K = samples of a chunk.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from s4nd.ops.dispatch import wide, wide_dtype

Advance = Callable[[Tensor, Tensor, list[Tensor]], tuple[Tensor, Tensor]]

# Samples of a chunk, a power of two: longer ones cost more arithmetic a sample, shorter ones more chunks in a row.
CHUNK = 64


def run_recurrence(advance: Advance, system: list[Tensor], u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """What L calls of `advance` give, as matrix products: a convolution in each chunk, a state from one to the next.

    With x' = Āx + B̄u and y = Cx' (c outputs per feature), a chunk of K samples is y = T u + S x and x' = Āᴷx + R u.
    T is the Toeplitz matrix of the taps C Āˡ B̄, S has the rows C Āˡ⁺¹ and R the columns Āᴷ⁻¹⁻ˡ B̄. All follow from
    `advance` alone, in float64, and are applied in the dtype of x. The samples after the last whole chunk are taken one
    by one.

    Args:
        advance: one sample, linear in u (B, H) and x: (u, x, system) -> y (B, c, H), new x.
        system: the tensors that `advance` takes, as a kernel's `system()` gives them.
        u: (B, H, L).
        x: (B, H, …), the state before the first sample.

    Returns:
        y (B, c·H, L), channel-major, and the state after the last sample. A long signal may be cut anywhere and run
        piece by piece. A NaN in u leaves the outputs before it alone.

    Raises:
        ValueError: if u is not (B, H, L), or x not of the same B and H.
    """
    if u.dim() != 3 or x.shape[:2] != u.shape[:2]:
        raise ValueError(f'expected u (B, H, L) and x (B, H, …), got {tuple(u.shape)} and {tuple(x.shape)}')
    whole = u.shape[2] // CHUNK * CHUNK
    outputs = []
    if whole:
        matrices = [t.to(x.dtype) for t in _chunk_matrices(advance, system, x)]
        y, after = _run_chunks(u[..., :whole].to(x.dtype), x.flatten(2), *matrices)
        outputs, x = [y.to(u.dtype)], after.reshape(x.shape)
    for t in range(whole, u.shape[2]):
        y, x = advance(u[..., t], x, system)
        outputs.append(y.flatten(1)[..., None].to(u.dtype))
    return torch.cat(outputs, 2) if outputs else torch.zeros_like(u), x


def _chunk_matrices(advance: Advance, system: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """T (H, c·K, K), S (H, c·K, N), R (H, N, K) and Āᴷ (H, N, N), float64."""
    features, shape = x.shape[1], x.shape[2:]
    system = [wide(t) for t in system]
    # The columns of Ā are what it makes of a basis; B̄ is what an impulse makes of the state zero.
    basis = torch.eye(shape.numel(), dtype=wide_dtype(x.device), device=x.device).reshape(-1, 1, *shape)
    states = basis.expand(-1, features, *shape)
    row, power = advance(states.new_zeros(len(states), features), states, system)
    tap, column = advance(states.new_ones(1, features), torch.zeros_like(states[:1]), system)
    power, R = power.flatten(2).permute(1, 2, 0), column.flatten(2).permute(1, 2, 0)
    B, S = R, row.permute(2, 1, 0)[:, :, None]  # (H, N, 1), (H, c, 1, N)
    while S.shape[2] < CHUNK:
        S = torch.cat([S, S @ power[:, None]], 2)
        R = torch.cat([R, torch.bmm(power, R)], 2)
        power = torch.bmm(power, power)
    taps = torch.cat([tap[0].T[..., None], (S[:, :, :-1] @ B[:, None])[..., 0]], 2)  # (H, c, K)
    T = torch.nn.functional.pad(taps, (CHUNK - 1, 0)).unfold(2, CHUNK, 1).flip(3)  # T[i, j] = taps[i - j]
    return T.flatten(1, 2), S.flatten(1, 2), R.flip(2), power


def _run_chunks(u: Tensor, x: Tensor, T: Tensor, S: Tensor, R: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    """u (B, H, C·K), state x (B, H, N) -> y (B, c·H, C·K) and the state after it."""
    u = u.unflatten(2, (-1, CHUNK)).permute(1, 3, 2, 0)  # (H, K, C, B)
    chunks = u.shape[2:]
    u = u.flatten(2)
    pushed = torch.bmm(R, u).unflatten(2, chunks)
    x, states = x.permute(1, 2, 0), []
    for c in range(chunks[0]):
        states.append(x)
        x = torch.baddbmm(pushed[:, :, c], power, x)
    # The zeros of T would spread a NaN to the samples before it.
    bad = ~u.isfinite()
    y = torch.bmm(T, u.masked_fill(bad, 0.0)) + torch.bmm(S, torch.stack(states, 2).flatten(2))
    y = y.unflatten(1, (-1, CHUNK)).masked_fill((bad.cumsum(1) > 0)[:, None], torch.nan)  # (H, c, K, C·B)
    return y.unflatten(3, chunks).permute(4, 1, 0, 3, 2).flatten(3).flatten(1, 2), x.permute(2, 0, 1)
