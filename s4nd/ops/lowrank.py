"""Taps and steps of a diagonal-plus-low-rank system discretized by the bilinear rule (S4, arXiv 2111.00396).

The real state (Re x, Im x) has N = 2n entries. With R = (I - dt A/2)⁻¹ = F - G Qᵀ (Woodbury), F in 2 × 2 blocks, a
step is x' = R (2x + dt B u) - x, in O(N) operations, and Ā = 2R - I.
Shape legend: H = features, n = modes, N = 2n, r = rank, c = channels, L = length.
"""

import torch
from torch import Tensor

from s4nd.ops.dispatch import by_hand
from s4nd.ops.krylov import krylov

# Up to this length, on a CPU, taps are computed by running the O(N) recurrence: squaring N × N matrices costs more.
STEPWISE_UP_TO = 128


def lowrank_step(u: Tensor, x: Tensor, system: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Take one sample u (B, H) from state x (B, H, N) -> y (B, c, H) and the new state.

    system: F re, F im (H, n), G, Q (H, N, r), dt B (H, N), C (c, H, N).
    """
    f_re, f_im, G, Q, B, C = system
    n = f_re.shape[-1]
    z = 2 * x + B * u.to(x.dtype)[..., None]
    z_re, z_im = z[..., :n], z[..., n:]
    diagonal = torch.cat([f_re * z_re - f_im * z_im, f_re * z_im + f_im * z_re], -1)
    x = diagonal - (G * (z[..., None] * Q).sum(-2, keepdim=True)).sum(-1) - x
    return (C * x[:, None]).sum(-1), x


def lowrank_matrices(system: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ā (H, N, N) and B̄ (H, N) of the same system."""
    f_re, f_im, G, Q, B, _ = system
    re, im = torch.diag_embed(f_re), torch.diag_embed(f_im)
    R = torch.cat([torch.cat([re, -im], 2), torch.cat([im, re], 2)], 1) - torch.bmm(G, Q.transpose(1, 2))
    eye = torch.eye(R.shape[-1], device=R.device, dtype=R.dtype)
    return 2 * R - eye, torch.bmm(R, B[..., None])[..., 0]


def lowrank_taps(system: list[Tensor], length: int) -> Tensor:
    """Taps (c, H, length); by powers of Ā, or by the recurrence itself where that is cheaper."""
    if by_hand(system[0]) and _stepping_is_cheaper(system[0], length):
        return _impulse_response(system, length)
    A, B = lowrank_matrices(system)
    return krylov(A, B, system[5], length)


@torch.jit.unused
def _stepping_is_cheaper(like: Tensor, length: int) -> bool:
    return like.device.type == 'cpu' and length <= STEPWISE_UP_TO


def _impulse_response(system: list[Tensor], length: int) -> Tensor:
    """Run the recurrence on 1, 0, 0, …"""
    B = system[4]
    u = torch.ones(1, B.shape[0], device=B.device, dtype=B.dtype)
    x = torch.zeros_like(B)[None]
    taps: list[Tensor] = []
    for _ in range(length):
        y, x = lowrank_step(u, x, system)
        taps.append(y[0])
        u = torch.zeros_like(u)
    return torch.stack(taps, -1)
