"""Labeled images that can be asked for at any size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from s4nd.data.images.resize import resize, to_bytes, to_float
from s4nd.data.labeled import LabeledSet
from s4nd.resolution import Size, parse_size

__all__ = ['ImageSet', 'PixelSet']

_CHUNK = 2048  # images resized at once: bounds the memory of the float copies


class ImageSet(LabeledSet, Protocol):
    """Labeled images; `at(size)` gives them as bytes (N, C, height, width), a number being a square."""

    @property
    def native_size(self) -> int | None:
        """Pixels per side as stored; None: a scene that has none, or files of any size."""
        ...

    def at(self, size: int | Size) -> Tensor: ...


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
