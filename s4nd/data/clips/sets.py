"""Sets of clips in files, decoded and augmented by loader processes during training."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import RandAugment

from s4nd.data.clips.files import read_clip
from s4nd.data.clips.grid import ClipGrid
from s4nd.data.clips.options import VideoData
from s4nd.data.images.resize import resize, to_bytes, to_float
from s4nd.data.labeled import LabeledSet
from s4nd.data.streamed import Found, StreamBatches, Streamed
from s4nd.seeds import derived_seed

__all__ = ['ClipFiles', 'ClipSet']

logger = logging.getLogger(__name__)


class ClipSet(LabeledSet, Protocol):
    """Labeled clips that can be asked for on any grid; batches are (clips (B, C, T, H, W) bytes, labels (B,))."""

    def train_batches(self, data: VideoData, grid: ClipGrid, epoch: int) -> Any: ...

    def eval_batches(self, data: VideoData, grid: ClipGrid, batch_size: int) -> Any: ...


@dataclass(frozen=True, eq=False)
class ClipFiles(Streamed):
    """Video files and folders of frames; nothing is decoded before it is asked for.

    A clip shorter than the grid's seconds shows its last frame until their end, and is counted.
    """

    seed: int = 0
    stored_rate: float | None = None  # of folders of frames
    short: dict[str, float] = field(default_factory=dict)  # path -> seconds

    def show(self, view: ClipView, place: int, number: int) -> tuple[Tensor, list[Found]]:
        path = self.files[number]
        clip, duration = view(self.root / path, self.stored_rate, place)
        return clip, [(path, duration)] if view.grid.times(duration)[-1] >= duration else []

    def note(self, found: Iterable[Found]) -> None:
        """Name and record each broken clip (path, why) and each short one (path, seconds) once."""
        found = list(found)
        super().note(entry for entry in found if isinstance(entry[1], str))
        for path, seconds in found:
            if isinstance(seconds, str):
                continue
            if not self.short:
                logger.warning('%s has %.2f s only: the last frame of a short clip is held', self.root / path, seconds)
            self.short[path] = seconds

    def train_batches(self, data: VideoData, grid: ClipGrid, epoch: int) -> StreamBatches:
        """An epoch of clips that begin anywhere, cut, mirrored and augmented at random, all frames of one alike."""
        seed = derived_seed(self.seed, epoch)
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        augment = None
        if data.rand_augment_layers:
            augment = RandAugment(data.rand_augment_layers, data.rand_augment_magnitude, num_magnitude_bins=11)
        view = ClipView(grid, seed=seed, crop_scale=data.crop_scale, flip=data.flip, augment=augment)
        return StreamBatches(self, order, view, data.batch_size, data.workers, whole=True)

    def eval_batches(self, data: VideoData, grid: ClipGrid, batch_size: int) -> StreamBatches:
        """The middle of every clip, the central square of `crop_pct` of its shorter side."""
        view = ClipView(grid, crop_pct=data.crop_pct)
        return StreamBatches(self, torch.arange(len(self.labels)), view, batch_size, data.workers, whole=False)


@dataclass(frozen=True)
class ClipView:
    """What is shown of a clip: frames on `grid`, cut to a square. `seed` None: the middle; else at random."""

    grid: ClipGrid
    seed: int | None = None
    crop_pct: float = 1.0
    crop_scale: float = 1.0
    flip: bool = False
    augment: RandAugment | None = None

    def __call__(self, path: Path, stored_rate: float | None, place: int) -> tuple[Tensor, float]:
        """Bytes (3, T, H, W) and the seconds that the clip has. Raises ClipError."""
        if self.seed is None:
            frames, duration = read_clip(path, self.grid, 0.5, stored_rate)
            side = max(1, round(min(frames.shape[2:]) * self.crop_pct))
            return self._square(frames, side, 0.5, 0.5), duration
        # What is drawn belongs to the epoch and the place in it, whichever process does it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, place))
            start, share, top, left, mirrored = torch.rand(5).tolist()
            frames, duration = read_clip(path, self.grid, start, stored_rate)
            scale = self.crop_scale + share * (1 - self.crop_scale)
            clip = self._square(frames, max(1, round(min(frames.shape[2:]) * scale**0.5)), top, left)
            clip = clip.flip(-1) if self.flip and mirrored < 0.5 else clip
            if self.augment is not None:
                clip = self.augment(clip.transpose(0, 1)).transpose(0, 1)
            return clip, duration

    def _square(self, frames: Tensor, side: int, top: float, left: float) -> Tensor:
        """A square of the picture, at shares of the room around it, brought to the size of the grid."""
        row, column = round(top * (frames.shape[2] - side)), round(left * (frames.shape[3] - side))
        square = frames[:, :, row : row + side, column : column + side]
        # One by one: large frames need much memory as floats.
        small = [to_bytes(resize(to_float(frame), self.grid.size)) for frame in square.split(1)]
        return torch.cat(small).transpose(0, 1)
