"""The training loop that all tasks share.

A task brings model, batches, a loss and an evaluation; `fit` brings the rest: accelerate for device,
precision and processes, timm's optimizers, schedules and weight averaging, progress with the time left, checkpoints and
resuming.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from s4nd.optim import param_groups
from s4nd.seeds import derived_seed
from s4nd.tasks import Task
from s4nd.training.checkpoint import CheckpointError, load_state, save_state, save_weights
from s4nd.training.config import RunConfig, save_config
from s4nd.training.hub import write_hub_config

__all__ = ['NonFiniteError', 'fit', 'make_accelerator']

_ADVICE = 'Checkpoints of earlier epochs are intact; a smaller optim.lr or optim.clip_grad=1.0 may help'


class NonFiniteError(RuntimeError):
    """Training produced an infinity or NaN; the message names the first tensor that holds one."""


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

    Writes config.yaml, last.safetensors, best.safetensors and resume.pt into `out_dir` after every epoch. With
    `config.resume` the run goes on after the last complete epoch and ends as an uninterrupted one would. `max_steps`
    cuts the last epoch short. Returns a summary: history (one entry an epoch), best, epochs, updates, seconds.

    Raises NonFiniteError (the last checkpoint stays intact) and CheckpointError where there is nothing to resume or the
    state is another model's.
    """
    run = _Training(model, task, config, Path(out_dir), accelerator or make_accelerator(config))
    if config.resume:
        run.restore()
    with tqdm(
        total=run.total_updates,
        initial=run.updates,
        unit='step',
        disable=not run.accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as progress:
        while run.epoch < config.epochs and run.updates < run.total_updates:
            run.train_epoch(progress)
            run.finish_epoch(progress)
    run.leave_weights_in(model)
    return run.summary()


class _Training:
    """One run: the model and what moves it."""

    def __init__(self, model: nn.Module, task: Task, config: RunConfig, out: Path, accelerator: Accelerator) -> None:
        self.task, self.config, self.out, self.accelerator = task, config, out, accelerator
        optim = config.optim
        groups = param_groups(model, optim.lr, optim.weight_decay, optim.ssm_lr)
        optimizer = create_optimizer_v2(groups, optim.name, lr=optim.lr, weight_decay=optim.weight_decay)
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
        self.epoch, self.updates, self.seconds = 0, 0, 0.0
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

    def train_epoch(self, progress: tqdm) -> None:
        """All updates of one epoch (or those left of max_steps)."""
        start, config = time.monotonic(), self.config
        # Dropout, mixup and drop path follow from seed, epoch and process alone, so no generator state is stored.
        set_seed(derived_seed(config.seed, self.epoch * 1_009 + self.accelerator.process_index) % 2**32)
        self.model.train()
        updates = min(self.updates_per_epoch, self.total_updates - self.updates)
        total = 0.0
        progress.set_description(f'epoch {self.epoch + 1}/{config.epochs}')
        share = self.task.train_batches(self.epoch).shard(
            self.accelerator.process_index, self.accelerator.num_processes
        )
        batches = islice(share, updates * config.optim.accumulate)
        for number, batch in enumerate(batches, 1):
            total += self._step(send_to_device(batch, self.accelerator.device, non_blocking=True))
            if number % config.optim.accumulate == 0:
                self.updates += 1
                if self.scheduler is not None:
                    self.scheduler.step_update(self.updates)
                if self.ema is not None:
                    self.ema.update(self.raw, step=self.updates)
                progress.set_postfix(loss=f'{total / number:.4f}', refresh=False)
                progress.update()
        self._check_parameters()
        self.seconds += time.monotonic() - start
        self.epoch += 1
        rates = [group['lr'] for group in self.optimizer.param_groups]
        self.history.append(
            {'epoch': self.epoch, 'loss': total / (updates * config.optim.accumulate), 'lr': max(rates)}
        )

    def _step(self, batch: Any) -> float:
        accelerator, clip = self.accelerator, self.config.optim.clip_grad
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                loss = self.task.loss(self.forward, batch)
            value = loss.item()
            if not math.isfinite(value):
                culprit = _first_bad_tensor(self.raw, self.task, batch)
                raise NonFiniteError(
                    f'the loss is {value} at update {self.updates + 1} (epoch {self.epoch + 1}): '
                    f'first bad tensor: {culprit}. {_ADVICE}'
                )
            accelerator.backward(loss)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return value

    def _check_parameters(self) -> None:
        bad = _bad_state(self.raw)
        if bad is not None:
            raise NonFiniteError(f'after update {self.updates} (epoch {self.epoch + 1}) {bad} is not finite. {_ADVICE}')

    @property
    def weights(self) -> nn.Module:
        """The module to evaluate and to save: the averaged weights where there are any."""
        return self.raw if self.ema is None else self.ema.module

    def finish_epoch(self, progress: tqdm) -> None:
        """Evaluate when it is time to, then write the checkpoint."""
        entry, last = self.history[-1], self.updates >= self.total_updates
        improved = False
        if last or self.epoch % self.config.eval.every == 0:
            with torch.no_grad(), self.accelerator.autocast():
                entry.update(self.task.evaluate(self.weights.eval(), self.accelerator.device))
            improved = self._note_best(entry)
        if self.accelerator.is_main_process:
            shown = '  '.join(f'{key} {value:.4g}' for key, value in entry.items() if key != 'epoch')
            progress.clear()
            tqdm.write(f'epoch {self.epoch}/{self.config.epochs}  {shown}', file=sys.stderr)
            self._save(improved)
        self.accelerator.wait_for_everyone()

    def _note_best(self, entry: dict[str, float]) -> bool:
        monitor = self.task.monitor
        if monitor not in entry:
            raise ValueError(f"the task's monitor '{monitor}' is not among its metrics: {sorted(entry)}")
        sign = 1 if self.task.maximize else -1
        if self.best is not None and sign * entry[monitor] <= sign * self.best[monitor]:
            return False
        self.best = {'epoch': entry['epoch'], monitor: entry[monitor]}
        return True

    def _save(self, improved: bool) -> None:
        names = {'task': self.config.task, 'model': self.config.model.name}
        metadata = {**names, **self.task.metadata, 'epoch': str(self.epoch)}
        # The file describes the run; whether this start was a second one is not part of it.
        save_config(self.out / 'config.yaml', replace(self.config, resume=False, overwrite=False))
        if hasattr(self.raw, 'pretrained_cfg'):
            labels = json.loads(metadata.get('classes', '[]'))
            write_hub_config(self.out / 'config.json', self.raw, labels, self.task.data_config)
        save_weights(self.out / 'last.safetensors', self.weights, metadata)
        if improved:
            save_weights(self.out / 'best.safetensors', self.weights, metadata)
        state = {
            'name': self.config.model.name,
            'model': self.raw.state_dict(),
            'ema': None if self.ema is None else self.ema.module.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            **self._counters(),
        }
        save_state(self.out / 'resume.pt', state)

    def _counters(self) -> dict[str, Any]:
        names = ('epoch', 'updates', 'seconds', 'history', 'best')
        return {name: getattr(self, name) for name in names}

    def restore(self) -> None:
        """Take up the state of the last complete epoch."""
        path = self.out / 'resume.pt'
        state = load_state(path)
        name = self.config.model.name
        if state.get('name') != name:
            raise CheckpointError(f'{path} is the run of {state.get("name")}, expected {name}')
        if (state['ema'] is None) != (self.ema is None):
            raise CheckpointError(f'{path}: optim.ema was {"off" if state["ema"] is None else "on"} in this run')
        try:
            self.raw.load_state_dict(state['model'])
            if self.ema is not None:
                self.ema.module.load_state_dict(state['ema'])
            self.optimizer.load_state_dict(state['optimizer'])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f'{path} does not fit {name}: {str(error).splitlines()[-1].strip()}') from error
        if state['scaler'] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        for counter in self._counters():
            setattr(self, counter, state[counter])
        if self.scheduler is not None:
            self.scheduler.step_update(self.updates)

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


def _bad_name(tensors: dict[str, Tensor]) -> str | None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def _bad_state(model: nn.Module) -> str | None:
    bad = _bad_name(dict(model.named_parameters()))
    # A buffer may hold an infinity on purpose (no band limit), never a NaN.
    return bad or next((name for name, buffer in model.named_buffers() if torch.isnan(buffer).any()), None)


def _first_bad_tensor(model: nn.Module, task: Task, batch: Any) -> str:
    """Name the batch entry, the parameter or the module output in which the first infinity or NaN stands."""
    entries = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else [batch]
    tensors = {f'batch entry {index}': entry for index, entry in enumerate(entries) if isinstance(entry, Tensor)}
    bad = _bad_name(tensors) or _bad_state(model)
    if bad is not None:
        return bad
    found: list[str] = []

    def watch(name: str):
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
