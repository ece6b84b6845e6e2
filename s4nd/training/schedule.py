"""The course of the learning rate: a linear warm-up, then a cosine, a constant, or steps down where nothing improves.

Every rate follows from the number of the update and the history of the run, so that there is no state to be resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from s4nd.options import ConfigError

if TYPE_CHECKING:
    from s4nd.training.config import OptimConfig

__all__ = ['SCHEDULES', 'Schedule', 'reductions']

SCHEDULES = ('cosine', 'cosine-per-stage', 'constant', 'reduce-on-plateau')
_THRESHOLD = 1e-4  # the share by which a metric must improve, as in torch's ReduceLROnPlateau


class Schedule:
    """Set the learning rates of an optimizer; each group has its own peak, which is the rate that it begins with.

    Args:
        optimizer: whose groups are set.
        options: which schedule, and its numbers.
        total: updates of the run.
        per_epoch: updates of an epoch.
        stages: epochs of each stage of the training; empty: there is one.
        monitor, maximize: the metric of the history that 'reduce-on-plateau' follows.

    Attributes:
        warmup: updates of the (first) warm-up, at most half of those that there are.

    Raises:
        ConfigError: 'cosine-per-stage' without stages.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        options: OptimConfig,
        total: int,
        per_epoch: int,
        stages: Sequence[int] = (),
        monitor: str = '',
        maximize: bool = False,
    ) -> None:
        self.optimizer, self.options, self.monitor, self.maximize = optimizer, options, monitor, maximize
        if options.schedule == 'cosine-per-stage' and not stages:
            raise ConfigError('optim.schedule: cosine-per-stage needs data.stage_epochs, as progressive resizing has')
        lengths = [epochs * per_epoch for epochs in stages] if options.schedule == 'cosine-per-stage' else [total]
        ends = [end for end in accumulate(lengths) if end < total]
        self.bounds = [0, *ends, total]
        self.wish = round(options.warmup_epochs * per_epoch)
        self.warmup = self._warmup(total if len(self.bounds) == 2 else self.bounds[1])
        self.peaks = [group['lr'] for group in optimizer.param_groups]
        self.update(0)

    def update(self, number: int, history: Iterable[Mapping[str, float]] = ()) -> None:
        """Set the rates for the update that follows the first `number` ones."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group['lr'] = self.rate(number, peak, history)

    def rate(self, number: int, peak: float, history: Iterable[Mapping[str, float]] = ()) -> float:
        """The learning rate of a group with this peak."""
        start, end = next((pair for pair in pairwise(self.bounds) if number < pair[1]), self.bounds[-2:])
        options, number, length = self.options, number - start, end - start
        warmup, lowest = self._warmup(length), min(options.min_lr, options.lr)
        if number < warmup:
            return options.warmup_lr + number * ((peak - options.warmup_lr) / warmup)
        if options.schedule == 'constant':
            return peak
        if options.schedule == 'reduce-on-plateau':
            values = [entry[self.monitor] for entry in history if self.monitor in entry]
            count = reductions(values, options.plateau_patience, self.maximize)
            return max(lowest, peak * options.plateau_factor**count)
        return lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * min(number, length) / length))

    def _warmup(self, length: int) -> int:
        return min(self.wish, length // 2)


def reductions(values: Iterable[float], patience: int, maximize: bool) -> int:
    """How often the rate was reduced: each time more than `patience` values in turn brought nothing better.

    The rule of torch.optim.lr_scheduler.ReduceLROnPlateau with its default threshold.
    """
    best, worse, count = math.nan, 0, 0
    for value in values:
        goal = best * (1 + _THRESHOLD if maximize else 1 - _THRESHOLD)
        if math.isnan(best) or (value > goal if maximize else value < goal):
            best, worse = value, 0
        else:
            worse += 1
        if worse > patience:
            count, worse = count + 1, 0
    return count
