"""Sets of clips in files, decoded and augmented by loader processes during training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import RandAugment

from s4nd.data.clips.files import ClipError, read_clip
from s4nd.data.clips.grid import ClipGrid
from s4nd.data.clips.options import VideoData
from s4nd.data.images.resize import resize, to_bytes, to_float
from s4nd.data.images.stream import StreamBatches
from s4nd.data.labeled import LabeledSet
from s4nd.seeds import derived_seed

__all__ = ['ClipFiles', 'ClipSet']

logger = logging.getLogger(__name__)


class ClipSet(LabeledSet, Protocol):
    """Labeled clips that can be asked for on any grid; batches are (clips (B, C, T, H, W) bytes, labels (B,))."""

    def train_batches(self, data: VideoData, grid: ClipGrid, epoch: int) -> Any: ...

    def eval_batches(self, data: VideoData, grid: ClipGrid, batch_size: int) -> Any: ...


@dataclass(frozen=True)
class ClipFiles:
    """Video files and folders of frames; nothing is decoded before it is asked for.

    A broken clip is named once and counted; in training the next one that can be read takes its place, in evaluation it
    is left out. A clip shorter than the grid's seconds shows its last frame until their end, and is counted too.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    seed: int = 0
    stored_rate: float | None = None  # of folders of frames
    bad: dict[str, str] = field(default_factory=dict)  # path -> why; grows as broken clips are met
    short: dict[str, float] = field(default_factory=dict)  # path -> seconds
    channels: int = 3

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(f'{path}: {reason}' for path, reason in sorted(self.bad.items()))

    def select(self, indices: Tensor) -> ClipFiles:
        paths = tuple(self.paths[index] for index in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices])

    def dataset(self, view: ClipView) -> Dataset:
        """(clip or None, label, what was met on the way) for every number, as `StreamBatches` takes it."""
        return _Clips(self, view)

    def note(self, found: Sequence[tuple[str, str | float]]) -> None:
        """Name and record each broken clip (path, why) and each short one (path, seconds) once."""
        for path, what in found:
            if path in (self.bad if isinstance(what, str) else self.short):
                continue
            if isinstance(what, str):
                logger.warning('passed over %s: %s', self.root / path, what)
                self.bad[path] = what
                continue
            if not self.short:
                logger.warning('%s has %.2f s only: the last frame of a short clip is held', self.root / path, what)
            self.short[path] = what

    def train_batches(self, data: VideoData, grid: ClipGrid, epoch: int) -> StreamBatches:
        """An epoch of clips that begin anywhere, cut, mirrored and augmented at random, all frames of one alike."""
        seed = derived_seed(self.seed, epoch)
        order = torch.randperm(len(self.paths), generator=torch.Generator().manual_seed(seed))
        augment = None
        if data.rand_augment_layers:
            augment = RandAugment(data.rand_augment_layers, data.rand_augment_magnitude, num_magnitude_bins=11)
        view = ClipView(grid, seed=seed, crop_scale=data.crop_scale, flip=data.flip, augment=augment)
        return StreamBatches(self, order, view, data.batch_size, data.workers, seed, whole=True)

    def eval_batches(self, data: VideoData, grid: ClipGrid, batch_size: int) -> StreamBatches:
        """The middle of every clip, the central square of `crop_pct` of its shorter side."""
        view = ClipView(grid, crop_pct=data.crop_pct)
        return StreamBatches(self, torch.arange(len(self.paths)), view, batch_size, data.workers, seed=0, whole=False)


@dataclass(frozen=True)
class ClipView:
    """What is shown of a clip: frames on `grid`, cut to a square. `seed` None: the middle; else at random."""

    grid: ClipGrid
    seed: int | None = None
    crop_pct: float = 1.0
    crop_scale: float = 1.0
    flip: bool = False
    augment: RandAugment | None = None

    def __call__(self, path: Path, stored_rate: float | None, number: int) -> tuple[Tensor, float]:
        """Bytes (3, T, H, W) and the seconds that the clip has. Raises ClipError."""
        if self.seed is None:
            frames, duration = read_clip(path, self.grid, 0.5, stored_rate)
            side = max(1, round(min(frames.shape[2:]) * self.crop_pct))
            return self._square(frames, side, 0.5, 0.5), duration
        # What is drawn belongs to the clip and the epoch, whichever process does it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, number))
            place, share, top, left, mirrored = torch.rand(5).tolist()
            frames, duration = read_clip(path, self.grid, place, stored_rate)
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
        return to_bytes(resize(to_float(square), self.grid.size)).transpose(0, 1)


class _Clips(Dataset):
    def __init__(self, clips: ClipFiles, view: ClipView) -> None:
        self.clips, self.view = clips, view

    def __getitem__(self, at: tuple[int, int]) -> tuple[Tensor | None, int, list[tuple[str, str | float]]]:
        clips, (_, index) = self.clips, at
        found: list[tuple[str, str | float]] = []
        # In training, the next clip stands in for a broken one, so that a batch is as large as it should be.
        tries = 1 if self.view.seed is None else len(clips.paths)
        for number in range(index, index + tries):
            number %= len(clips.paths)
            path = clips.paths[number]
            try:
                clip, duration = self.view(clips.root / path, clips.stored_rate, number)
            except ClipError as error:
                found.append((path, str(error)))
                continue
            if self.view.grid.times(duration)[-1] >= duration:
                found.append((path, duration))
            return clip, int(clips.labels[number]), found
        return None, -1, found
