"""What of a run lies on the disk: its state, its weights, its history, and how it is taken up again."""

from __future__ import annotations

import csv
import io
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from s4nd.files import write_atomically
from s4nd.tasks import Task
from s4nd.training.checkpoint import STATES, CheckpointError, load_newest_state, save_state, save_tensors
from s4nd.training.config import RunConfig, check_resumable, flat_options
from s4nd.training.device import is_sharded
from s4nd.training.finite import NonFiniteError, bad_state
from s4nd.training.hub import write_hub_config
from s4nd.training.schedule import Schedule

__all__ = ['Stored']

logger = logging.getLogger(__name__)

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # in a file, and in every process before it is split


class Stored:
    """A run, as far as saving and restoring ask.

    Attributes:
        model, raw: the model as accelerate wraps it, and unwrapped.
        epoch: complete epochs, evaluated and saved.
        updates: updates of the weights.
        done: updates of the present epoch.
        total: summed loss of the present epoch; a NaN or infinity in it tells of one in any batch.
        saved_at, saved_updates: when a state was saved last.
    """

    task: Task
    config: RunConfig
    out: Path
    accelerator: Accelerator
    model: nn.Module
    raw: nn.Module
    ema: ModelEmaV3 | None
    optimizer: Any
    schedule: Schedule
    epoch: int
    updates: int
    done: int
    seconds: float
    total: Tensor
    history: list[dict[str, float]]
    best: dict[str, float] | None
    saved_at: float
    saved_updates: int

    @property
    def weights(self) -> nn.Module:
        """The module to evaluate and to save: the averaged weights where there are any."""
        return self.raw if self.ema is None else self.ema.module

    def summed(self, *values: float) -> list[float]:
        """The sum of each value over the processes; all of them must call it."""
        if self.accelerator.num_processes == 1:
            return list(values)
        sums = torch.tensor(values, dtype=self.total.dtype, device=self.total.device)
        return reduce(sums, 'sum').tolist()

    def place(self, ahead: int = 0) -> str:
        return f'update {self.updates + ahead} (epoch {self.epoch + 1})'

    def not_finite(self, found: str, culprit: str | None = None) -> NonFiniteError:
        named = '' if culprit is None else f': first bad tensor: {culprit}'
        states = [str(self.out / name) for name in STATES if (self.out / name).is_file()]
        left = 'nothing was saved yet' if not states else (
            f'intact: {" and ".join(states)}; resume=true goes on from the first (delete it to take the second)'
        )  # fmt: skip
        return NonFiniteError(f'{found}{named}. A smaller optim.lr or optim.clip_grad=1.0 may help; {left}')

    def check_finite(self) -> None:
        averaged = None if self.ema is None else self.ema.module
        found = [bad_state(self.raw), None if averaged is None else bad_state(averaged)]
        # Of a sharded model each process sees a part.
        if not any(self.summed(*(bad is not None for bad in found))):
            return
        named = [f'{kind}{bad}' for kind, bad in zip(('', 'the average of '), found, strict=True) if bad is not None]
        raise self.not_finite(f'after {self.place()} {(named or ["a tensor of another process"])[0]} is not finite')

    def weights_state(self) -> dict[str, Tensor]:
        """The whole weights to evaluate and to save; of a sharded model all processes must ask for them."""
        return self.accelerator.get_state_dict(self.model) if self._sharded else self.weights.state_dict()

    @property
    def _sharded(self) -> bool:
        return is_sharded(self.accelerator)

    def save_weights(self, improved: bool) -> None:
        tensors = self.weights_state()
        if not self.accelerator.is_main_process:
            return
        names = {'task': self.config.task, 'model': self.config.model.name}
        metadata = {**names, **self.task.metadata, 'epoch': str(self.epoch)}
        if hasattr(self.raw, 'pretrained_cfg'):
            labels = json.loads(metadata.get('classes', '[]'))
            write_hub_config(self.out / 'config.json', self.raw, labels, self.task.data_config)
        for name in ('best', 'last') if improved else ('last',):
            save_tensors(self.out / f'{name}.safetensors', tensors, metadata)
        rows = io.StringIO()
        columns = list(dict.fromkeys(key for entry in self.history for key in entry))
        table = csv.DictWriter(rows, columns, lineterminator='\n')
        table.writeheader()
        table.writerows(self.history)
        write_atomically(
            self.out / 'metrics.csv', lambda temporary: temporary.write_text(rows.getvalue(), encoding='utf-8')
        )

    def save_state(self) -> None:
        self.check_finite()
        total = self.summed(self.total.item())[0] / self.accelerator.num_processes
        self.saved_at, self.saved_updates = time.monotonic(), self.updates
        model, optimizer = self.raw.state_dict(), self.optimizer.state_dict()
        if self._sharded:
            model = self.accelerator.get_state_dict(self.model)
            optimizer = get_optimizer_state_dict(self.raw, self.optimizer.optimizer, options=_WHOLE)
        if not self.accelerator.is_main_process:
            return
        state = {
            'config': flat_options(self.config),
            'processes': self.accelerator.num_processes,
            'model': model,
            'ema': None if self.ema is None else self.ema.module.state_dict(),
            'optimizer': optimizer,
            'scaler': None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            'total': total,
            **self._counters(),
        }
        save_state(self.out / STATES[0], state)

    def _take(self, state: dict[str, Any]) -> None:
        """Fill model, average and optimizer."""
        if self._sharded:
            set_model_state_dict(self.raw, state['model'], options=_WHOLE)
            set_optimizer_state_dict(
                self.raw, self.optimizer.optimizer, self._named(state['optimizer']), options=_WHOLE
            )
            return
        self.raw.load_state_dict(state['model'])
        if self.ema is not None:
            self.ema.module.load_state_dict(state['ema'])
        self.optimizer.load_state_dict(state['optimizer'])

    def _named(self, saved: dict[str, Any]) -> dict[str, Any]:
        """The state of an optimizer by the names of the parameters; an unsharded run numbers them."""
        names = {id(parameter): name for name, parameter in self.raw.named_parameters()}
        own = [names[id(parameter)] for group in self.optimizer.param_groups for parameter in group['params']]
        table = dict(zip((key for group in saved['param_groups'] for key in group['params']), own, strict=True))
        groups = [{**group, 'params': [table[key] for key in group['params']]} for group in saved['param_groups']]
        return {'state': {table[key]: value for key, value in saved['state'].items()}, 'param_groups': groups}

    def _counters(self) -> dict[str, Any]:
        names = ('epoch', 'updates', 'done', 'seconds', 'history', 'best')
        return {name: getattr(self, name) for name in names}

    def restore(self) -> None:
        """Take up the newest state of an earlier start."""
        if (self.out / 'config.yaml').is_file() and not any((self.out / name).exists() for name in STATES):
            logger.warning('%s: the run was stopped before it saved a state: it begins again', self.out)
            return
        path, state = load_newest_state(self.out)
        name = self.config.model.name
        missing = {
            'config',
            'processes',
            'model',
            'ema',
            'optimizer',
            'scaler',
            'total',
            *self._counters(),
        } - state.keys()
        if missing:
            raise CheckpointError(
                f'{path}: not a training state of this version, it lacks {", ".join(sorted(missing))}'
            )
        check_resumable(path, state['config'], self.config)
        if state['processes'] != self.accelerator.num_processes:
            raise CheckpointError(
                f'{path} was written with processes={state["processes"]}, expected as many, '
                f'got {self.accelerator.num_processes}'
            )
        try:
            self._take(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f'{path} does not fit {name}: {str(error).splitlines()[-1].strip()}') from error
        if state['scaler'] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        for counter in self._counters():
            setattr(self, counter, state[counter])
        self.total += state['total']
        self.saved_updates = self.updates
        # The learning rates are the configuration's, which may have changed.
        self.schedule.update(self.updates, self.history)
        if not self.done:  # the weights of this state may not have been written any more
            self.save_weights(self.best is not None and self.best['epoch'] == self.epoch)
