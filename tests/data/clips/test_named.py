"""Folders and official lists of clips: found, split, and what is missing named."""

import gzip
import logging
from pathlib import Path

import pytest
import torch

from s4nd.data import DataError, MovingSet, Splits, load_video
from s4nd.data.clips import named
from s4nd.data.clips.options import VideoData
from tests.data.clips.test_files import write_frames


def data(root: Path, **options: object) -> VideoData:
    return VideoData(kind=options.pop('kind', 'folder'), root=str(root), stored_rate=4.0, workers=0, **options)


def clip(root: Path, name: str, count: int = 2) -> None:
    write_frames(root / name, count, (8, 8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / 'set'
    for name in ('train/run/a', 'train/run/b', 'train/jump/c', 'val/run/d', 'val/jump/e'):
        clip(root, name)
    (root / 'train' / 'jump' / 'notes.txt').write_text('no clip')
    return root


def names(splits: Splits) -> dict[str, tuple[str, ...]]:
    parts = {'train': splits.train, 'val': splits.val, 'test': splits.test}
    return {name: part.paths for name, part in parts.items() if part is not None}


def test_a_folder_of_class_folders_with_splits(root: Path) -> None:
    splits = load_video(data(root))
    assert splits.train.classes == ('jump', 'run') == splits.test.classes
    assert splits.train.paths == ('train/jump/c', 'train/run/a', 'train/run/b')
    assert splits.train.labels.tolist() == [0, 1, 1] and splits.test.labels.tolist() == [0, 1]
    assert splits.val is None and splits.skipped == []


def test_one_set_without_splits_needs_a_held_out_part(root: Path) -> None:
    with pytest.raises(DataError, match=r'has no test folder .* set data\.val_fraction'):
        load_video(data(root / 'train'))
    clip(root / 'train', 'jump/f')
    splits = load_video(data(root / 'train', val_fraction=0.5))
    assert splits.test is splits.val and splits.test.paths == ('jump/f', 'run/b')


def hmdb51(folder: Path) -> None:
    """Two classes, lists of splits 1 and 2."""
    folder.mkdir()
    (folder / 'run_test_split1.txt').write_text('a.avi 1 \nb.avi 2 \nc.avi 0 \n\n')
    (folder / 'jump_test_split1.txt').write_text('d.avi 1 \ne.avi 2 \n')
    for name in ('run', 'jump'):
        (folder / f'{name}_test_split2.txt').write_text('a.avi 2\nd.avi 1\n')


def ucf101(folder: Path) -> None:
    folder.mkdir()
    (folder / 'classInd.txt').write_text('1 Jump\n2 Run\n')
    (folder / 'trainlist01.txt').write_text('Jump/d.avi 1\nRun/a.avi 2\n')
    (folder / 'testlist01.txt').write_text('Jump/e.avi\nRun/b.avi\n')


def test_hmdb51_lists(tmp_path: Path) -> None:
    hmdb51(tmp_path / 'lists')
    for name in ('run/a', 'run/b', 'run/c', 'jump/d', 'jump/e'):
        clip(tmp_path / 'clips', name)  # unpacked to frames, as a.avi would be
    splits = load_video(data(tmp_path / 'clips', kind='hmdb51', split_files=str(tmp_path / 'lists')))
    assert names(splits) == {'train': ('jump/d', 'run/a'), 'test': ('jump/e', 'run/b')}
    assert splits.train.classes == ('jump', 'run') and splits.train.labels.tolist() == [0, 1]


def test_ucf101_lists(tmp_path: Path) -> None:
    ucf101(tmp_path / 'lists')
    for name in ('Run/a', 'Run/b', 'Jump/d', 'Jump/e'):
        clip(tmp_path / 'clips', name)
    splits = load_video(data(tmp_path / 'clips', kind='ucf101', split_files=str(tmp_path / 'lists')))
    assert names(splits) == {'train': ('Jump/d', 'Run/a'), 'test': ('Jump/e', 'Run/b')}
    assert splits.train.classes == ('Jump', 'Run')


def test_listed_clips_that_are_not_there_are_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hmdb51(tmp_path / 'lists')
    for name in ('run/a', 'jump/d', 'jump/e'):
        clip(tmp_path / 'clips', name)
    options = data(tmp_path / 'clips', kind='hmdb51', split_files=str(tmp_path / 'lists'))
    with caplog.at_level(logging.WARNING):
        splits = load_video(options)
    assert splits.skipped == ['run/b.avi: named in the lists but not there']
    assert '1 of 4 clips in the lists are not in' in caplog.text and 'first: run/b.avi' in caplog.text
    assert names(splits) == {'train': ('jump/d', 'run/a'), 'test': ('jump/e',)}
    (tmp_path / 'none').mkdir()
    options.root = str(tmp_path / 'none')
    with pytest.raises(DataError, match=r'none of the 4 clips in the lists is there, expected jump/d\.avi, …'):
        load_video(options)


@pytest.mark.parametrize(
    ('kind', 'file', 'content', 'message'),
    [
        ('hmdb51', 'run_test_split1.txt', 'a.avi 1\nb.avi 3\n', r"line 2: expected '<clip> <.*>', got 'b\.avi 3'"),
        ('hmdb51', 'run_test_split1.txt', 'a.avi\n', r"run_test_split1\.txt, line 1: .*, got 'a\.avi'"),
        ('ucf101', 'classInd.txt', 'Jump\n', r"classInd\.txt, line 1: expected '<number> <class>', got \['Jump'\]"),
        ('ucf101', 'trainlist01.txt', 'Swim/a.avi 3\n', r"trainlist01\.txt, line 1: .* got 'Swim/a\.avi 3'"),
        ('ucf101', 'trainlist01.txt', 'Run/a.avi 1\n', r"line 1: expected <class>/<clip> .*, got 'Run/a\.avi 1'"),
        ('ucf101', 'testlist01.txt', None, r'no testlist01\.txt there'),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_used(tmp_path: Path, kind: str, file: str, content: str | None, message: str) -> None:
    {'hmdb51': hmdb51, 'ucf101': ucf101}[kind](tmp_path / 'lists')
    path = tmp_path / 'lists' / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_video(data(tmp_path, kind=kind, split_files=str(tmp_path / 'lists')))


def test_missing_lists(tmp_path: Path) -> None:
    hmdb51(tmp_path / 'lists')
    with pytest.raises(DataError, match=r'no list of split 3, expected <class>_test_split3\.txt'):
        load_video(data(tmp_path, kind='hmdb51', split=3, split_files=str(tmp_path / 'lists')))
    with pytest.raises(DataError, match=r'data\.split_files must be given: the folder of classInd\.txt, trainlist02'):
        load_video(data(tmp_path, kind='ucf101', split=2))
    with pytest.raises(DataError, match=r'data\.split_files: .*nowhere does not exist'):
        load_video(data(tmp_path, kind='ucf101', split_files=str(tmp_path / 'nowhere')))


def test_roots_that_cannot_be_used(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r'data\.root must be given: a folder of class folders with video files'):
        load_video(VideoData(kind='folder'))
    with pytest.raises(DataError, match=r'data\.stored_rate must be given'):
        load_video(VideoData(kind='folder', root=str(root)))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match=r'no clip in a class folder; expected empty/<class>/<clip>'):
        load_video(data(tmp_path / 'empty'))
    (tmp_path / 'x.tar').write_bytes(b'')
    with pytest.raises(DataError, match='unpacked folder only'):
        load_video(data(tmp_path / 'x.tar'))
    clip(root, 'val/swim/g')
    with pytest.raises(DataError, match="class 'swim' of test is not among the 2 of train"):
        load_video(data(root))
    clip(root, 'train/swim/h')
    (root / 'train' / 'run' / 'h.avi').write_bytes(b'')
    monkeypatch.setattr(named, 'has_decoder', lambda: False)
    with pytest.raises(DataError, match=r"decoded by PyAV: pip install 's4nd\[video\]'"):
        load_video(data(root))


def write_fashion(root: Path) -> None:
    root.mkdir()
    for part, count in (('train', 7), ('t10k', 4)):
        head = b'\0\0\x08\x03' + b''.join(n.to_bytes(4, 'big') for n in (count, 28, 28))
        pixels = torch.arange(count * 784).to(torch.uint8).numpy().tobytes()
        (root / f'{part}-images-idx3-ubyte.gz').write_bytes(gzip.compress(head + pixels))
        labels = b'\0\0\x08\x01' + count.to_bytes(4, 'big') + bytes(count)
        (root / f'{part}-labels-idx1-ubyte').write_bytes(labels)


def test_moving_items_come_from_the_official_splits(tmp_path: Path) -> None:
    write_fashion(tmp_path / 'fashion')
    options = VideoData(root=str(tmp_path / 'fashion'), train_count=48, test_count=24, val_fraction=0.25)
    splits = load_video(options, seed=3)
    assert isinstance(splits.train, MovingSet)
    assert [len(part.indices) for part in (splits.train, splits.val, splits.test)] == [36, 12, 24]
    assert len(splits.train.items) == 7 and len(splits.test.items) == 4
    assert splits.train.seed != splits.test.seed and not set(splits.train.indices.tolist()) & set(
        splits.val.indices.tolist()
    )
    assert splits.val.labels.tolist() == list(range(12))
    with pytest.raises(DataError, match='the mirror image of a motion is of another class'):
        load_video(VideoData(root=str(tmp_path / 'fashion'), flip=True))


def test_without_fashion_mnist_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'data\.root must be given: .*data\.download=true'):
        load_video(VideoData())
    with pytest.raises(DataError, match=r'no train-images-idx3-ubyte\[\.gz\] there .*data\.download=true fetches it'):
        load_video(VideoData(root=str(tmp_path)))
