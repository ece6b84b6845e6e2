"""A set of labeled images that can be asked for at any size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from s4nd.data.resample import resize, to_bytes, to_float
from s4nd.training.sizes import Size, parse_size

__all__ = ['NORMALIZATION', 'DataError', 'ImageSet', 'PixelSet', 'Splits', 'hold_out', 'spread_over_classes']

NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # Mean and standard deviation of the training images, for channels in 0…1.
    'cifar10': ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    'cifar100': ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    'fashion_mnist': ((0.2860,), (0.3530,)),
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'folder': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'shapes': ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    'moving': ((0.19,), (0.13,)),
}

_CHUNK = 2048  # images resized at once: bounds the memory of the float copies


class DataError(ValueError):
    """Data that cannot be used: where, what was found, and what was expected."""


class ImageSet(Protocol):
    """Labelled images; `at(size)` gives them as bytes (N, C, height, width), a number being a square."""

    labels: Tensor  # (N,) int64
    classes: tuple[str, ...]
    channels: int
    native_size: int | None  # pixels a side as stored; None: a scene that has none
    skipped: tuple[str, ...]  # files that could not be read

    def at(self, size: int | Size) -> Tensor: ...

    def select(self, indices: Tensor) -> ImageSet: ...


@dataclass(frozen=True)
class PixelSet:
    """Images held in memory as bytes (N, C, H, H)."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def native_size(self) -> int:
        return self.images.shape[-1]

    def at(self, size: int | Size) -> Tensor:
        """Area averages below the stored size, bicubic interpolation above it; bytes (N, C, height, width)."""
        if parse_size(size) == tuple(self.images.shape[2:]):
            return self.images
        return torch.cat([to_bytes(resize(to_float(chunk), size)) for chunk in self.images.split(_CHUNK)])

    def select(self, indices: Tensor) -> PixelSet:
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True)
class Splits:
    """What is trained on, what picks a checkpoint (None: nothing held out) and what is reported."""

    train: ImageSet
    val: ImageSet | None
    test: ImageSet

    @property
    def skipped(self) -> list[str]:
        return sorted({*self.train.skipped, *(self.val.skipped if self.val else ()), *self.test.skipped})


def hold_out(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet | None]:
    """Keep back the last `fraction` of every class: (rest, held out), the second None where the fraction is 0."""
    if fraction == 0:
        return images, None
    held = torch.zeros(len(images.labels), dtype=torch.bool)
    for label in range(len(images.classes)):
        members = (images.labels == label).nonzero().flatten()
        held[members[len(members) - round(fraction * len(members)) :]] = True
    if not held.any() or held.all():
        raise DataError(f'data.val_fraction={fraction} of {len(held)} images leaves one side empty')
    return images.select((~held).nonzero().flatten()), images.select(held.nonzero().flatten())


def spread_over_classes(images: ImageSet, limit: int | None) -> ImageSet:
    """The first images of every class in turn, `limit` in all; all of them where limit is None."""
    if limit is None or limit >= len(images.labels):
        return images
    order = torch.argsort(images.labels, stable=True)
    counts = torch.bincount(images.labels, minlength=len(images.classes))
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[images.labels[order]]
    chosen = order[torch.argsort(rank, stable=True)[:limit]]
    return images.select(chosen.sort().values)
