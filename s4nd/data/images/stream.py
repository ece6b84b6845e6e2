"""Images too many for memory: decoded and augmented (timm) while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from s4nd.data.images.augment import training_transform
from s4nd.data.images.files import MAX_PIXELS, decode
from s4nd.data.images.options import ImageData
from s4nd.data.images.resize import resize, to_bytes, to_float
from s4nd.data.streamed import Found, StreamBatches, Streamed
from s4nd.resolution import Size
from s4nd.seeds import seeded

__all__ = ['StreamSet']


@dataclass(frozen=True, eq=False)
class StreamSet(Streamed):
    """Encoded images; `read` gives the bytes of one by its number."""

    read: Callable[[int], bytes]
    max_pixels: int = MAX_PIXELS
    native_size: None = None

    def show(self, view: Callable[[Tensor, int], Tensor], place: int, number: int) -> tuple[Tensor, list[Found]]:
        return view(decode(self.read(number), self.max_pixels), place), []

    def train_batches(self, data: ImageData, seed: int) -> StreamBatches:
        """One augmented epoch of (floats (B, 3, size, size), already normalized, labels (B,))."""
        count = len(self.labels)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(count, generator=generator)[: -(-count // data.repeats)]
        order = drawn.repeat_interleave(data.repeats)[:count]
        view = _TrainView(training_transform(data), seed)
        return StreamBatches(self, order, view, data.batch_size, data.workers, whole=True)

    def eval_batches(self, size: int | Size, crop_pct: float, batch_size: int, workers: int) -> StreamBatches:
        """Every image once: the central square of `crop_pct` of the shorter side, brought to `size`; bytes."""
        order = torch.arange(len(self.labels))
        return StreamBatches(self, order, _EvalView(size, crop_pct), batch_size, workers, whole=False)


@dataclass(frozen=True)
class _TrainView:
    transform: Any
    seed: int

    def __call__(self, image: Tensor, place: int) -> Tensor:
        # What is drawn belongs to the epoch and the place in it, whichever process does it.
        with seeded(self.seed, place):
            return self.transform(Image.fromarray(image.permute(1, 2, 0).numpy()))


@dataclass(frozen=True)
class _EvalView:
    size: int | Size
    crop_pct: float

    def __call__(self, image: Tensor, place: int) -> Tensor:
        side = max(1, round(min(image.shape[-2:]) * self.crop_pct))
        top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
        square = image[None, :, top : top + side, left : left + side]
        return to_bytes(resize(to_float(square), self.size))[0]
