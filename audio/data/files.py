"""Where recordings lie and how they are divided: folders, tars and Speech Commands, each file read through once.

Nothing here holds sound: a `Stretch` names the frames of a file, and `audio.data.datasets` reads windows of it.
"""

import gzip
import hashlib
import lzma
import math
import shutil
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Collection, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from s4nd.data.folders import files_named, is_hidden, warn_of_others
from s4nd.data.tars import files as tar_files
from s4nd.data.tars import link_target, link_targets, open_tar
from s4nd.files import locked
from s4nd.progress import progress

from ..io import SUFFIXES, audio_info, examine_audio, resample_file

PARTS = ('train', 'val', 'test')
SPLITS = ('time', 'files', 'lists', 'digits')
LABELS = ('none', 'folder', 'name')
_LISTS = ('validation_list.txt', 'testing_list.txt')

# What tarfile and the decoders below it raise for a file that is no whole tar.
_NO_TAR = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, ValueError, TypeError)

# The classes of SC09.
SPOKEN_DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


@dataclass(frozen=True)
class AudioFile:
    """A usable file: frames and rate from its header, peak of its mono mix, and where its sound is read."""

    path: Path
    frames: int
    sample_rate: int
    peak: float
    sound: Path
    seekable: bool = True


@dataclass(frozen=True)
class Stretch:
    """Frames [start, stop) of a file, in the file's own rate."""

    file: AudioFile
    start: int
    stop: int


