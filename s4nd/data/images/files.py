"""Files of images: decoding, class folders plain or inside a tar (kept decoded in a cache), idx files.

A tar (.tar, .tar.gz, .tar.xz, …) holds the same paths as a folder, under any leading folders.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s4nd.data.folders import Member, check_found, existing, locate
from s4nd.data.images.resize import resize, to_bytes, to_float
from s4nd.data.images.sets import PixelSet
from s4nd.data.labeled import DataError
from s4nd.files import write_atomically

__all__ = ['SUFFIXES', 'UNREADABLE', 'decode', 'list_members', 'load_class_folders', 'place', 'read_idx']

logger = logging.getLogger(__name__)

SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.webp', '.gif', '.ppm', '.pgm', '.tif', '.tiff'}
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_CACHE_FORMAT = 1


def place(path: PurePosixPath) -> Member | None:
    """Read split and class off a path under the root; None where it is no image or lies in no class folder."""
    return locate(path) if path.suffix.lower() in SUFFIXES and not path.name.startswith('.') else None


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
                found = place(PurePosixPath(entry.name)) if entry.isfile() else None
                content = archive.extractfile(entry) if found is not None else None
                if found is not None and content is not None:
                    yield found, content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f'data.root: {path} is neither a folder nor a whole tar ({error})') from error


def _to_square(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[None, :, top : top + side, left : left + side]
    return to_bytes(resize(to_float(square), size))[0]


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


def read_idx(path: Path) -> Tensor:
    """An idx file of bytes: two zeros, type 8, number of axes, their sizes (big-endian), the values."""
    try:
        with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f'{path}: cannot be read ({error})') from error
    axes = content[3] if len(content) > 3 else 0
    shape = np.frombuffer(content, '>i4', count=axes, offset=4) if len(content) >= 4 + 4 * axes else ()
    if content[:3] != b'\0\0\x08' or not axes or len(content) != 4 + 4 * axes + np.prod(shape, dtype=np.int64):
        raise DataError(f'{path}: not a whole idx file of bytes')
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())
