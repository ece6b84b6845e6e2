"""Folders of audio and the embedded melodies."""

import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import audio.io
from audio.data.datasets import FolderClips
from audio.data.files import PARTS, SPOKEN_DIGITS, at_rate, scan_folder, split_files
from audio.data.parts import folder_parts, speech_commands_parts
from audio.data.plucked import PITCHES, PluckedClips, pluck, plucked_melody
from audio.io import read_audio, resample, write_audio
from audio.tasks import build
from s4nd.train import main as train
from s4nd.training.config import load_config
from tests.audio.data.conftest import ramp
from tests.audio.data.test_files import speech_commands


def where(clip: torch.Tensor) -> int:
    """First frame of a clip of `ramp`."""
    return round(clip[0].item() * 16384) - 1


def test_windows_are_side_by_side_and_move_with_the_epoch(folder: Path) -> None:
    files, _ = scan_folder(folder)
    stretches = split_files(files, folder, 'time', 0.06)['train']
    still = FolderClips(stretches, 300)
    assert [where(still[i]) for i in range(len(still))] == [0, 300, 0, 300, 600, 900, 1200]
    moving = FolderClips(stretches, 300, shift_seed=1)
    seen = set()
    for epoch in range(10):
        moving.epoch = epoch
        first, second = where(moving[0]), where(moving[1])
        assert second - first == 300 and 0 <= first <= 280
        seen.add(first)
    assert len(seen) > 3


def test_short_files_are_filled_up_with_silence(folder: Path) -> None:
    files, _ = scan_folder(folder)
    clips = FolderClips(split_files(files, folder, 'files', 0.0)['train'], 1500)
    assert len(clips) == 2
    assert clips[0].shape == (1500,)
    assert (clips[0][1000:] == 0).all() and (clips[0][:1000] > 0).all()