def scan_folder(root: str | Path, *, silent: bool = False) -> tuple[list[AudioFile], dict[Path, str]]:
    """All usable audio files below `root`, sorted by path, and those passed over with the reason; see `scan_files`.

    Raises FileNotFoundError for a missing folder, ValueError for one without any usable audio file.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f'no folder at {root}')
    paths = [root / name for name in files_named(root, SUFFIXES)]
    if not paths:
        raise ValueError(f'{root}: no audio files ({", ".join(SUFFIXES)}) in this folder')
    return scan_files(root, paths, silent=silent)


def scan_files(
    root: str | Path, paths: Iterable[Path], *, silent: bool = False
) -> tuple[list[AudioFile], dict[Path, str]]:
    """The usable ones of `paths` (below `root`) and those passed over with the reason: missing, corrupt, empty, silent.

    Silent ones are usable with `silent`, for what a model made. Reads each file once, block by block. Warns, naming
    files and count, where some are passed over. Raises ValueError where none is usable.
    """
    files, skipped = [], {}
    for path in progress(paths, 'recordings', 'files'):
        try:
            info, peak = examine_audio(path)
        except (ValueError, OSError) as error:
            skipped[path] = str(error).removeprefix(f'{path}: ')
            continue
        if peak == 0 and not silent:
            skipped[path] = 'silent'
        else:
            files.append(AudioFile(path, info.frames, info.sample_rate, peak, path, info.seekable))
    total = len(files) + len(skipped)
    if skipped:
        named = '; '.join(f'{path}: {reason}' for path, reason in list(skipped.items())[:10])
        more = '; …' if len(skipped) > 10 else ''
        warnings.warn(f'passed over {len(skipped)} of {total} audio files: {named}{more}', stacklevel=3)
    if not files:
        raise ValueError(f'{root}: none of the {total} audio files is usable')
    return files, skipped


def at_rate(files: list[AudioFile], sample_rate: int, cache: str | Path) -> list[AudioFile]:
    """The same files at `sample_rate` (Hz): those of other rates, or of codings without a seek, are rewritten into
    `cache` once.

    Raises OSError where the cache cannot be written.
    """
    cache = Path(cache).expanduser()
    made = {file: _cached(file.path, cache, f'-{sample_rate}.w64') for file in files
            if file.sample_rate != sample_rate or not file.seekable}  # fmt: skip
    missing = [(file, sound) for file, sound in made.items() if not sound.is_file()]
    for file, sound in progress(missing, f'resampling to {sample_rate} Hz', 'files', len(missing)):
        with locked(sound):
            if not sound.is_file():
                resample_file(file.path, sound, sample_rate)
    return [
        replace(file, frames=audio_info(made[file]).frames, sample_rate=sample_rate, sound=made[file], seekable=True)
        if file in made else file
        for file in files
    ]  # fmt: skip


def _cached(path: Path, cache: Path, ending: str) -> Path:
    """The place in the cache of what is made of a file, another one when the file changes."""
    stat = path.stat()
    fingerprint = hashlib.sha256(
        f'{path.resolve()} {stat.st_size} {stat.st_mtime_ns}'.encode(errors='surrogateescape')
    ).hexdigest()[:16]
    return cache / f'{path.name.split(".")[0]}-{fingerprint}{ending}'


def split_files(files: list[AudioFile], root: str | Path, how: str, fraction: float = 0.06) -> dict[str, list[Stretch]]:
    """Divide files into train, val and test.

    Args:
        how: 'time': the last 2·fraction of every file, validation before test; 'files': whole files, drawn with a fixed
            seed; 'lists': whole files named, one relative path a line, in validation_list.txt and testing_list.txt in
            `root` (the layout of Speech Commands); 'digits': by the index in `{digit}_{speaker}_{index}.wav`, 0-4 test
            (the official split of the Free Spoken Digit Dataset), 5-9 validation.
        fraction: held out for validation, and as much again for the test ('time' and 'files').

    Raises ValueError for an unknown `how`, missing lists or names without an index.
    """
    if how not in SPLITS:
        raise ValueError(f'unknown split {how!r}: expected one of {", ".join(SPLITS)}')
    if how == 'time':
        parts: dict[str, list[Stretch]] = {part: [] for part in PARTS}
        for file in files:
            cuts = [0, round(file.frames * (1 - 2 * fraction)), round(file.frames * (1 - fraction)), file.frames]
            for part, start, stop in zip(PARTS, cuts, cuts[1:], strict=False):
                parts[part].append(Stretch(file, start, stop))
        return parts
    if how == 'files':
        held = math.ceil(len(files) * fraction)
        order = np.random.default_rng(0).permutation(len(files))
        names = {int(i): 'val' if k < held else 'test' for k, i in enumerate(order[: 2 * held])}
        places = [names.get(i, 'train') for i in range(len(files))]
    elif how == 'digits':
        places = [_digits_part(file.path) for file in files]
    else:
        lists = {'val': _read_list(root, 'validation_list.txt'), 'test': _read_list(root, 'testing_list.txt')}
        relative = [file.path.relative_to(root).as_posix() for file in files]
        places = [next((part for part, paths in lists.items() if path in paths), 'train') for path in relative]
    return whole_files(files, places)


def whole_files(files: Iterable[AudioFile], places: Iterable[str]) -> dict[str, list[Stretch]]:
    """Each file, from end to end, in the part named for it."""
    parts: dict[str, list[Stretch]] = {part: [] for part in PARTS}
    for file, part in zip(files, places, strict=True):
        parts[part].append(Stretch(file, 0, file.frames))
    return parts


def class_of(path: Path, how: str) -> str:
    """The class of a file: its 'folder', or its 'name' up to the first underscore. Raises ValueError for others."""
    if how == 'folder':
        return path.parent.name
    if how == 'name':
        return path.name.partition('_')[0].removesuffix(path.suffix)
    raise ValueError(f'unknown labels {how!r}: expected one of {", ".join(LABELS)}')


def speech_commands_files(
    root: str | Path, download: bool = False, words: Collection[str] | None = None
) -> dict[str, list[Path]]:
    """The recordings of `words` (None: all 35) in Speech Commands (version 2) below `root`, by its official lists.

    `download` fetches the whole set (2.4 GB) into `root` where it is not there yet. Raises ValueError where it is not,
    cannot be fetched, or lacks its lists.
    """
    from torchaudio.datasets import SPEECHCOMMANDS

    root = Path(root)
    if download:
        root.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Path]] = {}
    for part, subset in zip(PARTS, ('training', 'validation', 'testing'), strict=True):
        try:
            with locked(root / 'SpeechCommands') if download else nullcontext():
                commands = SPEECHCOMMANDS(root, download=download, subset=subset)
        except FileNotFoundError as error:
            raise ValueError(f'{root}: Speech Commands is incomplete there ({error})') from error
        except (RuntimeError, OSError) as error:
            wish = (
                'it could not be downloaded' if download else 'data.download=true fetches it where there is a network'
            )
            raise ValueError(f'{root}: no Speech Commands there, and {wish} ({error})') from error
        # The metadata only: torchaudio itself cannot read the files without FFmpeg.
        metadata = (commands.get_metadata(i) for i in range(len(commands)))
        folder = root / 'SpeechCommands'
        found[part] = [folder / path for path, _, label, *_ in metadata if words is None or label in words]
    return found


def unpacked(archive: str | Path, cache: str | Path) -> Path:
    """The folder that a tar of recordings (.tar, .tar.gz, .tar.xz, …) holds, unpacked into `cache` once.

    Only sound files and the lists of a split are unpacked. Raises ValueError for a file that is no whole tar.
    """
    archive, cache = Path(archive), Path(cache).expanduser()
    folder = _cached(archive, cache, '')
    if not folder.is_dir():
        with locked(folder):
            if not folder.is_dir():
                _unpack_all(archive, folder)
    # The lists of a split lie beside the class folders, below any leading folder.
    inside = list(folder.iterdir())
    while len(inside) == 1 and inside[0].is_dir():
        folder = inside[0]
        inside = list(folder.iterdir())
    return folder


def _unpack_all(archive: Path, folder: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix='.unpacking-', dir=folder.parent))
    links: dict[PurePosixPath, PurePosixPath | None] = {}
    others = []
    try:
        with open_tar(archive) as tar:
            for name, entry in tar_files(tar):
                if not _is_wanted(name):
                    others.append(name)
                elif entry.isfile():
                    _unpack(tar, entry, temporary / name)
                else:
                    links[name] = link_target(entry)
        warn_of_others(archive, others)
        for name, target in link_targets(links).items():
            if target is not None and (temporary / target).is_file():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(temporary / target, temporary / name)
            else:
                warnings.warn(f'{archive}: {name} is a link to no sound in it', stacklevel=2)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else a process on another machine was faster
                raise
    except _NO_TAR as error:
        raise ValueError(f'{archive} is neither a folder nor a whole tar ({error})') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack(tar: tarfile.TarFile, entry: tarfile.TarInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(entry)
    if source is not None:  # a plain file always has content
        with source, target.open('wb') as sink:
            shutil.copyfileobj(source, sink)


def _is_wanted(name: PurePosixPath) -> bool:
    return not is_hidden(name) and (_is_audio(name.name) or name.name in _LISTS)


def _is_audio(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith('.')


def _digits_part(path: Path) -> str:
    index = path.stem.rpartition('_')[2]
    if not index.isdecimal():
        raise ValueError(f"{path}: split 'digits' expects names such as 7_theo_12.wav, ending in the recording's index")
    return 'test' if int(index) < 5 else 'val' if int(index) < 10 else 'train'


def _read_list(root: str | Path, name: str) -> set[str]:
    path = Path(root) / name
    if not path.is_file():
        raise ValueError(f"split 'lists' needs {path}: one relative path a line")
    return {line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip()}
