"""Evaluation by several processes: each takes its share of the batches, and sums over all of them are gathered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from s4nd.progress import progress
from s4nd.tasks.base import Epoch

__all__ = ['gathered', 'shared', 'zeros']


def zeros(count: int, device: torch.device | str) -> Tensor:
    """Sums to add to, in float64 where the device has it."""
    device = torch.device(device)
    return torch.zeros(count, dtype=torch.float32 if device.type == 'mps' else torch.float64, device=device)


def gathered(sums: Tensor) -> list[float]:
    """Each sum over all processes."""
    return reduce(sums, 'sum').tolist()


def shared(batches: Epoch, text: str = 'evaluation') -> Iterator[tuple[Any, bool]]:
    """(batch, whether it counts) of the share of this process, with a bar.

    All processes get as many, so that sharded models, whose parts compute together, can be evaluated: where one has a
    batch less than others, it gets the first of all once more, which does not count.
    """
    state = PartialState()
    own = batches.shard(state.process_index, state.num_processes)
    for batch in progress(own, text, 'batches', len(own)):
        yield batch, True
    if len(own) * state.num_processes < len(batches):
        for batch in batches.shard(0, len(batches)):
            yield batch, False
