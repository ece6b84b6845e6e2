"""Images that are streamed: out of folders, tars, WebDataset shards and Hugging Face data sets, the same batches."""

import io
import json
import logging
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from s4nd.data import DataError, load_images
from s4nd.data.images.options import ImageData
from s4nd.data.images.stream import StreamSet

COUNTS = {'train': 12, 'val': 4}


def picture(value: int) -> bytes:
    """A picture of its own for every value, as PNG."""
    file = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()


def contents() -> dict[str, bytes]:
    """Path -> bytes, in class folders 'ant' and 'bee'."""
    return {
        f'{split}/{label}/{number:02}.png': picture(100 * order + number + 50 * (split == 'val'))
        for split, count in COUNTS.items()
        for order, label in enumerate(('ant', 'bee'))
        for number in range(count)
    }


def write_tar(path: Path, members: dict[str, bytes], mode: str = 'w') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def write_folder(root: Path) -> str:
    for name, data in contents().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def write_shards(root: Path, label: str = 'cls') -> str:
    """Three shards of training and one of the others, the classes in turn."""
    for split, count in COUNTS.items():
        shards: list[dict[str, bytes]] = [{} for _ in range(3 if split == 'train' else 1)]
        for number in range(count):
            for order, name in enumerate(('ant', 'bee')):
                key, shard = f'{name}{number:02}', shards[number % len(shards)]
                shard[f'{key}.png'] = contents()[f'{split}/{name}/{number:02}.png']
                shard[f'{key}.{label}'] = (
                    str(order).encode() if label == 'cls' else json.dumps({'label': order}).encode()
                )
        for number, shard in enumerate(shards):
            write_tar(root / f'set-{"train" if split == "train" else "validation"}-{number:04}.tar', shard)
    return f'wds/{root}'


def write_hub(root: Path) -> str:
    datasets = pytest.importorskip('datasets', reason="datasets is not installed: pip install 's4nd[data]'")
    features = datasets.Features({'picture': datasets.Image(), 'kind': datasets.ClassLabel(names=['ant', 'bee'])})
    for split, name in (('train', 'train'), ('val', 'validation')):
        found = {path: data for path, data in contents().items() if path.startswith(split)}
        rows = {
            'picture': [{'bytes': data, 'path': None} for data in found.values()],
            'kind': [int('bee' in path) for path in found],
        }
        (root / 'data').mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / 'data' / f'{name}-00000.parquet')
    return f'hfds/{root}'


def write_nested(root: Path) -> str:
    inner = {}
    for label in ('ant', 'bee'):
        members = {Path(name).name: data for name, data in contents().items() if name.startswith(f'train/{label}/')}
        inner[f'{label}.tar'] = write_tar(root / 'inner.tar', members).read_bytes()
    return str(write_tar(root / 'outer.tar', inner))


ROOTS = {
    'folder': write_folder,
    'tar': lambda root: str(write_tar(root / 'a.tar', contents())),
    'tar of tars': write_nested,
    'shards': write_shards,
    'shards with json': lambda root: write_shards(root, 'json'),
    'hub': write_hub,
}


@pytest.fixture(params=ROOTS)
def data(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageData:
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hub'))
    return ImageData(
        kind='imagenet', root=ROOTS[request.param](tmp_path / 'set'), size=8, batch_size=4, workers=0, repeats=2,
        auto_augment='rand-m9-mstd0.5-inc1', random_erasing=0.5, flip=True,
        val_fraction=0.25 if request.param == 'tar of tars' else 0.0,
    )  # fmt: skip


def shown(batches: object) -> list[tuple[Tensor, Tensor]]:
    return [(images.clone(), labels.clone()) for images, labels in batches]


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for left, right in zip(a, b) for x, y in zip(left, right))


