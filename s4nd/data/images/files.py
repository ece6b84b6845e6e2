"""Files of images: decoding, class folders plain or inside a tar (kept decoded in a cache), idx files.

A tar (.tar, .tar.gz, .tar.xz, …) holds the same paths as a folder, under any leading folders.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s4nd.data.folders import divide, existing, files_named, is_hidden, locate, warn_of_others
from s4nd.data.images.resize import resize, to_bytes, to_float
from s4nd.data.images.sets import PixelSet
from s4nd.data.labeled import DataError, ExampleError
from s4nd.data.tars import LARGEST_FILE, files, link_target, link_targets, open_tar
from s4nd.files import locked, write_atomically
from s4nd.progress import progress

__all__ = [
    'MAX_PIXELS',
    'SUFFIXES',
    'ImageError',
    'decode',
    'is_image',
    'load_class_folders',
    'read_idx',
]

logger = logging.getLogger(__name__)

SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.webp', '.gif', '.ppm', '.pgm', '.tif', '.tiff'}
MAX_PIXELS = 1 << 26
# Whatever the name of a file says: no other decoder is ever begun (that of EPS runs a program).
_FORMATS = ('PNG', 'JPEG', 'BMP', 'WEBP', 'GIF', 'PPM', 'TIFF')
_MODES = ('1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV')
_CACHE_FORMAT = 4
Names: TypeAlias = list[PurePosixPath] | None  # of the images in a folder; None: an archive
_FULL = 0xFFFF  # the lightest value of 16 bits
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _SIGNED = 258, 262, 339, 2  # tags of TIFF, and a value of the last


class ImageError(ExampleError):
    """Bytes that are not a picture which can be used, and why."""


def is_image(path: PurePosixPath) -> bool:
    """Whether a path under the root is named as an image and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not is_hidden(path)


def load_class_folders(
    root: str | None, source_size: int | None, cache: str | None, max_pixels: int = MAX_PIXELS
) -> dict[str, PixelSet]:
    """Decode every image under `root` into memory: {'train': …}, and 'test' where there is one.

    source_size: side to which images are brought (center square, then area average or bicubic); None: all must be
    squares of one size. cache: folder for the decoded images; None: none. A file that cannot be read is named in a
    warning, passed over and listed in `skipped`. Raises DataError where there is nothing to learn from.
    """
    path = existing(root)
    names = files_named(path, SUFFIXES) if path.is_dir() else None
    if cache is None:
        return _decode_all(path, names, source_size, max_pixels)
    cached = Path(cache).expanduser() / f'{_fingerprint(path, names, source_size)}.safetensors'
    found = _read_cache(cached)
    if found is None:
        with locked(cached):
            found = _read_cache(cached)
            if found is None:
                found = _decode_all(path, names, source_size, max_pixels)
                _write_cache(cached, found)
    return found


