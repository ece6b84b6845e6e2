"""Archives in every reader: links, more than one archive, headers that claim too much, names in other encodings."""

import gzip
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import soundfile
from PIL import Image

from s4nd.audio.data.files import scan_folder, unpacked
from s4nd.data.images.files import load_class_folders
from s4nd.data.images.options import ImageData
from s4nd.data.images.readers import load_stream
from s4nd.data.tars import link_targets

# Name: target. 0 is a file; 3 and 4 are a circle, 5 leads into it, and 6 leads nowhere.
LINKS = {'2': '1', '1': '0', '3': '4', '4': '3', '5': '3', '6': '7'}


def write(path: Path, suffix: str, content: bytes, kind: bytes) -> None:
    """A tar with two files of each of two classes, and LINKS to the first."""
    with tarfile.open(path, 'w') as tar:
        for name, target in LINKS.items():
            entry = tarfile.TarInfo(f'a/{name}{suffix}')
            entry.type, entry.linkname = kind, f'{"a/" if kind == tarfile.LNKTYPE else ""}{target}{suffix}'
            tar.addfile(entry)
        for name in ('a/0', 'a/8', 'b/0', 'b/8'):
            entry = tarfile.TarInfo(f'{name}{suffix}')
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file, 'PNG')
    return file.getvalue()


def test_links_are_followed_to_their_end() -> None:
    links = {PurePosixPath(name): PurePosixPath(target) for name, target in LINKS.items()}
    found = link_targets({**links, PurePosixPath('9'): None})
    assert {name.name: target and target.name for name, target in found.items()} == {
        '1': '0', '2': '0', '3': None, '4': None, '5': None, '6': '7', '9': None,
    }  # fmt: skip


@pytest.mark.parametrize('kind', [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_to_links_in_every_reader(tmp_path: Path, kind: bytes) -> None:
    write(tmp_path / 'p.tar', '.png', picture(), kind)
    lost = [f'a/{name}.png' for name in ('3', '4', '5', '6')]
    train = load_class_folders(str(tmp_path / 'p.tar'), None, None)['train']
    assert train.labels.tolist() == [0] * 4 + [1] * 2 and list(train.skipped) == lost
    streamed, _ = load_stream(ImageData(kind='folder', root=str(tmp_path / 'p.tar')))
    assert sum(len(labels) for _, labels in streamed.eval_batches(8, 1.0, 4, 0)) == 6
    assert [text.partition(':')[0] for text in streamed.skipped] == lost
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(20), 8000, format='WAV')
    write(tmp_path / 's.tar', '.wav', sound.getvalue(), kind)
    with pytest.warns(UserWarning, match='is a link to no sound') as warned:
        folder = unpacked(tmp_path / 's.tar', tmp_path / 'cache')
    assert len(warned) == 4
    assert sorted(path.name for path in (folder / 'a').iterdir()) == ['0.wav', '1.wav', '2.wav', '8.wav']


Reader = Callable[[Path], int]  # how many examples it finds


def in_memory(path: Path) -> int:
    return len(load_class_folders(str(path), None, None)['train'].labels)


def streamed(path: Path) -> int:
    images, _ = load_stream(ImageData(kind='folder', root=str(path)))
    return sum(len(labels) for _, labels in images.eval_batches(8, 1.0, 4, 0))


def recordings(path: Path) -> int:
    return len(scan_folder(unpacked(path, path.parent / 'cache'))[0])


READERS = pytest.mark.parametrize(
    ('read', 'suffix'),
    [(in_memory, '.png'), (streamed, '.png'), (recordings, '.wav')],
    ids=['memory', 'stream', 'sound'],
)


def archive(suffix: str, names: Sequence[str], claim: int | None = None) -> bytes:
    """A tar of the names; a last one has a header that claims so many bytes, and no content."""
    content = io.BytesIO()
    if suffix == '.wav':
        soundfile.write(content, np.full(20, 0.5), 8000, format='WAV')
    else:
        content = io.BytesIO(picture())
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode='w', format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            entry = tarfile.TarInfo(name + suffix)
            entry.size = len(content.getvalue())
            tar.addfile(entry, io.BytesIO(content.getvalue()))
        if claim is not None:
            entry = tarfile.TarInfo(f'b/z{suffix}')
            entry.pax_headers = {'size': str(claim)}
            tar.addfile(entry)
    return whole.getvalue()


@READERS
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_a_header_that_claims_terabytes(
    tmp_path: Path, read: Reader, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / 'a.tar').write_bytes(pack(archive(suffix, ['a/0', 'b/0'], claim=10**14)))
    with pytest.raises(ValueError, match=r'whole tar.*\(.*(end|truncated|Invalid)'):
        read(tmp_path / 'a.tar')


@READERS
def test_what_follows_the_end_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, read: Reader, suffix: str
) -> None:
    first, second = archive(suffix, ['a/0', 'b/0']), archive(suffix, ['a/1', 'b/1'])
    (tmp_path / 'plain.tar').write_bytes(first + bytes(1 << 14))
    (tmp_path / 'two.tar').write_bytes(first + second)
    assert read(tmp_path / 'plain.tar') == 2 and 'more follows' not in caplog.text
    assert read(tmp_path / 'two.tar') == 2
    assert 'two.tar: more follows after the end of the archive, and is not read' in caplog.text


@READERS
def test_names_that_are_no_text(tmp_path: Path, read: Reader, suffix: str) -> None:
    (tmp_path / 'a.tar').write_bytes(archive(suffix, ['a/\udce9', 'b/\n\x1b']))
    assert read(tmp_path / 'a.tar') == 2
