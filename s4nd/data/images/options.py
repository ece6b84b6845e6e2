"""The options of a set of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from s4nd.options import option
from s4nd.resolution import LARGEST_SIDE, parse_size

__all__ = ['ImageData']

KINDS = ('cifar10', 'cifar100', 'fashion_mnist', 'imagenet', 'folder', 'shapes')


@dataclass
class ImageData:
    """Images of one set, trained at `size` × `size` pixels."""

    kind: str = option('cifar10', 'the set', choices=KINDS)
    root: str | None = option(
        None, "folder or tar of class folders, wds/FOLDER of shards, hfds/NAME, or the folder of the set's own files"
    )
    download: bool = option(False, 'fetch cifar10, cifar100 or fashion_mnist into root')
    cache: str | None = option('out/cache', 'folder for decoded images; null: decode every time')
    size: int = option(32, 'pixels per side in training', low=1, high=LARGEST_SIDE)
    sizes: list[Any] = option([], 'sizes shown in training, 16 or 24x40; empty: `size`', parse=parse_size)
    stage_epochs: list[int] = option(
        [], 'epochs at each of `sizes` in turn; empty: each batch draws its size from `sizes`', low=1
    )
    source_size: int | None = option(None, 'folder: side to which decoded images are brought', low=1, high=LARGEST_SIDE)
    max_pixels: int = option(1 << 26, 'files of more pixels are passed over', low=1)
    sequence: bool = option(False, 'read row by row, as height · width samples, for models of one axis')
    stream: bool = option(False, 'decode during training (always so for imagenet, wds/… and hfds/…)')
    workers: int = option(4, 'stream: loader processes', low=0, high=256)
    batch_size: int = option(128, 'images per process and step', low=1)
    val_fraction: float = option(0.0, 'share of each class held out of the training images', low=0, high=0.9)
    train_count: int = option(8000, 'shapes: scenes to train on', low=1)
    test_count: int = option(1000, 'shapes: scenes to evaluate on', low=1)
    crop_padding: int = option(0, 'pixels of zeros around the source image before a random crop', low=0, high=4096)
    flip: bool = option(False, 'mirror images at random, left and right')
    mixup: float = option(0.0, 'mixup: parameter of the Beta distribution; 0: off', low=0)
    cutmix: float = option(0.0, 'cutmix: parameter of the Beta distribution; 0: off', low=0)
    mix_prob: float = option(1.0, 'probability that a batch is mixed', low=0, high=1)
    label_smoothing: float = option(0.0, 'share of the label spread over all classes', low=0, high=1)
    auto_augment: str | None = option(None, "stream: timm's policy, such as rand-m9-mstd0.5-inc1")
    random_erasing: float = option(0.0, 'stream: probability of erasing a rectangle', low=0, high=1)
    repeats: int = option(1, 'stream: differently augmented copies of each drawn image per epoch', low=1)
    crop_pct: float = option(0.875, 'stream: side of the center crop at evaluation', low=0.1, high=1)
