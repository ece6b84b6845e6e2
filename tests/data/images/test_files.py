"""Class folders and tars: the same images, mistakes named."""

import io
import logging
import os
import struct
import tarfile
import tracemalloc
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image

from s4nd.data import DataError, PixelSet, load_images
from s4nd.data.folders import files_named, locate
from s4nd.data.images.files import ImageError, decode, load_class_folders
from s4nd.data.images.options import ImageData
from s4nd.data.images.readers import load_stream
from s4nd.data.images.stream import StreamSet


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
    ('paths', 'found'),
    [
        (['train/cat/1.jpg', 'val/cat/deep/er/1.PNG'], [('train', 'cat'), ('test', 'cat')]),
        (['a/b/train/cat/1.jpg', 'a/b/val/dog/1.jpg'], [('train', 'cat'), ('test', 'dog')]),
        (['cat/1.jpg', 'dog/1.jpg'], [('', 'cat'), ('', 'dog')]),
        (['cat/2020/1.png', 'dog/x/y/1.png'], [('', 'cat'), ('', 'dog')]),
        (['wrapper/cat/1.jpg', 'wrapper/dog/1.jpg'], [('', 'cat'), ('', 'dog')]),
        (['train/1.jpg', 'plane/1.jpg'], [('', 'train'), ('', 'plane')]),
        (['train/2020/1.jpg', 'plane/1.jpg'], [('', 'train'), ('', 'plane')]),
        (['train/1.jpg', 'valid/1.jpg'], [('', 'train'), ('', 'valid')]),
        (['train/train/1.jpg', 'train/valid/1.jpg', 'test/train/1.jpg'],
         [('train', 'train'), ('train', 'valid'), ('test', 'train')]),
        (['1.jpg', 'cat/1.jpg', 'dog/1.jpg'], [('', 'cat'), ('', 'dog')]),
        (['train/1.jpg', 'train/cat/1.jpg', 'test/cat/1.jpg'], [('train', 'cat'), ('test', 'cat')]),
        (['train/cat/1.jpg', 'test/cat/1.jpg', 'unlabeled/1.jpg'], [('train', 'cat'), ('test', 'cat')]),
        (['1.jpg'], []),
    ],
)  # fmt: skip
def test_split_and_class_follow_from_the_paths(paths: list[str], found: list[tuple[str, str]]) -> None:
    assert [(member.split, member.label) for member in locate([PurePosixPath(path) for path in paths])] == found


def test_folders_are_walked_as_torchvision_does(tmp_path: Path) -> None:
    root = tmp_path / 'set'
    for name in ('cat/2020/1.png', 'cat/.2.png', '.ipynb_checkpoints/1.png', 'cat/.hidden/1.png', '__MACOSX/cat/1.png'):
        write(root / name, 1)
    write(tmp_path / 'elsewhere' / 'deep' / '1.png', 2)
    (root / 'dog').symlink_to(tmp_path / 'elsewhere')
    (root / 'cat' / 'circle').symlink_to(root)
    (root / 'cat' / 'folder.png').mkdir()
    images = load_class_folders(str(root), None, None)['train']
    assert images.classes == ('cat', 'dog') and images.labels.tolist() == [0, 1]
    streamed, _ = load_stream(ImageData(kind='folder', root=str(root)))
    assert streamed.paths == ('cat/2020/1.png', 'dog/deep/1.png') and streamed.classes == images.classes


