"""Class folders, the layout that sets of images and of clips share.

root/<class>/<example>                    one set, to be split
root/train/<class>/<example>              training examples, beside root/test/… or root/val/…

As in torchvision's ImageFolder, the class is the first folder below the root or the split, examples may lie deeper, and
folders that are links are followed. Hidden files and folders ('.ipynb_checkpoints') are no examples.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from s4nd.data.labeled import DataError

__all__ = ['Member', 'check_found', 'existing', 'is_hidden', 'locate', 'walk']

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


def check_found(path: Path, labels: list[str], skipped: int, example: str = 'image') -> None:
    """Raise DataError where the labels of all examples under `path` leave nothing to learn."""
    if not labels:
        unreadable = f' ({skipped} files could not be read)' if skipped else ''
        raise DataError(f'{path}: no {example} in a class folder{unreadable}; expected {path.name}/<class>/<{example}>')
    if len(set(labels)) < 2:
        raise DataError(f"{path}: one class only ('{labels[0]}'); expected at least two class folders")
