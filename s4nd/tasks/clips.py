"""Video classification: trained on one grid of pixels and frames, evaluated at any size and frame rate.

Shape legend: B = batch, C = channels, T = frames, H and W = pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s4nd.data.clips.grid import ClipGrid, rate_name, rate_of
from s4nd.data.clips.named import load_video
from s4nd.data.clips.options import VideoData
from s4nd.data.clips.sets import ClipSet
from s4nd.data.images.resize import resize, to_float
from s4nd.data.labeled import NORMALIZATION, Splits, spread_over_classes
from s4nd.models import inflate, load_checkpoint
from s4nd.options import ConfigError, check_keywords, option, section
from s4nd.resolution import parse_size, size_name
from s4nd.tasks.base import Axis, Epoch
from s4nd.tasks.classification import LabeledTask, score
from s4nd.tasks.timm_models import check_name, is_ours, make_timm_model
from s4nd.training.config import EvalConfig, ModelConfig, RunConfig

__all__ = ['VideoConfig', 'VideoEval', 'VideoModel', 'VideoTask']

MOST_FRAMES = 10_000  # of a clip


@dataclass
class VideoModel(ModelConfig):
    """A model of clips, or of images that serves for clips."""

    inflate: str | None = option(None, 'start from this image model: a weights file or the folder of a run')
    frame_by_frame: bool = option(False, '`name` is an image model, whose scores are averaged over the frames')


@dataclass
class VideoEval(EvalConfig):
    """Clips are measured at `sizes`, and at `frame_rates` in the training size."""

    sizes: list[Any] = option([], 'sizes to evaluate at, 16 or 24x40; empty: the training size', parse=parse_size)
    frame_rates: list[float] = option([], 'frames per second to evaluate at', low=0.01)


@dataclass
class VideoConfig(RunConfig):
    """A run on clips."""

    task: str = option('video', 'the kind of learning')
    model: VideoModel = section(VideoModel)
    data: VideoData = section(VideoData)
    eval: VideoEval = section(VideoEval)


class VideoTask(LabeledTask[ClipSet]):
    """Cross-entropy on clips (B, C, T, H, W); metrics are the accuracy in percent and the cross-entropy on a grid.

    With `model.frame_by_frame` the model is one of images, and the scores of a clip are the mean over its frames.
    """

    Config = VideoConfig
    config: VideoConfig

    def __init__(self, config: VideoConfig, splits: Splits[ClipSet]) -> None:
        super().__init__(config, splits, 'clips')
        data = config.data
        for name, rate in [
            ('data.frame_rate', data.frame_rate), *(('eval.frame_rates', rate) for rate in config.eval.frame_rates),
        ]:  # fmt: skip
            if not 1 <= round(min(rate * data.seconds, 1e9)) <= MOST_FRAMES:
                raise ConfigError(
                    f'{name}: expected 1 to {MOST_FRAMES} frames in {data.seconds:g} s, got {rate:g} per second'
                )
        self.grid = ClipGrid(parse_size(data.size), data.frame_rate, data.seconds)
        self.monitor = f'accuracy@{data.size}'
        kind = data.kind if data.kind in NORMALIZATION else 'folder'
        self.mean, self.std = (torch.tensor(values)[:, None, None, None] for values in NORMALIZATION[kind])

    @classmethod
    def from_config(cls, config: VideoConfig) -> VideoTask:
        return cls(config, load_video(config.data, config.seed, eval_only=config.eval_only))

    @classmethod
    def words_from(cls, metadata: Mapping[str, str]) -> list[str]:
        words = [f'data.size={metadata["size"]}'] if 'size' in metadata else []
        return [*words, f'data.frame_rate={rate_of(metadata["frame_rate"]):g}'] if 'frame_rate' in metadata else words

    @property
    def axes(self) -> dict[str, Axis]:
        sizes = sorted({parse_size(size) for size in self.config.eval.sizes or [self.grid.size]})
        rates = sorted(set(self.config.eval.frame_rates))
        return {
            'size': Axis('pixels per side', size_name(self.grid.size), tuple(map(size_name, sizes))),
            'frame_rate': Axis('frames per second', rate_name(self.grid.frame_rate), tuple(map(rate_name, rates))),
        }

    @property
    def short(self) -> list[str]:
        """Clips with fewer seconds than were asked for."""
        parts = [part for part in (self.splits.train, self.splits.val, self.splits.test) if part is not None]
        return sorted({path for part in parts for path in getattr(part, 'short', ())})

    def notes(self) -> dict[str, Any]:
        return {**super().notes(), 'short_clips': {'count': len(self.short), 'first': self.short[:10]}}

    @property
    def model_grid(self) -> dict[str, Any]:
        """The training grid in the words of the models' constructors."""
        frames = {} if self.config.model.frame_by_frame else {'num_frames': self.grid.frames}
        return {'img_size': list(self.grid.size), **frames}

    def completed_args(self) -> dict[str, Any]:
        args = super().completed_args()
        return {**self.model_grid, **args} if is_ours(self.config.model.name) else args

    def make_model(self, args: Mapping[str, Any]) -> nn.Module:
        return make_timm_model(self.config.model.name, args)

    def build_model(self) -> nn.Module:
        return super().build_model() if self.config.model.inflate is None else self._inflated(self.config.model.inflate)

    def _inflated(self, source: str) -> nn.Module:
        """The video model of the image model `source`; `model.args` are keywords of `s4nd.inflate`."""
        config = self.config
        if config.checkpoint is not None:
            raise ConfigError('checkpoint and model.inflate: expected one of them to begin with, got both')
        check_name(config.model.name)
        check_keywords(inflate, config.model.args, 's4nd.inflate', ('model', 'num_frames'))
        image: Any = load_checkpoint(source)
        if image.in_chans != self.channels:
            raise ConfigError(f'model.inflate: {source} sees {image.in_chans} channels, the clips have {self.channels}')
        model = inflate(image, self.grid.frames, **config.model.args)
        model.reset_classifier(len(self.classes))
        # What was inflated is stored as the model that it is now; the configuration keeps how it was made.
        self.model_args = {**model.model_args(), 'num_classes': len(self.classes)}
        return model

    def train_batches(self, epoch: int) -> Epoch:
        return self.splits.train.train_batches(self.config.data, self.grid, epoch)

    def loss(self, model: Callable[..., Any], batch: tuple[Tensor, Tensor]) -> Tensor:
        clips, labels = batch
        return F.cross_entropy(self.scores(model, clips), labels)

    def scores(self, model: Callable[..., Any], clips: Tensor) -> Tensor:
        """Clips (B, C, T, H, W) in bytes -> logits (B, classes)."""
        return self.predict(model, (to_float(clips) - self.mean.to(clips.device)) / self.std.to(clips.device))

    def predict(self, model: Callable[..., Any], inputs: Tensor) -> Tensor:
        if not self.config.model.frame_by_frame:
            return model(inputs)
        return model(inputs.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(inputs), -1)).mean(1)

    def resample(self, inputs: Tensor) -> Tensor:
        """Clips (B, C, T, H, W), or their frames (N, C, H, W), at the training size and frame rate.

        Pixels are resized as images are. Between frames the moments of training are interpolated linearly.
        """
        if inputs.ndim == 4:
            return resize(inputs, self.grid.size)
        frames = resize(inputs.transpose(1, 2).flatten(0, 1), self.grid.size)
        clips = frames.unflatten(0, (len(inputs), -1)).transpose(1, 2)
        if clips.shape[2] == self.grid.frames:
            return clips
        return F.interpolate(clips, (self.grid.frames, *self.grid.size), mode='trilinear', align_corners=False)

    def example(self, point: str, count: int) -> Tensor:
        grid = self.grid_at(point)
        return torch.randn(count, self.channels, grid.frames, *grid.size)

    def grid_at(self, point: str) -> ClipGrid:
        """The training grid with the size or the frame rate that `point` names."""
        if point.endswith('fps'):
            return replace(self.grid, frame_rate=rate_of(point))
        return replace(self.grid, size=parse_size(point))

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """On the training grid, on the held-out clips (the test clips where none are held out)."""
        accuracy, entropy = self._measure(model, device, self.watched, self.grid)
        return {self.monitor: accuracy, f'cross_entropy@{self.config.data.size}': entropy}

    @torch.no_grad()
    def evaluate_at(self, model: nn.Module, device: torch.device, points: Sequence[str]) -> dict[str, float]:
        """On the test clips: at every size (and the training frame rate), and at every frame rate."""
        grids = {point: self.grid_at(point) for point in points}
        measured = {
            grid: self._measure(model.eval(), device, self.splits.test, grid) for grid in dict.fromkeys(grids.values())
        }
        return {
            f'{metric}@{point}': value
            for point, grid in grids.items()
            for metric, value in zip(('accuracy', 'cross_entropy'), measured[grid], strict=True)
        }

    def _measure(self, model: nn.Module, device: torch.device, clips: ClipSet, grid: ClipGrid) -> tuple[float, float]:
        clips = spread_over_classes(clips, self.config.eval.limit)
        # As many pixels a batch as in training.
        shrink = min(1.0, self.grid.pixels / grid.pixels)
        count = max(1, round(self.config.data.batch_size * shrink))
        batches = clips.eval_batches(self.config.data, grid, count)
        return score(lambda x: self.scores(model, x.to(device)), batches, device)
