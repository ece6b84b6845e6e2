"""Where streamed images lie, and how the bytes of one are read by its number.

data.root=FOLDER                class folders
data.root=FILE.tar              class folders in a tar, or a tar for each class in a tar; not compressed
data.root=wds/FOLDER            WebDataset shards (.tar) of <key>.jpg, .png, … beside <key>.cls or .json with a 'label'
data.root=hfds/NAME             a data set of the Hugging Face hub, or the path of one

All are read at random places, so that no shard belongs to one process.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import torch
from torch import Tensor

from s4nd.data.folders import SPLITS, Member, divide, existing, files_named, locate, warn_of_others
from s4nd.data.images.files import SUFFIXES, ImageError, is_image
from s4nd.data.images.options import ImageData
from s4nd.data.images.stream import StreamSet
from s4nd.data.labeled import DataError
from s4nd.data.tars import LARGEST_FILE, Slice, slices

__all__ = ['is_streamed', 'load_stream']

logger = logging.getLogger(__name__)

Parts: TypeAlias = tuple[StreamSet, StreamSet | None]
Place: TypeAlias = tuple[Path, int, int]  # archive, first byte, size


def is_streamed(root: str | None) -> bool:
    """Whether a root is one of those that are never read into memory as a whole."""
    return root is not None and root.startswith(('wds/', 'hfds/'))


def load_stream(data: ImageData) -> Parts:
    """The training images of `data.root`, unread, and the test images where there are some.

    Raises:
        DataError: they cannot be found, or no class is known.
    """
    kind, _, name = (data.root or '').partition('/')
    if kind == 'hfds':
        if not name:
            raise DataError('data.root must be given: hfds/NAME, of the Hugging Face hub, or hfds/FOLDER of tables')
        return _hub(name, data)
    if kind == 'wds':
        path = existing(name or None, 'wds/FOLDER, a folder of WebDataset shards (.tar)')
        if not path.is_dir():
            raise DataError(f'data.root: expected wds/FOLDER, a folder of WebDataset shards, got the file {path}')
        members, places = _shards(path)
        divided = divide(path, members, key=lambda label: (len(label), label))  # 2 before 10
        return _parts(path, divided, data, places)
    path = existing(data.root)
    if path.is_dir():
        return _parts(path, divide(path, locate(files_named(path, SUFFIXES))), data)
    found = _whole(path)
    warn_of_others(path, [name for name in found if not is_image(name)])
    places = {str(name): (path, *place) for name, place in found.items() if is_image(name)}
    return _parts(path, divide(path, locate([PurePosixPath(name) for name in places])), data, places)


def _parts(path: Path, divided: Any, data: ImageData, places: dict[str, Place] | None = None) -> Parts:
    classes, members, labels, count = divided
    paths = tuple(member.path for member in members)
    read = Files(path, paths) if places is None else Slices.of([places[name] for name in paths])
    return _split(StreamSet(path, paths, labels, classes, read, data.max_pixels), count)


def _split(images: StreamSet, count: int) -> Parts:
    """The first `count` images, and the others; one set of processes serves both."""
    order = torch.arange(len(images.labels))
    return images.select(order[:count]), images.select(order[count:]) if count < len(order) else None


def _whole(path: Path) -> dict[PurePosixPath, Slice]:
    try:
        return slices(path)
    except Exception as error:  # any: tarfile raises what its parsing happens to run into
        raise DataError(
            f'data.root: {path} cannot be streamed, expected a folder or a whole tar without compression ({error})'
        ) from error


@dataclass(frozen=True)
class Files:
    """Whole files below a folder."""

    root: Path
    paths: tuple[str, ...]

    def __call__(self, number: int) -> bytes:
        with (self.root / self.paths[number]).open('rb') as file:
            return file.read(LARGEST_FILE + 1)


@dataclass(frozen=True)
class Slices:
    """Members of archives: `places` (N, 3) holds the number of the archive, the first byte and the size."""

    archives: tuple[Path, ...]
    places: Tensor

    @classmethod
    def of(cls, places: list[Place]) -> Slices:
        number = {archive: index for index, archive in enumerate(dict.fromkeys(place[0] for place in places))}
        return cls(tuple(number), torch.tensor([(number[archive], *place) for archive, *place in places]))

    def __call__(self, number: int) -> bytes:
        archive, offset, size = self.places[number].tolist()
        with self.archives[archive].open('rb') as file:
            file.seek(offset)
            return file.read(min(size, LARGEST_FILE + 1))


def _shards(root: Path) -> tuple[list[Member], dict[str, Place]]:
    """The samples of all shards below a folder; its own name, or that of its folder, says which split a shard is of."""
    members, places, bare = [], {}, 0
    for name in files_named(root, ('.tar',)):
        split = next((SPLITS[word] for word in re.findall('[a-z]+', str(name).lower()) if word in SPLITS), '')
        found = _whole(root / name)
        labels = {path.parent / path.name.partition('.')[0]: path for path in found if path.suffix in ('.cls', '.json')}
        read = Slices.of([(root / name, *found[path]) for path in labels.values()]) if labels else None
        numbers = {key: number for number, key in enumerate(labels)}
        for path in filter(is_image, found):
            key = path.parent / path.name.partition('.')[0]
            label = _label(read(numbers[key])) if read is not None and key in numbers else None
            if label is None:
                bare += 1
                continue
            members.append(Member(split, label, f'{name}/{path}'))
            places[members[-1].path] = (root / name, *found[path])
    if bare:
        logger.warning('%d images in the shards of %s have no label (.cls, or .json with label): left out', bare, root)
    if not members:
        raise DataError(f'data.root: no labeled image in {root}, expected shards (.tar) of <key>.jpg and <key>.cls')
    return members, places


def _label(text: bytes) -> str | None:
    """The class in a .cls file, or the 'label' in a .json file."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text.decode(errors='replace').strip()
    value = value.get('label') if isinstance(value, dict) else value
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) and value != '' else None


