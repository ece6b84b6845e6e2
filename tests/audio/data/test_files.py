"""Folders, tars and Speech Commands: what is found, passed over and held out."""

import re
import tarfile
from pathlib import Path

import pytest
import torch

from audio.data.files import PARTS, SPOKEN_DIGITS, class_of, scan_folder, speech_commands_files, split_files, unpacked
from audio.io import write_audio
from tests.audio.data.conftest import ramp


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


def test_what_ends_early_or_holds_nothing_is_passed_over(folder: Path) -> None:
    for suffix in ('.flac', '.ogg', '.mp3'):
        whole = write_audio(folder / f'whole{suffix}', 0.5 * torch.sin(0.05 * torch.arange(20_000)), 8000)
        data = whole.read_bytes()
        whole.rename(folder / f'cut{suffix}').write_bytes(data[: len(data) // 2])
    write_audio(folder / 'empty.wav', torch.zeros(0), 8000)
    with pytest.warns(UserWarning, match='passed over 4 of 6'):
        files, skipped = scan_folder(folder)
    assert [file.path.name for file in files] == ['a.wav', 'b.flac']
    reasons = {path.name: reason for path, reason in skipped.items()}
    assert re.match(r'ends after \d+ of 20000 frames', reasons['cut.mp3'])
    assert reasons['empty.wav'] == 'holds no sound'


def test_digits_are_split_by_their_index(tmp_path: Path) -> None:
    for index in range(50):
        write_audio(tmp_path / f'{index % 10}_theo_{index}.wav', ramp(100), 8000)
    files, _ = scan_folder(tmp_path)
    parts = split_files(files, tmp_path, 'digits')
    indices = {part: sorted(int(s.file.path.stem.split('_')[2]) for s in parts[part]) for part in PARTS}
    assert indices == {'test': list(range(5)), 'val': list(range(5, 10)), 'train': list(range(10, 50))}
    write_audio(tmp_path / 'hello.wav', ramp(100), 8000)
    with pytest.raises(ValueError, match=r"hello\.wav: split 'digits' expects names such as 7_theo_12\.wav"):
        split_files(scan_folder(tmp_path)[0], tmp_path, 'digits')


def test_classes_are_read_off_the_path() -> None:
    assert class_of(Path('root/seven/a_nohash_0.wav'), 'folder') == 'seven'
    assert class_of(Path('root/7_theo_12.wav'), 'name') == '7'
    with pytest.raises(ValueError, match=r"'speaker'.*none, folder, name"):
        class_of(Path('a.wav'), 'speaker')


def speech_commands(root: Path) -> Path:
    """A tiny copy of the layout of Speech Commands, with two digits and a word."""
    base = root / 'SpeechCommands' / 'speech_commands_v0.02'
    for word in ('seven', 'zero', 'cat', '_background_noise_'):
        (base / word).mkdir(parents=True)
        for i in range(3):
            write_audio(base / word / f'00{i}_nohash_0.wav', ramp(800), 16000)
    (base / 'validation_list.txt').write_text('seven/001_nohash_0.wav\ncat/001_nohash_0.wav\n')
    (base / 'testing_list.txt').write_text('zero/002_nohash_0.wav\ncat/002_nohash_0.wav\n')
    return base


def test_sc09_is_the_digits_of_speech_commands_by_their_lists(tmp_path: Path) -> None:
    base = speech_commands(tmp_path)
    found = speech_commands_files(tmp_path, words=SPOKEN_DIGITS)
    names = {part: [path.relative_to(base).as_posix() for path in paths] for part, paths in found.items()}
    assert names['val'] == ['seven/001_nohash_0.wav'] and names['test'] == ['zero/002_nohash_0.wav']
    assert names['train'] == [f'{n}_nohash_0.wav' for n in ('seven/000', 'seven/002', 'zero/000', 'zero/001')]
    every = speech_commands_files(tmp_path)
    assert [len(every[part]) for part in PARTS] == [5, 2, 2]  # 'cat' too, _background_noise_ not
    (base / 'testing_list.txt').unlink()
    with pytest.raises(ValueError, match='incomplete'):
        speech_commands_files(tmp_path)


def test_sc09_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r'no Speech Commands there, and data\.download=true fetches it'):
        speech_commands_files(tmp_path)

    def offline(*_args: object, **_options: object) -> None:
        raise OSError('Name or service not known')

    monkeypatch.setattr('torchaudio.datasets.speechcommands.download_url_to_file', offline)
    with pytest.raises(ValueError, match=r'it could not be downloaded \(Name or service not known\)'):
        speech_commands_files(tmp_path / 'new', download=True)


def test_a_tar_is_unpacked_once(folder: Path, tmp_path: Path) -> None:
    (folder / 'testing_list.txt').write_text('sub/b.flac\n')
    (folder / 'notes.pdf').write_bytes(b'not unpacked')
    archive = tmp_path / 'pack.tar.gz'
    with tarfile.open(archive, 'w:gz') as tar:
        for name in ('a.wav', 'sub/b.flac', 'testing_list.txt', 'notes.pdf'):
            tar.add(folder / name, f'pack-1.0/{name}')
        tar.add(folder / 'a.wav', '../outside.wav')
    root = unpacked(archive, tmp_path / 'cache')
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file()) == [
        'a.wav',
        'sub/b.flac',
        'testing_list.txt',
    ]
    assert not (tmp_path / 'cache' / 'outside.wav').exists()
    (root / 'a.wav').unlink()
    assert not (unpacked(archive, tmp_path / 'cache') / 'a.wav').exists()


def test_a_file_that_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / 'broken.tar'
    path.write_bytes(b'nothing')
    with pytest.raises(ValueError, match=r'broken\.tar is neither a folder nor a whole tar'):
        unpacked(path, tmp_path / 'cache')
    assert list((tmp_path / 'cache').iterdir()) == []
