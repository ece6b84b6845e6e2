"""Reading, writing and pictures of audio files."""

import math
import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio.io import (
    AudioInfo,
    audio_info,
    check_writable,
    examine_audio,
    read_audio,
    resample,
    write_audio,
    write_spectrogram,
)


def sine(samples: int, rate: int, frequency: float = 200.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * frequency * torch.arange(samples) / rate)


@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg', '.mp3'])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    wave = sine(8000, 8000)
    path = write_audio(tmp_path / f'a{suffix}', wave, 8000)
    back, rate = read_audio(path)
    assert rate == 8000
    if suffix in ('.wav', '.flac'):
        torch.testing.assert_close(back, wave, atol=2e-4, rtol=0)
    else:
        assert abs(back.square().mean().sqrt() - wave.square().mean().sqrt()) < 0.02
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_only_the_stretch_is_read(tmp_path: Path) -> None:
    wave = sine(1000, 8000)
    path = write_audio(tmp_path / 'a.wav', wave, 8000)
    part, _ = read_audio(path, start=100, frames=50)
    torch.testing.assert_close(part, wave[100:150], atol=2e-4, rtol=0)
    assert len(read_audio(path, start=990, frames=50)[0]) == 10
    assert audio_info(path).frames == 1000


def test_mono_mix_and_peak(tmp_path: Path) -> None:
    left, right = np.full(100, 0.5, dtype=np.float32), np.full(100, -0.25, dtype=np.float32)
    path = tmp_path / 'stereo.wav'
    soundfile.write(path, np.stack([left, right], 1), 8000, subtype='FLOAT')
    assert torch.equal(read_audio(path)[0], torch.full((100,), 0.125))
    assert examine_audio(path, block=7) == (AudioInfo(100, 2, 8000), 0.125)


def test_resampling_keeps_the_tone(tmp_path: Path) -> None:
    path = write_audio(tmp_path / 'a.wav', sine(16000, 16000), 16000)
    wave, rate = read_audio(path, sample_rate=8000)
    assert rate == 8000 and len(wave) == 8000
    torch.testing.assert_close(wave[100:-100], sine(8000, 8000)[100:-100], atol=5e-3, rtol=0)
    assert len(resample(torch.zeros(10), 3, 2)) == 7


