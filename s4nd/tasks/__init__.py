"""Kinds of learning: each owns its configuration, data, model, loss and metrics, and stands in one file.

`task_class(name)` finds one: those of this package by name, others through the entry points 's4nd.tasks'.
"""

from s4nd.tasks.base import Axis, Chosen, Epoch, Resampled, Task
from s4nd.tasks.registry import make_task, task_class, task_names

__all__ = ['Axis', 'Chosen', 'Epoch', 'Resampled', 'Task', 'make_task', 'task_class', 'task_names']
