"""Images in class folders, plain or inside a tar: found, decoded once, kept in a cache.

    root/<class>/<image>                    one set, to be split
    root/train/<class>/<image>              training images, beside root/test/… or root/val/…

A tar (.tar, .tar.gz, .tar.xz, …) holds the same paths, under any leading folders.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s4nd.data.image_set import DataError, PixelSet
from s4nd.data.resample import resize, to_bytes, to_float
from s4nd.files import write_atomically

__all__ = ['Member', 'check_found', 'decode', 'existing', 'list_members', 'load_class_folders', 'locate', 'place']

logger = logging.getLogger(__name__)

SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.webp', '.gif', '.ppm', '.pgm', '.tif', '.tiff'}
SPLITS = {'train': 'train', 'training': 'train', 'test': 'test', 'val': 'test', 'valid': 'test', 'validation': 'test'}
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_CACHE_FORMAT = 1


@dataclass(frozen=True, order=True)
class Member:
    """One image: its split ('train', 'test', or '' where the root has none), class and path under the root."""

    split: str
    label: str
    path: str


def place(path: PurePosixPath) -> Member | None:
    """Read split and class off a path under the root; None where it is no image or lies in no class folder."""
    return locate(path) if path.suffix.lower() in SUFFIXES and not path.name.startswith('.') else None


def locate(path: PurePosixPath) -> Member | None:
    """`place` for a path that is known to be an example, whatever its suffix."""
    folders = path.parts[:-1]
    for depth, folder in enumerate(folders[:-1]):
        if folder.lower() in SPLITS:
            return Member(SPLITS[folder.lower()], folders[depth + 1], str(path))
    if not folders or folders[-1].lower() in SPLITS:
        return None
    return Member('', folders[-1], str(path))


def load_class_folders(root: str | None, source_size: int | None, cache: str | None) -> dict[str, PixelSet]:
    """Decode every image under `root` into memory: {'train': …, 'test': …}, or {'': …} where there is one set only.

    source_size: side to which images are brought (center square, then area average or bicubic); None: all must be
    squares of one size. cache: folder for the decoded images; None: none. A file that cannot be read is named in a
    warning, passed over and listed in `skipped`. Raises DataError where there is nothing to learn from.
    """
    path = existing(root)
    cached = None if cache is None else Path(cache).expanduser() / f'{_fingerprint(path, source_size)}.safetensors'
    if cached is not None and cached.is_file():
        try:
            return _read_cache(cached)
        except (SafetensorError, KeyError, TypeError) as error:
            logger.warning('%s is damaged (%s): decoding again', cached, error)
    images: dict[Member, Tensor] = {}
    skipped: list[str] = []
    for member, data in _contents(path):
        try:
            image = decode(data)
        except UNREADABLE as error:
            logger.warning('passed over %s in %s: %s', member.path, path, error)
            skipped.append(member.path)
            continue
        images[member] = _to_square(image, source_size) if source_size is not None else image
    sets = _assemble(path, images, tuple(sorted(skipped)))
    if cached is not None:
        _write_cache(cached, sets)
    return sets


def decode(data: bytes) -> Tensor:
    """Bytes of an image file to RGB bytes (3, H, W)."""
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert('RGB'))).permute(2, 0, 1)


def list_members(root: str | None) -> tuple[Path, list[Member]]:
    """The images of an unpacked folder, sorted, without reading them."""
    path = existing(root)
    if path.is_file():
        raise DataError(f'{path}: images can be streamed from an unpacked folder only, not from a tar')
    members = sorted(member for member, _ in _walk(path))
    check_found(path, [member.label for member in members], 0)
    return path, members


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


def _walk(path: Path) -> Iterator[tuple[Member, Path]]:
    for file in sorted(path.rglob('*')):
        member = place(PurePosixPath(file.relative_to(path).as_posix()))
        if member is not None and file.is_file():
            yield member, file


def _contents(path: Path) -> Iterator[tuple[Member, bytes]]:
    if path.is_dir():
        for member, file in _walk(path):
            yield member, file.read_bytes()
        return
    try:
        # One pass from front to back: a compressed tar allows nothing else at a bearable price.
        with tarfile.open(path, 'r|*') as archive:
            for entry in archive:
                member = place(PurePosixPath(entry.name)) if entry.isfile() else None
                file = archive.extractfile(entry) if member is not None else None
                if member is not None and file is not None:
                    yield member, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f'data.root: {path} is neither a folder nor a whole tar ({error})') from error


def _to_square(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[None, :, top : top + side, left : left + side]
    return to_bytes(resize(to_float(square), size))[0]


def check_found(path: Path, labels: list[str], skipped: int, example: str = 'image') -> None:
    """Raise DataError where the labels of all examples under `path` leave nothing to learn."""
    if not labels:
        unreadable = f' ({skipped} files could not be read)' if skipped else ''
        raise DataError(f'{path}: no {example} in a class folder{unreadable}; expected {path.name}/<class>/<{example}>')
    if len(set(labels)) < 2:
        raise DataError(f"{path}: one class only ('{labels[0]}'); expected at least two class folders")


def _assemble(path: Path, images: dict[Member, Tensor], skipped: tuple[str, ...]) -> dict[str, PixelSet]:
    check_found(path, [member.label for member in images], len(skipped))
    shapes = {tuple(image.shape[1:]) for image in images.values()}
    if len(shapes) > 1 or len(set(next(iter(shapes)))) > 1:
        found = ', '.join(f'{height}×{width}' for height, width in sorted(shapes)[:4])
        raise DataError(
            f'{path}: expected square images of one size, found {found}: '
            'set data.source_size to bring them to one, or data.stream=true to decode during training'
        )
    members: dict[str, list[Member]] = defaultdict(list)
    for member in sorted(images):
        members[member.split].append(member)
    splits = [split for split in members if split] or ['']
    classes = tuple(sorted({member.label for member in members['train' if 'train' in splits else splits[0]]}))
    index = {name: number for number, name in enumerate(classes)}
    sets = {}
    for split in splits:
        strange = sorted({member.label for member in members[split]} - index.keys())
        if strange:
            raise DataError(f"{path}: class '{strange[0]}' of {split} is not among the {len(classes)} of train")
        labels = torch.tensor([index[member.label] for member in members[split]])
        sets[split] = PixelSet(torch.stack([images[member] for member in members[split]]), labels, classes, skipped)
    return sets


def _fingerprint(path: Path, source_size: int | None) -> str:
    files = [path] if path.is_file() else [file for _, file in _walk(path)]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([_CACHE_FORMAT, str(path.resolve()), source_size, stats])
    return f'{path.name.split(".")[0]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}'


def _write_cache(path: Path, sets: dict[str, PixelSet]) -> None:
    tensors = {f'{split}.{name}': getattr(part, name) for split, part in sets.items() for name in ('images', 'labels')}
    first = next(iter(sets.values()))
    header = {'sets': json.dumps({'splits': list(sets), 'classes': first.classes, 'skipped': first.skipped})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def _read_cache(path: Path) -> dict[str, PixelSet]:
    with safe_open(path, framework='pt') as file:
        header = json.loads(file.metadata()['sets'])
        classes, skipped = tuple(header['classes']), tuple(header['skipped'])
        if skipped:
            logger.warning('%d files were passed over when %s was made, first: %s', len(skipped), path.name, skipped[0])
        return {
            split: PixelSet(file.get_tensor(f'{split}.images'), file.get_tensor(f'{split}.labels'), classes, skipped)
            for split in header['splits']
        }
