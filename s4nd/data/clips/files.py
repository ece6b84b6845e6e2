"""Frames of a clip, by time: out of a video file (PyAV), or out of a folder of images."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from s4nd.data.clips.grid import ClipGrid
from s4nd.data.folders import is_readable
from s4nd.data.images.files import ImageError, decode, is_image
from s4nd.data.labeled import ExampleError
from s4nd.data.tars import LARGEST_FILE

__all__ = ['VIDEO_SUFFIXES', 'ClipError', 'has_decoder', 'read_clip']

VIDEO_SUFFIXES = {'.avi', '.mp4', '.m4v', '.mov', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv', '.flv', '.3gp', '.ogv'}

MAX_CLIP_PIXELS = 1 << 27  # 16 frames of 3840 × 2160
# Containers of one video. Others, such as lists of what to play, name further files and addresses; none is opened.
_OPTIONS = {
    'format_whitelist': 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,flv,ogg,gif,h264,hevc,m4v',
    'protocol_whitelist': 'file',
}
_WITHOUT_INDEX = ('mpeg', 'mpegts')  # a frame is not found by its time

Times = Callable[[float], list[float]]


class ClipError(ExampleError):
    """A clip that cannot be used, and why."""


def has_decoder() -> bool:
    """Whether PyAV, which decodes video files, is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def read_clip(path: Path, grid: ClipGrid, place: float = 0.5, stored_rate: float | None = None) -> tuple[Tensor, float]:
    """The frames that a clip shows at the times of `grid`, as bytes (T, 3, h, w), and how many seconds it has.

    A frame is shown until the next one begins, and the last one for as long as it is asked for, so any rate can be
    asked of any clip, short ones too.

    Args:
        path: a video file, or a folder of image files, taken in the order of the numbers in their names.
        place: where in the clip to begin, from 0 (its first seconds) to 1 (its last).
        stored_rate: frames per second of a folder.

    Raises ClipError: it cannot be read, holds no frame there, or frames of several sizes.
    """

    def times(duration: float) -> list[float]:
        return grid.times(duration, place)

    if path.is_dir():
        return _from_folder(path, times, stored_rate)
    return _from_video(path, times)


def _from_folder(folder: Path, times: Times, rate: float | None) -> tuple[Tensor, float]:
    named = (entry for entry in os.scandir(folder) if is_image(PurePosixPath(entry.name)) and is_readable(entry))
    files = sorted((Path(entry.path) for entry in named), key=_numbers)
    if not files:
        raise ClipError('a folder without image files')
    if rate is None:
        raise ClipError('a folder of frames needs their rate')
    duration = len(files) / rate
    shown = [files[min(int(time * rate), len(files) - 1)] for time in times(duration)]
    pictures = {}
    for file in dict.fromkeys(shown):
        try:
            with file.open('rb') as content:
                pictures[file] = decode(content.read(LARGEST_FILE + 1))
        except (ImageError, OSError) as error:
            raise ClipError(f'{file.name} cannot be read ({error})') from error
        _check_size(len(shown), *pictures[file].shape[1:])
    return _stacked([pictures[file] for file in shown]), duration


def _numbers(file: Path) -> list[tuple[int, str]]:
    """Frame 2 comes before frame 10."""
    return [(int(number or 0), text) for text, number in re.findall(r'(\D+)|(\d+)', file.name)]


def _from_video(path: Path, times: Times) -> tuple[Tensor, float]:
    import av

    if not path.is_file():
        raise ClipError('neither a file nor a folder' if path.exists() else 'there is no such file')
    try:
        # An absolute path is no address. A title in some other encoding is of no concern here.
        with av.open(os.path.abspath(path), metadata_errors='ignore', container_options=_OPTIONS) as container:
            if not container.streams.video:
                raise ClipError('no video in it')
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ClipError('there is no decoder for its codec')
            stream.codec_context.thread_count = 1  # the loader has processes enough
            duration = _duration(container, stream)
            _check_size(len(times(duration)), stream.codec_context.height, stream.codec_context.width)
            shown, end = _shown(container, stream, times(duration))
            if end < duration:  # the file is cut, or its sound is longer
                duration = end
                shown, _ = _shown(container, stream, times(duration))
    except ClipError:
        raise
    except Exception as error:  # any: decoders raise what their parsing happens to run into
        reason = getattr(error, 'strerror', None) or error or type(error).__name__
        raise ClipError(f'cannot be decoded ({reason})') from error
    return _stacked(shown), duration


def _check_size(count: int, height: int, width: int) -> None:
    if count * height * width > MAX_CLIP_PIXELS:
        raise ClipError(
            f'{count} frames of {height}×{width} pixels, expected at most {MAX_CLIP_PIXELS} pixels in all: '
            'take fewer frames, or store smaller ones'
        )


def _stacked(pictures: Sequence[Tensor]) -> Tensor:
    """Frames (3, h, w) of one size as (T, 3, h, w)."""
    sizes = sorted({tuple(picture.shape[1:]) for picture in pictures})
    if len(sizes) > 1:
        found = ', '.join(f'{height}×{width}' for height, width in sizes)
        raise ClipError(f'expected frames of one size, found {found}')
    return torch.stack(pictures)


def _picture(frame: Any) -> Tensor:
    """(3, h, w) bytes, turned as the file says."""
    picture = torch.from_numpy(frame.to_ndarray(format='rgb24'))
    return picture.rot90(round(frame.rotation / 90)).permute(2, 0, 1)


def _duration(container: Any, stream: Any) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        begin = container.start_time or 0
        # Some containers count the time before the first frame.
        return (container.duration - (begin if container.format.name.startswith('matroska') else 0)) / 1e6
    raise ClipError('its length is not known')


def _shown(container: Any, stream: Any, wanted: list[float]) -> tuple[list[Tensor], float]:
    """The pictures on show at the rising times, and the second where frames ended before the last time, or inf."""
    base, origin = float(stream.time_base), stream.start_time or 0
    shown: list[Tensor] = []
    begin, frame = 0.0, None
    for following in _from(container, stream, origin + int(wanted[0] / base)):
        stamp = following.pts if following.pts is not None else following.dts
        if stamp is None:
            raise ClipError('its frames have no times')
        count = sum(time < (stamp - origin) * base for time in wanted[len(shown) :])
        if count and frame is not None:
            shown += [_picture(frame)] * count
        if len(shown) == len(wanted):
            return shown, math.inf
        frame, begin = following, (stamp - origin) * base
    if frame is None:
        raise ClipError('no frame in it')
    end = begin + float(1 / (stream.average_rate or 1))
    left = len(wanted) - len(shown)
    return shown + [_picture(frame)] * left, end if left and wanted[-1] >= end else math.inf


def _from(container: Any, stream: Any, stamp: int) -> Iterator[Any]:
    """The decoded frames from the key frame before `stamp` on."""
    container.seek(stamp if container.format.name not in _WITHOUT_INDEX else 0, stream=stream)
    return container.decode(stream)