def test_samples_out_of_range_are_clipped(tmp_path: Path) -> None:
    path = write_audio(tmp_path / 'a.wav', torch.tensor([2.0, -2.0]), 8000)
    torch.testing.assert_close(read_audio(path)[0], torch.tensor([1.0, -1.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_arrays_are_written_as_tensors_are(tmp_path: Path, dtype: type) -> None:
    wave = sine(8000, 8000)
    array = wave.numpy().astype(dtype)
    for name, given, expected in (
        ('a', array, wave), ('b', array[::-1], wave.flip(0)), ('c', array.reshape(2, -1), wave.reshape(2, -1)),
    ):  # fmt: skip
        paths = [write_audio(tmp_path / f'{name}{i}.wav', value, 8000) for i, value in enumerate((given, expected))]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert write_spectrogram(tmp_path / 'a.png', array, 8000).stat().st_size > 1000
    for whole in ((32767 * array).astype(np.int16), torch.ones(10, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r'floating-point numbers within \[-1, 1\], got torch\.int'):
            write_audio(tmp_path / 'd.wav', whole, 8000)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_audio(tmp_path / 'a.wav', sine(10, 8000), 8000)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_audio(path, sine(10, 8000), 'fast')
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['a.wav']


def test_spectrogram_picture(tmp_path: Path) -> None:
    path = write_spectrogram(tmp_path / 'a.png', sine(4000, 8000), 8000, title='a tone')
    assert path.read_bytes().startswith(b'\x89PNG')
    assert write_spectrogram(tmp_path / 'short.png', torch.zeros(1), 8000).stat().st_size > 0


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r'no-such\.wav'):
        read_audio('no-such.wav')


def test_corrupt_file(tmp_path: Path) -> None:
    path = tmp_path / 'broken.wav'
    path.write_bytes(b'this is not sound')
    for read in (read_audio, audio_info, examine_audio):
        with pytest.raises(ValueError, match=r'broken\.wav: not a readable audio file'):
            read(path)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / 'nan.wav'
    soundfile.write(path, np.array([0.0, np.nan], dtype=np.float32), 8000, subtype='FLOAT')
    for read in (read_audio, examine_audio):
        with pytest.raises(ValueError, match=r'nan\.wav: holds samples that are not finite'):
            read(path)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write '\.xyz'"):
        write_audio(tmp_path / 'a.xyz', sine(10, 8000), 8000)
    with pytest.raises(ValueError, match=r'\(1, 2, 3\)'):
        write_audio(tmp_path / 'a.wav', torch.zeros(1, 2, 3), 8000)


def tone(samples: int = 30000) -> torch.Tensor:
    return 0.5 * torch.sin(torch.arange(samples) / 20)


@pytest.mark.parametrize('subtype', ['GSM610', 'IMA_ADPCM', 'MS_ADPCM', 'PCM_16', 'ULAW', 'FLAC', 'unknown length'])
def test_what_passes_the_scan_reads_later_from_anywhere(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / ('a.flac' if subtype in ('FLAC', 'unknown length') else 'a.wav')
    soundfile.write(path, tone().numpy(), 8000, subtype=None if path.suffix == '.flac' else subtype)
    if subtype == 'unknown length':
        content = bytearray(path.read_bytes())
        content[21] &= 0xF0
        content[22:26] = bytes(4)
        path.write_bytes(content)
    info, peak = examine_audio(path)
    whole, rate = read_audio(path)
    assert rate == 8000 and len(whole) == info.frames >= 30000 and 0.4 < peak < 0.6
    for start, frames in ((0, 7), (10007, 3001), (info.frames - 5, 100), (info.frames + 9, 4)):
        assert torch.equal(read_audio(path, start=start, frames=frames)[0], whole[start : start + frames])


@pytest.mark.parametrize('subtype', ['PCM_16', 'FLOAT', 'GSM610'])
def test_a_wav_cut_short_is_refused(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / 'a.wav', tone().numpy(), 8000, subtype=subtype)
    content = (tmp_path / 'a.wav').read_bytes()
    examine_audio(tmp_path / 'a.wav')
    for length in (len(content) // 2, len(content) - 100):
        (tmp_path / 'b.wav').write_bytes(content[:length])
        with pytest.raises(ValueError, match=r'b\.wav: ends \d+ bytes before its header says'):
            examine_audio(tmp_path / 'b.wav')


def test_absurd_headers_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / 'a.wav', tone(100).numpy(), 8000)
    content = bytearray((tmp_path / 'a.wav').read_bytes())
    for place, value in ((24, 4_000_000_000), (24, 1), (22, 1000)):
        changed = bytearray(content)
        changed[place : place + 4 if place == 24 else place + 2] = value.to_bytes(4 if place == 24 else 2, 'little')
        (tmp_path / 'b.wav').write_bytes(changed)
        with pytest.raises(ValueError, match=r'b\.wav: '):
            examine_audio(tmp_path / 'b.wav')


@pytest.mark.parametrize(('source', 'target'), [(44101, 16000), (16000, 44101), (8000, 7999), (96001, 8000)])
def test_rates_without_a_common_divisor_cost_no_more(source: int, target: int) -> None:
    wave = torch.sin(2 * math.pi * 440 * torch.arange(source // 2) / source)
    before = resource.getrusage(resource.RUSAGE_SELF)
    made = resample(wave, source, target)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert len(made) == -(-len(wave) * target // source)
    expected = torch.sin(2 * math.pi * 440 * torch.arange(len(made)) / target)
    torch.testing.assert_close(made[200:-200], expected[200:-200], atol=2e-3, rtol=0)
    assert after.ru_utime - before.ru_utime < 2 and after.ru_maxrss - before.ru_maxrss < 400_000  # s, KB


@pytest.mark.parametrize(('source', 'target'), [(441, 160), (160, 441), (3, 2)])
def test_both_ways_of_resampling_agree(source: int, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    expected = resample(wave, source, target)
    monkeypatch.setattr('audio.io._LARGEST_FILTER', 0)
    torch.testing.assert_close(resample(wave, source, target), expected, atol=1e-4, rtol=0)


def test_a_rate_that_a_format_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'a\.mp3: \.mp3 of 7001 Hz cannot be written'):
        check_writable(tmp_path / 'a.mp3', 7001)
    check_writable(tmp_path / 'a.wav', 7001)
    assert not list(tmp_path.iterdir())
