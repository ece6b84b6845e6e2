"""A page to listen to: real clips beside generated ones, in one self-contained HTML file.

Every folder (or tar) is a column, `count` of its clips are its rows, each cut to `seconds`, with player, waveform and
spectrogram. Real clips are spread evenly over the files in order of their names; generated ones are the first. On a
narrow screen the clips of a row stand below each other.
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
:root { color-scheme: light dark; --text: #1d1d1f; --quiet: #5f5f66; --line: #d9d9de; --ground: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ececf0; --quiet: #a5a5ad; --line: #3c3c43; --ground: #161618; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; }
body { color: var(--text); background: var(--ground); }
h1 { font-size: 1.5rem; line-height: 1.2; }
.row { display: grid; gap: 1.5rem; padding: 1rem 0; border-top: 1px solid var(--line); }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--quiet); font-size: 0.875rem; overflow-wrap: anywhere; }
figcaption b { display: block; color: var(--text); font-size: 1rem; }
audio, img { display: block; width: 100%; }
figure audio, figure img { max-width: 36rem; }
audio { margin: 0.5rem 0; }
.none { display: none; }
@media (min-width: 45rem) {
  .row { grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
  .none { display: block; }
}
"""
INK = '#84848b'  # of axes and labels: legible on a light and on a dark page


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

    `intro` is HTML between the title and the clips.
    """
    rows = '\n'.join(
        f'<section class="row" style="--columns: {len(columns)}">'
        + '\n'.join(_figure(name, clip) for name, clip in zip(columns, row, strict=True))
        + '</section>'
        for row in zip_longest(*columns.values())
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n'
        f'<body><h1>{html.escape(title)}</h1>\n{intro}\n<main>\n{rows}\n</main></body></html>\n'
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


def _figure(column: str, clip: Clip | None) -> str:
    if clip is None:
        return '<figure class="none"></figure>'
    sound = base64.b64encode(wav_bytes(clip.wave, clip.sample_rate)).decode()
    drawn = spectrogram_png(clip.wave, clip.sample_rate, size=(4, 2.6), dpi=150, ink=INK)
    length = f'{len(clip.wave) / clip.sample_rate:.2f} s at {clip.sample_rate} Hz'
    name = html.escape(clip.name)
    return (
        f'<figure><figcaption><b>{html.escape(column)}</b>{name}, {length}</figcaption>'
        f'<audio controls preload="metadata" src="data:audio/wav;base64,{sound}"></audio>'
        f'<img alt="Waveform and spectrogram of {name}" width="600" height="390" style="height: auto" '
        f'src="data:image/png;base64,{base64.b64encode(drawn).decode()}"></figure>'
    )
