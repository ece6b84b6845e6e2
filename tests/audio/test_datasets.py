"""Folders of audio and the embedded melodies."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from audio.datasets import (
    PARTS,
    PITCHES,
    FolderClips,
    PluckedClips,
    folder_parts,
    pluck,
    plucked_melody,
    scan_folder,
    split_files,
)
from audio.io import write_audio


def ramp(samples: int) -> torch.Tensor:
    """Every sample differs from its neighbours by 1/16384, so a window tells where it was cut."""
    return torch.arange(1, samples + 1) / 16384


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / 'sub').mkdir()
    write_audio(tmp_path / 'a.wav', ramp(1000), 8000)
    write_audio(tmp_path / 'sub' / 'b.flac', ramp(2000), 8000)
    return tmp_path


def where(clip: torch.Tensor) -> int:
    """First frame of a clip of `ramp`."""
    return round(clip[0].item() * 16384) - 1


def test_scan(folder: Path) -> None:
    files, skipped = scan_folder(folder)
    assert [(f.path.name, f.frames, f.sample_rate) for f in files] == [('a.wav', 1000, 8000), ('b.flac', 2000, 8000)]
    assert skipped == {}
    assert files[0].peak == pytest.approx(1000 / 16384, abs=1e-4)


def test_corrupt_and_silent_files_are_named_and_counted(folder: Path) -> None:
    (folder / 'broken.wav').write_bytes(b'nothing')
    write_audio(folder / 'silent.wav', torch.zeros(100), 8000)
    with pytest.warns(UserWarning, match=r'passed over 2 of 4 audio files: .*broken\.wav: .*silent\.wav: silent'):
        files, skipped = scan_folder(folder)
    assert len(files) == 2
    assert sorted(path.name for path in skipped) == ['broken.wav', 'silent.wav']


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='nowhere'):
        scan_folder(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='no audio files'):
        scan_folder(tmp_path)
    write_audio(tmp_path / 'silent.wav', torch.zeros(100), 8000)
    with pytest.warns(UserWarning, match='silent'), pytest.raises(ValueError, match='none of the 1 audio files'):
        scan_folder(tmp_path)


def test_time_split_keeps_order_and_loses_nothing(folder: Path) -> None:
    files, _ = scan_folder(folder)
    parts = split_files(files, folder, 'time', 0.06)
    for i, frames in enumerate((1000, 2000)):
        cuts = [(parts[part][i].start, parts[part][i].stop) for part in PARTS]
        assert cuts == [(0, 0.88 * frames), (0.88 * frames, 0.94 * frames), (0.94 * frames, frames)]


def test_file_split_is_a_partition(folder: Path) -> None:
    for i in range(20):
        write_audio(folder / f'n{i}.wav', ramp(50), 8000)
    files, _ = scan_folder(folder)
    parts = split_files(files, folder, 'files', 0.1)
    assert [len(parts[part]) for part in PARTS] == [16, 3, 3]
    assert sorted(s.file.path for part in PARTS for s in parts[part]) == [f.path for f in files]
    assert parts == split_files(files, folder, 'files', 0.1)


def test_split_by_lists(folder: Path) -> None:
    files, _ = scan_folder(folder)
    with pytest.raises(ValueError, match=r'validation_list\.txt'):
        split_files(files, folder, 'lists')
    (folder / 'validation_list.txt').write_text('')
    (folder / 'testing_list.txt').write_text('sub/b.flac\n')
    parts = split_files(files, folder, 'lists')
    assert [[s.file.path.name for s in parts[part]] for part in PARTS] == [['a.wav'], [], ['b.flac']]
    with pytest.raises(ValueError, match=r"'random'.*time, files, lists"):
        split_files(files, folder, 'random')


def test_windows_are_side_by_side_and_move_with_the_epoch(folder: Path) -> None:
    files, _ = scan_folder(folder)
    stretches = split_files(files, folder, 'time', 0.06)['train']
    still = FolderClips(stretches, 300, 8000)
    assert [where(still[i]) for i in range(len(still))] == [0, 300, 0, 300, 600, 900, 1200]
    moving = FolderClips(stretches, 300, 8000, shift_seed=1)
    seen = set()
    for epoch in range(10):
        moving.epoch = epoch
        first, second = where(moving[0]), where(moving[1])
        assert second - first == 300 and 0 <= first <= 280
        seen.add(first)
    assert len(seen) > 3


def test_short_files_are_filled_up_with_silence(folder: Path) -> None:
    files, _ = scan_folder(folder)
    clips = FolderClips(split_files(files, folder, 'files', 0.0)['train'], 1500, 8000)
    assert len(clips) == 2
    assert clips[0].shape == (1500,)
    assert (clips[0][1000:] == 0).all() and (clips[0][:1000] > 0).all()


def test_windows_of_a_resampled_file_line_up(tmp_path: Path) -> None:
    t = torch.arange(16000) / 16000
    wave = 0.4 * torch.sin(2 * math.pi * 150 * t) + 0.3 * torch.sin(2 * math.pi * 217 * t)
    write_audio(tmp_path / 'a.wav', wave, 16000)
    files, _ = scan_folder(tmp_path)
    clips = FolderClips(split_files(files, tmp_path, 'files', 0.0)['train'], 1000, 8000)
    assert len(clips) == 8
    joined = torch.cat([clips[i] for i in range(8)])
    torch.testing.assert_close(joined[50:-50], wave[::2][50:-50], atol=5e-3, rtol=0)


def test_normalisation(folder: Path) -> None:
    files, _ = scan_folder(folder)
    stretches = split_files(files, folder, 'files', 0.0)['train']
    assert FolderClips(stretches, 1000, 8000, normalise='peak')[0].max() == pytest.approx(1, abs=1e-3)
    clip = FolderClips(stretches, 500, 8000, normalise='min-max')[1]
    assert (clip.min(), clip.max()) == (-1, 1)
    with pytest.raises(ValueError, match=r"'loud'.*none, peak, min-max"):
        FolderClips(stretches, 500, 8000, normalise='loud')


def test_parts_need_clips(folder: Path) -> None:
    parts = folder_parts(folder, 100, 8000)
    assert [len(parts[part]) for part in PARTS] == [8 + 17, 2, 2]
    with pytest.raises(ValueError, match='no clip of 1000 samples at 8000 Hz for the val part'):
        folder_parts(folder, 1000, 8000)


@pytest.mark.parametrize('frequency', [110.0, 220.0, 392.0])
def test_pluck_has_its_pitch_and_decays(frequency: float) -> None:
    rate = 8000
    note = pluck(frequency, rate, rate)
    spectrum = np.abs(np.fft.rfft(note * np.hanning(rate)))
    period = round(rate / frequency - 0.5)
    assert abs(int(spectrum[: 3 * int(frequency) // 2].argmax()) - rate / (period + 0.5)) <= 1.5
    assert np.abs(note[-1000:]).max() < 0.6 * np.abs(note[:1000]).max()
    direct = list(note[:period])
    for t in range(period, 400):
        before = direct[t - period - 1] if t > period else 0.0
        direct.append(0.996 / 2 * (direct[t - period] + before))
    np.testing.assert_allclose(note[:400], direct, atol=1e-12)


def test_melodies_follow_from_the_seed() -> None:
    clips, again, others = (PluckedClips(3, 2000, 4000, seed) for seed in (0, 0, 1))
    assert torch.equal(clips.clips, again.clips)
    assert not torch.equal(clips.clips, others.clips)
    assert not torch.equal(clips[0], clips[1])
    assert clips.clips.abs().max() <= 1 and (clips.clips.std(1) > 0.05).all()


def test_every_beat_is_a_note_of_the_scale() -> None:
    beats = plucked_melody(3500, 4000, 5)
    notes = [0.7 * pluck(pitch, 1000, 4000) for pitch in PITCHES]
    heard = []
    for start in range(0, 3500, 1000):
        beat = beats[start : start + 1000]
        errors = [np.abs(beat - note[: len(beat)]).max() for note in notes]
        assert min(errors) < 0.06
        heard.append(int(np.argmin(errors)))
    assert len(set(heard)) > 1


def test_pluck_position() -> None:
    with pytest.raises(ValueError, match=r'got 1\.0'):
        pluck(220, 100, 8000, position=1.0)
