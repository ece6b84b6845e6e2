"""What `generate` made is never lost: the place is tried before the first sample, and another one found at the end."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from audio import cli
from audio.io import read_audio
from s4nd.cli import main
from tests.test_mistakes import AUDIO


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('run')
    (folder / 'sound.yaml').write_text(AUDIO)
    assert main(['train', f'{folder}/sound.yaml', f'out={folder}/out', 'max_steps=1']) == 0
    return folder / 'out'


@pytest.mark.parametrize(
    ('out', 'message'),
    [
        ('a.mp3', r'a\.mp3: \.mp3 of 1000 Hz cannot be written'),
        ('file/a.wav', r'cannot be written: .*file is no folder.*a\.wav'),
        ('folder.wav', r'out: .*folder\.wav is a folder'),
        ('picture.wav', r'out: .*picture\.png is a folder'),
        ('x' * 246 + '.wav', 'File name too long'),
        ('/dev/null/a.wav', 'cannot be written'),
        ('small/a.wav', r'small: 39 bytes are free, expected 40'),
    ],
)
def test_the_place_is_tried_before_the_first_sample(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
    message: str,
) -> None:
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder.wav').mkdir()
    (tmp_path / 'picture.png').mkdir()
    room = shutil.disk_usage
    monkeypatch.setattr(
        'shutil.disk_usage', lambda path: SimpleNamespace(free=39) if path.name == 'small' else room(path)
    )
    monkeypatch.setattr(cli, 'stream', lambda *_: pytest.fail('a sample was made'))
    assert main(['generate', f'checkpoint={run}', 'length=20', f'out={tmp_path / out}']) in (1, 2)
    assert re.search(message, capsys.readouterr().err)


def test_a_disk_that_fills_up_meanwhile(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / 'whole.wav'
    assert main(['generate', f'checkpoint={run}', 'length=50', f'out={whole}']) == 0
    real = cli.write_audio

    def full(path: Path, *rest: object) -> Path:
        if Path(path).parent == tmp_path / 'full':
            raise OSError(28, 'No space left on device', str(path))
        return real(path, *rest)

    monkeypatch.setattr(cli, 'write_audio', full)
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr('tempfile.tempdir', None)
    capsys.readouterr()
    assert main(['generate', f'checkpoint={run}', 'length=50', f'out={tmp_path}/full/a.wav']) == 1
    kept = re.search(r'what was generated is kept in (\S+)', capsys.readouterr().err)
    assert torch.equal(read_audio(Path(kept[1]) / 'a.wav')[0], read_audio(whole)[0])


def test_the_compiled_loop_without_a_folder_that_can_be_written() -> None:
    pytest.importorskip('numba')
    script = """
import numba, warnings
real = numba.njit
def njit(*args, **options):
    if options.pop('cache', False):
        raise RuntimeError('cannot cache function: no locator available')
    return real(*args, **options)
numba.njit = njit
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import audio.generation.loops as loops
assert [str(w.message) for w in caught if 'compiled in every process' in str(w.message)], caught
assert callable(loops.step)
"""
    subprocess.run([sys.executable, '-c', script], check=True, timeout=120, cwd=Path(__file__).parents[2])