def test_the_pictures_and_classes_are_those_of_the_files(data: ImageData) -> None:
    splits = load_images(data)
    train = splits.train
    assert isinstance(train, StreamSet) and train.classes in (('ant', 'bee'), ('0', '1'))
    expected = {True: 9, False: 12}[data.val_fraction > 0]
    assert train.labels.bincount().tolist() == [expected] * 2
    raw = {train.read(number) for number in train.numbers.tolist()}
    assert raw <= set(contents().values()) and len(raw) == 2 * expected
    for number, label in zip(train.numbers.tolist(), train.labels.tolist(), strict=True):
        assert train.read(number) in [picture(100 * label + index) for index in range(12)]
    assert splits.test.labels.bincount().tolist() == [3 if data.val_fraction else 4] * 2
    assert not {splits.test.read(number) for number in splits.test.numbers.tolist()} & raw


def test_batches_depend_on_no_worker_go_on_anywhere_and_are_shared_out(data: ImageData) -> None:
    train = load_images(data).train
    whole = shown(train.train_batches(data, seed=3))
    other = load_images(data).train
    busy = replace(data, workers=2)
    assert same(shown(other.train_batches(busy, seed=3)), whole)
    assert same(shown(other.train_batches(busy, seed=3).skip(2)), whole[2:])
    shares = [shown(other.train_batches(busy, seed=3).shard(index, 2).skip(1)) for index in (0, 1)]
    assert same(shares[0], whole[2::2][: len(shares[0])]) and same(shares[1], whole[3::2])
    assert not same(shown(other.train_batches(busy, seed=4)), whole)


def test_the_processes_live_for_the_run_and_serve_evaluation_too(tmp_path: Path) -> None:
    data = ImageData(kind='imagenet', root=write_shards(tmp_path), size=8, batch_size=4, workers=2)
    splits = load_images(data)
    found = set()
    for epoch in range(3):
        seen = iter(splits.train.train_batches(data, seed=epoch))
        next(seen), next(seen)  # the rest is left, as max_steps does
        measured = splits.test.select(torch.arange(6)).eval_batches(4 + epoch, 1.0, 4, 2)
        assert [images.shape[-1] for images, _ in measured] == [4 + epoch] * 2
        found |= {worker.pid for worker in splits.train.workers._loader._iterator._workers}
        with pytest.raises(RuntimeError, match='other batches of the same set were begun'):
            list(seen)
    assert len(found) == 2


@pytest.mark.parametrize('kind', ['tar', 'shards'])
def test_every_cut_of_an_archive_is_refused(tmp_path: Path, kind: str) -> None:
    root = ROOTS[kind](tmp_path / 'set')
    path = max((tmp_path / 'set').glob('*.tar'))
    whole = path.read_bytes()
    end = len(whole.rstrip(b'\0')) // 512 * 512 + 512
    for length in range(0, end, 512):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r'(train|validation-0000|a)[-\d]*\.tar cannot be streamed'):
            load_images(ImageData(kind='imagenet', root=root))


def test_links_in_a_tar_are_the_pictures_they_stand_for(tmp_path: Path) -> None:
    path = write_tar(tmp_path / 'a.tar', contents())
    with tarfile.open(path, 'a') as tar:
        for name, kind, target in (('train/ant/x.png', tarfile.LNKTYPE, 'train/ant/03.png'),
                                   ('train/ant/y.png', tarfile.SYMTYPE, '../../../etc/passwd')):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            tar.addfile(entry)
    data = ImageData(kind='folder', stream=True, root=str(path), size=8, batch_size=4, workers=0)
    train = load_images(data).train
    assert train.read(train.files.index('train/ant/x.png')) == picture(3)
    assert sum(len(labels) for _, labels in train.eval_batches(8, 1.0, 4, 0)) == 25
    assert [text.partition(':')[0] for text in train.skipped] == ['train/ant/y.png']


