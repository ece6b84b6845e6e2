"""The options of a set of clips."""

from __future__ import annotations

from dataclasses import dataclass

from s4nd.options import option
from s4nd.resolution import LARGEST_SIDE

__all__ = ['VideoData']


@dataclass
class VideoData:
    """Clips of `seconds` at `frame_rate` frames per second, `size` × `size` pixels."""

    kind: str = option('moving', 'the set', choices=('moving', 'folder', 'hmdb51', 'ucf101'))
    root: str | None = option(
        None, 'a folder of class folders with video files or folders of frames; moving: the files of Fashion-MNIST'
    )
    download: bool = option(False, 'moving: fetch Fashion-MNIST into root')
    split_files: str | None = option(None, 'hmdb51, ucf101: the folder of the official lists')
    split: int = option(1, 'hmdb51, ucf101: number of the split', low=1, high=3)
    stored_rate: float | None = option(None, 'folders of frames: frames per second as stored', low=0.01)
    size: int = option(32, 'pixels per side in training', low=1, high=LARGEST_SIDE)
    frame_rate: float = option(8.0, 'frames per second in training', low=0.01)
    seconds: float = option(2.0, 'duration of a clip', low=0.01)
    workers: int = option(4, 'files: loader processes', low=0, high=256)
    batch_size: int = option(16, 'clips per process and step', low=1)
    val_fraction: float = option(0.0, 'share of each class held out of the training clips', low=0, high=0.9)
    train_count: int = option(6000, 'moving: clips per epoch, new ones in every epoch', low=1)
    test_count: int = option(1200, 'moving: clips to evaluate on', low=1)
    flip: bool = option(False, 'files: mirror clips at random, left and right')
    crop_scale: float = option(1.0, 'files: smallest share of the picture that a random crop keeps', low=0.01, high=1)
    rand_augment_layers: int = option(0, 'files: RandAugment operations, the same for all frames', low=0, high=100)
    rand_augment_magnitude: int = option(7, 'files: magnitude of RandAugment', low=0, high=10)
    crop_pct: float = option(1.0, 'files: side of the center crop at evaluation', low=0.1, high=1)
