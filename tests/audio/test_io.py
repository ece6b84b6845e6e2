"""Reading, writing and pictures of audio files."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audio.io import AudioInfo, audio_info, examine_audio, read_audio, resample, write_audio, write_spectrogram


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
