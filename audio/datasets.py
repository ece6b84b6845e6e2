"""Clips of audio to train on: windows of the files in a folder, and the embedded plucked-string melodies.

Every data set maps an index to a waveform (clip_samples,), float32 in [-1, 1]; quantising is the task's business.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from audio.io import SUFFIXES, audio_info, peak, read_audio, resample

PARTS = ('train', 'val', 'test')
NORMALISATIONS = ('none', 'peak', 'min-max')
SPLITS = ('time', 'files', 'lists')

# A pentatonic scale (Hz).
PITCHES = (220.0, 261.63, 293.66, 329.63, 392.0)


@dataclass(frozen=True)
class AudioFile:
    """A usable file: frames and rate from its header, peak of its mono mix."""

    path: Path
    frames: int
    sample_rate: int
    peak: float


@dataclass(frozen=True)
class Stretch:
    """Frames [start, stop) of a file, in the file's own rate."""

    file: AudioFile
    start: int
    stop: int


def scan_folder(root: str | Path) -> tuple[list[AudioFile], dict[Path, str]]:
    """All usable audio files below `root`, sorted by path, and those passed over with the reason (corrupt, silent).

    Reads each file once, block by block. Warns, naming files and count, where some are passed over.
    Raises FileNotFoundError for a missing folder, ValueError for one without any usable audio file.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f'no folder at {root}')
    paths = sorted(p for p in root.rglob('*') if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise ValueError(f'{root}: no audio files ({", ".join(SUFFIXES)}) in this folder')
    files, skipped = [], {}
    for path in paths:
        try:
            info, loudest = audio_info(path), peak(path)
        except ValueError as error:
            skipped[path] = str(error).removeprefix(f'{path}: ')
            continue
        if loudest == 0:
            skipped[path] = 'silent'
        else:
            files.append(AudioFile(path, info.frames, info.sample_rate, loudest))
    if skipped:
        named = '; '.join(f'{path}: {reason}' for path, reason in list(skipped.items())[:10])
        more = '; …' if len(skipped) > 10 else ''
        warnings.warn(f'passed over {len(skipped)} of {len(paths)} audio files: {named}{more}', stacklevel=2)
    if not files:
        raise ValueError(f'{root}: none of the {len(paths)} audio files is usable')
    return files, skipped


def split_files(files: list[AudioFile], root: str | Path, how: str, fraction: float = 0.06) -> dict[str, list[Stretch]]:
    """Divide files into train, val and test.

    Args:
        how: 'time': the last 2·fraction of every file, validation before test; 'files': whole files, drawn with a fixed
            seed; 'lists': whole files named, one relative path a line, in validation_list.txt and testing_list.txt in
            `root` (the layout of Speech Commands).
        fraction: held out for validation, and as much again for the test ('time' and 'files').

    Raises ValueError for an unknown `how` or missing lists.
    """
    if how not in SPLITS:
        raise ValueError(f'unknown split {how!r}: expected one of {", ".join(SPLITS)}')
    parts: dict[str, list[Stretch]] = {part: [] for part in PARTS}
    if how == 'time':
        for file in files:
            cuts = [0, round(file.frames * (1 - 2 * fraction)), round(file.frames * (1 - fraction)), file.frames]
            for part, start, stop in zip(PARTS, cuts, cuts[1:], strict=False):
                parts[part].append(Stretch(file, start, stop))
        return parts
    if how == 'files':
        held = math.ceil(len(files) * fraction)
        order = np.random.default_rng(0).permutation(len(files))
        names = {int(i): 'val' if k < held else 'test' for k, i in enumerate(order[: 2 * held])}
        whole = [names.get(i, 'train') for i in range(len(files))]
    else:
        lists = {'val': _read_list(root, 'validation_list.txt'), 'test': _read_list(root, 'testing_list.txt')}
        relative = [file.path.relative_to(root).as_posix() for file in files]
        whole = [next((part for part, paths in lists.items() if path in paths), 'train') for path in relative]
    for file, part in zip(files, whole, strict=True):
        parts[part].append(Stretch(file, 0, file.frames))
    return parts


class FolderClips(Dataset):
    """Windows of `clip_samples` at `sample_rate` Hz, side by side over the stretches; only the window is read.

    A stretch shorter than a window gives one, filled up with silence; where `whole` is False (stretches cut out of
    longer files) one shorter than half a window gives none. `normalise`: 'none', 'peak' (divide by the file's peak) or
    'min-max' (each clip by its own extremes, as the published pipeline does). With `shift_seed` the windows of a
    stretch move together by a random part of what is left over, anew for every `epoch`.
    """

    def __init__(
        self,
        stretches: list[Stretch],
        clip_samples: int,
        sample_rate: int,
        *,
        normalise: str = 'none',
        whole: bool = True,
        shift_seed: int | None = None,
    ) -> None:
        if normalise not in NORMALISATIONS:
            raise ValueError(f'unknown normalisation {normalise!r}: expected one of {", ".join(NORMALISATIONS)}')
        self.clip_samples, self.sample_rate = clip_samples, sample_rate
        self.normalise, self.shift_seed, self.epoch = normalise, shift_seed, 0
        self.windows: list[tuple[int, Stretch, int, int]] = []
        for number, stretch in enumerate(stretches):
            length, window = stretch.stop - stretch.start, self._frames(stretch.file)
            if length < (1 if whole else (window + 1) // 2):
                continue
            count = max(1, length // window)
            slack = max(0, length - count * window)
            self.windows += [(number, stretch, k * window, slack) for k in range(count)]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        number, stretch, offset, slack = self.windows[index]
        if self.shift_seed is not None and slack:
            offset += int(np.random.default_rng((self.shift_seed, self.epoch, number)).integers(0, slack + 1))
        start = stretch.start + offset
        wave = self._read(stretch.file, start, min(self._frames(stretch.file), stretch.stop - start))
        if self.normalise == 'peak':
            wave = wave / stretch.file.peak
        elif self.normalise == 'min-max' and wave.max() > wave.min():
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
    """`count` plucked melodies of `clip_samples`; the same seed gives the same clips."""

    def __init__(self, count: int, clip_samples: int, sample_rate: int, seed: int | tuple[int, ...] = 0) -> None:
        prefix = seed if isinstance(seed, tuple) else (seed,)
        clips = [plucked_melody(clip_samples, sample_rate, (*prefix, i)) for i in range(count)]
        self.clips = torch.from_numpy(np.stack(clips)).float()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        return self.clips[index]


def folder_parts(
    root: str | Path,
    clip_samples: int,
    sample_rate: int,
    *,
    split: str = 'time',
    fraction: float = 0.06,
    normalise: str = 'none',
    seed: int = 0,
) -> dict[str, FolderClips]:
    """Train, validation and test clips of a folder; see `scan_folder`, `split_files` and `FolderClips`.

    Raises ValueError, naming the part, where a part has no clip.
    """
    files, _ = scan_folder(root)
    parts = {
        part: FolderClips(
            stretches,
            clip_samples,
            sample_rate,
            normalise=normalise,
            whole=split != 'time',
            shift_seed=seed if part == 'train' else None,
        )
        for part, stretches in split_files(files, root, split, fraction).items()
    }
    for part, clips in parts.items():
        if not len(clips):
            raise ValueError(
                f'{root}: no clip of {clip_samples} samples at {sample_rate} Hz for the {part} part of split {split!r} '
                f'with fraction {fraction}; take shorter clips or another split ({", ".join(SPLITS)})'
            )
    return parts


def _read_list(root: str | Path, name: str) -> set[str]:
    path = Path(root) / name
    if not path.is_file():
        raise ValueError(f"split 'lists' needs {path}: one relative path a line")
    return {line.strip() for line in path.read_text().splitlines() if line.strip()}
