"""Named sets: idx files, splits, and the real packs where they are at hand."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from s4nd.data import DataError, PixelSet, load_images
from s4nd.data.images.options import ImageData
from s4nd.data.labeled import hold_out, make_splits, spread_over_classes


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (
        struct.pack('>BBBB', 0, 0, 8, values.ndim) + struct.pack(f'>{values.ndim}i', *values.shape) + values.tobytes()
    )
    with (gzip.open if path.suffix == '.gz' else open)(path, 'wb') as file:
        file.write(content)


def fill(folder: Path, suffix: str = '') -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    for part in ('train', 't10k'):
        write_idx(folder / f'{part}-images-idx3-ubyte{suffix}', images)
        write_idx(folder / f'{part}-labels-idx1-ubyte{suffix}', labels)
    return images, labels


@pytest.mark.parametrize(('folder', 'suffix'), [('.', '.gz'), ('FashionMNIST/raw', ''), ('raw', '')])
def test_fashion_mnist_is_read_from_its_files(tmp_path: Path, folder: str, suffix: str) -> None:
    images, labels = fill(tmp_path / folder, suffix)
    splits = load_images(ImageData(kind='fashion_mnist', root=str(tmp_path)))
    assert np.array_equal(splits.train.images[:, 0].numpy(), images) and splits.test.labels.tolist() == labels.tolist()
    assert splits.train.at(7).shape == (20, 1, 7, 7)


def test_damaged_and_missing_idx_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no train-images-idx3-ubyte'):
        load_images(ImageData(kind='fashion_mnist', root=str(tmp_path)))
    fill(tmp_path)
    path = tmp_path / 'train-images-idx3-ubyte'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match='train-images-idx3-ubyte: not a whole idx file'):
        load_images(ImageData(kind='fashion_mnist', root=str(tmp_path)))
    with pytest.raises(DataError, match=r'data.root must be given'):
        load_images(ImageData(kind='fashion_mnist'))
    with pytest.raises(DataError, match=r'data\.root must be given: .* cifar10; data\.download=true fills'):
        load_images(ImageData(kind='cifar10'))


def some_set(labels: list[int]) -> PixelSet:
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return PixelSet(images, torch.tensor(labels), ('a', 'b'))


def test_the_last_of_every_class_are_held_out() -> None:
    rest, held = hold_out(some_set([0, 1, 0, 1, 0, 1, 0, 1]), 0.5)
    assert rest.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3] and held.images[:, 0, 0, 0].tolist() == [4, 5, 6, 7]
    assert hold_out(rest, 0.0) == (rest, None)
    with pytest.raises(DataError, match='leaves one side empty'):
        hold_out(some_set([0, 1]), 0.1)


def test_where_nothing_is_trained_all_are_measured_unless_some_are_held_out() -> None:
    images = some_set([0, 1, 0, 1])
    splits = make_splits(images, None, 0.0, 'x', eval_only=True)
    assert splits.test is images and splits.val is None
    splits = make_splits(images, None, 0.5, 'x', eval_only=True)
    assert splits.test is splits.val and splits.test.images[:, 0, 0, 0].tolist() == [2, 3]
    assert make_splits(images, splits.test, 0.0, 'x', eval_only=True).test is splits.test
    with pytest.raises(DataError, match=r'x: set data\.val_fraction'):
        make_splits(images, None, 0.0, 'x')


def test_a_limit_is_spread_over_the_classes() -> None:
    images = some_set([0, 0, 0, 0, 1, 1, 1, 1])
    assert spread_over_classes(images, 4).images[:, 0, 0, 0].tolist() == [0, 1, 4, 5]
    assert spread_over_classes(images, 3).images[:, 0, 0, 0].tolist() == [0, 1, 4]
    assert spread_over_classes(images, None) is spread_over_classes(images, 8) is images


def test_procedural_train_and_test_scenes_differ() -> None:
    splits = load_images(ImageData(kind='shapes', train_count=20, test_count=20, val_fraction=0.5), seed=1)
    assert len(splits.train.labels) == len(splits.val.labels) == 10
    assert not torch.equal(splits.train.pose, splits.test.pose[:10])


@pytest.mark.skipif(
    'S4ND_FASHION_MNIST' not in os.environ, reason='set S4ND_FASHION_MNIST to the folder of Fashion-MNIST'
)
def test_the_real_fashion_mnist() -> None:
    splits = load_images(ImageData(kind='fashion_mnist', root=os.environ['S4ND_FASHION_MNIST']))
    assert splits.train.images.shape == (60000, 1, 28, 28) and splits.test.labels.bincount().tolist() == [1000] * 10
    assert splits.train.images.float().mean().item() / 255 == pytest.approx(0.2860, abs=1e-3)