def _decode_all(path: Path, names: Names, source_size: int | None, max_pixels: int) -> dict[str, PixelSet]:
    images: dict[PurePosixPath, Tensor] = {}
    skipped: list[str] = []
    links: dict[PurePosixPath, PurePosixPath | None] = {}
    for name, content in progress(_contents(path, names), 'decoding', 'images'):
        if not isinstance(content, bytes):
            links[name] = content
            continue
        try:
            image = decode(content, max_pixels)
        except ImageError as error:
            logger.warning('passed over %s in %s: %s', name, path, error)
            skipped.append(str(name))
            continue
        images[name] = _to_square(image, source_size) if source_size is not None else image
    for name, target in link_targets(links).items():
        if target in images:
            images[name] = images[target]
        else:
            logger.warning('passed over %s in %s: a link to nothing that could be read', name, path)
            skipped.append(str(name))
    return _assemble(path, images, tuple(sorted(skipped)))


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Bytes of an image file to RGB bytes (3, H, W), turned as its EXIF says; 16 bits are scaled to 8.

    Raises:
        ImageError: no picture, of another format or mode, damaged, or of more than `max_pixels`.
    """
    if len(data) > LARGEST_FILE:
        raise ImageError(f'{len(data)} bytes, expected at most {LARGEST_FILE}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of damaged metadata
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if math.prod(image.size) > max_pixels:
                    raise ImageError(f'{image.width} × {image.height} pixels, expected at most {max_pixels} in all')
                tags = getattr(image, 'tag_v2', {})
                return torch.from_numpy(_to_rgb(_turned(image), image.format, tags)).permute(2, 0, 1)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f'not a picture of a known format ({", ".join(_FORMATS)})') from error
    except Exception as error:  # any: decoders raise what their parsing happens to run into
        raise ImageError(str(error) or type(error).__name__) from error


def _turned(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # any: damaged EXIF says nothing, and the picture is whole
        return image


def _to_rgb(image: Image.Image, format: str | None, tags: Mapping[int, Any]) -> np.ndarray:
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ImageError('values with a sign have no known range, expected 8 or 16 bits without one')
    if image.mode.startswith('I;16') or (image.mode == 'I' and format == 'PPM'):
        full = 2 ** tags.get(_BITS, (16,))[0] - 1  # 12 bits are stored in 16
        levels = np.rint(np.arange(_FULL + 1).clip(0, full) * (255 / full)).astype(np.uint8)
        gray = levels[np.asarray(image)] if tags.get(_PHOTOMETRIC) != 0 else 255 - levels[np.asarray(image)]
        image = Image.fromarray(gray)
    if image.mode not in _MODES:
        raise ImageError(f"mode '{image.mode}' has no known range, expected 8 or 16 bits")
    return np.array(image.convert('RGB'))


def _contents(path: Path, names: Names) -> Iterator[tuple[PurePosixPath, bytes | PurePosixPath | None]]:
    """(path, bytes) of every image; of a link in an archive, (path, what it stands for)."""
    if names is not None:
        for name in names:
            yield name, _read(path / name)
        return
    try:
        others = []
        with open_tar(path) as archive:
            for name, entry in files(archive):
                if not is_image(name):
                    others.append(name)
                    continue
                if not entry.isfile():
                    yield name, link_target(entry)
                    continue
                content = archive.extractfile(entry) if entry.size <= LARGEST_FILE else None
                if content is None:
                    logger.warning('%s in %s: %d bytes are more than an image has', name, path, entry.size)
                yield name, b'' if content is None else content.read()
        warn_of_others(path, others)
    except Exception as error:  # any: tarfile raises what its parsing happens to run into
        raise DataError(f'data.root: {path} is neither a folder nor a whole tar ({error})') from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes() if file.stat().st_size <= LARGEST_FILE else b''
    except OSError as error:
        logger.warning('%s cannot be read: %s', file, error.strerror)
        return b''


def _to_square(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[None, :, top : top + side, left : left + side]
    return to_bytes(resize(to_float(square), size))[0]


def _assemble(path: Path, images: dict[PurePosixPath, Tensor], skipped: tuple[str, ...]) -> dict[str, PixelSet]:
    classes, members, labels, count = divide(path, locate(list(images)), len(skipped))
    shapes = {tuple(image.shape[1:]) for image in images.values()}
    if len(shapes) > 1 or len(set(next(iter(shapes)))) > 1:
        found = ', '.join(f'{height}×{width}' for height, width in sorted(shapes)[:4])
        raise DataError(
            f'{path}: expected square images of one size, found {found}: '
            'set data.source_size to bring them to one, or data.stream=true to decode during training'
        )
    stacked = torch.stack([images[PurePosixPath(member.path)] for member in members])
    sets = {'train': PixelSet(stacked[:count], labels[:count], classes, skipped)}
    test = PixelSet(stacked[count:], labels[count:], classes, skipped)
    return {'test': test, **sets} if len(test.labels) else sets


def _fingerprint(path: Path, names: Names, source_size: int | None) -> str:
    sources = [path] if names is None else [path / name for name in names]
    states = [(str(file), file.stat() if file.exists() else None) for file in sources]
    stats = [(file, state and (state.st_size, state.st_mtime_ns)) for file, state in states]
    text = json.dumps([_CACHE_FORMAT, str(path.resolve()), source_size, stats])
    return f'{path.name.split(".")[0]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}'


def _write_cache(path: Path, sets: dict[str, PixelSet]) -> None:
    tensors = {f'{split}.{name}': getattr(part, name) for split, part in sets.items() for name in ('images', 'labels')}
    first = next(iter(sets.values()))
    header = {'sets': json.dumps({'splits': list(sets), 'classes': first.classes, 'skipped': first.skipped})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def _read_cache(path: Path) -> dict[str, PixelSet] | None:
    """What is cached; None where there is nothing, or nothing that can be read."""
    if not path.is_file():
        return None
    try:
        return _read_sets(path)
    except (SafetensorError, KeyError, TypeError) as error:
        logger.warning('%s is damaged (%s): decoding again', path, error)
        return None


def _read_sets(path: Path) -> dict[str, PixelSet]:
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