@pytest.mark.parametrize('source', [16000, 24000, 11025, 16001, 192000])
def test_a_file_of_another_rate_is_resampled_once_and_as_a_whole(
    tmp_path: Path, source: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = torch.arange(2 * source) / source
    wave = 0.4 * torch.sin(2 * math.pi * 150 * t) + 0.3 * torch.sin(2 * math.pi * 217 * t)
    write_audio(tmp_path / 'set' / 'a.wav', wave, source)
    monkeypatch.setattr(audio.io.resample_file, '__defaults__', (source // 3,))  # in several blocks
    files = at_rate(scan_folder(tmp_path / 'set')[0], 8000, tmp_path / 'cache')
    clips = FolderClips(split_files(files, tmp_path / 'set', 'files', 0.0)['train'], 1000)
    assert len(clips) == 16 and files[0].path == tmp_path / 'set' / 'a.wav'
    whole = resample(read_audio(tmp_path / 'set' / 'a.wav')[0], source, 8000)
    torch.testing.assert_close(torch.cat([clips[i] for i in range(16)]), whole, atol=1e-6, rtol=0)
    monkeypatch.setattr('audio.data.files.resample_file', lambda *_: pytest.fail('resampled again'))
    assert at_rate(scan_folder(tmp_path / 'set')[0], 8000, tmp_path / 'cache') == files
    write_audio(tmp_path / 'set' / 'a.wav', wave[:-8], source)
    with pytest.raises(pytest.fail.Exception):  # another file of that name is another sound
        at_rate(scan_folder(tmp_path / 'set')[0], 8000, tmp_path / 'cache')


@pytest.mark.parametrize('subtype', ['GSM610', 'IMA_ADPCM', 'MS_ADPCM'])
def test_codings_without_a_seek_are_decoded_once(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / 'a.wav', 0.5 * np.sin(np.arange(30000) / 20), 8000, subtype=subtype)
    parts = folder_parts(tmp_path, 500, 8000, fraction=0.1, cache=tmp_path / 'cache')
    whole, _ = read_audio(tmp_path / 'a.wav')
    clips = parts['val']
    stretch = clips.windows[0][1]
    assert stretch.file.sound != stretch.file.path and len(clips) == 6
    for index in range(6):
        start = stretch.start + 500 * index
        torch.testing.assert_close(clips[index], whole[start : start + 500], atol=1e-6, rtol=0)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_audio(tmp_path / 'set' / 'a.wav', ramp(4000), 16000)
    (tmp_path / 'cache').write_text('a file')
    with pytest.raises(OSError, match=r'cache is no folder'):
        folder_parts(tmp_path / 'set', 100, 8000, cache=tmp_path / 'cache')


def test_normalization(folder: Path) -> None:
    files, _ = scan_folder(folder)
    stretches = split_files(files, folder, 'files', 0.0)['train']
    assert FolderClips(stretches, 1000, normalize='peak')[0].max() == pytest.approx(1, abs=1e-3)
    clip = FolderClips(stretches, 500, normalize='min-max')[1]
    assert (clip.min(), clip.max()) == (-1, 1)
    with pytest.raises(ValueError, match=r"'loud'.*none, peak, min-max"):
        FolderClips(stretches, 500, normalize='loud')


def test_parts_need_clips(folder: Path) -> None:
    parts = folder_parts(folder, 100, 8000)
    assert [len(parts[part]) for part in PARTS] == [8 + 17, 2, 2]
    with pytest.raises(ValueError, match='no clip of 1000 samples at 8000 Hz for the val part'):
        folder_parts(folder, 1000, 8000)


def test_passed_over_files_are_kept_with_the_clips(folder: Path) -> None:
    write_audio(folder / 'silent.wav', torch.zeros(100), 8000)
    with pytest.warns(UserWarning, match='silent'):
        parts = folder_parts(folder, 100, 8000)
    assert [{path.name: why for path, why in clips.skipped.items()} for clips in parts.values()] == [
        {'silent.wav': 'silent'}
    ] * 3


def test_a_tar_gives_the_clips_of_its_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp('pack')
    with tarfile.open(elsewhere / 'pack.tar', 'w') as tar:
        tar.add(folder, 'pack')
    plain, packed = folder_parts(folder, 100, 8000), folder_parts(elsewhere / 'pack.tar', 100, 8000, cache=elsewhere)
    for part in PARTS:
        assert len(plain[part]) == len(packed[part]) > 0
        assert all(torch.equal(plain[part][i], packed[part][i]) for i in range(len(plain[part])))


def test_labeled_digits(tmp_path: Path) -> None:
    for digit in ('3', '7'):
        for index in (0, 5, 10, 11):
            write_audio(tmp_path / f'{digit}_theo_{index}.wav', 0.1 * int(digit) * torch.ones(150), 8000)
    parts = folder_parts(tmp_path, 100, 8000, split='digits', labels='name')
    assert [len(parts[part]) for part in PARTS] == [4, 2, 2]
    for clips in parts.values():
        assert clips.classes == ('3', '7')
        assert [round(10 * clips[i][0].item()) for i in range(len(clips))] == [
            int(clips.classes[k]) for k in clips.labels
        ]


def test_sc09_clips(tmp_path: Path) -> None:
    base = speech_commands(tmp_path)
    write_audio(base / 'zero' / '000_nohash_0.wav', torch.zeros(800), 16000)
    with pytest.warns(UserWarning, match='passed over 1 of 6'):
        parts = speech_commands_parts(
            tmp_path, 500, 8000, words=SPOKEN_DIGITS, labels='folder', cache=tmp_path / 'cache'
        )
    assert [len(parts[part]) for part in PARTS] == [3, 1, 1]
    assert parts['train'].classes == ('seven', 'zero') and parts['train'].labels == [0, 0, 1]
    clip = parts['test'][0]
    assert clip.shape == (500,) and (clip[400:] == 0).all() and (clip[1:399] > 0).all()


def test_every_kind_is_reached_by_its_config(tmp_path: Path) -> None:
    for folder in ('fsdd', 'pack/fsdd'):
        (tmp_path / folder).mkdir(parents=True)
        for index in (0, 5, 10, 11):
            write_audio(tmp_path / folder / f'{index % 2}_theo_{index}.wav', ramp(500), 8000)
    with tarfile.open(tmp_path / 'fsdd.tar', 'w') as tar:
        tar.add(tmp_path / 'pack')
    speech_commands(tmp_path)
    (tmp_path / 'a.yaml').write_text('task: audio\nmodel: {name: sashimi, args: {d_model: 4, n_layers: 1, d_state: 4}}')
    common = ['data.sample_rate=8000', 'data.clip_samples=400', f'data.cache={tmp_path}/cache']
    expected = {
        (f'data.root={tmp_path}/fsdd', 'data.kind=digits', 'data.labels=name'): ([2, 1, 1], ('0', '1')),
        (f'data.root={tmp_path}/fsdd.tar', 'data.kind=digits'): ([2, 1, 1], ()),
        (f'data.root={tmp_path}', 'data.kind=sc09', 'data.labels=folder'): ([4, 1, 1], ('seven', 'zero')),
        (f'data.root={tmp_path}', 'data.kind=speech_commands', 'data.labels=folder'): (
            [5, 2, 2],
            ('cat', 'seven', 'zero'),
        ),
        (f'data.root={tmp_path}/fsdd', 'data.split=files', 'data.val_fraction=0.2'): ([2, 1, 1], ()),
    }
    for words, (counts, classes) in expected.items():
        _, task = build(load_config(tmp_path / 'a.yaml', [*common, *words]))
        assert [len(task.parts[part]) for part in PARTS] == counts and task.classes == classes
    with pytest.raises(ValueError, match=r'no Speech Commands there, and data\.download=true'):
        build(load_config(tmp_path / 'a.yaml', ['data.kind=sc09', f'data.root={tmp_path}/fsdd']))


def test_the_report_counts_what_was_passed_over(folder: Path) -> None:
    (folder / 'broken.wav').write_bytes(b'nothing')
    write_audio(folder / 'silent.wav', torch.zeros(100), 8000)
    (folder / 'a.yaml').write_text('task: audio\nmodel: {name: sashimi, args: {d_model: 4, n_layers: 1, d_state: 4}}')
    words = [f'data.root={folder}', 'data.clip_samples=100', 'data.sample_rate=8000', 'epochs=1', f'out={folder}/run']
    with pytest.warns(UserWarning, match='passed over 2 of 4'):
        report = train([str(folder / 'a.yaml'), *words])
    assert report['skipped_files']['count'] == 2
    assert [Path(text.split(': ')[0]).name for text in report['skipped_files']['first']] == ['broken.wav', 'silent.wav']
    assert json.loads((folder / 'run' / 'report.json').read_text())['skipped_files'] == report['skipped_files']


@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg', '.mp3'])
def test_windows_of_every_format_are_cut_out_of_the_whole(tmp_path: Path, suffix: str) -> None:
    t = torch.arange(120_000) / 16000
    path = write_audio(tmp_path / f'a{suffix}', 0.5 * torch.sin(2 * math.pi * (100 * t + 90 * t**2)), 16000)
    whole, _ = read_audio(path)
    clips = FolderClips(split_files(scan_folder(tmp_path)[0], tmp_path, 'files', 0.0)['train'], 7000)
    for i in (0, 4, 9):  # not near the end of the OGG, where libsndfile jumps a little too far
        torch.testing.assert_close(clips[i], whole[7000 * i : 7000 * (i + 1)], atol=1e-6, rtol=0)


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
