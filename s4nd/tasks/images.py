"""Image classification: trained at one size or several, evaluated at any.

Shape legend: B = batch, C = channels, H and W = pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from s4nd.data.images.batches import Batches, ShownBatches
from s4nd.data.images.named import load_images
from s4nd.data.images.options import ImageData
from s4nd.data.images.resize import resize, to_float
from s4nd.data.images.sets import ImageSet
from s4nd.data.images.stream import StreamBatches, StreamSet
from s4nd.data.labeled import NORMALIZATION, Splits, spread_over_classes
from s4nd.options import ConfigError, option, section
from s4nd.resolution import Size, parse_size, size_name
from s4nd.seeds import derived_seed
from s4nd.tasks.base import Axis, Chosen, Epoch
from s4nd.tasks.classification import LabeledTask, score
from s4nd.tasks.timm_models import is_ours, make_timm_model
from s4nd.training.config import EvalConfig, RunConfig

__all__ = ['ImageConfig', 'ImageEval', 'ImageTask']


@dataclass
class ImageEval(EvalConfig):
    """Images are measured at `sizes` after training, and at the training size while it goes on."""

    sizes: list[Any] = option([], 'sizes to evaluate at, 16 or 24x40; empty: the training size', parse=parse_size)


@dataclass
class ImageConfig(RunConfig):
    """A run on images."""

    data: ImageData = section(ImageData)
    eval: ImageEval = section(ImageEval)


class ImageTask(LabeledTask[ImageSet | StreamSet]):
    """Cross-entropy on images of `data.size`; metrics are the accuracy in percent and the cross-entropy at a size.

    The model is built for `data.size`. With `data.sizes` the size of a batch is another: drawn for every batch, or with
    `data.stage_epochs` one size after the other.

    Epochs are watched on the held-out images, on the test images where none are held out. Random crops are cut at the
    stored size and averaged to the training size afterwards, so a shift may be a fraction of a training pixel.
    """

    Config = ImageConfig
    config: ImageConfig

    def __init__(self, config: ImageConfig, splits: Splits[ImageSet | StreamSet]) -> None:
        super().__init__(config, splits, 'images')
        data = config.data
        _check_stages(config)
        mixing = data.mixup > 0 or data.cutmix > 0
        if mixing and data.batch_size % 2:
            raise ConfigError(
                f'data.batch_size: mixup and cutmix pair images, expected an even number, got {data.batch_size}'
            )
        self.size = parse_size(data.size)
        self.sizes = [parse_size(size) for size in data.sizes or [data.size]]
        self.stages = data.stage_epochs
        self.monitor = f'accuracy@{data.size}'
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in NORMALIZATION[data.kind])
        self.mixup = None
        if mixing:
            self.mixup = Mixup(
                data.mixup, data.cutmix, prob=data.mix_prob, label_smoothing=data.label_smoothing,
                num_classes=len(self.classes),
            )  # fmt: skip
        self._train_images: Tensor | None = None
        self._watched: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_config(cls, config: ImageConfig) -> ImageTask:
        return cls(config, load_images(config.data, config.seed, eval_only=config.eval_only))

    @classmethod
    def words_from(cls, metadata: Mapping[str, str]) -> list[str]:
        return [f'data.size={metadata["size"]}'] if 'size' in metadata else []

    @property
    def axes(self) -> dict[str, Axis]:
        sizes = sorted({parse_size(size) for size in self.config.eval.sizes or [self.size]})
        return {'size': Axis('pixels per side', size_name(self.size), tuple(map(size_name, sizes)))}

    def completed_args(self) -> dict[str, Any]:
        args = super().completed_args()
        return {'img_size': self.grid(self.size), **args} if is_ours(self.config.model.name) else args

    def make_model(self, args: Mapping[str, Any]) -> nn.Module:
        try:
            return make_timm_model(self.config.model.name, args)
        except ConfigError as error:
            if self.config.data.sequence and 'img_size' in str(error):
                raise ConfigError(
                    f'data.sequence=true: {self.config.model.name} takes no sequences ({error})'
                ) from error
            raise

    def build_model(self) -> nn.Module:
        model = super().build_model()
        if not is_ours(self.config.model.name):
            self._check_sizes(model)
        return model

    def _check_sizes(self, model: nn.Module) -> None:
        """Raise ConfigError where a model of timm takes no images of one of the sizes shown in training."""
        for size in sorted({*self.sizes} - {self.size}):
            try:
                with torch.no_grad():
                    model.eval()(self.example(size_name(size), 1))
            except (AssertionError, RuntimeError, ValueError) as error:
                name = self.config.model.name
                raise ConfigError(f'data.sizes: {name} takes no images of {size_name(size)}: {error}') from error

    def stage(self, epoch: int) -> Size:
        """The size of the batches of `epoch` where `data.stage_epochs` are given."""
        ends = accumulate(self.config.data.stage_epochs)
        return next((size for size, end in zip(self.sizes, ends, strict=False) if epoch < end), self.size)

    def grid(self, size: Size) -> list[int]:
        """The size of each axis of an image as the model sees it."""
        return [math.prod(size)] if self.config.data.sequence else list(size)

    def as_input(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) as the model takes them: with `data.sequence` (B, C, H · W)."""
        return images.flatten(2) if self.config.data.sequence else images

    def example(self, point: str, count: int) -> Tensor:
        return self.as_input(torch.randn(count, self.channels, *parse_size(point)))

    def resample(self, inputs: Tensor) -> Tensor:
        """Images (B, C, H, W) at the training size: area averages of larger ones, bicubic for smaller ones."""
        return resize(inputs, self.size)

    @property
    def resamples(self) -> bool:
        return not self.config.data.sequence

    def train_batches(self, epoch: int) -> ShownBatches:
        data = self.config.data
        seed = derived_seed(self.config.seed, epoch)
        return ShownBatches(self._batches(data, seed), [self.stage(epoch)] if data.stage_epochs else self.sizes, seed)

    def _batches(self, data: ImageData, seed: int) -> Batches | StreamBatches:
        largest = max(max(size) for size in self.sizes)
        if isinstance(self.splits.train, StreamSet):
            return self.splits.train.train_batches(replace(data, size=largest), seed)
        if self._train_images is None:
            stored = self.splits.train.native_size or largest
            # Without crops, a smaller picture is averaged once rather than at every step.
            self._train_images = self.splits.train.at(stored if data.crop_padding > 0 else min(stored, largest))
        return Batches(
            self._train_images, self.splits.train.labels, data.batch_size, seed,
            crop_padding=data.crop_padding, flip=data.flip,
        )  # fmt: skip

    def loss(self, model: Callable[..., Any], batch: tuple[Tensor, Tensor, Size]) -> Tensor:
        images, labels, size = batch
        if self.mixup is not None and len(images) % 2:  # an unreadable file was left out of a pair
            images, labels = images[:-1], labels[:-1]
        images = self.prepare(images, size)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
            return F.cross_entropy(model(self.as_input(images)), labels)
        return F.cross_entropy(model(self.as_input(images)), labels, label_smoothing=self.config.data.label_smoothing)

    def prepare(self, images: Tensor, size: Size) -> Tensor:
        """Images of any size to normalized floats at `size`; floats come normalized from the loader."""
        resized = resize(to_float(images), size)
        return self._normalize(resized) if images.dtype == torch.uint8 else resized

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self.mean.to(images.device)) / self.std.to(images.device)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """At `data.size`, on the held-out images (the test images where none are held out)."""
        watched = spread_over_classes(self.watched, self.config.eval.limit)
        if isinstance(watched, StreamSet):
            return self._measure(model, device, watched, self.size)
        if self._watched is None:
            self._watched = watched.at(self.size), watched.labels
        return self._score(model, device, self._slices(*self._watched, self.size), self.size)

    @torch.no_grad()
    def evaluate_at(self, model: nn.Module, device: torch.device, points: Sequence[str]) -> dict[str, float]:
        """On the test images (eval.limit of them), at every size."""
        test = spread_over_classes(self.splits.test, self.config.eval.limit)
        results: dict[str, float] = {}
        for point in points:
            results |= self._measure(model.eval(), device, test, parse_size(point))
        return results

    def _measure(
        self, model: nn.Module, device: torch.device, images: ImageSet | StreamSet, size: Size
    ) -> dict[str, float]:
        if isinstance(images, StreamSet):
            data = self.config.data
            batches: Epoch = images.eval_batches(size, data.crop_pct, self._batch_size(size), data.workers)
        else:
            batches = self._slices(images.at(size), images.labels, size)
        return self._score(model, device, batches, size)

    def _batch_size(self, size: Size) -> int:
        """As many pixels a batch as in training."""
        return max(1, round(self.config.data.batch_size * min(1.0, math.prod(self.size) / math.prod(size))))

    def _slices(self, images: Tensor, labels: Tensor, size: Size) -> Chosen:
        numbers = torch.arange(len(labels)).split(self._batch_size(size))
        return Chosen(numbers, lambda chosen: (images[chosen], labels[chosen]), even=False)

    def _score(self, model: nn.Module, device: torch.device, batches: Epoch, size: Size) -> dict[str, float]:
        def scores(images: Tensor) -> Tensor:
            return model(self.as_input(self._normalize(to_float(images.to(device)))))

        name = size_name(size)
        accuracy, entropy = score(scores, batches, device, f'evaluation at {name}')
        return {f'accuracy@{name}': accuracy, f'cross_entropy@{name}': entropy}


def _check_stages(config: ImageConfig) -> None:
    data = config.data
    if not data.stage_epochs:
        return
    if len(data.stage_epochs) != len(data.sizes):
        raise ConfigError(
            f'data.stage_epochs: expected one for each of data.sizes={data.sizes}, got {data.stage_epochs}'
        )
    if sum(data.stage_epochs) != config.epochs:
        raise ConfigError(f'data.stage_epochs: expected epochs={config.epochs} in all, got {data.stage_epochs}')
    if parse_size(data.sizes[-1]) != parse_size(data.size):
        raise ConfigError(f'data.sizes: expected to end at data.size={data.size}, got {data.sizes}')
