"""The training loop that all tasks share.

A task brings model, batches, a loss and an evaluation; `fit` brings the rest: accelerate for device, precision and
processes, timm's optimizers, schedules and weight averaging, progress with the time left, checkpoints and resuming.

Everything random follows from the seed and the number of the batch, so that a run can go on from any update.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import reduce, send_to_device, set_seed
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from s4nd.files import write_atomically
from s4nd.optim import param_groups
from s4nd.tasks import Task
from s4nd.training.checkpoint import STATES, CheckpointError, load_newest_state, save_state, save_weights
from s4nd.training.config import ConfigError, RunConfig, check_resumable, flat_options, save_config
from s4nd.training.finite import NonFiniteError, bad_state, first_bad_tensor
from s4nd.training.folder import claimed, clear
from s4nd.training.hub import write_hub_config
from s4nd.training.stopping import Stop

__all__ = ['NonFiniteError', 'fit', 'make_accelerator']

logger = logging.getLogger(__name__)


def make_accelerator(config: RunConfig) -> Accelerator:
    """Device, precision and gradient accumulation as configured; also sets the number of CPU threads."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    precision = 'no' if config.precision == 'fp32' else config.precision
    return Accelerator(
        cpu=config.device == 'cpu', mixed_precision=precision, gradient_accumulation_steps=config.optim.accumulate
    )


