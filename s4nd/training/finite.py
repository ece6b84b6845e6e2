"""Training that produced an infinity or a NaN, and where it stands first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from s4nd.training.checkpoint import bad_tensor

if TYPE_CHECKING:
    from s4nd.tasks import Task

__all__ = ['NonFiniteError', 'bad_state', 'first_bad_tensor']


class NonFiniteError(RuntimeError):
    """Training produced an infinity or NaN; the message names the first tensor or metric that holds one."""


def bad_state(model: nn.Module) -> str | None:
    """The first parameter that is not finite, or buffer with a NaN (an infinity may stand there on purpose).

    Of a sharded model only the part that this process holds is looked at.
    """
    buffers = dict(model.named_buffers())
    parts = {name: getattr(value, '_local_tensor', value) for name, value in model.named_parameters()}
    return bad_tensor(parts | buffers, set(buffers))


def first_bad_tensor(model: nn.Module, task: Task, batch: Any) -> str:
    """Name the batch entry, the parameter or the module output in which the first infinity or NaN stands."""
    entries = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else [batch]
    tensors = {f'batch entry {index}': entry for index, entry in enumerate(entries) if isinstance(entry, Tensor)}
    bad = bad_tensor(tensors) or bad_state(model)
    if bad is not None:
        return bad
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f'the output of {name or "the model"} ({type(_module).__name__})')

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            task.loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else 'the loss itself, from finite outputs'
