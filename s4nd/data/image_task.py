"""Image classification as a task for the training loop: trained at one size or several, evaluated at any."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import reduce
from timm.data import Mixup
from torch import Tensor, nn

from s4nd.data.batches import Batches, ShownBatches
from s4nd.data.image_set import NORMALIZATION, DataError, ImageSet, Splits, spread_over_classes
from s4nd.data.resample import resize, to_float
from s4nd.data.stream import StreamBatches, StreamSet
from s4nd.training.config import ConfigError, ImageConfig, ImageData
from s4nd.training.sizes import Size, parse_size, size_name

__all__ = ['ImageTask', 'score']


class ImageTask:
    """Cross-entropy on images of `data.size`; metrics are the accuracy in percent and the cross-entropy at a size.

    With `data.sizes` the size of a batch is a function of the step: drawn for every batch, or with `data.stage_epochs`
    one size after the other, the model re-anchored to each, so that it ends as one trained at the last, `data.size`.

    Epochs are watched on the held-out images, on the test images where none are held out. Random crops are cut at the
    stored size and averaged to the training size afterwards, so a shift may be a fraction of a training pixel.
    """

    maximize = True

    def __init__(self, config: ImageConfig, splits: Splits) -> None:
        data = config.data
        if config.eval.weights == 'best' and splits.val is None:
            raise ConfigError('eval.weights=best needs held-out images to choose by: set data.val_fraction above 0')
        _check_stages(config)
        mixing = data.mixup > 0 or data.cutmix > 0
        if mixing and data.batch_size % 2:
            raise ConfigError(
                f'data.batch_size: mixup and cutmix pair images, expected an even number, got {data.batch_size}'
            )
        self.config, self.splits = config, splits
        self.size = parse_size(data.size)
        self.sizes = [parse_size(size) for size in data.sizes or [data.size]]
        self.monitor = f'accuracy@{data.size}'
        self.classes, self.channels = splits.train.classes, splits.train.channels
        self.metadata = {'classes': json.dumps(self.classes)}
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in NORMALIZATION[data.kind])
        self.mixup = None
        if mixing:
            self.mixup = Mixup(
                data.mixup, data.cutmix, prob=data.mix_prob, label_smoothing=data.label_smoothing,
                num_classes=len(self.classes),
            )  # fmt: skip
        self._train_images: Tensor | None = None
        self._watched: tuple[Tensor, Tensor] | None = None

    def stage(self, epoch: int) -> Size:
        """The size to which the model is anchored in `epoch`: `data.size`, or that of the stage."""
        ends = accumulate(self.config.data.stage_epochs)
        return next((size for size, end in zip(self.sizes, ends, strict=False) if epoch < end), self.size)

    def grid(self, size: Size) -> list[int]:
        """The size of each axis of an image as the model sees it."""
        return [math.prod(size)] if self.config.data.sequence else list(size)

    def as_input(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) as the model takes them: with `data.sequence` (B, C, H · W)."""
        return images.flatten(2) if self.config.data.sequence else images

    def enter_epoch(self, model: nn.Module, epoch: int) -> dict[str, str]:
        """Re-anchor `model`, if it knows its size, to that of the stage; what to store with the weights."""
        size = self.stage(epoch)
        if self.config.data.stage_epochs and hasattr(model, 'set_input_size'):
            model.set_input_size(img_size=tuple(self.grid(size)))
        # timm keeps here what a model was built with, brought up to date by set_input_size.
        args = {**self.config.model.args, **getattr(model, '_model_args', {})}
        return {'args': json.dumps(args), 'size': size_name(size)}

    def train_batches(self, epoch: int) -> ShownBatches:
        data = self.config.data
        seed = self.config.seed * 1_000_003 + epoch
        return ShownBatches(self._batches(data, seed), [self.stage(epoch)] if data.stage_epochs else self.sizes, seed)

    def _batches(self, data: ImageData, seed: int) -> Batches | StreamBatches:
        largest = max(max(size) for size in self.sizes)
        if isinstance(self.splits.train, StreamSet):
            return self.splits.train.train_batches(replace(data, size=largest), seed)
        if self._train_images is None:
            stored = self.splits.train.native_size
            # Without crops, a smaller picture is averaged once rather than at every step.
            keep = stored is not None and (data.crop_padding > 0 or stored < largest)
            self._train_images = self.splits.train.at(stored if keep else largest)
        return Batches(
            self._train_images, self.splits.train.labels, data.batch_size, seed,
            crop_padding=data.crop_padding, flip=data.flip,
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Size]) -> Tensor:
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
        watched = self.splits.val if self.splits.val is not None else self.splits.test
        watched = spread_over_classes(watched, self.config.eval.limit)
        if isinstance(watched, StreamSet):
            return self._measure(model, device, watched, self.size)
        if self._watched is None:
            self._watched = watched.at(self.size), watched.labels
        return self._score(model, device, self._slices(*self._watched, self.size), self.size)

    @torch.no_grad()
    def evaluate_at(self, model: nn.Module, device: torch.device, sizes: Sequence[int | Size]) -> dict[str, float]:
        """On the test images (eval.limit of them), at every size."""
        test = spread_over_classes(self.splits.test, self.config.eval.limit)
        results: dict[str, float] = {}
        for size in sizes:
            results.update(self._measure(model.eval(), device, test, parse_size(size)))
        return results

    def _measure(self, model: nn.Module, device: torch.device, images: ImageSet, size: Size) -> dict[str, float]:
        if isinstance(images, StreamSet):
            data, state = self.config.data, PartialState()
            batches = images.eval_batches(size, data.crop_pct, self._batch_size(size), data.workers)
            return self._score(model, device, batches.shard(state.process_index, state.num_processes), size)
        return self._score(model, device, self._slices(images.at(size), images.labels, size), size)

    def _batch_size(self, size: Size) -> int:
        """As many pixels a batch as in training."""
        return max(1, round(self.config.data.batch_size * min(1.0, math.prod(self.size) / math.prod(size))))

    def _slices(self, images: Tensor, labels: Tensor, size: Size) -> Iterator[tuple[Tensor, Tensor]]:
        state, count = PartialState(), self._batch_size(size)
        for start in range(state.process_index * count, len(labels), state.num_processes * count):
            yield images[start : start + count], labels[start : start + count]

    def _score(
        self, model: nn.Module, device: torch.device, batches: Iterable[tuple[Tensor, Tensor]], size: Size
    ) -> dict[str, float]:
        inputs = ((self.as_input(self._normalize(to_float(x.to(device)))), labels) for x, labels in batches)
        accuracy, entropy = score(((model(x), labels) for x, labels in inputs), device)
        name = size_name(size)
        return {f'accuracy@{name}': accuracy, f'cross_entropy@{name}': entropy}


def score(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> tuple[float, float]:
    """Accuracy (percent) and mean cross-entropy of (logits (B, classes), labels (B,)), over all processes."""
    # Right answers, summed cross-entropy, examples; float64 is not to be had on every device.
    sums = torch.zeros(3, device=device)
    for logits, labels in batches:
        logits, labels = logits.float(), labels.to(device)
        sums[0] += (logits.argmax(1) == labels).sum()
        sums[1] += F.cross_entropy(logits, labels, reduction='sum')
        sums[2] += len(labels)
    right, entropy, count = reduce(sums, 'sum').tolist()
    if not count:
        raise DataError('nothing to evaluate on: not one example could be read')
    return round(100 * right / count, 4), entropy / count


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
