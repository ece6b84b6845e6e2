"""Audio files: reading, writing, resampling, spectrogram pictures. The only place that opens sound files.

Waveforms are float32 in [-1, 1], (T,) mono. WAV, FLAC, OGG and MP3 go through soundfile; torchaudio (resampling) and
matplotlib (pictures) are imported on first use, so that neither is needed to read a file.
"""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from s4nd.files import write_atomically

if TYPE_CHECKING:
    from soundfile import SoundFile

SUFFIXES = ('.wav', '.flac', '.ogg', '.mp3')

# An MP3 frame may draw on bits of frames before it: after a jump these must be decoded first, or the sound is wrong.
_MP3_CONTEXT = 32 * 1152
# Codings in which a seek lands on the frame that was asked for.
_SEEKABLE = {
    'PCM_S8', 'PCM_U8', 'PCM_16', 'PCM_24', 'PCM_32', 'FLOAT', 'DOUBLE', 'ULAW', 'ALAW', 'VORBIS', 'OPUS',
    'MPEG_LAYER_I', 'MPEG_LAYER_II', 'MPEG_LAYER_III',
}  # fmt: skip
_UNKNOWN = 1 << 40  # frames: a header that says so does not know
_MOST_CHANNELS, _RATES = 64, (100, 10_000_000)
_LARGEST_FILTER = 1000  # reduced rates up to here go through torchaudio, whose filters grow with their product


@dataclass(frozen=True)
class AudioInfo:
    """Frames (samples per channel), channels and sample rate (Hz) of a file, read from its header.

    seekable: reading can begin at any frame; else all frames before it are decoded too.
    """

    frames: int
    channels: int
    sample_rate: int
    seekable: bool = True


def audio_info(path: str | Path) -> AudioInfo:
    """Read a file's header. Raises FileNotFoundError, or ValueError naming a file that is not readable audio."""
    with _opened(path) as file:
        return _info(file)


def read_audio(
    path: str | Path, *, start: int = 0, frames: int | None = None, sample_rate: int | None = None
) -> tuple[Tensor, int]:
    """Read a stretch of a file as mono float32.

    Args:
        path: the file.
        start, frames: first frame and number of frames, in the file's own rate; None reads to the end. Less comes back
            where the file ends earlier. (In the last page of an OGG, libsndfile may land some 64 frames late.)
        sample_rate: resample to this rate (Hz); None keeps the file's.

    Returns:
        Waveform (T,) and its rate.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not readable audio, or holds values that are not finite.
    """
    with _opened(path) as file:
        rate = file.samplerate
        seekable = _info(file).seekable
        before = min(start, _MP3_CONTEXT) if file.format == 'MP3' and seekable else 0
        if seekable:
            file.seek(min(start - before, file.frames))
        else:  # codings of blocks, and files of unknown length, go from the beginning
            for _ in _blocks(file, start):
                pass
        data = np.concatenate([np.zeros((0, file.channels), np.float32), *_blocks(file, frames, before)])[before:]
    if not np.isfinite(data).all():
        raise ValueError(f'{path}: holds samples that are not finite')
    wave = torch.from_numpy(data.mean(axis=1))
    if sample_rate is not None and sample_rate != rate:
        wave, rate = resample(wave, rate, sample_rate), sample_rate
    return wave, rate


def examine_audio(path: str | Path, block: int = 1 << 16) -> tuple[AudioInfo, float]:
    """Header of a file and the largest absolute sample of its mono mix, from reading it through, block by block.

    Raises as `read_audio` does, and ValueError for a file that is empty or ends before its header says.
    """
    largest, frames = 0.0, 0
    with _opened(path) as file:
        info = _info(file)
        # Not file.blocks, which gives a file that ends early its full length.
        for data in _blocks(file, None, block=block):
            if not np.isfinite(data).all():
                raise ValueError(f'{path}: holds samples that are not finite')
            largest, frames = max(largest, float(np.abs(data.mean(axis=1)).max(initial=0.0))), frames + len(data)
    if frames == 0:
        raise ValueError(f'{path}: holds no sound')
    missing = _missing_bytes(Path(path))
    if missing:
        raise ValueError(f'{path}: ends {missing} bytes before its header says')
    unknown = not 0 < info.frames < _UNKNOWN
    if frames < info.frames and not unknown:
        raise ValueError(f'{path}: ends after {frames} of {info.frames} frames')
    return (replace(info, frames=frames) if unknown else info), largest


