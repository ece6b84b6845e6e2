"""Batches from images in memory: shuffled, cropped and mirrored a batch at a time, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s4nd.resolution import Size

__all__ = ['Batches', 'ShownBatches', 'random_crop']


def random_crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Cut (B, C, H, W) out of the images with `padding` zeros around, each at its own offset (B, 2) in 0…2·padding."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4).numpy()
    # NumPy copies whole rows here, where torch would gather byte by byte (ten times slower).
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    rows, columns = offsets.numpy().T
    return torch.from_numpy(windows[np.arange(len(images)), :, rows, columns])


class Batches:
    """One epoch of (images (B, C, H, W) bytes, labels (B,)), whole batches only (one smaller one if there is no other).

    crop_padding: zeros added on every side before a random crop to the same size, in pixels of `images`.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, batch_size: int, seed: int, *, crop_padding: int = 0, flip: bool = False
    ) -> None:
        self.images, self.labels, self.batch_size, self.seed = images, labels, min(batch_size, len(labels)), seed
        self.crop_padding, self.flip = crop_padding, flip
        self.index, self.count, self.first = 0, 1, 0

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size // self.count - self.first

    def shard(self, index: int, count: int) -> Batches:
        """The share of process `index` of `count`: every count-th batch of the same epoch."""
        part = copy(self)
        part.index, part.count = index, count
        return part

    def skip(self, count: int) -> Batches:
        """The same batches without the first `count`."""
        part = copy(self)
        part.first += count
        return part

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        total = len(self.labels)
        order = torch.randperm(total, generator=generator)
        offsets = torch.randint(0, 2 * self.crop_padding + 1, (total, 2), generator=generator)
        mirrored = torch.rand(total, generator=generator) < 0.5
        stored = self.images.numpy()
        for number in range(self.first, self.first + len(self)):
            start = (number * self.count + self.index) * self.batch_size
            window = slice(start, start + self.batch_size)
            chosen = order[window]
            images = torch.from_numpy(stored[chosen.numpy()])
            if self.crop_padding:
                images = random_crop(images, offsets[window], self.crop_padding)
            if self.flip:
                images[mirrored[window]] = images[mirrored[window]].flip(-1)
            yield images, self.labels[chosen]


class ShownBatches:
    """Batches and the size at which each is shown: (images, labels, (height, width)), drawn from `sizes` by the seed.

    All processes show the same step at the same size.
    """

    def __init__(self, batches: Any, sizes: Sequence[Size], seed: int, first: int = 0) -> None:
        self.batches, self.sizes, self.seed, self.first = batches, list(sizes), seed, first

    def __len__(self) -> int:
        return len(self.batches)

    def shard(self, index: int, count: int) -> ShownBatches:
        """The share of process `index` of `count`."""
        return ShownBatches(self.batches.shard(index, count), self.sizes, self.seed)

    def skip(self, count: int) -> ShownBatches:
        """The same batches without the first `count`."""
        return ShownBatches(self.batches.skip(count), self.sizes, self.seed, self.first + count)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Size]]:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(len(self.sizes), (self.first + len(self),), generator=generator)[self.first :]
        for (images, labels), number in zip(self.batches, drawn.tolist(), strict=True):
            yield images, labels, self.sizes[number]
