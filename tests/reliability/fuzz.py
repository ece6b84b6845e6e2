"""Damaged files of every medium: each is read, or refused in one line; nothing hangs, swells or is lost in silence.

    python -m tests.reliability.fuzz [count=1000] [seed=0] [media=images,tars,… (all of MEDIA)]

A whole file is cut, overwritten, spliced or given extreme numbers at random places. A reader fails that raises anything
but its own error, takes 10 seconds, brings the process above 1 GB, or has fewer examples than the archive without
saying which are missing. The exit code is 1 where one failed; the inputs are printed as (medium, number).
"""

from __future__ import annotations

import collections
import io
import json
import logging
import random
import re
import resource
import signal
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import nn

from audio.data.files import scan_files
from audio.io import read_audio
from s4nd.data import ClipError, ClipGrid, DataError, read_clip
from s4nd.data.clips.files import has_decoder
from s4nd.data.images.files import ImageError, decode, load_class_folders
from s4nd.data.images.options import ImageData
from s4nd.data.images.readers import load_stream
from s4nd.training.checkpoint import CheckpointError, load_state, load_weights, save_state, save_weights, stored_args
from s4nd.training.config import ConfigError, load_config

SECONDS, KILOBYTES = 10, 1_000_000
_NUMBERS = [b'\0' * 4, b'\xff' * 4, b'\x7f\xff\xff\xff', b'\xff\xff\xff\x7f', b'\0\0\0\x80', b'\x80\0\0\0', b'\1\0\0\0']

Reader = Callable[[bytes], str]


class Hang(BaseException):
    """A reader that took too long."""


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Some one to three of: cut, overwritten, doubled, taken out, extreme numbers; headers are hit more often."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = max(1, len(data))
        at = rng.randrange(min(size, 200) if rng.random() < 0.3 else size)
        kind = rng.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            data[at : at + 4] = rng.choice(_NUMBERS)
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 600)]
        elif kind == 4:
            del data[at : at + rng.randint(1, 600)]
        else:
            length = rng.randint(1, 64)
            data[at : at + length] = rng.randbytes(length)
    return bytes(data)


def _picture(size: tuple[int, int] = (24, 16)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def images(folder: Path) -> tuple[list[bytes], Reader]:
    wholes = []
    deep = Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 170)
    for image, format in [*((_picture(), name) for name in ('PNG', 'JPEG', 'BMP', 'WEBP', 'GIF', 'PPM', 'TIFF', 'EPS')),
                          (deep, 'PNG'), (deep, 'TIFF'), (deep, 'PPM')]:  # fmt: skip
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        image.save(file, format, **({'exif': exif} if format in ('JPEG', 'PNG', 'WEBP') else {}))
        wholes.append(file.getvalue())

    def read(data: bytes) -> str:
        try:
            shape = decode(data).shape
        except ImageError:
            return 'refused'
        assert shape[0] == 3
        return 'read'

    return wholes, read


_PICTURES = [f'{split}/{label}/{index}.png' for split in ('train', 'test') for label in 'ab' for index in (1, 2)]


def _tar(mode: str, labels: bool = False) -> bytes:
    """A tar of _PICTURES, with a .cls file beside each where there are `labels`."""
    picture, file = io.BytesIO(), io.BytesIO()
    _picture((4, 4)).save(picture, 'PNG')
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name in _PICTURES:
            label = {name.replace('.png', '.cls'): name.split('/')[1].encode()} if labels else {}
            for path, content in {name: picture.getvalue(), **label}.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def tars(folder: Path) -> tuple[list[bytes], Reader]:
    wholes = [_tar(mode) for mode in ('w', 'w:gz', 'w:xz')]

    def read(data: bytes) -> str:
        (folder / 'a.tar').write_bytes(data)
        try:
            sets = load_class_folders(str(folder / 'a.tar'), None, None)
        except DataError:
            return 'refused'
        found = sum(len(part.labels) for part in sets.values()) + len(next(iter(sets.values())).skipped)
        assert found >= len(_PICTURES), f'{found} of {len(_PICTURES)} pictures, and no word about the others'
        return 'read' if not next(iter(sets.values())).skipped else 'read in part, and said so'

    return wholes, read


def streams(folder: Path) -> tuple[list[bytes], Reader]:
    """Tars and shards, of which each picture is read by its number."""
    (folder / 'train').mkdir()

    def read(data: bytes) -> str:
        shard = data.count(b'.cls') > len(_PICTURES) // 2
        path = folder / 'train' / 'a.tar'
        path.write_bytes(data)
        root = f'wds/{folder}' if shard else str(path)
        try:
            parts = [part for part in load_stream(ImageData(kind='folder', root=root)) if part is not None]
            found = sum(len(labels) for part in parts for _, labels in part.eval_batches(4, 1.0, 8, 0))
        except DataError:
            return 'refused'
        lost = sum(len(part.labels) for part in parts) - found
        named = len({text for part in parts for text in part.skipped})
        assert named >= lost, f'{lost} pictures lost, {named} named'
        return 'read' if not lost else 'read in part, and said so'

    return [_tar('w'), _tar('w', labels=True)], read


