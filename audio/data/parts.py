"""Train, validation and test clips, and the options that describe them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s4nd.data.folders import existing
from s4nd.options import option

from ..quantization import CONVENTIONS, LAWS
from .datasets import NORMALIZATIONS, Clips, FolderClips
from .files import (
    LABELS,
    SPLITS,
    SPOKEN_DIGITS,
    Stretch,
    at_rate,
    class_of,
    scan_files,
    scan_folder,
    speech_commands_files,
    split_files,
    unpacked,
    whole_files,
)
from .plucked import PluckedClips

KINDS = ('folder', 'digits', 'sc09', 'speech_commands', 'plucked')


@dataclass
class AudioData:
    """Waveforms cut into clips of `clip_samples`, quantized to 2**`bits` values where codes are learned."""

    kind: str = option('folder', 'where the recordings come from', choices=KINDS)
    root: str | None = option(
        None, 'folder or tar of recordings; sc09, speech_commands: where Speech Commands is, or is to be'
    )
    download: bool = option(False, 'sc09, speech_commands: fetch it into root')
    cache: str = option('out/cache', 'folder into which a tar is unpacked, and files of other rates are resampled once')
    sample_rate: int = option(16000, 'Hz; recordings of other rates are resampled', low=100, high=10_000_000)
    clip_samples: int = option(16000, 'samples per clip', low=1)
    quantizer: str = option('mu-law', 'spacing of the codes', choices=LAWS)
    convention: str = option('standard', 'rounding of the codes, see audio.quantization', choices=CONVENTIONS)
    bits: int = option(8, 'bits per code', low=1, high=16)
    normalize: str = option(
        'none', "divide by each file's peak, or map each clip's extremes to ±1", choices=NORMALIZATIONS
    )
    split: str = option(
        'time', 'ends of each file, whole files, files named in lists, or the index in the name', choices=SPLITS
    )
    val_fraction: float = option(
        0.06, 'share held out for validation, and as much again for the test', low=0, high=0.45
    )
    labels: str = option('none', "a file's class: its folder, or its name up to a '_'", choices=LABELS)
    batch_size: int = option(8, 'clips per process and step', low=1)
    train_count: int = option(256, 'plucked: clips to train on', low=1)
    test_count: int = option(32, 'plucked: clips to validate on, and as many again for the test', low=1)


def clip_parts(data: AudioData, seed: int) -> dict[str, Clips]:
    """Read the train, validation and test clips that `data` describes.

    Raises:
        ValueError: where there is no such data.
    """
    if data.kind == 'plucked':
        sizes = {'train': data.train_count, 'val': data.test_count, 'test': data.test_count}
        return {
            part: PluckedClips(count, data.clip_samples, data.sample_rate, (seed, i))
            for i, (part, count) in enumerate(sizes.items())
        }
    if data.root is None or not data.download:
        root = existing(data.root, 'a folder of audio files, or a tar of them')
    else:
        root = Path(data.root)
    common: dict[str, Any] = {
        'normalize': data.normalize, 'labels': data.labels, 'seed': seed, 'cache': data.cache,
    }  # fmt: skip
    if data.kind in ('sc09', 'speech_commands'):
        common['words'] = SPOKEN_DIGITS if data.kind == 'sc09' else None
        rate = data.sample_rate
        return dict(speech_commands_parts(root, data.clip_samples, rate, download=data.download, **common))
    # The packs of spoken digits name digit, speaker and index in each file.
    split = 'digits' if data.kind == 'digits' else data.split
    return dict(
        folder_parts(root, data.clip_samples, data.sample_rate, split=split, fraction=data.val_fraction, **common)
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

    Files of other rates are resampled into `cache`, once.

    See `scan_folder`, `split_files` and `FolderClips`. Raises ValueError, naming the part, where a part has no clip.
    """
    root = unpacked(root, cache) if Path(root).is_file() else Path(root)
    files, skipped = scan_folder(root)
    parts = _clips(
        split_files(at_rate(files, sample_rate, cache), root, split, fraction),
        skipped,
        clip_samples,
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


def speech_commands_parts(
    root: str | Path,
    clip_samples: int,
    sample_rate: int,
    *,
    words: Collection[str] | None = None,
    download: bool = False,
    normalize: str = 'none',
    labels: str = 'none',
    cache: str | Path = 'out/cache',
    seed: int = 0,
) -> dict[str, FolderClips]:
    """Train, validation and test clips of `words` of Speech Commands; see `speech_commands_files`."""
    found = speech_commands_files(root, download, words)
    part_of = {path: part for part, paths in found.items() for path in paths}
    files, skipped = scan_files(root, sorted(part_of))
    return _clips(
        whole_files(at_rate(files, sample_rate, cache), [part_of[file.path] for file in files]),
        skipped,
        clip_samples,
        normalize=normalize,
        labels=labels,
        seed=seed,
    )


def _clips(
    parts: Mapping[str, list[Stretch]],
    skipped: Mapping[Path, str],
    clip_samples: int,
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
            normalize=normalize,
            whole=whole,
            shift_seed=seed if part == 'train' else None,
            labels=labels,
            classes=classes,
            skipped=skipped,
        )
        for part, stretches in parts.items()
    }