def fit(
    model: nn.Module, task: Task, config: RunConfig, out_dir: str | Path, accelerator: Accelerator | None = None
) -> dict[str, Any]:
    """Train `model` on `task` and leave in it the weights to use (the averaged ones where `optim.ema` is set).

    Writes config.yaml, last.safetensors, best.safetensors, metrics.csv and resume.pt into `out_dir` after every epoch,
    and resume.pt within epochs as `config.save` says. With `config.resume` the run goes on from there and ends as an
    uninterrupted one would. `max_steps` cuts the last epoch short. Told to end (SIGTERM, SIGUSR1, SIGHUP, Ctrl-C), it
    finishes the update and saves. Returns a summary: history (one entry per epoch), best, epochs, updates, seconds.

    Raises:
        NonFiniteError: a loss, weight, average or metric is not finite; what was saved before stays.
        Interrupted: it was told to end; a KeyboardInterrupt.
        CheckpointError: there is nothing to resume, or the state is of another run.
        ConfigError: another run writes into `out_dir`.
        OSError: nothing can be written there.
    """
    accelerator = accelerator or make_accelerator(config)
    with claimed(out_dir) if accelerator.is_main_process else nullcontext(), Stop() as stop:
        run = _Training(model, task, config, Path(out_dir), accelerator, stop)
        run.begin()
        with tqdm(
            total=run.total_updates,
            initial=run.updates,
            unit='step',
            disable=not accelerator.is_main_process,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as progress:
            while (run.epoch < config.epochs and run.updates < run.total_updates) or run.unfinished:
                run.train_epoch(progress)
                run.finish_epoch(progress)
        run.leave_weights_in(model)
        return run.summary()


class _Training:
    """One run: the model and what moves it.

    Attributes:
        epoch: complete epochs, evaluated and saved.
        updates: updates of the weights.
        done: updates of the present epoch.
        total: summed loss of the present epoch; a NaN or infinity in it tells of one in any batch.
        unfinished: the last epoch was trained to its end, and not evaluated.
    """

    def __init__(
        self, model: nn.Module, task: Task, config: RunConfig, out: Path, accelerator: Accelerator, stop: Stop
    ) -> None:
        self.task, self.config, self.out, self.accelerator, self.stop = task, config, out, accelerator, stop
        optim = config.optim
        groups = param_groups(model, optim.lr, optim.weight_decay, optim.ssm_lr)
        try:
            optimizer = create_optimizer_v2(groups, optim.name, lr=optim.lr, weight_decay=optim.weight_decay)
        except (AssertionError, ImportError, KeyError) as error:
            raise ConfigError(f"optim.name: timm cannot make '{optim.name}' ({error or 'unknown'})") from error
        self.updates_per_epoch = self._updates_per_epoch()
        self.total_updates = config.epochs * self.updates_per_epoch
        if config.max_steps is not None:
            self.total_updates = min(self.total_updates, config.max_steps)
        self.scheduler = self._make_scheduler(optimizer)
        model.to(accelerator.device)
        self.ema = ModelEmaV3(model, decay=optim.ema, use_warmup=True) if optim.ema is not None else None
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.raw = accelerator.unwrap_model(self.model)
        self.forward = torch.compile(self.model) if config.compile else self.model
        # A look at the loss waits for an accelerator, so it is taken now and then there.
        self.interval = 1 if accelerator.device.type == 'cpu' else 10
        self.epoch, self.updates, self.done, self.seconds = 0, 0, 0, 0.0
        self.total = self._zero()
        self.saved_at, self.saved_updates = time.monotonic(), 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None

    def _zero(self) -> Tensor:
        device = self.accelerator.device
        return torch.zeros((), dtype=torch.float32 if device.type == 'mps' else torch.float64, device=device)

    def _updates_per_epoch(self) -> int:
        count = self.accelerator.num_processes * self.config.optim.accumulate
        batches = len(self.task.train_batches(0))
        if batches < count:
            raise ValueError(
                f'an epoch has {batches} batches, fewer than optim.accumulate × processes = {count}: '
                'expected a smaller batch_size or more data'
            )
        return batches // count

    def _make_scheduler(self, optimizer: torch.optim.Optimizer) -> Scheduler | None:
        optim = self.config.optim
        warmup = min(round(optim.warmup_epochs * self.updates_per_epoch), self.total_updates - 1)
        if optim.schedule == 'constant' and warmup == 0:
            return None
        constant = optim.schedule == 'constant'
        return CosineLRScheduler(
            optimizer,
            # A cosine over a horizon that is never reached stands still.
            t_initial=10**12 if constant else self.total_updates,
            lr_min=min(optim.min_lr, optim.lr),
            warmup_t=warmup,
            warmup_lr_init=optim.warmup_lr,
            t_in_epochs=False,
        )

    @property
    def unfinished(self) -> bool:
        return self.done > 0

    def begin(self) -> None:
        """Take up the state of an interrupted run, or begin a new one; the configuration is stored then."""
        if self.config.resume:
            self._restore()
        if self.accelerator.is_main_process:
            if self.config.overwrite and not self.config.resume:
                clear(self.out)  # not before data, model and optimizer are known to be usable
            # The file describes the run; whether this start was a second one is not part of it.
            save_config(self.out / 'config.yaml', replace(self.config, resume=False, overwrite=False))

    def train_epoch(self, progress: tqdm) -> None:
        """All updates of one epoch, or those that are left of it or of max_steps."""
        start, config, accumulate = time.monotonic(), self.config, self.config.optim.accumulate
        self.model.train()
        updates = min(self.updates_per_epoch, self.done + self.total_updates - self.updates)
        progress.set_description(f'epoch {self.epoch + 1}/{config.epochs}')
        first = self.done * accumulate
        for number, batch in self._batches(first, updates * accumulate):
            self._step(send_to_device(batch, self.accelerator.device, non_blocking=True))
            if (number + 1) % accumulate:
                continue
            self.updates, self.done = self.updates + 1, self.done + 1
            if self.scheduler is not None:
                self.scheduler.step_update(self.updates)
            if self.ema is not None:
                self.ema.update(self.raw, step=self.updates)
            progress.update()
            if self.updates % self.interval == 0:
                progress.set_postfix(loss=f'{self.total.item() / (number + 1):.4f}', refresh=False)
                self._look()
        self.seconds += time.monotonic() - start

    def _batches(self, first: int, count: int) -> Iterator[tuple[int, Any]]:
        """Batches `first` to `count` of the share of this process, with their numbers."""
        accelerator = self.accelerator
        share = self.task.train_batches(self.epoch).shard(accelerator.process_index, accelerator.num_processes)
        batches = iter(share.skip(first) if first else share)
        for number in range(first, count):
            # Dropout, mixup and drop path follow from these numbers alone, so no generator state is stored.
            place = (self.config.seed, self.epoch, number, accelerator.process_index)
            set_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
            yield number, next(batches)

    def _step(self, batch: Any) -> None:
        accelerator, clip = self.accelerator, self.config.optim.clip_grad
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                loss = self.task.loss(self.forward, batch)
            self.total += loss.detach()
            if self.interval == 1 and not math.isfinite(loss.item()):
                culprit = first_bad_tensor(self.raw, self.task, batch)
                raise self._not_finite(f'the loss is {loss.item()} at {self._place(1)}', culprit)
            accelerator.backward(loss)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _look(self) -> None:
        """After an update: whether the loss is finite, the run is told to end, or it is time to save."""
        save = self.config.save
        minutes = (time.monotonic() - self.saved_at) / 60
        due = save.minutes is not None and minutes >= save.minutes and self.accelerator.is_main_process
        due |= save.updates is not None and self.updates - self.saved_updates >= save.updates
        stop, due, finite = self._agreed(self.stop.signal is not None, due, bool(self.total.isfinite()))
        if not finite:
            raise self._not_finite(f'a loss is not finite in the updates before {self._place()}')
        if stop:
            self._end()
        if due:
            self._save_state()

    def _agreed(self, stop: bool, due: bool, finite: bool) -> tuple[bool, bool, bool]:
        """The same decision in every process: what any of them was told, and whether all are well."""
        if self.accelerator.num_processes == 1:
            return stop, due, finite
        votes = torch.tensor([stop, due, not finite], dtype=torch.float32, device=self.accelerator.device)
        told, timed, bad = (bool(vote) for vote in reduce(votes, 'sum').tolist())
        return told, timed, not bad

    def _end(self) -> None:
        self._save_state()
        name = self.stop.signal.name if self.stop.signal else 'a signal to another process'
        raise self.stop.interrupted(
            f'interrupted by {name}: saved after update {self.updates} of {self.total_updates} in '
            f'{self.out / STATES[0]}, resume=true goes on from there'
        )

    def _place(self, ahead: int = 0) -> str:
        return f'update {self.updates + ahead} (epoch {self.epoch + 1})'

    def _not_finite(self, found: str, culprit: str | None = None) -> NonFiniteError:
        named = '' if culprit is None else f': first bad tensor: {culprit}'
        states = [str(self.out / name) for name in STATES if (self.out / name).is_file()]
        left = 'nothing was saved yet' if not states else (
            f'intact: {" and ".join(states)}; resume=true goes on from the first (delete it to take the second)'
        )  # fmt: skip
        return NonFiniteError(f'{found}{named}. A smaller optim.lr or optim.clip_grad=1.0 may help; {left}')

    def _check_finite(self) -> None:
        for kind, module in (('', self.raw), ('the average of ', None if self.ema is None else self.ema.module)):
            bad = None if module is None else bad_state(module)
            if bad is not None:
                raise self._not_finite(f'after {self._place()} {kind}{bad} is not finite')

    @property
    def weights(self) -> nn.Module:
        """The module to evaluate and to save: the averaged weights where there are any."""
        return self.raw if self.ema is None else self.ema.module

    def finish_epoch(self, progress: tqdm) -> None:
        """Evaluate when it is time to, then write the checkpoint."""
        self._check_finite()
        batches = self.done * self.config.optim.accumulate
        rates = [group['lr'] for group in self.optimizer.param_groups]
        loss = reduce(self.total, 'mean').item() / batches
        entry = {'epoch': self.epoch + 1, 'loss': loss, 'lr': max(rates)}
        improved = False
        if self.updates >= self.total_updates or (self.epoch + 1) % self.config.eval.every == 0:
            entry |= self._evaluate()
            improved = self._note_best(entry)
        self.epoch, self.done, self.total = self.epoch + 1, 0, self._zero()
        self.history.append(entry)
        if self.accelerator.is_main_process:
            shown = '  '.join(f'{key} {value:.4g}' for key, value in entry.items() if key != 'epoch')
            progress.clear()
            tqdm.write(f'epoch {self.epoch}/{self.config.epochs}  {shown}', file=sys.stderr)
        self._save_state()
        self._save_weights(improved)
        self.accelerator.wait_for_everyone()
        if self._agreed(self.stop.signal is not None, False, True)[0] and self.updates < self.total_updates:
            self._end()

    def _evaluate(self) -> dict[str, float]:
        alone = self.accelerator.num_processes == 1  # others would wait for what this process has left
        try:
            with self.stop.at_once(alone), torch.no_grad(), self.accelerator.autocast():
                if alone and self.stop.signal is not None:
                    raise self.stop.interrupted('')
                metrics = self.task.evaluate(self.weights.eval(), self.accelerator.device)
        except KeyboardInterrupt:
            if self.stop.signal is not None:
                self._end()
            raise
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self._not_finite(f'{name} is {value} after {self._place()}')
        return metrics

    def _note_best(self, entry: dict[str, float]) -> bool:
        monitor = self.task.monitor
        if monitor not in entry:
            raise ValueError(f"the task's monitor '{monitor}' is not among its metrics: {sorted(entry)}")
        sign = 1 if self.task.maximize else -1
        if self.best is not None and sign * entry[monitor] <= sign * self.best[monitor]:
            return False
        self.best = {'epoch': entry['epoch'], monitor: entry[monitor]}
        return True

    def _save_weights(self, improved: bool) -> None:
        if not self.accelerator.is_main_process:
            return
        names = {'task': self.config.task, 'model': self.config.model.name}
        metadata = {**names, **self.task.metadata, 'epoch': str(self.epoch)}
        if hasattr(self.raw, 'pretrained_cfg'):
            labels = json.loads(metadata.get('classes', '[]'))
            write_hub_config(self.out / 'config.json', self.raw, labels, self.task.data_config)
        for name in ('best', 'last') if improved else ('last',):
            save_weights(self.out / f'{name}.safetensors', self.weights, metadata)
        rows = io.StringIO()
        columns = list(dict.fromkeys(key for entry in self.history for key in entry))
        table = csv.DictWriter(rows, columns, lineterminator='\n')
        table.writeheader()
        table.writerows(self.history)
        write_atomically(self.out / 'metrics.csv', lambda temporary: temporary.write_text(rows.getvalue()))

    def _save_state(self) -> None:
        self._check_finite()
        total = reduce(self.total, 'mean').item()
        self.saved_at, self.saved_updates = time.monotonic(), self.updates
        if not self.accelerator.is_main_process:
            return
        state = {
            'config': flat_options(self.config),
            'processes': self.accelerator.num_processes,
            'model': self.raw.state_dict(),
            'ema': None if self.ema is None else self.ema.module.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            'total': total,
            **self._counters(),
        }
        save_state(self.out / STATES[0], state)

    def _counters(self) -> dict[str, Any]:
        names = ('epoch', 'updates', 'done', 'seconds', 'history', 'best')
        return {name: getattr(self, name) for name in names}

    def _restore(self) -> None:
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
                f'{path} is of {state["processes"]} processes, expected as many, got {self.accelerator.num_processes}'
            )
        rates = [(group['lr'], group.get('initial_lr')) for group in self.optimizer.param_groups]
        try:
            self.raw.load_state_dict(state['model'])
            if self.ema is not None:
                self.ema.module.load_state_dict(state['ema'])
            self.optimizer.load_state_dict(state['optimizer'])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f'{path} does not fit {name}: {str(error).splitlines()[-1].strip()}') from error
        if state['scaler'] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        for counter in self._counters():
            setattr(self, counter, state[counter])
        self.total += state['total']
        self.saved_updates = self.updates
        # The learning rates are the configuration's, which may have changed.
        for group, (rate, initial) in zip(self.optimizer.param_groups, rates, strict=True):
            group['lr'], group['initial_lr'] = rate, initial
        if self.scheduler is not None:
            self.scheduler.step_update(self.updates)
        if not self.unfinished:  # the weights of this state may not have been written any more
            self._save_weights(self.best is not None and self.best['epoch'] == self.epoch)

    def leave_weights_in(self, model: nn.Module) -> None:
        if self.ema is not None:
            model.load_state_dict(self.ema.module.state_dict())
        model.eval()

    def summary(self) -> dict[str, Any]:
        return {
            'history': self.history,
            'best': self.best,
            'epochs': self.epoch,
            'updates': self.updates,
            'seconds': round(self.seconds, 1),
        }
