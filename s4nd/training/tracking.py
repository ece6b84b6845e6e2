"""Figures of a run for TensorBoard or Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available

from s4nd.options import ConfigError

__all__ = ['TRACKERS', 'begin_tracking', 'check_tracker']

TRACKERS = {'tensorboard': is_tensorboard_available, 'wandb': is_wandb_available}


def check_tracker(name: str) -> None:
    """Raise ConfigError where the package of a tracker is not installed; accelerate would leave it out in silence."""
    if name in TRACKERS and not TRACKERS[name]():
        raise ConfigError(f"track: {name} is not installed; pip install 's4nd[{name}]'")


def begin_tracking(accelerator: Accelerator, label: str, options: Mapping[str, Any]) -> None:
    """Open the trackers, if any, with the options of the run; `accelerator.log` writes to them from then on."""
    plain = (bool, int, float, str)
    accelerator.init_trackers(label, {k: v if isinstance(v, plain) else str(v) for k, v in options.items()})
