"""Tasks by the name that stands under `task` in a configuration."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from s4nd.options import ConfigError, nearest

if TYPE_CHECKING:
    from s4nd.tasks.base import Task
    from s4nd.training.config import RunConfig

__all__ = ['make_task', 'task_class', 'task_names']

GROUP = 's4nd.tasks'

# Those of this package are known without an installation; other packages declare entry points (name = 'module:Class').
_OWN = {
    'image': 's4nd.tasks.images:ImageTask',
    'video': 's4nd.tasks.clips:VideoTask',
    'series': 's4nd.tasks.series:SeriesTask',
    'forecast': 's4nd.tasks.forecast:ForecastTask',
    'sequence': 's4nd.tasks.sequences:SequenceTask',
}


@cache
def _known() -> dict[str, str]:
    return {**_OWN, **{entry.name: entry.value for entry in entry_points(group=GROUP)}}


def task_names() -> list[str]:
    """The names that a configuration may have under `task`."""
    return list(_known())


def task_class(name: str) -> type[Task]:
    """The class of the task `name`. Its `Config` is the schema of its configurations.

    Raises:
        ConfigError: no such task is installed.
    """
    if name not in _known():
        raise ConfigError(f"task: expected one of {', '.join(_known())}, got '{name}'{nearest(name, task_names())}")
    module, _, attribute = _known()[name].partition(':')
    return getattr(importlib.import_module(module), attribute)


def make_task(config: RunConfig) -> Task:
    """Read the data that a resolved configuration describes and return the task.

    Raises:
        ConfigError: options or data that cannot be used.
    """
    task = task_class(config.task).from_config(config)
    if config.eval.resample and not task.resamples:
        raise ConfigError('eval.resample=true needs inputs with a size or a rate that can change: images, video, sound')
    return task
