"""What a run prints: what is about to be computed, and a line per epoch, with units."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from s4nd.tasks import Task
from s4nd.training.config import RunConfig
from s4nd.training.device import is_sharded

__all__ = ['epoch_line', 'header']


def header(
    config: RunConfig, task: Task, model: nn.Module, accelerator: Accelerator, updates: int, warmup: int, out: Path
) -> str:
    """Model, device, processes, precision, examples and size, batch, updates and warm-up, and the folder."""
    size = sum(parameter.numel() for parameter in model.parameters())
    shown = ', '.join(f'{axis.trained} {axis.unit}' for axis in task.axes.values())
    count, accumulate = accelerator.num_processes, config.optim.accumulate
    processes = f'{count} processes' if count > 1 else '1 process'
    sharded = ', each with a part of the model (FSDP)' if is_sharded(accelerator) else ''
    batch = task.batch_size * count * accumulate
    return (
        f'{config.model.name}: {size:,} parameters, {config.precision} on {accelerator.device}, {processes}{sharded}\n'
        f'{task.train_count or "unknown"} {task.examples}{f" at {shown}" if shown else ""}; {batch} per update '
        f'({task.batch_size} × {processes} × {accumulate} accumulated)\n'
        f'{updates} updates, {warmup} of them warm-up; results in {out}'
    )


def epoch_line(task: Task, entry: Mapping[str, float], epochs: int) -> str:
    """'epoch 3/10  loss 1.2 nats  …' of an entry of the history."""
    figures = [f'{name} {value:.4g} {task.unit(name)}'.rstrip() for name, value in entry.items() if name != 'epoch']
    return '  '.join([f'epoch {entry["epoch"]}/{epochs}', *figures])
