"""Class folders, the layout that sets of images and of clips share.

root/<class>/<example>                    one set, to be split
root/train/<class>/<example>              training examples, beside root/test/… or root/val/…

As in torchvision's ImageFolder, the class is the first folder below the root or the split, examples may lie deeper, and
folders that are links are followed. Hidden files and folders ('.ipynb_checkpoints') are no examples.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from s4nd.data.labeled import DataError

__all__ = ['SPLITS', 'Member', 'divide', 'existing', 'is_hidden', 'locate', 'walk']

logger = logging.getLogger(__name__)

SPLITS = {'train': 'train', 'training': 'train', 'test': 'test', 'val': 'test', 'valid': 'test', 'validation': 'test'}


@dataclass(frozen=True, order=True)
class Member:
    """One example: its split ('train', 'test', or '' where the root has none), class and path under the root."""

    split: str
    label: str
    path: str


def is_hidden(path: PurePosixPath) -> bool:
    """Whether a part of a path under the root begins with a dot, or is what macOS puts into archives."""
    return any(part.startswith('.') or part == '__MACOSX' for part in path.parts)


def walk(root: Path) -> Iterator[PurePosixPath]:
    """All files and folders under a root, hidden ones left out; links are followed, but in no circle."""
    for folder, folders, files in os.walk(root, followlinks=True):
        place = Path(folder).resolve()
        below = Path(folder).relative_to(root)
        folders[:] = sorted(
            name for name in folders
            if not is_hidden(PurePosixPath(name)) and not place.is_relative_to((Path(folder) / name).resolve())
        )  # fmt: skip
        for name in sorted([*folders, *files]):
            if not is_hidden(PurePosixPath(name)):
                yield PurePosixPath((below / name).as_posix())


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
    return found if alone or {'train', 'test'} <= set(found.values()) else {}


def existing(
    root: str | None, content: str = 'a folder, or a tar, of class folders with images', option: str = 'data.root'
) -> Path:
    """The path that an option names. Raises DataError where it is not given or does not exist."""
    if root is None:
        raise DataError(f'{option} must be given: {content}')
    path = Path(root).expanduser()
    if not path.exists():
        raise DataError(f'{option}: {path} does not exist')
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