def resample(wave: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Band-limited resampling (…, T) -> (…, ceil(T * to_rate / from_rate))."""
    unit = math.gcd(from_rate, to_rate)
    if max(from_rate, to_rate) // unit > _LARGEST_FILTER:  # rates with no common divisor: a filter per output sample
        return _resample_coprime(wave, from_rate // unit, to_rate // unit)
    from torchaudio.functional import resample as sinc_resample

    return sinc_resample(wave, from_rate, to_rate)


def _resample_coprime(wave: Tensor, source: int, target: int) -> Tensor:
    """The same windowed sinc, of 6 zero crossings a side, evaluated where the output samples lie, a block at a time."""
    count = -(-wave.shape[-1] * target // source)
    cutoff = 0.99 * min(1.0, target / source)  # of half the source's rate
    reach = math.ceil(6 / cutoff)
    padded = torch.nn.functional.pad(wave, (reach, reach + 1))
    offsets = torch.arange(-reach, reach + 1)
    parts = []
    for numbers in torch.arange(count).split(max(1, (1 << 20) // len(offsets))):
        first, rest = numbers * source // target, (numbers * source % target).double() / target
        t = ((offsets - rest[:, None]) * cutoff).clamp(-6, 6)  # (B, taps) in zero crossings
        taps = torch.sinc(t) * torch.cos(t * math.pi / 12).square() * cutoff
        parts.append((padded[..., first[:, None] + offsets + reach] * taps.to(wave.dtype)).sum(-1))
    return torch.cat(parts, -1) if parts else wave[..., :0]


def resample_file(path: Path, target: Path, sample_rate: int, block: int = 1 << 20) -> None:
    """Write the mono mix of a file at another rate (Hz) as a W64 file of floats; about `block` frames are held at once.

    Raises as `read_audio` does, and OSError where `target` cannot be written.
    """
    import soundfile

    with _opened(path) as source:
        rate = source.samplerate
        unit = rate // math.gcd(rate, sample_rate)  # so many frames make a whole number of samples
        ratio = rate / sample_rate
        size, context = (unit * math.ceil(count / unit) for count in (min(1, ratio) * block, 7 * max(1, ratio) + 1))

        def blocks() -> Iterator[Tensor]:
            while len(data := np.concatenate([np.zeros((0, source.channels), np.float32), *_blocks(source, size)])):
                yield torch.from_numpy(data.mean(axis=1))

        def write(temporary: Path) -> None:
            try:
                with soundfile.SoundFile(os.fsencode(temporary), 'w', sample_rate, 1, 'FLOAT', format='W64') as sink:
                    for wave in _resampled(blocks(), rate, sample_rate, context):
                        sink.write(wave.numpy())
            except soundfile.LibsndfileError as error:
                raise OSError(f'{target}: cannot be written ({error.error_string})') from error

        write_atomically(target, write)


def _resampled(blocks: Iterator[Tensor], rate: int, sample_rate: int, context: int) -> Iterator[Tensor]:
    """Each block with `context` frames of its neighbors around it, where the filter looks."""
    before, wave = torch.zeros(context), next(blocks, torch.zeros(0))
    while len(wave):
        after = next(blocks, torch.zeros(0))
        made = resample(torch.cat([before, wave, after[:context]]), rate, sample_rate)
        begin = context * sample_rate // rate
        yield made[begin : begin + math.ceil(len(wave) * sample_rate / rate)]
        before, wave = torch.cat([before, wave])[-context:], after


def write_audio(path: str | Path, waveform: Tensor | np.ndarray, sample_rate: int) -> Path:
    """Write (T,) or (channels, T); the suffix names the format. Samples beyond [-1, 1] are clipped.

    Raises ValueError for an unknown suffix, a rate that the format does not have, whole numbers, or a waveform that is
    not 1-D or 2-D, and OSError where it cannot be written.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f'{path}: cannot write {path.suffix!r}, expected one of {", ".join(SUFFIXES)}')
    data = _floats(waveform).clamp(-1, 1).numpy()
    if data.ndim not in (1, 2):
        raise ValueError(f'a waveform is (T,) or (channels, T), got {data.shape}')
    samples = data.T if data.ndim == 2 else data
    try:
        write_atomically(path, lambda temporary: soundfile.write(os.fsencode(temporary), samples, sample_rate))
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f'{path}: {path.suffix} of {sample_rate} Hz cannot be written ({error.error_string})'
        ) from error
    return path


def check_writable(path: str | Path, sample_rate: int, samples: int = 64) -> None:
    """Write a moment of silence beside `path`, as `write_audio` would, remove it, and look for room for `samples`.

    Raises as `write_audio` does.
    """
    path = Path(path)
    probe = path.with_name(f'.probe-{path.name}')
    write_audio(probe, torch.zeros(64), sample_rate)
    probe.unlink()
    free = shutil.disk_usage(path.parent).free
    if path.suffix.lower() == '.wav' and 2 * samples > free:  # the others are smaller, nobody knows by how much
        raise OSError(f'{path.parent}: {free:,} bytes are free, expected {2 * samples:,} for what is to be written')


