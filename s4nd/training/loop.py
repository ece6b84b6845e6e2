"""The training loop that all tasks share.

A task brings model, batches, a loss and an evaluation; `fit` brings the rest: accelerate for device, precision and
processes, timm's optimizers, schedules and weight averaging, progress with the time left, checkpoints and resuming.

Everything random follows from the seed and the number of the batch, so that a run can go on from any update.
"""

from __future__ import annotations

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
from accelerate.utils import send_to_device, set_seed
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from tqdm import tqdm

from s4nd.optim import param_groups
from s4nd.progress import bar
from s4nd.tasks import Task
from s4nd.tasks.sharing import zeros
from s4nd.training.checkpoint import STATES
from s4nd.training.config import ConfigError, RunConfig, flat_options, save_config
from s4nd.training.device import in_channels_last, is_sharded, make_accelerator
from s4nd.training.finite import NonFiniteError, first_bad_tensor
from s4nd.training.folder import claimed, clear
from s4nd.training.lines import epoch_line, header
from s4nd.training.schedule import Schedule
from s4nd.training.stopping import Stop
from s4nd.training.stored import Stored
from s4nd.training.tracking import begin_tracking

__all__ = ['NonFiniteError', 'fit', 'make_accelerator']

_TRACKED = 50  # updates between figures within an epoch, where a tracker is told of them


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
    layout = in_channels_last(model) if config.channels_last else nullcontext()
    with claimed(out_dir) if accelerator.is_main_process else nullcontext(), layout, Stop() as stop:
        run = _Training(model, task, config, Path(out_dir), accelerator, stop)
        run.begin()
        with bar(total=run.total_updates, initial=run.updates, unit=' updates') as progress:
            while (run.epoch < config.epochs and run.updates < run.total_updates) or run.done:
                run.train_epoch(progress)
                run.finish_epoch(progress)
        run.leave_weights_in(model)
        return run.summary()


class _Training(Stored):
    """One run: the model and what moves it."""

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
        if is_sharded(accelerator) and optim.ema is not None:
            raise ConfigError(f'optim.ema={optim.ema}: a sharded model (FSDP) has no averaged weights, expected null')
        self.updates_per_epoch = self._updates_per_epoch()
        self.total_updates = config.epochs * self.updates_per_epoch
        if config.max_steps is not None:
            self.total_updates = min(self.total_updates, config.max_steps)
        self.schedule = Schedule(
            optimizer, optim, self.total_updates, self.updates_per_epoch, task.stages, task.monitor, task.maximize
        )
        model.to(accelerator.device)
        self.ema = ModelEmaV3(model, decay=optim.ema, use_warmup=True) if optim.ema is not None else None
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.raw = accelerator.unwrap_model(self.model)
        self.forward = torch.compile(self.model) if config.compile else self.model
        # A look at the loss waits for an accelerator, so it is taken now and then there.
        self.interval = 1 if accelerator.device.type == 'cpu' else 10
        self.epoch, self.updates, self.done, self.seconds = 0, 0, 0, 0.0
        self.total = zeros(1, accelerator.device)[0]
        self.saved_at, self.saved_updates = time.monotonic(), 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None

    def _updates_per_epoch(self) -> int:
        count = self.accelerator.num_processes * self.config.optim.accumulate
        batches = len(self.task.train_batches(0))
        if batches < count:
            raise ValueError(
                f'an epoch has {batches} batches, fewer than optim.accumulate × processes = {count}: '
                'expected a smaller batch_size or more data'
            )
        return batches // count

    def begin(self) -> None:
        """Take up the state of an interrupted run, or begin a new one; the configuration is stored then."""
        if self.config.resume:
            self.restore()
        if self.accelerator.is_main_process:
            if self.config.overwrite and not self.config.resume:
                clear(self.out)  # not before data, model and optimizer are known to be usable
            # The file describes the run; whether this start was a second one is not part of it.
            save_config(self.out / 'config.yaml', replace(self.config, resume=False, overwrite=False))
            warmup = self.schedule.warmup
            text = header(self.config, self.task, self.raw, self.accelerator, self.total_updates, warmup, self.out)
            tqdm.write(text, file=sys.stderr)
        begin_tracking(self.accelerator, self.out, flat_options(self.config))

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
            self.schedule.update(self.updates, self.history)
            if self.ema is not None:
                self.ema.update(self.raw, step=self.updates)
            progress.update()
            if self.updates % self.interval == 0:
                self._look(progress)
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
            if self.interval == 1 and not math.isfinite(loss.item()) and not is_sharded(accelerator):
                culprit = first_bad_tensor(self.raw, self.task, batch)
                raise self.not_finite(f'the loss is {loss.item()} at {self.place(1)}', culprit)
            accelerator.backward(loss)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _look(self, progress: tqdm) -> None:
        """After an update: show the mean loss; whether it is finite, the run is told to end, or it is time to save."""
        save = self.config.save
        minutes = (time.monotonic() - self.saved_at) / 60
        due = save.minutes is not None and minutes >= save.minutes and self.accelerator.is_main_process
        due |= save.updates is not None and self.updates - self.saved_updates >= save.updates
        total, told, timed = self.summed(self.total.item(), self.stop.signal is not None, due)
        if not math.isfinite(total):
            raise self.not_finite(f'a loss is not finite in the updates before {self.place()}')
        mean = self._mean(total)
        progress.set_postfix_str(f'loss {mean:.4f} {self.task.loss_unit}'.rstrip(), refresh=False)
        if self.updates % _TRACKED == 0:
            self.accelerator.log({'running_loss': mean, 'lr': self._rate()}, step=self.updates)
        if told:
            self._end()
        if timed:
            self.save_state()

    def _mean(self, total: float) -> float:
        """The mean over batches and processes of a summed loss, in the unit of the task."""
        batches = self.done * self.config.optim.accumulate * self.accelerator.num_processes
        return total / batches * self.task.loss_scale

    def _rate(self) -> float:
        return max(group['lr'] for group in self.optimizer.param_groups)

    def _end(self) -> None:
        self.save_state()
        self.accelerator.wait_for_everyone()  # a process that left early would have the others ended
        name = self.stop.signal.name if self.stop.signal else 'a signal to another process'
        raise self.stop.interrupted(
            f'interrupted by {name}: saved after update {self.updates} of {self.total_updates} in '
            f'{self.out / STATES[0]}, resume=true goes on from there'
        )

    def finish_epoch(self, progress: tqdm) -> None:
        """Evaluate when it is time to, then write the checkpoint."""
        self.check_finite()
        loss = self._mean(self.summed(self.total.item())[0])
        entry = {'epoch': self.epoch + 1, 'loss': loss, 'lr': self._rate()}
        improved = False
        if self.updates >= self.total_updates or (self.epoch + 1) % self.config.eval.every == 0:
            entry |= self._evaluate()
            improved = self._note_best(entry)
        self.epoch, self.done, self.total = self.epoch + 1, 0, torch.zeros_like(self.total)
        self.history.append(entry)
        self.schedule.update(self.updates, self.history)
        self.accelerator.log(entry, step=self.updates)
        if self.accelerator.is_main_process:
            progress.clear()
            tqdm.write(epoch_line(self.task, entry, self.config.epochs), file=sys.stderr)
        self.save_state()
        self.save_weights(improved)
        self.accelerator.wait_for_everyone()
        if self.summed(self.stop.signal is not None)[0] and self.updates < self.total_updates:
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
                raise self.not_finite(f'{name} is {value} after {self.place()}')
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