def test_numbers_are_in_their_order_and_samples_without_a_label_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {f'{number}.png': picture(number) for number in range(12)}
    members |= {f'{number}.cls': str(number % 11).encode() for number in range(12)}
    members |= {'x.png': picture(50), 'y.png': picture(51), 'y.json': b'{"title": 3}', 'z.cls': b'7', 'b/0.png': b''}
    write_tar(tmp_path / 'train' / '0.tar', members)
    write_tar(tmp_path / 'val' / '0.tar', {'a.png': picture(1), 'a.cls': b' 10\n'})
    with caplog.at_level(logging.WARNING):
        splits = load_images(ImageData(kind='imagenet', root=f'wds/{tmp_path}'))
    assert splits.train.classes == tuple(str(number) for number in range(11))
    assert splits.train.labels.bincount().tolist() == [2] + [1] * 10 and splits.test.labels.tolist() == [10]
    assert '3 images in the shards' in caplog.text


@pytest.mark.parametrize(
    ('root', 'message'),
    [
        ('wds/', r'data\.root must be given: wds/FOLDER'),
        ('hfds/', r'data\.root must be given: hfds/NAME'),
        ('wds/{here}/a.tar.gz', r'expected wds/FOLDER, a folder of WebDataset shards'),
        ('wds/pipe:touch x', 'data.root: pipe:touch x does not exist'),
        ('wds/nowhere', 'data.root: nowhere does not exist'),
        ('wds/{here}/empty', 'no labeled image in .*empty, expected shards'),
        ('wds/{here}/pictures', 'no labeled image in .*pictures, expected shards'),
        ('wds/{here}/compressed', r'cannot be streamed, expected a folder or a whole tar without compression'),
        ('wds/{here}/one', r"one class only \('5'\)"),
        ('{here}/a.tar.gz', r'cannot be streamed, expected a folder or a whole tar without compression'),
    ],
)
def test_roots_that_cannot_be_streamed(tmp_path: Path, root: str, message: str) -> None:
    (tmp_path / 'empty').mkdir()
    write_tar(tmp_path / 'a.tar.gz', contents(), 'w:gz')
    write_tar(tmp_path / 'compressed' / '0.tar', contents(), 'w:gz')
    write_tar(tmp_path / 'pictures' / '0.tar', contents())
    write_tar(tmp_path / 'one' / '0.tar', {'a.png': picture(0), 'a.cls': b'5'})
    with pytest.raises(DataError, match=message) as caught:
        load_images(ImageData(kind='imagenet', root=root.format(here=tmp_path)))
    assert '\n' not in str(caught.value)


def test_what_the_hub_cannot_give_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hub'))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'datasets', None)
        with pytest.raises(DataError, match=r"read by datasets: pip install 's4nd\[data\]'"):
            load_images(ImageData(kind='imagenet', root='hfds/x'))
    datasets = pytest.importorskip('datasets', reason="datasets is not installed: pip install 's4nd[data]'")
    with pytest.raises(DataError, match='cannot be loaded') as caught:
        load_images(ImageData(kind='imagenet', root=f'hfds/{tmp_path}/nothing'))
    assert '\n' not in str(caught.value)
    (tmp_path / 'words').mkdir()
    datasets.Dataset.from_dict({'text': ['a', 'b']}).to_parquet(tmp_path / 'words' / 'train.parquet')
    with pytest.raises(DataError, match=r"columns \['text'\], expected a train split, a column of images"):
        load_images(ImageData(kind='imagenet', root=f'hfds/{tmp_path}/words'))


def test_only_headers_are_read_to_find_the_images(tmp_path: Path) -> None:
    with (tmp_path / 'a.tar').open('wb') as file, tarfile.open(fileobj=file, mode='w') as tar:
        for number in range(20):
            entry = tarfile.TarInfo(f'{"ab"[number % 2]}/{number}.png')
            entry.size = 1 << 30  # a hole, which takes an hour to read where it is not skipped
            file.seek(tar.offset)
            file.write(entry.tobuf())
            tar.offset += 512 + entry.size
        file.seek(tar.offset)
        file.write(bytes(1024))
        tar.offset += 1024
    start = time.monotonic()
    data = ImageData(kind='imagenet', root=str(tmp_path / 'a.tar'), val_fraction=0.1)
    assert len(load_images(data).train.labels) == 18 and time.monotonic() - start < 10
