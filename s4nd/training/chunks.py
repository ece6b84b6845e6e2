"""Training on sequences that are too long to keep at once: truncated backpropagation through time.

Shape legend: B = batch, L = length.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from s4nd.layers.streaming import State

__all__ = ['backward_in_chunks', 'detached']


def detached(state: State) -> State:
    """Make a state that gradients do not pass."""
    return {name: value.detach() for name, value in state.items()}


def backward_in_chunks(
    model: Any,
    x: Tensor,
    target: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    chunk: int,
    state: State | None = None,
) -> tuple[float, State]:
    """Add the gradients of loss(model(x), target) chunk by chunk, each cut off from the chunks before it.

    The state is carried on, so outputs are those of the whole sequence; memory is that of one chunk. The gradients are
    exact where one chunk holds the whole. Call the optimizer afterwards.

    Args:
        model: streams and has an output per sample, such as `SequenceModel(head='step')` or `SaShiMi`.
        x: (B, L, …), samples or tokens.
        target: (B, L, …).
        loss: a mean over the samples, of outputs (B, K, …) and targets (B, K, …).
        chunk: K, samples of a chunk; the last may be shorter.
        state: before x; None: the beginning. That after an earlier call goes on from there.

    Returns:
        The mean loss, and the state after x.

    Raises:
        ValueError: for a chunk below 1, and lengths of x and target that differ.
    """
    if chunk < 1:
        raise ValueError(f'chunk must be at least 1, got {chunk}')
    if x.shape[:2] != target.shape[:2]:
        raise ValueError(f'expected a target per sample, {list(x.shape[:2])}, got {list(target.shape[:2])}')
    state = model.init_state(len(x)) if state is None else detached(state)
    total = torch.zeros((), device=x.device)
    for part, goal in zip(x.split(chunk, 1), target.split(chunk, 1), strict=True):
        y, state = model(part, state)
        share = loss(y, goal) * (part.shape[1] / x.shape[1])
        share.backward()
        total += share.detach()
        state = detached(state)
    return float(total), state
