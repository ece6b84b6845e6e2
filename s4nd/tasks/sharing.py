"""Evaluation by several processes: each takes its share of the batches, and sums over all of them are gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce, send_to_device
from torch import Tensor

from s4nd.ops.dispatch import wide_dtype
from s4nd.progress import progress
from s4nd.seeds import generator
from s4nd.tasks.base import Chosen, Epoch

__all__ = ['evenly', 'gathered', 'mean_loss', 'shared', 'zeros']


def evenly(total: int, limit: int | None) -> Tensor:
    """The numbers of `limit` of `total` examples, evenly spaced and in order; None: of all."""
    count = total if limit is None else min(limit, total)
    return torch.arange(count) * total // max(1, count)


def zeros(count: int, device: torch.device | str) -> Tensor:
    """Sums to add to, in float64 where the device has it."""
    device = torch.device(device)
    return torch.zeros(count, dtype=wide_dtype(device), device=device)


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


def mean_loss(
    batches: Chosen,
    loss: Callable[[Any, torch.Generator], Tensor],
    count: Callable[[Any], int],
    device: torch.device | str,
    seed: int,
    text: str,
) -> float:
    """The mean of `loss(batch, random)` over all that `count(batch)` counts, in all processes.

    What is drawn follows from the seed and the first example of a batch, so that it is the same at every call.
    """
    numbered, sums = Chosen(batches.chosen, lambda chosen: (chosen, batches.make(chosen)), even=False), zeros(2, device)
    for (chosen, batch), counts in shared(numbered, text):
        found = loss(send_to_device(batch, device), generator(seed, int(chosen[0])))
        if counts:
            sums += torch.stack([found * count(batch), torch.full_like(found, count(batch))]).to(sums)
    total, number = gathered(sums)
    return total / number