@dataclass(frozen=True)
class Rows:
    """Rows of tables of the Hugging Face library, one table after the other."""

    tables: tuple[Any, ...]
    column: str

    def __call__(self, number: int) -> bytes:
        for table in self.tables:
            if number < len(table):
                break
            number -= len(table)
        image = table[number][self.column] or {}
        if image.get('bytes') is None and image.get('path') is None:
            raise ImageError('a row without an image')
        return image['bytes'] if image.get('bytes') is not None else Path(image['path']).read_bytes()


def _hub(name: str, data: ImageData) -> Parts:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"data.root: hfds/{name} is read by datasets: pip install 's4nd[data]'") from error
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # any: of the hub, of files, of the formats of tables
        reason = str(error).partition('\n')[0]
        raise DataError(f'data.root: hfds/{name} cannot be loaded ({type(error).__name__}: {reason})') from error
    features = next(iter(splits.values())).features
    image = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    label = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if not image or not label or 'train' not in splits:
        raise DataError(
            f'data.root: hfds/{name} has splits {list(splits)} with columns {list(features)}, '
            'expected a train split, a column of images and one of class labels'
        )
    known = [split for split in ('train', 'validation', 'test') if split in splits][:2]
    tables = [splits[split].cast_column(image[0], datasets.Image(decode=False)) for split in known]
    labels = [torch.tensor([-1 if value is None else value for value in table[label[0]]]) for table in tables]
    paths = tuple(f'{split}/{row}' for split, table in zip(known, tables) for row in range(len(table)))
    whole = StreamSet(
        Path(name), paths, torch.cat(labels), tuple(features[label[0]].names), Rows(tuple(tables), image[0]),
        data.max_pixels,
    )  # fmt: skip
    if len(labels) > 1 and (labels[1] < 0).all():  # the test images of competitions
        whole = whole.select(torch.arange(len(labels[0])))
    return _split(whole, len(labels[0]))
