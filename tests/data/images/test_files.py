"""Class folders and tars: the same images, mistakes named."""

import io
import logging
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image

from s4nd.data import DataError, PixelSet, load_images
from s4nd.data.folders import Member
from s4nd.data.images.files import load_class_folders, place
from s4nd.data.images.options import ImageData


def write(path: Path, value: int, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(value)
    Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / 'set'
    for number, (split, label) in enumerate([('train', 'ant'), ('train', 'bee'), ('test', 'ant'), ('test', 'bee')]):
        for index in range(4):
            write(root / split / label / f'{index}.png', 10 * number + index)
    (root / 'train' / 'ant' / 'notes.txt').write_text('not an image')
    return root


def same(a: PixelSet, b: PixelSet) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.classes == b.classes


@pytest.mark.parametrize('suffix', ['tar', 'tar.gz', 'tar.xz'])
@pytest.mark.parametrize('inside', ['.', 'some/folders'])
def test_a_tar_holds_the_same_set_as_its_folder(root: Path, tmp_path: Path, suffix: str, inside: str) -> None:
    path = tmp_path / f'set.{suffix}'
    with tarfile.open(path, f'w:{suffix[4:]}') as archive:
        archive.add(root, inside)
    from_tar, from_folder = load_class_folders(str(path), None, None), load_class_folders(str(root), None, None)
    assert list(from_tar) == list(from_folder) == ['test', 'train']
    assert all(same(from_tar[split], from_folder[split]) for split in from_tar)
    assert from_tar['train'].classes == ('ant', 'bee') and from_tar['train'].labels.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ('path', 'member'),
    [
        ('train/cat/1.jpg', ('train', 'cat')),
        ('a/b/val/cat/deep/er/1.PNG', ('test', 'cat')),
        ('cat/1.jpg', ('', 'cat')),
        ('wrapper/cat/1.jpg', ('', 'cat')),
        ('1.jpg', None),
        ('train/1.jpg', None),
        ('train/cat/1.txt', None),
        ('train/cat/._1.jpg', None),
    ],
)
def test_split_and_class_follow_from_the_path(path: str, member: tuple[str, str] | None) -> None:
    assert place(PurePosixPath(path)) == (None if member is None else Member(*member, path))


def test_the_cache_notices_changes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / 'cache'
    first = load_class_folders(str(root), None, str(cache))
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr('s4nd.data.images.files.decode', lambda data: pytest.fail('decoded again'))
        second = load_class_folders(str(root), None, str(cache))
    assert all(same(first[split], second[split]) for split in first)
    write(root / 'train' / 'ant' / '9.png', 99)
    assert len(load_class_folders(str(root), None, str(cache))['train'].labels) == 9


@pytest.mark.parametrize('content', [b'', b'\x02\0\0\0\0\0\0\0{}'])
def test_a_damaged_cache_is_made_again(root: Path, tmp_path: Path, content: bytes) -> None:
    first = load_class_folders(str(root), None, str(tmp_path / 'cache'))
    (file,) = (tmp_path / 'cache').iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    again = load_class_folders(str(root), None, str(tmp_path / 'cache'))
    assert all(same(first[split], again[split]) for split in first) and file.read_bytes() == whole


def test_an_unreadable_file_is_passed_over(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / 'train' / 'bee' / '2.png').write_bytes(b'no image')
    whole = (root / 'train' / 'ant' / '1.png').read_bytes()
    (root / 'train' / 'ant' / '1.png').write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        sets = load_class_folders(str(root), None, str(tmp_path / 'cache'))
    assert sets['train'].skipped == ('train/ant/1.png', 'train/bee/2.png')
    assert sets['train'].labels.tolist() == [0] * 3 + [1] * 3
    assert 'train/bee/2.png' in caplog.text and 'train/ant/1.png' in caplog.text
    again = load_class_folders(str(root), None, str(tmp_path / 'cache'))
    assert again['train'].skipped == sets['train'].skipped


def test_source_size_cuts_the_central_square_and_averages_it(tmp_path: Path) -> None:
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, 4:8], picture[:, 8:12] = 100, 200
    for label in ('a', 'b'):
        (tmp_path / label).mkdir()
        Image.fromarray(picture).save(tmp_path / label / '1.png')
    images = load_class_folders(str(tmp_path), 2, None)[''].images
    assert images.shape == (2, 3, 2, 2) and images[0, 0].tolist() == [[100, 200], [100, 200]]


def test_images_of_different_sizes_ask_for_a_size(root: Path) -> None:
    write(root / 'train' / 'ant' / '7.png', 1, size=(5, 9))
    with pytest.raises(DataError, match=r'one size, found 6×6, 9×5: set data.source_size'):
        load_class_folders(str(root), None, None)


def test_one_set_without_splits_needs_a_held_out_part(root: Path) -> None:
    data = ImageData(kind='folder', root=str(root / 'train'), cache=None)
    with pytest.raises(DataError, match=r'set data\.val_fraction'):
        load_images(data)
    data.val_fraction = 0.25
    splits = load_images(data)
    assert splits.test is splits.val and len(splits.train.labels) == 6
    assert splits.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda root: None, r'data.root must be given'),
        (lambda root: str(root / 'nowhere'), r'nowhere does not exist'),
        (lambda root: str(root / 'empty'), r'no image in a class folder; expected empty/<class>/<image>'),
        (lambda root: str(root / 'flat'), r'no image in a class folder'),
        (lambda root: str(root / 'one'), r"one class only \('ant'\)"),
        (lambda root: str(root / 'broken.tar.gz'), r'neither a folder nor a whole tar'),
        (lambda root: str(root / 'rotten'), r'no image in a class folder \(1 files could not be read\)'),
        (lambda root: str(root / 'strange'), r"class 'cow' of test is not among the 2 of train"),
    ],
)
def test_roots_that_cannot_be_used(tmp_path: Path, make: object, message: str) -> None:
    (tmp_path / 'empty').mkdir()
    write(tmp_path / 'flat' / '1.png', 0)
    write(tmp_path / 'one' / 'ant' / '1.png', 0)
    (tmp_path / 'broken.tar.gz').write_bytes(b'\x1f\x8b broken')
    (tmp_path / 'rotten' / 'a').mkdir(parents=True)
    (tmp_path / 'rotten' / 'a' / '1.png').write_bytes(b'')
    for name in ('train/ant', 'train/bee', 'test/cow'):
        write(tmp_path / 'strange' / name / '1.png', 0)
    with pytest.raises(DataError, match=message):
        load_images(ImageData(kind='folder', root=make(tmp_path), cache=None))


def test_a_tar_cut_short_is_refused(root: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:xz') as archive:
        archive.add(root, '.')
    (tmp_path / 'cut.tar.xz').write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(DataError, match='neither a folder nor a whole tar'):
        load_class_folders(str(tmp_path / 'cut.tar.xz'), None, None)
