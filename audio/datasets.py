"""Clips of sound to train on: windows of recordings, and the embedded plucked-string melodies.

Every data set maps an index to a waveform (clip_samples,), float32 in [-1, 1]; quantizing is the task's business. Where
its clips have classes, `labels` holds an index into `classes` for each (None and () where they have none); `skipped`
holds the files that were passed over, with the reason.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from audio.files import (
    SPLITS,
    AudioFile,
    Stretch,
    class_of,
    scan_files,
    scan_folder,
    speech_commands_digits,
    split_files,
    unpacked,
    whole_files,
)
from audio.io import read_audio, resample

if TYPE_CHECKING:
    from s4nd.training.config import AudioData

NORMALIZATIONS = ('none', 'peak', 'min-max')

# A pentatonic scale (Hz).
PITCHES = (220.0, 261.63, 293.66, 329.63, 392.0)


class FolderClips(Dataset):
    """Windows of `clip_samples` at `sample_rate` Hz, side by side over the stretches; only the window is read.

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
        sample_rate: int,
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
        self.clip_samples, self.sample_rate = clip_samples, sample_rate
        self.normalize, self.shift_seed, self.epoch = normalize, shift_seed, 0
        self.windows: list[tuple[int, Stretch, int, int]] = []
        for number, stretch in enumerate(stretches):
            length, window = stretch.stop - stretch.start, self._frames(stretch.file)
            if length < (1 if whole else (window + 1) // 2):
                continue
            count = max(1, length // window)
            slack = max(0, length - count * window)
            self.windows += [(number, stretch, k * window, slack) for k in range(count)]
        self.classes, self.labels, self.skipped = tuple(classes), None, dict(skipped or {})
        if labels != 'none':
            self.labels = [self.classes.index(class_of(window[1].file.path, labels)) for window in self.windows]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        number, stretch, offset, slack = self.windows[index]
        if self.shift_seed is not None and slack:
            offset += int(np.random.default_rng((self.shift_seed, self.epoch, number)).integers(0, slack + 1))
        start = stretch.start + offset
        wave = self._read(stretch.file, start, min(self._frames(stretch.file), stretch.stop - start))
        if self.normalize == 'peak':
            wave = wave / stretch.file.peak
        elif self.normalize == 'min-max' and wave.max() > wave.min():
            wave = 2 * (wave - wave.min()) / (wave.max() - wave.min()) - 1
        return torch.nn.functional.pad(wave, (0, self.clip_samples - len(wave)))

    def _frames(self, file: AudioFile) -> int:
        """Frames of the file that make one window."""
        return math.ceil(self.clip_samples * file.sample_rate / self.sample_rate)

    def _read(self, file: AudioFile, start: int, frames: int) -> Tensor:
        if file.sample_rate == self.sample_rate:
            return read_audio(file.path, start=start, frames=frames)[0]
        # Some context before and after keeps the resampling filter away from the window's ends.
        unit = file.sample_rate // math.gcd(file.sample_rate, self.sample_rate)
        context = math.ceil(64 / unit) * unit
        before = min(start, context) // unit * unit
        wave, _ = read_audio(file.path, start=start - before, frames=before + frames + context)
        wave = resample(wave, file.sample_rate, self.sample_rate)[before * self.sample_rate // file.sample_rate :]
        return wave[: min(self.clip_samples, math.ceil(frames * self.sample_rate / file.sample_rate))]


def pluck(
    frequency: float, samples: int, sample_rate: int, *, position: float = 0.3, damping: float = 0.996
) -> np.ndarray:
    """A plucked string (Karplus and Strong 1983), (samples,) float64 with peak about 1.

    A loop of about one period, filled with the triangle of a string pulled at `position` (0 to 1) and fed back through
    a two-point average times `damping`. The pitch is rounded to a loop of whole samples.
    """
    period = max(2, round(sample_rate / frequency - 0.5))
    if not 0 < position < 1:
        raise ValueError(f'position must lie between 0 and 1, got {position}')
    x = (np.arange(period) + 0.5) / period
    block = np.minimum(x / position, (1 - x) / (1 - position))
    block = 2 * (block - block.mean())
    before, out = 0.0, []
    for _ in range(math.ceil(samples / period)):
        out.append(block)
        last = block[-1]
        block = damping / 2 * (block + np.concatenate([[before], block[:-1]]))
        before = last
    return np.concatenate(out)[:samples]


def plucked_melody(samples: int, sample_rate: int, seed: int | tuple[int, ...], *, beat: float = 0.25) -> np.ndarray:
    """Notes of `PITCHES` at random, one every `beat` seconds, each cut off by the next: (samples,) in [-1, 1].

    All are plucked alike, over faint noise: a model trained without it goes astray on its own first mistake.
    """
    rng = np.random.default_rng(seed)
    step = max(1, round(beat * sample_rate))
    pitches = rng.choice(PITCHES, -(-samples // step))
    notes = np.concatenate([0.7 * pluck(pitch, step, sample_rate) for pitch in pitches])[:samples]
    return (notes + 0.01 * rng.standard_normal(samples)).clip(-1, 1)


class PluckedClips(Dataset):
    """`count` plucked melodies of `clip_samples`, without classes; the same seed gives the same clips."""

    labels: list[int] | None = None
    classes: tuple[str, ...] = ()
    skipped: dict[Path, str] = {}

    def __init__(self, count: int, clip_samples: int, sample_rate: int, seed: int | tuple[int, ...] = 0) -> None:
        prefix = seed if isinstance(seed, tuple) else (seed,)
        clips = [plucked_melody(clip_samples, sample_rate, (*prefix, i)) for i in range(count)]
        self.clips = torch.from_numpy(np.stack(clips)).float()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        return self.clips[index]


def clip_parts(data: 'AudioData', seed: int) -> dict[str, Dataset]:
    """Train, validation and test clips that a configuration describes.

    Raises ValueError where there is no such data.
    """
    if data.kind == 'plucked':
        sizes = {'train': data.train_count, 'val': data.test_count, 'test': data.test_count}
        return {
            part: PluckedClips(count, data.clip_samples, data.sample_rate, (seed, i))
            for i, (part, count) in enumerate(sizes.items())
        }
    if data.root is None:
        raise ValueError('data.root: a folder of audio files must be given, or a tar of them (data.root=/path)')
    common = {'normalize': data.normalize, 'labels': data.labels, 'seed': seed}
    if data.kind == 'sc09':
        return dict(sc09_parts(data.root, data.clip_samples, data.sample_rate, download=data.download, **common))
    if not Path(data.root).exists():
        raise ValueError(f'data.root: no folder at {data.root}')
    # The packs of spoken digits name digit, speaker and index in each file.
    split = 'digits' if data.kind == 'digits' else data.split
    fraction, cache = data.val_fraction, data.cache
    return dict(
        folder_parts(
            data.root, data.clip_samples, data.sample_rate, split=split, fraction=fraction, cache=cache, **common
        )
    )


def folder_parts(
    root: str | Path,
    clip_samples: int,
    sample_rate: int,
    *,
    split: str = 'time',
    fraction: float = 0.06,
    normalize: str = 'none',
    labels: str = 'none',
    cache: str | Path = 'out/cache',
    seed: int = 0,
) -> dict[str, FolderClips]:
    """Train, validation and test clips of a folder, or of a tar, which is unpacked into `cache`.

    See `scan_folder`, `split_files` and `FolderClips`. Raises ValueError, naming the part, where a part has no clip.
    """
    root = unpacked(root, cache) if Path(root).is_file() else Path(root)
    files, skipped = scan_folder(root)
    parts = _clips(
        split_files(files, root, split, fraction),
        skipped,
        clip_samples,
        sample_rate,
        normalize=normalize,
        whole=split != 'time',
        labels=labels,
        seed=seed,
    )
    for part, clips in parts.items():
        if not len(clips):
            raise ValueError(
                f'{root}: no clip of {clip_samples} samples at {sample_rate} Hz for the {part} part of split {split!r} '
                f'with fraction {fraction}; take shorter clips or another split ({", ".join(SPLITS)})'
            )
    return parts


def sc09_parts(
    root: str | Path,
    clip_samples: int,
    sample_rate: int,
    *,
    download: bool = False,
    normalize: str = 'none',
    labels: str = 'none',
    seed: int = 0,
) -> dict[str, FolderClips]:
    """Train, validation and test clips of the ten digits of Speech Commands; see `speech_commands_digits`."""
    found = speech_commands_digits(root, download)
    part_of = {path: part for part, paths in found.items() for path in paths}
    files, skipped = scan_files(root, sorted(part_of))
    return _clips(
        whole_files(files, [part_of[file.path] for file in files]),
        skipped,
        clip_samples,
        sample_rate,
        normalize=normalize,
        labels=labels,
        seed=seed,
    )


def _clips(
    parts: Mapping[str, list[Stretch]],
    skipped: Mapping[Path, str],
    clip_samples: int,
    sample_rate: int,
    *,
    normalize: str,
    labels: str,
    seed: int,
    whole: bool = True,
) -> dict[str, FolderClips]:
    paths = {stretch.file.path for stretches in parts.values() for stretch in stretches}
    classes = sorted({class_of(path, labels) for path in paths}) if labels != 'none' else []
    return {
        part: FolderClips(
            stretches,
            clip_samples,
            sample_rate,
            normalize=normalize,
            whole=whole,
            shift_seed=seed if part == 'train' else None,
            labels=labels,
            classes=classes,
            skipped=skipped,
        )
        for part, stretches in parts.items()
    }
