"""A page to listen to: real clips beside generated ones, in one self-contained HTML file.

Every folder (or tar) is a column, `count` of its clips are its rows, each cut to `seconds`, with player, waveform and
spectrogram. Real clips are spread evenly over the files in order of their names; generated ones are the first.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from torch import Tensor

from s4nd.files import write_atomically

from ..data.files import AudioFile, scan_folder, unpacked
from ..io import read_audio, spectrogram_png, wav_bytes

STYLE = """
body { font-family: sans-serif; margin: 2em; background: #fff; color: #222; }
table { border-collapse: collapse; }
th, td { padding: 0.6em; vertical-align: top; text-align: left; }
tr:nth-child(even) { background: #f4f4f4; }
audio { width: 100%; }
img { width: 100%; min-width: 20em; }
figcaption { font-size: 0.8em; color: #666; }
figure { margin: 0; }
"""


@dataclass(frozen=True)
class Clip:
    """A clip to show: its file's name, waveform (T,) and rate in Hz."""

    name: str
    wave: Tensor
    sample_rate: int


def choose(
    root: str | Path, count: int, seconds: float, *, spread: bool, cache: str | Path = 'out/cache'
) -> list[Clip]:
    """The first `count` clips of a folder or a tar, or with `spread` as many evenly over all of them.

    Each is the beginning of its file, `seconds` long or shorter. Where `spread` asks for more clips than there are
    files, they come from several places of each.
    """
    root = unpacked(root, cache) if Path(root).is_file() else Path(root)
    files, _ = scan_folder(root)
    if not spread:
        return [_cut(file, 0.0, seconds) for file in files[:count]]
    places = [i * len(files) / count for i in range(count)]
    return [_cut(files[int(place)], place % 1 if len(files) < count else 0.0, seconds) for place in places]


def page(columns: Mapping[str, Sequence[Clip]], title: str = 'Real and generated audio', intro: str = '') -> str:
    """HTML of one column per name, holding its clips from top to bottom; sound and pictures are inside the text.

    `intro` is HTML between the title and the table.
    """
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in columns)
    rows = zip_longest(*columns.values())
    body = '\n'.join('<tr>' + ''.join(f'<td>{_figure(clip)}</td>' for clip in row) + '</tr>' for row in rows)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{intro}\n<table><thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{body}\n</tbody></table></body></html>\n'
    )


def write_page(
    out: str | Path, real: str | Path, generated: Sequence[str | Path], *, count: int = 6, seconds: float = 8.0
) -> Path:
    """Write the page of `count` real clips and as many of each folder of generated ones; return its path.

    Raises:
        ValueError: for a count or time that is not positive, and as `choose`.
    """
    if count < 1 or not seconds > 0:
        raise ValueError(f'count and seconds must be positive, got {count} and {seconds}')
    columns = {'real': choose(real, count, seconds, spread=True)}
    for folder in generated:
        columns[f'generated: {Path(folder).name}'] = choose(folder, count, seconds, spread=False)
    text = page(columns)
    write_atomically(out, lambda path: path.write_text(text, encoding='utf-8'))
    return Path(out)


def _cut(file: AudioFile, place: float, seconds: float) -> Clip:
    frames = round(seconds * file.sample_rate)
    start = round(place * max(0, file.frames - frames))
    wave, rate = read_audio(file.path, start=start, frames=frames)
    return Clip(file.path.name, wave, rate)


def _figure(clip: Clip | None) -> str:
    if clip is None:
        return ''
    sound = base64.b64encode(wav_bytes(clip.wave, clip.sample_rate)).decode()
    picture = base64.b64encode(spectrogram_png(clip.wave, clip.sample_rate, size=(5, 3), dpi=80)).decode()
    length = f'{len(clip.wave) / clip.sample_rate:.2f} s at {clip.sample_rate} Hz'
    return (
        f'<figure><audio controls preload="none" src="data:audio/wav;base64,{sound}"></audio>'
        f'<img alt="waveform and spectrogram" src="data:image/png;base64,{picture}">'
        f'<figcaption>{html.escape(clip.name)}, {length}</figcaption></figure>'
    )
