"""Class folders, the layout that sets of images and of clips share.

root/<class>/<example>                    one set, to be split
root/train/<class>/<example>              training examples, beside root/test/… or root/val/…
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from s4nd.data.labeled import DataError

__all__ = ['Member', 'check_found', 'existing', 'locate']

SPLITS = {'train': 'train', 'training': 'train', 'test': 'test', 'val': 'test', 'valid': 'test', 'validation': 'test'}


@dataclass(frozen=True, order=True)
class Member:
    """One example: its split ('train', 'test', or '' where the root has none), class and path under the root."""

    split: str
    label: str
    path: str


def locate(path: PurePosixPath) -> Member | None:
    """Read split and class off the path of an example under the root; None where it lies in no class folder."""
    folders = path.parts[:-1]
    for depth, folder in enumerate(folders[:-1]):
        if folder.lower() in SPLITS:
            return Member(SPLITS[folder.lower()], folders[depth + 1], str(path))
    if not folders or folders[-1].lower() in SPLITS:
        return None
    return Member('', folders[-1], str(path))


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
