"""Frames of a clip, by time: out of a video file (PyAV), or out of a folder of images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from s4nd.data.clips.grid import ClipGrid
from s4nd.data.images.files import MAX_PIXELS, ImageError, decode, is_image
from s4nd.data.labeled import ExampleError

__all__ = ['VIDEO_SUFFIXES', 'ClipError', 'has_decoder', 'read_clip']

VIDEO_SUFFIXES = {'.avi', '.mp4', '.m4v', '.mov', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv', '.flv', '.3gp', '.ogv'}

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
    named = [folder / name for name in os.listdir(folder) if is_image(PurePosixPath(name))]
    files = sorted((file for file in named if file.is_file() or file.is_symlink()), key=_numbers)
    if not files:
        raise ClipError('a folder without image files')
    if rate is None:
        raise ClipError('a folder of frames needs their rate')
    duration = len(files) / rate
    shown = [files[min(int(time * rate), len(files) - 1)] for time in times(duration)]
    pictures = {}
    for file in dict.fromkeys(shown):
        try:
            pictures[file] = decode(file.read_bytes())
        except (ImageError, OSError) as error:
            raise ClipError(f'{file.name} cannot be read ({error})') from error
    sizes = sorted({tuple(picture.shape[1:]) for picture in pictures.values()})
    if len(sizes) > 1:
        found = ', '.join(f'{height}×{width}' for height, width in sizes)
        raise ClipError(f'expected frames of one size, found {found}')
    return torch.stack([pictures[file] for file in shown]), duration


def _numbers(file: Path) -> list[tuple[int, str]]:
    """Frame 2 comes before frame 10."""
    return [(int(number or 0), text) for text, number in re.findall(r'(\D+)|(\d+)', file.name)]


def _from_video(path: Path, times: Times) -> tuple[Tensor, float]:
    import av

    try:
        # A title in some other encoding is of no concern here.
        with av.open(str(path), metadata_errors='ignore') as container:
            if not container.streams.video:
                raise ClipError('no video in it')
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ClipError('there is no decoder for its codec')
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                raise ClipError(f'more than {MAX_PIXELS} pixels per frame')
            stream.codec_context.thread_count = 1  # the loader has processes enough
            duration = _duration(container, stream)
            shown = _shown(container, stream, times(duration))
            pictures = {frame: _picture(frame) for frame in dict.fromkeys(shown)}
    except ClipError:
        raise
    except Exception as error:  # any: decoders raise what their parsing happens to run into
        raise ClipError(f'cannot be decoded ({error or type(error).__name__})') from error
    sizes = sorted({tuple(picture.shape[:2]) for picture in pictures.values()})
    if len(sizes) > 1:
        found = ', '.join(f'{height}×{width}' for height, width in sizes)
        raise ClipError(f'expected frames of one size, found {found}')
    return torch.stack([pictures[frame] for frame in shown]).permute(0, 3, 1, 2), duration


def _picture(frame: Any) -> Tensor:
    """(h, w, 3) bytes, turned as the file says."""
    picture = torch.from_numpy(frame.to_ndarray(format='rgb24'))
    return picture.rot90(round(frame.rotation / 90))


def _duration(container: Any, stream: Any) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        begin = container.start_time or 0
        # Some containers count the time before the first frame.
        return (container.duration - (begin if container.format.name.startswith('matroska') else 0)) / 1e6
    raise ClipError('its length is not known')


def _shown(container: Any, stream: Any, wanted: list[float]) -> list[Any]:
    """The decoded frame that is on show at each of the rising times, read from the key frame before the first."""
    base, origin = float(stream.time_base), stream.start_time or 0
    container.seek(origin + int(wanted[0] / base), stream=stream)
    shown: list[Any] = []
    current = None
    for frame in container.decode(stream):
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is None:
            raise ClipError('its frames have no times')
        while current is not None and len(shown) < len(wanted) and wanted[len(shown)] < (stamp - origin) * base:
            shown.append(current)
        if len(shown) == len(wanted):
            return shown
        current = frame
    if current is None:
        raise ClipError(f'no frame from second {wanted[0]:.2f} on')
    return shown + [current] * (len(wanted) - len(shown))