@pytest.mark.parametrize('stream', [False, True])
def test_links_that_lead_nowhere_and_pipes(tmp_path: Path, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    root = tmp_path / 'set'
    for number, name in enumerate(('ant/1.png', 'ant/2.png', 'bee/1.png', 'bee/2.png')):
        write(root / name, number)
    for name, target in (('ant/8.png', 'nowhere'), ('bee/9.png', '9.png')):
        (root / name).symlink_to(target)
    os.mkfifo(root / 'bee' / '3.png')
    (root / 'cat').mkdir()
    (root / 'cat' / '1.heic').write_bytes(b'a whole class')
    splits = load_images(ImageData(kind='folder', root=str(root), cache=None, stream=stream, val_fraction=0.5))
    for part in (splits.train, splits.val):
        if isinstance(part, StreamSet):
            list(part.eval_batches((6, 6), 1.0, 8, 0))
    assert [name.partition(':')[0] for name in splits.skipped] == ['ant/8.png', 'bee/9.png']
    assert 'left out for their suffix: 1 of the files in' in caplog.text and 'first: cat/1.heic' in caplog.text


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    for one in range(6):
        write(tmp_path / f'{one}' / '1.png', one)
        for other in range(6):
            (tmp_path / f'{one}' / f'link{other}').symlink_to(tmp_path / f'{other}')
    names = files_named(tmp_path, {'.png'})
    assert len(names) == len(set(names)) < 6**3 and {name.parts[0] for name in names} == set('012345')


def test_a_folder_that_cannot_be_read_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listed = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == 'bee':
            raise PermissionError(13, 'Permission denied')
        return listed(path)

    monkeypatch.setattr('os.scandir', scandir)
    assert {name.parts[1] for name in files_named(root, {'.png'})} == {'ant'}
    assert f'passed over the folder {root / "train" / "bee"}: Permission denied' in caplog.text


@pytest.mark.parametrize('path', ['/dev/zero', 'pipe'])
@pytest.mark.parametrize('stream', [False, True])
def test_a_root_that_never_ends_is_refused(tmp_path: Path, path: str, stream: bool) -> None:
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(DataError, match='neither a file nor a folder'):
        load_images(ImageData(kind='folder', root=str(tmp_path / path), stream=stream))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize('format', ['PNG', 'TIFF', 'PPM'])
def test_sixteen_bits_are_scaled(format: str) -> None:
    values = np.array([[0, 128, 257], [30000, 65407, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(int)
    shown = decode(encoded(Image.fromarray(values), format))
    assert shown.shape == (3, 2, 3) and all((channel.numpy() == expected).all() for channel in shown)


def tiff(values: bytes, bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """Two pixels; photometric: 1, black is 0; sample_format: 1, without a sign."""
    entries = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(values)}
    entries[339] = sample_format
    tags = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in entries.items())
    return b'II*\0' + struct.pack('<I', 8 + len(values)) + values + struct.pack('<H', len(entries)) + tags + bytes(4)


@pytest.mark.parametrize(
    ('data', 'expected'),
    [
        (tiff(struct.pack('<2H', 0, 65535), 16), [0, 255]),
        (tiff(struct.pack('<2H', 0, 65535), 16, photometric=0), [255, 0]),
        (tiff(bytes([0, 255]), 8, photometric=0), [255, 0]),
        (tiff(bytes([0x00, 0x0F, 0xFF, 0x00]), 12), [0, 255]),
        (b'P5\n2 1\n1000\n' + struct.pack('>2H', 500, 1000), [128, 255]),
    ],
)  # fmt: skip
def test_other_ranges_are_brought_to_bytes(data: bytes, expected: list[int]) -> None:
    assert decode(data).tolist() == [[expected]] * 3


@pytest.mark.parametrize(
    ('data', 'problem'),
    [
        (tiff(bytes(8), 32), "mode 'I'"),
        (tiff(bytes(8), 32, sample_format=3), "mode 'F'"),
        (tiff(bytes(4), 16, sample_format=2), 'with a sign'),
        (tiff(bytes(2), 8, sample_format=2), 'with a sign'),
        (b'Pf\n1 1\n-1.0\n' + bytes(4), "mode 'F'"),
    ],
)
def test_values_of_no_known_range_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        decode(data)


def test_sixteen_bits_need_no_more_memory_than_eight() -> None:
    data = encoded(Image.fromarray(np.zeros((1 << 12, 1 << 12), np.uint16)), 'PNG')
    tracemalloc.start()
    decode(data)
    assert tracemalloc.get_traced_memory()[1] < 8 << 24  # bytes: eight for each pixel
    tracemalloc.stop()


def test_only_the_formats_on_the_list_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('subprocess.check_call', lambda *_, **__: pytest.fail('a program was begun'))
    picture = Image.new('RGB', (4, 4), 'red')
    for format in ('EPS', 'ICO', 'AVIF', 'DDS', 'TGA', 'PCX', 'SGI', 'PDF'):
        with pytest.raises(ImageError, match='not a picture of a known format'):
            decode(encoded(picture, format))


@pytest.mark.parametrize(('turn', 'expected'), [(1, [1, 2]), (3, [2, 1]), (6, [1, 2]), (8, [2, 1])])
def test_pictures_are_turned_as_their_exif_says(turn: int, expected: list[int]) -> None:
    picture, exif = Image.fromarray(np.array([[[1] * 3, [2] * 3]], np.uint8)), Image.Exif()
    exif[0x0112] = turn
    shown = decode(encoded(picture, 'PNG', exif=exif))
    assert shown.shape == ((3, 2, 1) if turn > 4 else (3, 1, 2)) and shown[0].flatten().tolist() == expected


def test_pictures_of_too_many_pixels_are_passed_over(root: Path) -> None:
    write(root / 'train' / 'ant' / '9.png', 1, size=(7, 6))
    data = ImageData(kind='folder', root=str(root), cache=None, max_pixels=36)
    assert load_images(data).skipped == ['train/ant/9.png']
    with pytest.raises(ImageError, match=r'10000 × 10000 pixels, expected at most 67108864'):
        decode(encoded(Image.new('1', (10000, 10000)), 'PNG'))


def archive(root: Path, format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w', format=format) as tar:
        tar.add(root, '.')
    return buffer.getvalue()


def test_every_cut_of_a_tar_is_refused(root: Path, tmp_path: Path) -> None:
    whole = archive(root)
    end = len(whole.rstrip(b'\0')) // 512 * 512 + 512
    for length in [*range(0, end, 512), *range(100, end, 1111)]:
        (tmp_path / 'cut.tar').write_bytes(whole[:length])
        with pytest.raises(DataError, match='neither a folder nor a whole tar'):
            load_class_folders(str(tmp_path / 'cut.tar'), None, None)


def test_links_in_a_tar_are_the_pictures_they_stand_for(root: Path, tmp_path: Path) -> None:
    (root / 'train' / 'bee' / '7.png').hardlink_to(root / 'train' / 'ant' / '0.png')
    (root / 'train' / 'bee' / '8.png').symlink_to('../ant/1.png')
    (root / 'train' / 'bee' / '9.png').symlink_to('/etc/passwd')
    (tmp_path / 'a.tar').write_bytes(archive(root))
    found = load_class_folders(str(tmp_path / 'a.tar'), None, None)['train']
    assert found.skipped == ('train/bee/9.png',) and len(found.labels) == 10
    assert torch.equal(found.images[-2:], found.images[:2])


def test_a_member_that_expands_to_gigabytes_is_not_read(root: Path, tmp_path: Path) -> None:
    import gzip
    import resource

    with gzip.open(tmp_path / 'a.tar.gz', 'wb', compresslevel=1) as file, tarfile.open(fileobj=file, mode='w') as tar:
        entry = tarfile.TarInfo('train/ant/big.png')
        entry.size = 1 << 29
        file.write(entry.tobuf())
        for _ in range(1 << 9):
            file.write(bytes(1 << 20))
        tar.offset = file.tell()
        tar.add(root, '.')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_class_folders(str(tmp_path / 'a.tar.gz'), None, None)['train'].skipped == ('train/ant/big.png',)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_the_cache_notices_changes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / 'cache'
    first = load_class_folders(str(root), None, str(cache))
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr('s4nd.data.images.files.decode', lambda *_: pytest.fail('decoded again'))
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
    images = load_class_folders(str(tmp_path), 2, None)['train'].images
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
