"""The image sets by name: where their files lie, how they split, and torchvision's download."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch

from s4nd.data.images.files import load_class_folders, read_idx
from s4nd.data.images.options import ImageData
from s4nd.data.images.readers import is_streamed, load_stream
from s4nd.data.images.sets import ImageSet, PixelSet
from s4nd.data.images.stream import StreamSet
from s4nd.data.labeled import DataError, Splits, make_splits
from s4nd.data.synthetic.shapes import ShapeSet
from s4nd.files import locked

__all__ = ['fashion_mnist', 'load_images']

FASHION_CLASSES = (
    'T-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot',
)  # fmt: skip
FASHION_FOLDERS = ('', 'raw', 'FashionMNIST/raw')


def load_images(data: ImageData, seed: int = 0, *, eval_only: bool = False) -> Splits[ImageSet | StreamSet]:
    """The set that `data` describes, split into training, held-out and test images; see `make_splits`.

    Raises DataError (missing or empty root, no class folders, a damaged archive, …).
    """
    train: ImageSet | StreamSet
    test: ImageSet | StreamSet | None
    if data.kind == 'shapes':
        train = ShapeSet.draw(data.train_count, seed=2 * seed)
        test = ShapeSet.draw(data.test_count, seed=2 * seed + 1)
    elif data.kind == 'imagenet' or data.stream or is_streamed(data.root):
        train, test = load_stream(data)
    elif data.kind == 'fashion_mnist':
        train, test = (fashion_mnist(data.root, data.download, train=part) for part in (True, False))
    elif data.kind in ('cifar10', 'cifar100') and (data.root is None or data.download or _has_batches(data)):
        train, test = _cifar(data, train=True), _cifar(data, train=False)
    else:
        sets = load_class_folders(data.root, data.source_size, data.cache, data.max_pixels)
        train, test = sets['train'], sets.get('test')
    problem = f'{data.root} has no test folder beside its training images'
    return make_splits(train, test, data.val_fraction, problem, eval_only=eval_only)


def _root(root: str | None, kind: str) -> Path:
    if root is None:
        raise DataError(f'data.root must be given: the folder of {kind}; data.download=true fills it')
    return Path(root).expanduser()


def _has_batches(data: ImageData) -> bool:
    folder = 'cifar-10-batches-py' if data.kind == 'cifar10' else 'cifar-100-python'
    return data.root is not None and (_root(data.root, data.kind) / folder).is_dir()


def _cifar(data: ImageData, train: bool) -> PixelSet:
    from torchvision.datasets import CIFAR10, CIFAR100

    maker = CIFAR10 if data.kind == 'cifar10' else CIFAR100
    try:
        with locked(_root(data.root, data.kind) / data.kind) if data.download else nullcontext():
            source = maker(str(_root(data.root, data.kind)), train=train, download=data.download)
    except (RuntimeError, OSError) as error:
        raise DataError(f'{data.kind} in {data.root}: {error}') from error
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return PixelSet(images, torch.tensor(source.targets), tuple(source.classes))


def fashion_mnist(root: str | None, download: bool, train: bool) -> PixelSet:
    """The official training or test images of Fashion-MNIST, from their idx files (.gz or unpacked) in `root`.

    Raises DataError, which says how to get them, where they are not there.
    """
    folder = _root(root, 'fashion_mnist')
    if download:
        from torchvision.datasets import FashionMNIST

        try:
            with locked(folder / 'FashionMNIST'):
                FashionMNIST(str(folder), download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(f'fashion_mnist in {folder}: {error}') from error
    part = 'train' if train else 't10k'
    images = read_idx(_find_idx(folder, f'{part}-images-idx3-ubyte'))
    labels = read_idx(_find_idx(folder, f'{part}-labels-idx1-ubyte'))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f'{folder}: {tuple(images.shape)} images do not go with {tuple(labels.shape)} labels')
    return PixelSet(images[:, None], labels.long(), FASHION_CLASSES)


def _find_idx(root: Path, name: str) -> Path:
    for folder in FASHION_FOLDERS:
        for suffix in ('', '.gz'):
            path = root / folder / (name + suffix)
            if path.is_file():
                return path
    raise DataError(
        f'{root}: no {name}[.gz] there or in {" or ".join(FASHION_FOLDERS[1:])}; data.download=true fetches it'
    )
