"""Clips of sound to train on: windows of recordings.

Every data set maps an index to a waveform (clip_samples,), float32 in [-1, 1]; the task quantizes it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..io import read_audio
from .files import Stretch, class_of

NORMALIZATIONS = ('none', 'peak', 'min-max')


class Clips(Dataset[Tensor]):
    """A data set of waveforms.

    Attributes:
        labels: index into `classes` of each clip; None where the clips have no classes.
        classes: names of the classes.
        recorded: samples of each clip that come from a recording, the rest is silence after its end; None: all.
        skipped: files that were passed over, with the reason.
        epoch: which random windows are cut, for data sets that move theirs.
    """

    labels: list[int] | None = None
    classes: tuple[str, ...] = ()
    recorded: list[int] | None = None
    skipped: Mapping[Path, str] = {}
    epoch: int = 0

    def __len__(self) -> int:
        raise NotImplementedError


class Clip(NamedTuple):
    """A waveform, its class (None where clips have none), and how many of its samples are no padding."""

    wave: Tensor
    label: int | None
    recorded: int


class Labeled(Dataset[Clip]):
    """What `Clip` says of each clip."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        wave, labels, recorded = self.clips[index], self.clips.labels, self.clips.recorded
        label = None if labels is None else labels[index]
        return Clip(wave, label, len(wave) if recorded is None else recorded[index])


class FolderClips(Clips):
    """Windows of `clip_samples`, side by side over the stretches; only the window is read.

    A stretch shorter than a window gives one, filled up with silence; where `whole` is False (stretches cut out of
    longer files) one shorter than half a window gives none. `normalize`: 'none', 'peak' (divide by the file's peak) or
    'min-max' (each clip by its own extremes, as the published pipeline does). With `shift_seed` the windows of a
    stretch move together by a random part of what is left over, anew for every `epoch`.

    `labels` says where a clip's class is written (`class_of`).
    """

    def __init__(
        self,
        stretches: list[Stretch],
        clip_samples: int,
        *,
        normalize: str = 'none',
        whole: bool = True,
        shift_seed: int | None = None,
        labels: str = 'none',
        classes: Sequence[str] = (),
        skipped: Mapping[Path, str] | None = None,
    ) -> None:
        if normalize not in NORMALIZATIONS:
            raise ValueError(f'unknown normalization {normalize!r}: expected one of {", ".join(NORMALIZATIONS)}')
        self.clip_samples, self.normalize, self.shift_seed = clip_samples, normalize, shift_seed
        self.windows: list[tuple[int, Stretch, int, int]] = []
        for number, stretch in enumerate(stretches):
            length, window = stretch.stop - stretch.start, clip_samples
            if length < (1 if whole else (window + 1) // 2):
                continue
            count = max(1, length // window)
            slack = max(0, length - count * window)
            self.windows += [(number, stretch, k * window, slack) for k in range(count)]
        self.recorded = [self._samples_of(stretch, offset) for _, stretch, offset, _ in self.windows]
        self.classes, self.skipped = tuple(classes), dict(skipped or {})
        if labels != 'none':
            self.labels = [self.classes.index(class_of(window[1].file.path, labels)) for window in self.windows]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        number, stretch, offset, slack = self.windows[index]
        if self.shift_seed is not None and slack:
            offset += int(np.random.default_rng((self.shift_seed, self.epoch, number)).integers(0, slack + 1))
        start = stretch.start + offset
        wave, _ = read_audio(stretch.file.sound, start=start, frames=min(self.clip_samples, stretch.stop - start))
        if self.normalize == 'peak':
            wave = wave / stretch.file.peak
        elif self.normalize == 'min-max' and wave.max() > wave.min():
            wave = 2 * (wave - wave.min()) / (wave.max() - wave.min()) - 1
        return torch.nn.functional.pad(wave, (0, self.clip_samples - len(wave)))

    def _samples_of(self, stretch: Stretch, offset: int) -> int:
        """Samples of a window that lie in its stretch."""
        return min(self.clip_samples, stretch.stop - stretch.start - offset)
