"""A recurrence run at the times of its samples: one sided, and from both sides.

Shape legend: B = batch, H = features, c = channels, L = length, … = the state of a feature.
"""

import torch
from torch import Tensor

from s4nd.kernels import RecurrentKernel


def irregular(kernel: RecurrentKernel, u: Tensor, x: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Run u (B, H, L) at steps dt (B, L) from x (B, H, …): y (B, c·H, L) and the state after the last sample."""
    states = kernel.states(u, x, dt)
    return _observed(kernel, states).to(u.dtype), states[:, -1]


def two_sided(kernel: RecurrentKernel, u: Tensor, dt: Tensor, published: bool = False) -> Tensor:
    """Run both halves of a kernel's channels, one from each end: u (B, H, L) -> (B, c·H/2, L).

    Sample k is held over a cell of dt[k] that is centered at it, and each side reads in the middle of the cell.
    published: sides read at its ends, the one from the end without u_k.
    """
    zero = kernel.init_state(len(u))['x']
    outputs = []
    for side, (v, steps) in enumerate(((u, dt), (u.flip(2), dt.flip(1)))):
        if published:
            states = kernel.states(v, zero, steps)
            states = torch.cat([zero[:, None], states[:, :-1]], 1) if side else states
        else:
            halves = (steps / 2).repeat_interleave(2, 1)
            states = kernel.states(v.repeat_interleave(2, 2), zero, halves)[:, ::2]
        y = _observed(kernel, states).chunk(2, 1)[side]
        outputs.append(y.flip(2) if side else y)
    return outputs[0] + outputs[1]


def _observed(kernel: RecurrentKernel, states: Tensor) -> Tensor:
    """C x of all states (B, L, H, …): (B, c·H, L)."""
    y = kernel.observe(states.flatten(0, 1), kernel.system())
    return y.flatten(1).unflatten(0, states.shape[:2]).transpose(1, 2)
