"""Video classification as a task for the training loop: trained on one grid, evaluated at any frame rate and size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn

from s4nd.data.image_set import NORMALIZATION, Splits, spread_over_classes
from s4nd.data.image_task import score
from s4nd.data.resample import to_float
from s4nd.data.video_grid import ClipGrid, rate_name
from s4nd.data.video_set import ClipSet
from s4nd.training.config import ConfigError, VideoConfig
from s4nd.training.sizes import Size, parse_size, size_name

__all__ = ['VideoTask']


class VideoTask:
    """Cross-entropy on clips (B, C, T, H, W); metrics are the accuracy in percent and the cross-entropy on a grid.

    Epochs are watched on the held-out clips, on the test clips where none are held out. With `model.frame_by_frame` the
    model is one of images and a clip's scores are the mean over its frames.
    """

    maximize = True

    def __init__(self, config: VideoConfig, splits: Splits) -> None:
        data = config.data
        if config.eval.weights == 'best' and splits.val is None:
            raise ConfigError('eval.weights=best needs held-out clips to choose by: set data.val_fraction above 0')
        for option, rate in [
            ('data.frame_rate', data.frame_rate), *(('eval.frame_rates', rate) for rate in config.eval.frame_rates),
        ]:  # fmt: skip
            if round(rate * data.seconds) < 1:
                raise ConfigError(f'{option}: expected a frame or more in {data.seconds:g} s, got {rate:g} a second')
        self.config, self.splits = config, splits
        self.grid = ClipGrid(parse_size(data.size), data.frame_rate, data.seconds)
        self.monitor = f'accuracy@{data.size}'
        self.classes, self.channels = splits.train.classes, splits.train.channels
        self.metadata = {
            'classes': json.dumps(self.classes), 'size': str(data.size), 'frame_rate': rate_name(data.frame_rate),
        }  # fmt: skip
        kind = data.kind if data.kind in NORMALIZATION else 'folder'
        self.mean, self.std = (torch.tensor(values)[:, None, None, None] for values in NORMALIZATION[kind])

    @property
    def skipped(self) -> list[str]:
        return self.splits.skipped

    @property
    def short(self) -> list[str]:
        """Clips with fewer seconds than were asked for."""
        parts = [part for part in (self.splits.train, self.splits.val, self.splits.test) if part is not None]
        return sorted({path for part in parts for path in getattr(part, 'short', ())})

    @property
    def model_grid(self) -> dict[str, Any]:
        """The training grid in the words of the models' constructors."""
        frames = {} if self.config.model.frame_by_frame else {'num_frames': self.grid.frames}
        return {'img_size': list(self.grid.size), **frames}

    def enter_epoch(self, model: nn.Module, epoch: int) -> dict[str, str]:
        """What to store with the weights: the arguments that make the model, also where it was inflated."""
        if self.config.model.inflate is None:
            return {}
        return {'args': json.dumps({**model.variant_args, 'num_classes': len(self.classes)})}

    def train_batches(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        return self.splits.train.train_batches(self.config.data, self.grid, epoch)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        clips, labels = batch
        return F.cross_entropy(self.scores(model, clips), labels)

    def scores(self, model: nn.Module, clips: Tensor) -> Tensor:
        """Clips (B, C, T, H, W) in bytes -> logits (B, classes)."""
        clips = (to_float(clips) - self.mean.to(clips.device)) / self.std.to(clips.device)
        if not self.config.model.frame_by_frame:
            return model(clips)
        return model(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(clips), -1)).mean(1)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """On the training grid, on the held-out clips (the test clips where none are held out)."""
        watched = self.splits.val if self.splits.val is not None else self.splits.test
        accuracy, entropy = self._measure(model, device, watched, self.grid)
        return {self.monitor: accuracy, f'cross_entropy@{self.config.data.size}': entropy}

    @torch.no_grad()
    def evaluate_at(
        self, model: nn.Module, device: torch.device, sizes: Sequence[Size], frame_rates: Sequence[float]
    ) -> dict[str, float]:
        """On the test clips: at every size (and the training frame rate), then at every frame rate."""
        grids = {size_name(size): replace(self.grid, size=size) for size in sizes}
        grids |= {rate_name(rate): replace(self.grid, frame_rate=rate) for rate in frame_rates}
        measured = {
            grid: self._measure(model.eval(), device, self.splits.test, grid) for grid in dict.fromkeys(grids.values())
        }
        return {
            f'{metric}@{name}': value
            for name, grid in grids.items()
            for metric, value in zip(('accuracy', 'cross_entropy'), measured[grid], strict=True)
        }

    def _measure(self, model: nn.Module, device: torch.device, clips: ClipSet, grid: ClipGrid) -> tuple[float, float]:
        clips = spread_over_classes(clips, self.config.eval.limit)
        # As many pixels a batch as in training.
        shrink = min(1.0, self.grid.pixels / grid.pixels)
        count = max(1, round(self.config.data.batch_size * shrink))
        state = PartialState()
        batches = clips.eval_batches(self.config.data, grid, count).shard(state.process_index, state.num_processes)
        return score(((self.scores(model, x.to(device)), labels) for x, labels in batches), device)