def sound(folder: Path) -> tuple[list[bytes], Reader]:
    wave = 0.5 * np.sin(np.arange(4000) / 20).astype(np.float32)
    kinds = [*(('wav', subtype) for subtype in ('PCM_16', 'FLOAT', 'GSM610', 'IMA_ADPCM')),
             *((suffix, None) for suffix in ('flac', 'ogg', 'mp3'))]  # fmt: skip
    wholes = []
    for suffix, subtype in kinds:
        soundfile.write(folder / f'a.{suffix}', wave, 8000, subtype=subtype)
        wholes.append((folder / f'a.{suffix}').read_bytes())

    def read(data: bytes) -> str:
        path = folder / 'b.wav'
        path.write_bytes(data)
        try:
            (file,), _ = scan_files(folder, [path], silent=True)
        except ValueError:
            return 'refused'
        # What passed the scan reads later, at every place.
        for start in (0, file.frames // 2, file.frames - 1):
            made, _ = read_audio(path, start=start, frames=100)
            assert made.isfinite().all()
        return 'read'

    return wholes, read


def video(folder: Path) -> tuple[list[bytes], Reader]:
    import av

    wholes = []
    for suffix, codec in (('mp4', 'libx264'), ('mkv', 'libx264'), ('avi', 'mpeg4'), ('webm', 'libvpx')):
        with av.open(str(folder / f'a.{suffix}'), 'w') as container:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width, stream.pix_fmt = 16, 16, 'yuv420p'
            for number in range(6):
                picture = np.full((16, 16, 3), 40 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
            container.mux(stream.encode())
        wholes.append((folder / f'a.{suffix}').read_bytes())

    def read(data: bytes) -> str:
        path = folder / 'b.mp4'
        path.write_bytes(data)
        try:
            clip, _ = read_clip(path, ClipGrid((16, 16), 4, 0.5))
        except ClipError:
            return 'refused'
        assert len(clip) == 2
        return 'read'

    return wholes, read


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def weights(folder: Path) -> tuple[list[bytes], Reader]:
    args = {'dim': 8, 'depths': [1, 1], 'kernel': 's4d', 'drop_path_rate': 0.1}
    save_weights(folder / 'a.safetensors', _model(), {'model': 'small', 'args': json.dumps(args)})

    def read(data: bytes) -> str:
        (folder / 'b.safetensors').write_bytes(data)
        model = _model()
        try:
            stored_args('b', load_weights(folder / 'b.safetensors', model))
        except CheckpointError:
            return 'refused'
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
        return 'read'

    return [(folder / 'a.safetensors').read_bytes()], read


def states(folder: Path) -> tuple[list[bytes], Reader]:
    save_state(folder / 'resume.pt', {'model': _model().state_dict(), 'epoch': 3, 'history': [{'loss': 0.5}]})

    def read(data: bytes) -> str:
        (folder / 'b.pt').write_bytes(data)
        try:
            load_state(folder / 'b.pt')
        except CheckpointError:
            return 'refused'
        return 'read'

    return [(folder / 'resume.pt').read_bytes()], read


def configurations(folder: Path) -> tuple[list[bytes], Reader]:
    root = Path(__file__).parents[2] / 'configs'
    wholes = [path.read_bytes() for path in sorted(root.rglob('*.yaml'))]
    wholes += [b'a: &a [1, 2]\nmodel: {name: x, args: {b: *a, c: ${oc.env:HOME}}}\n', b'epochs: 1e9\nseed: 0x10\n']

    def read(data: bytes) -> str:
        (folder / 'c.yaml').write_bytes(data)
        try:
            load_config(folder / 'c.yaml', ['label=x'])
        except ConfigError as error:
            return 'refused' if '\n' not in str(error) else f'refused in several lines: {error}'
        return 'read'

    return wholes, read


MEDIA = {'images': images, 'tars': tars, 'streams': streams, 'sound': sound, 'weights': weights, 'states': states,
         'configurations': configurations, **({'video': video} if has_decoder() else {})}  # fmt: skip


def inputs(medium: str, wholes: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    for number in range(count):
        rng = random.Random(f'{medium} {seed} {number}')
        yield damaged(rng.choice(wholes), rng)


def peak() -> int:
    """The most memory that the process has held, in kilobytes. (What getrusage says begins with that of its parent.)"""
    try:
        status = Path('/proc/self/status').read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(re.search(r'VmHWM:\s+(\d+)', status)[1])


def fuzz(medium: str, count: int, seed: int = 0) -> tuple[collections.Counter[str], list[str]]:
    """Read `count` damaged files: how they ended, and what failed."""

    def hang(_number: int, _frame: FrameType | None) -> None:
        raise Hang(f'longer than {SECONDS} s')

    found: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    before = signal.signal(signal.SIGALRM, hang)
    logging.disable(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            wholes, read = MEDIA[medium](Path(folder))
            for number, data in enumerate(inputs(medium, wholes, count, seed)):
                signal.alarm(SECONDS)
                try:
                    found[read(data)] += 1
                except (Exception, Hang) as error:
                    failed.append(f'({medium}, {number}): {type(error).__name__}: {str(error)[:200]}')
                finally:
                    signal.alarm(0)
                used = peak()
                if used > KILOBYTES:
                    failed.append(f'({medium}, {number}): {used / 1e6:.1f} GB')
                    break
    finally:
        signal.signal(signal.SIGALRM, before)
        logging.disable(logging.NOTSET)
    return found, failed


def main(words: list[str]) -> int:
    options = dict(word.split('=', 1) for word in words)
    count, seed = int(options.get('count', 1000)), int(options.get('seed', 0))
    code = 0
    for medium in options.get('media', ','.join(MEDIA)).split(','):
        start = time.process_time()
        found, failed = fuzz(medium, count, seed)
        used = peak() / 1e6
        ended = ', '.join(f'{number} {how}' for how, number in sorted(found.items()))
        spent = time.process_time() - start
        print(f'{medium}: {count} inputs: {ended}; {len(failed)} failed; {spent:.1f} s, {used:.2f} GB', flush=True)
        print(*failed[:20], sep='\n', end='\n' if failed else '')
        code |= bool(failed)
    return code


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
