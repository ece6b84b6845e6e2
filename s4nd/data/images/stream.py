"""Class folders too large for memory: decoded and augmented (timm) by loader processes during training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from s4nd.data.folders import Member
from s4nd.data.images.augment import training_transform
from s4nd.data.images.files import MAX_PIXELS, ImageError, decode, list_members
from s4nd.data.images.options import ImageData
from s4nd.data.images.resize import resize, to_bytes, to_float
from s4nd.data.labeled import DataError
from s4nd.resolution import Size
from s4nd.seeds import seeded

__all__ = ['StreamBatches', 'StreamSet', 'load_stream']

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamSet:
    """Image files and their labels; nothing is decoded before it is asked for."""

    root: Path
    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    bad: set[str] = field(default_factory=set)  # grows as unreadable files are met
    channels: int = 3
    native_size: None = None
    max_pixels: int = MAX_PIXELS

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(sorted(self.bad))

    def select(self, indices: Tensor) -> StreamSet:
        paths = tuple(self.paths[index] for index in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices])

    def dataset(self, view: Any) -> Dataset:
        """(what `view` makes of an image or None, label, unreadable paths) for every file."""
        return _Files(self, view)

    def note(self, found: Sequence[str]) -> None:
        """Name and record unreadable files, each once."""
        for path in sorted(set(found) - self.bad):
            logger.warning('passed over %s: cannot be read', self.root / path)
            self.bad.add(path)

    def train_batches(self, data: ImageData, seed: int) -> StreamBatches:
        """One augmented epoch of (floats (B, 3, size, size), already normalized, labels (B,))."""
        count = len(self.paths)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(count, generator=generator)[: -(-count // data.repeats)]
        order = drawn.repeat_interleave(data.repeats)[:count]
        return StreamBatches(
            self, order, _TrainView(training_transform(data), seed), data.batch_size, data.workers, seed, whole=True
        )

    def eval_batches(self, size: int | Size, crop_pct: float, batch_size: int, workers: int) -> StreamBatches:
        """Every image once: the central square of `crop_pct` of the shorter side, brought to `size`; bytes."""
        order = torch.arange(len(self.paths))
        return StreamBatches(self, order, _EvalView(size, crop_pct), batch_size, workers, seed=0, whole=False)


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


class _Files(Dataset):
    def __init__(self, images: StreamSet, view: Any) -> None:
        self.images, self.view = images, view

    def __getitem__(self, at: tuple[int, int]) -> tuple[Tensor | None, int, list[str]]:
        place, index = at
        path = self.images.paths[index]
        try:
            image = decode((self.images.root / path).read_bytes(), self.images.max_pixels)
        except (ImageError, OSError):
            return None, -1, [path]
        return self.view(image, place), int(self.images.labels[index]), []


def _collate(items: list[tuple[Tensor | None, int, list[Any]]]) -> tuple[Tensor | None, Tensor, list[Any]]:
    good = [(image, label) for image, label, _ in items if image is not None]
    found = [entry for _, _, entries in items for entry in entries]
    if not good:
        return None, torch.tensor([]), found
    return torch.stack([image for image, _ in good]), torch.tensor([label for _, label in good]), found


class Streamed(Protocol):
    """A set of files as `StreamBatches` asks for it: the data set maps (place in the epoch, number of the file)."""

    def dataset(self, view: Any) -> Dataset: ...

    def note(self, found: Sequence[Any]) -> None: ...


class StreamBatches:
    """Batches in a given order; what cannot be read is left out, and handed to `note` of the set."""

    def __init__(
        self, images: Streamed, order: Tensor, view: Any, batch_size: int, workers: int, seed: int, *, whole: bool
    ) -> None:
        self.images, self.order, self.view, self.workers, self.seed = images, order, view, workers, seed
        self.whole, self.batch_size = whole, min(batch_size, len(order))
        batches = list(torch.arange(len(order)).split(self.batch_size))
        self.batches = batches[:-1] if whole and len(batches[-1]) < self.batch_size else batches

    def __len__(self) -> int:
        return len(self.batches)

    def _with(self, batches: list[Tensor]) -> StreamBatches:
        part = copy(self)
        part.batches = batches
        return part

    def shard(self, index: int, count: int) -> StreamBatches:
        """The share of process `index` of `count`; with `whole`, every process has as many."""
        return self._with(self.batches[index : len(self) - len(self) % count if self.whole else None : count])

    def skip(self, count: int) -> StreamBatches:
        """The same batches without the first `count`."""
        return self._with(self.batches[count:])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            self.images.dataset(self.view),
            batch_sampler=[list(zip(batch.tolist(), self.order[batch].tolist())) for batch in self.batches],
            collate_fn=_collate,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=torch.cuda.is_available(),
        )
        for images, labels, found in loader:
            self.images.note(found)
            if images is not None:
                yield images, labels
            elif self.whole:  # the number of steps is fixed
                raise DataError('not one file of a batch can be read; the warnings name them')


def load_stream(data: ImageData) -> tuple[StreamSet, StreamSet | None]:
    """The training and, where the root has a test or val folder, test images of `data.root`, unread."""
    root, members = list_members(data.root)
    splits = {member.split for member in members}
    train = [member for member in members if member.split == ('train' if 'train' in splits else '')]
    if not train:
        raise DataError(f'{root}: found {sorted(splits)} images but no train folder')
    classes = tuple(sorted({member.label for member in train}))
    test = [member for member in members if member.split == 'test'] if 'train' in splits else []
    limit = data.max_pixels
    return _stream_set(root, train, classes, limit), _stream_set(root, test, classes, limit) if test else None


def _stream_set(root: Path, members: list[Member], classes: tuple[str, ...], max_pixels: int) -> StreamSet:
    index = {name: number for number, name in enumerate(classes)}
    strange = sorted({member.label for member in members} - index.keys())
    if strange:
        raise DataError(f"{root}: class '{strange[0]}' is not among the {len(classes)} training classes")
    labels = torch.tensor([index[member.label] for member in members])
    paths = tuple(member.path for member in members)
    return StreamSet(root, paths, labels, classes, max_pixels=max_pixels)
