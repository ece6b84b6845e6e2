"""Figures of a run for TensorBoard or Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

__all__ = ['TRACKERS', 'begin_tracking']

TRACKERS = ('tensorboard', 'wandb')


def begin_tracking(accelerator: Accelerator, out: Path, options: Mapping[str, Any]) -> None:
    """Open the trackers, if any, with the options of the run; `accelerator.log` writes to them from then on.

    TensorBoard's files lie in `out`/tensorboard, and wandb's in `out`/wandb.
    """
    plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in options.items()}
    name = 'tensorboard' if 'tensorboard' in map(str, accelerator.log_with) else 's4nd'
    accelerator.init_trackers(name, plain, {'wandb': {'name': options['label'] or out.name, 'dir': str(out)}})
