"""The sets of clips by name: class folders, HMDB-51 and UCF-101 with their official lists, moving Fashion-MNIST.

A clip is a video file, or a folder of image files, one per frame.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

from s4nd.data.clips.files import VIDEO_SUFFIXES, has_decoder
from s4nd.data.clips.options import VideoData
from s4nd.data.clips.sets import ClipFiles, ClipSet
from s4nd.data.folders import Member, divide, existing, files_named, locate
from s4nd.data.images.files import SUFFIXES
from s4nd.data.images.named import fashion_mnist
from s4nd.data.labeled import DataError, Splits, make_splits
from s4nd.data.synthetic.moving import MovingSet

__all__ = ['load_video']

logger = logging.getLogger(__name__)

_LISTS = {'hmdb51': '<class>_test_split{0}.txt', 'ucf101': 'classInd.txt, trainlist0{0}.txt and testlist0{0}.txt'}


def load_video(data: VideoData, seed: int = 0, *, eval_only: bool = False) -> Splits[ClipSet]:
    """The set that `data` describes, split into training, held-out and test clips; files are not decoded yet.

    Raises DataError (missing root or list, no clip, no decoder, …). Clips that a list names and that are not there are
    named in a warning, passed over and counted.
    """
    train, test = _moving(data, seed) if data.kind == 'moving' else _files(data, seed)
    problem = f'{data.root} has no test folder beside its training clips'
    return make_splits(train, test, data.val_fraction, problem, eval_only=eval_only)


def _moving(data: VideoData, seed: int) -> tuple[ClipSet, ClipSet]:
    if data.flip:
        raise DataError('data.flip=true: the mirror image of a motion is of another class')
    train, test = (fashion_mnist(data.root, data.download, train=part).images for part in (True, False))
    return MovingSet.draw(train, data.train_count, 2 * seed), MovingSet.draw(test, data.test_count, 2 * seed + 1)


def _files(data: VideoData, seed: int) -> tuple[ClipSet, ClipSet | None]:
    root = existing(data.root, 'a folder of class folders with video files, or with folders of frames')
    if root.is_file():
        raise DataError(f'{root}: clips are read from an unpacked folder only')
    absent: dict[str, str] = {}
    if data.kind == 'folder':
        members = locate(_clips(root))
    else:
        members, absent = _listed(data, root)
    classes, members, labels, count = divide(root, members, len(absent), 'clip')
    if any(PurePosixPath(member.path).suffix.lower() in VIDEO_SUFFIXES for member in members) and not has_decoder():
        raise DataError(f"{root}: video files are decoded by PyAV: pip install 's4nd[video]'")
    if data.stored_rate is None and any((root / member.path).is_dir() for member in members):
        raise DataError(f'{root}: data.stored_rate must be given, frames per second of the clips that are folders')
    paths = tuple(member.path for member in members)
    clips = ClipFiles(root, paths, labels, classes, seed, data.stored_rate, bad=dict(absent))
    order = torch.arange(len(labels))
    return clips.select(order[:count]), clips.select(order[count:]) if count < len(order) else None


def _clips(root: Path) -> list[PurePosixPath]:
    """Every video file, and every folder that holds image files."""
    files = files_named(root, SUFFIXES | VIDEO_SUFFIXES)
    return sorted({file.parent if file.suffix.lower() in SUFFIXES else file for file in files})


def _listed(data: VideoData, root: Path) -> tuple[list[Member], dict[str, str]]:
    """The clips of the official lists that are there, and those that are not, with the reason."""
    folder = existing(
        data.split_files, f'the folder of {_LISTS[data.kind].format(data.split)}', option='data.split_files'
    )
    named = list(_hmdb51(folder, data.split) if data.kind == 'hmdb51' else _ucf101(folder, data.split))
    members, absent = [], {}
    for member in named:
        path = member.path
        if not (root / path).exists():
            path = str(PurePosixPath(path).with_suffix(''))  # unpacked to frames
        if (root / path).exists():
            members.append(Member(member.split, member.label, path))
        else:
            absent[member.path] = 'named in the lists but not there'
    if absent:
        names = ', '.join(list(absent)[:3])
        logger.warning('%d of %d clips in the lists are not in %s, first: %s', len(absent), len(named), root, names)
    if not members:
        raise DataError(f'{root}: none of the {len(named)} clips in the lists is there, expected {named[0].path}, …')
    return members, absent


def _hmdb51(folder: Path, split: int) -> Iterator[Member]:
    """A file for each class, a clip and its use a line: 1 training, 2 test, 0 neither."""
    ending = f'_test_split{split}.txt'
    files = sorted(folder.glob(f'*{ending}'))
    if not files:
        raise DataError(f'{folder}: no list of split {split}, expected {_LISTS["hmdb51"].format(split)}')
    uses = {'1': 'train', '2': 'test'}
    for file in files:
        label = file.name.removesuffix(ending)
        for number, words in _lines(file):
            if len(words) != 2 or words[1] not in ('0', '1', '2'):
                raise DataError(f"{file}, line {number}: expected '<clip> <0, 1 or 2>', got {' '.join(words)!r}")
            if words[1] in uses:
                yield Member(uses[words[1]], label, f'{label}/{words[0]}')


def _ucf101(folder: Path, split: int) -> Iterator[Member]:
    """A list of training clips, <class>/<clip> and the number of the class, and one of test clips without numbers."""
    names = {}
    for number, words in _lines(_list_file(folder, 'classInd.txt')):
        if len(words) != 2 or not words[0].isdigit():
            raise DataError(f"{folder / 'classInd.txt'}, line {number}: expected '<number> <class>', got {words}")
        names[words[1]] = words[0]
    for part in ('train', 'test'):
        file = _list_file(folder, f'{part}list0{split}.txt')
        for number, words in _lines(file):
            label = words[0].partition('/')[0]
            if label not in names or words[1:] not in ([], [names[label]]):
                raise DataError(
                    f'{file}, line {number}: expected <class>/<clip> of classInd.txt and at most its number, '
                    f'got {" ".join(words)!r}'
                )
            yield Member(part, label, words[0])


def _list_file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise DataError(f'{folder}: no {name} there')
    return folder / name


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, words) of the lines that hold any."""
    for number, line in enumerate(file.read_text(encoding='utf-8').splitlines(), 1):
        if line.strip():
            yield number, line.split()