def _floats(waveform: Tensor | np.ndarray) -> Tensor:
    """A waveform as float32 on the CPU."""
    if isinstance(waveform, np.ndarray):  # (copied, since torch takes no negative strides)
        waveform = torch.from_numpy(np.array(waveform))
    if not waveform.is_floating_point():
        raise ValueError(
            f'expected a waveform of floating-point numbers within [-1, 1], got {waveform.dtype}: divide whole numbers '
            'by their range, such as 32768'
        )
    return waveform.detach().to('cpu', torch.float32)


def write_spectrogram(path: str | Path, waveform: Tensor | np.ndarray, sample_rate: int, *, title: str = '') -> Path:
    """Write the picture of `spectrogram_png`; returns its path."""
    path, picture = Path(path), spectrogram_png(waveform, sample_rate, title=title)
    write_atomically(path, lambda temporary: temporary.write_bytes(picture))
    return path


def spectrogram_png(
    waveform: Tensor | np.ndarray,
    sample_rate: int,
    *,
    title: str = '',
    size: tuple[float, float] = (8, 5),
    dpi: int = 140,
    ink: str | None = None,
) -> bytes:
    """PNG of a mono clip (T,): the waveform over its spectrogram in dB against the loudest bin; `size` in inches.

    With `ink`, a color, axes and labels have it and the ground is transparent, for pages that may be light or dark.
    """
    from s4nd import pictures

    wave = _floats(waveform)
    n_fft = max(16, min(1024, 2 ** int(np.log2(max(wave.numel() // 16, 16)))))
    spectrum = torch.stft(
        wave, n_fft, n_fft // 4, window=torch.hann_window(n_fft), pad_mode='constant', return_complex=True
    ).abs()
    decibel = 20 * torch.log10((spectrum / spectrum.max().clamp(min=1e-8)).clamp(min=1e-4))
    seconds = wave.numel() / sample_rate

    picture = BytesIO()
    with pictures.style(ink=ink):
        figure = pictures.figure(size[1], size[0])
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
        top.plot(np.arange(wave.numel()) / sample_rate, wave.numpy(), color=ink or 'C0', linewidth=0.5)
        top.set(ylabel='level', title=title)
        extent = (0, seconds, 0, sample_rate / 2000)
        image = bottom.imshow(decibel.numpy(), origin='lower', aspect='auto', extent=extent, vmin=-80, vmax=0)
        bottom.set(xlabel='time (s)', ylabel='frequency (kHz)')
        figure.colorbar(image, ax=bottom, label='dB')
        figure.savefig(picture, dpi=dpi, format='png', transparent=ink is not None)
    return picture.getvalue()


def wav_bytes(waveform: Tensor | np.ndarray, sample_rate: int) -> bytes:
    """A mono clip (T,) as a 16-bit WAV file in memory. Samples beyond [-1, 1] are clipped."""
    import soundfile

    file = BytesIO()
    data = _floats(waveform).clamp(-1, 1).numpy()
    soundfile.write(file, data, sample_rate, format='WAV', subtype='PCM_16')
    return file.getvalue()


def _info(file: 'SoundFile') -> AudioInfo:
    seekable = file.subtype in _SEEKABLE and 0 < file.frames < _UNKNOWN
    return AudioInfo(file.frames, file.channels, file.samplerate, seekable)


def _blocks(file: 'SoundFile', frames: int | None, before: int = 0, block: int = 1 << 16) -> Iterator[np.ndarray]:
    """The next `before` + `frames` frames (None: all), as they come: what the header claims is not allocated."""
    left = None if frames is None else before + frames
    while left is None or left > 0:
        data = file.read(block if left is None else min(block, left), dtype='float32', always_2d=True)
        if not len(data):
            return
        yield data
        left = None if left is None else left - len(data)


def _missing_bytes(path: Path) -> int:
    """How many bytes of sound a WAV lacks, 0 for other files: libsndfile takes the end of the file for the end."""
    size = path.stat().st_size
    with path.open('rb') as file:
        if file.read(12)[::8] != b'RW':  # RIFF....WAVE
            return 0
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[4:], 'little')
            if head[:4] == b'data':
                # Programs that write as they go leave the largest number, or none.
                return 0 if length >= 0x7FFFF000 else max(0, file.tell() + length - size)
            file.seek(length + length % 2, 1)
    return 0


@contextmanager
def _opened(path: str | Path) -> Iterator['SoundFile']:
    import soundfile

    if not Path(path).is_file():
        raise FileNotFoundError(f'no audio file at {path}')
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # which need not be UTF-8
            if file.channels > _MOST_CHANNELS or not _RATES[0] <= file.samplerate <= _RATES[1]:
                raise ValueError(f'{path}: {file.channels} channels at {file.samplerate} Hz are no recording')
            if file.frames >= _UNKNOWN:
                # soundfile sets the position after every read, which fails at an end that the header does not tell.
                file._info.seekable = 0
            yield file
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        reason = getattr(error, 'error_string', error)
        raise ValueError(f'{path}: not a readable audio file ({reason})') from error
