"""Class folders, the layout that sets of images and of clips share.

root/<class>/<example>                    one set, to be split
root/train/<class>/<example>              training examples, beside root/test/… or root/val/…

As in torchvision's ImageFolder, the class is the first folder below the root or the split, examples may lie deeper, and
folders that are links are followed. Hidden files and folders ('.ipynb_checkpoints') are no examples.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from s4nd.data.labeled import DataError

__all__ = [
    'SPLITS',
    'Member',
    'divide',
    'existing',
    'files_named',
    'is_hidden',
    'is_readable',
    'locate',
    'warn_of_others',
]

logger = logging.getLogger(__name__)

SPLITS = {
    **dict.fromkeys(('train', 'training'), 'train'),
    **dict.fromkeys(('test', 'testing', 'val', 'valid', 'validation', 'dev', 'eval'), 'test'),
}


@dataclass(frozen=True, order=True)
class Member:
    """One example: its split ('train', 'test', or '' where the root has none), class and path under the root."""

    split: str
    label: str
    path: str


def is_hidden(path: PurePosixPath) -> bool:
    """Whether a part of a path under the root begins with a dot, or is what macOS puts into archives."""
    return any(part.startswith('.') or part == '__MACOSX' for part in path.parts)


def files_named(root: Path, suffixes: Container[str]) -> list[PurePosixPath]:
    """The files under a root with one of these suffixes (in lower case), sorted; hidden ones are left out.

    A link that leads nowhere is among them, so that reading names it. Warns of the others, and of folders that cannot
    be read.
    """
    found = sorted(_walk(root))
    warn_of_others(root, [name for name in found if name.suffix.lower() not in suffixes])
    return [name for name in found if name.suffix.lower() in suffixes]


def warn_of_others(root: Path, others: Iterable[PurePosixPath]) -> None:
    """Say how many files in the folders under a root, or in an archive, are left out for their suffix."""
    others = [name for name in others if len(name.parts) > 1 and not is_hidden(name)]
    if others:
        logger.warning('left out for their suffix: %d of the files in %s, first: %s', len(others), root, others[0])


def _walk(root: Path) -> Iterator[PurePosixPath]:
    """All files under a root. Links are followed, but in no circle, and below a class folder to each folder once."""
    entered: set[tuple[tuple[str, ...], str]] = set()
    waiting: list[tuple[PurePosixPath, tuple[str, ...]]] = [(PurePosixPath(), (os.path.realpath(root),))]
    while waiting:
        name, inside = waiting.pop()
        try:
            entries = list(os.scandir(root / name))
        except OSError as error:
            logger.warning('passed over the folder %s: %s', root / name, error.strerror)
            continue
        for entry in entries:
            path = name / entry.name
            if is_hidden(path):
                continue
            if _is_folder(entry):
                place = os.path.realpath(entry.path)
                if place not in inside and (path.parts[:2], place) not in entered:
                    entered.add((path.parts[:2], place))
                    waiting.append((path, (*inside, place)))
            elif is_readable(entry):
                yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_readable(entry: os.DirEntry[str]) -> bool:
    """Whether to read it: no folder, and no device or pipe, which might never end; reading names a broken link."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def locate(paths: Sequence[PurePosixPath]) -> list[Member]:
    """Read split and class off the paths of all examples under the root; those in no class folder are left out.

    Folders that all examples share lead to the root ('images/cat/1.png', 'images/dog/2.png').
    """
    depth = 0
    while paths and all(len(path.parts) > depth + 2 for path in paths) and len({p.parts[depth] for p in paths}) == 1:
        if paths[0].parts[depth].lower() in SPLITS:
            break
        depth += 1
    splits = _splits({(path.parts[depth], len(path.parts) - depth) for path in paths if len(path.parts) > depth})
    members = []
    for path in paths:
        parts = path.parts[depth:]
        split = splits.get(parts[0], '') if splits else ''
        folders = parts[1:-1] if split else parts[:-1]
        if folders and (split or not splits):
            members.append(Member(split, folders[0], str(path)))
    if len(members) < len(paths):
        rest = sorted({*map(str, paths)} - {member.path for member in members})
        logger.warning('%d examples lie in no class folder and are left out, first: %s', len(rest), rest[0])
    return members


def _splits(tops: set[tuple[str, int]]) -> dict[str, str]:
    """The top folders that are splits, with their use; none where 'train' or 'valid' are names of classes.

    tops: (first folder, number of parts) of the examples. A split holds class folders; training examples stand beside
    others, or alone.
    """
    found = {name: SPLITS[name.lower()] for name, parts in tops if parts > 2 and name.lower() in SPLITS}
    alone = len({name for name, parts in tops if parts > 1} - found.keys()) == 0
    if not (alone or {'train', 'test'} <= set(found.values())):
        return {}
    tests = sorted(name for name, use in found.items() if use == 'test')
    if len(tests) > 1:
        logger.warning('the folders %s are one part, test', ' and '.join(tests))
    return found


def existing(
    root: str | None, content: str = 'a folder, or a tar, of class folders with images', option: str = 'data.root'
) -> Path:
    """The path that an option names. Raises DataError where it is not given or does not exist."""
    if root is None:
        raise DataError(f'{option} must be given: {content}')
    path = Path(root).expanduser()
    if not (path.is_file() or path.is_dir()):
        raise DataError(f'{option}: {path} {"is neither a file nor a folder" if path.exists() else "does not exist"}')
    return path


def divide(
    path: Path, members: Iterable[Member], skipped: int = 0, example: str = 'image', key: Any = None
) -> tuple[tuple[str, ...], list[Member], Tensor, int]:
    """Classes, the examples under `path` (training before test), their labels (N,), and how many are for training.

    Classes are in the order of `key`, of the alphabet without one.

    Raises:
        DataError: the examples leave nothing to learn, or a class of the test is not among those of training.
    """
    members = sorted(members)
    if not members:
        unreadable = f' ({skipped} files could not be read)' if skipped else ''
        raise DataError(f'{path}: no {example} in a class folder{unreadable}; expected {path.name}/<class>/<{example}>')
    splits = {member.split for member in members}
    train = [member for member in members if member.split == ('train' if 'train' in splits else '')]
    test = [member for member in members if member.split == 'test'] if 'train' in splits else []
    if not train:
        raise DataError(f'{path}: found {sorted(splits)} {example}s but no train folder')
    classes = tuple(sorted({member.label for member in train}, key=key))
    if len(classes) < 2:
        raise DataError(f"{path}: one class only ('{classes[0]}'); expected at least two class folders")
    index = {name: number for number, name in enumerate(classes)}
    strange = sorted({member.label for member in test} - index.keys())
    if strange:
        raise DataError(f"{path}: class '{strange[0]}' of test is not among the {len(classes)} of train")
    members = [*train, *test]
    return classes, members, torch.tensor([index[member.label] for member in members]), len(train)
