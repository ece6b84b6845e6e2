"""Audio files: reading, writing, resampling, spectrogram pictures. The only place that opens sound files.

Waveforms are float32 in [-1, 1], (T,) mono. WAV, FLAC, OGG and MP3 go through soundfile; torchaudio (resampling) and
matplotlib (pictures) are imported on first use, so that neither is needed to read a file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class AudioInfo:
    """Frames (samples a channel), channels and sample rate (Hz) of a file, read from its header."""

    frames: int
    channels: int
    sample_rate: int


def audio_info(path: str | Path) -> AudioInfo:
    """Read a file's header. Raises FileNotFoundError, or ValueError naming a file that is not readable audio."""
    with _opened(path) as file:
        return AudioInfo(file.frames, file.channels, file.samplerate)


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
        start = min(start, file.frames)
        before = min(start, _MP3_CONTEXT) if file.format == 'MP3' else 0
        file.seek(start - before)
        data = file.read(-1 if frames is None else before + frames, dtype='float32', always_2d=True)[before:]
        rate = file.samplerate
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
        info = AudioInfo(file.frames, file.channels, file.samplerate)
        # Not file.blocks, which gives a file that ends early its full length.
        while len(data := file.read(block, dtype='float32', always_2d=True)):
            if not np.isfinite(data).all():
                raise ValueError(f'{path}: holds samples that are not finite')
            largest, frames = max(largest, float(np.abs(data.mean(axis=1)).max(initial=0.0))), frames + len(data)
    if frames < info.frames:
        raise ValueError(f'{path}: ends after {frames} of {info.frames} frames')
    if frames == 0:
        raise ValueError(f'{path}: holds no sound')
    return info, largest


def resample(wave: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Band-limited resampling (…, T) -> (…, ceil(T * to_rate / from_rate))."""
    from torchaudio.functional import resample as sinc_resample

    return sinc_resample(wave, from_rate, to_rate)


def write_audio(path: str | Path, waveform: Tensor, sample_rate: int) -> Path:
    """Write (T,) or (channels, T); the suffix names the format. Samples beyond [-1, 1] are clipped.

    Raises ValueError for an unknown suffix or a tensor that is not 1-D or 2-D.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f'{path}: cannot write {path.suffix!r}, expected one of {", ".join(SUFFIXES)}')
    if waveform.dim() not in (1, 2):
        raise ValueError(f'a waveform is (T,) or (channels, T), got {tuple(waveform.shape)}')
    data = waveform.detach().to('cpu', torch.float32).clamp(-1, 1).numpy()
    samples = data.T if data.ndim == 2 else data
    write_atomically(path, lambda temporary: soundfile.write(temporary, samples, sample_rate))
    return path


def write_spectrogram(path: str | Path, waveform: Tensor, sample_rate: int, *, title: str = '') -> Path:
    """Write the picture of `spectrogram_png`; returns its path."""
    path, picture = Path(path), spectrogram_png(waveform, sample_rate, title=title)
    write_atomically(path, lambda temporary: temporary.write_bytes(picture))
    return path


def spectrogram_png(
    waveform: Tensor, sample_rate: int, *, title: str = '', size: tuple[float, float] = (9, 5), dpi: int = 120
) -> bytes:
    """PNG of a mono clip (T,): the waveform over its spectrogram in dB against the loudest bin; `size` in inches."""
    # The object interface draws without a display and leaves pyplot's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wave = waveform.detach().to('cpu', torch.float32)
    n_fft = max(16, min(1024, 2 ** int(np.log2(max(wave.numel() // 16, 16)))))
    spectrum = torch.stft(
        wave, n_fft, n_fft // 4, window=torch.hann_window(n_fft), pad_mode='constant', return_complex=True
    ).abs()
    decibel = 20 * torch.log10((spectrum / spectrum.max().clamp(min=1e-8)).clamp(min=1e-4))
    seconds = wave.numel() / sample_rate

    figure = Figure(figsize=size, layout='constrained')
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    top.plot(np.arange(wave.numel()) / sample_rate, wave.numpy(), linewidth=0.5)
    top.set_ylabel('amplitude')
    top.set_title(title)
    image = bottom.imshow(
        decibel.numpy(), origin='lower', aspect='auto', extent=(0, seconds, 0, sample_rate / 2000), vmin=-80, vmax=0
    )
    bottom.set_xlabel('time (s)')
    bottom.set_ylabel('frequency (kHz)')
    figure.colorbar(image, ax=bottom, label='dB')
    picture = BytesIO()
    figure.savefig(picture, dpi=dpi, format='png')
    return picture.getvalue()


def wav_bytes(waveform: Tensor, sample_rate: int) -> bytes:
    """A mono clip (T,) as a 16-bit WAV file in memory. Samples beyond [-1, 1] are clipped."""
    import soundfile

    file = BytesIO()
    data = waveform.detach().to('cpu', torch.float32).clamp(-1, 1).numpy()
    soundfile.write(file, data, sample_rate, format='WAV', subtype='PCM_16')
    return file.getvalue()


@contextmanager
def _opened(path: str | Path) -> Iterator['SoundFile']:
    import soundfile

    if not Path(path).is_file():
        raise FileNotFoundError(f'no audio file at {path}')
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise ValueError(f'{path}: not a readable audio file ({error.error_string})') from error
