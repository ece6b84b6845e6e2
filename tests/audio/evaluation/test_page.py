"""The listening page: self-contained, and what it plays is what the files hold."""

import base64
import html
import json
import re
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
import soundfile
import torch

from audio.cli import page as main
from audio.evaluation.page import choose
from audio.io import read_audio, write_audio


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, count in (('real', 5), ('one', 2), ('t&o', 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            write_audio(tmp_path / name / f'{i}.wav', 0.1 * (i + 1) * torch.sin(0.1 * torch.arange(3000)), 8000)
    return tmp_path


def test_page(folders: Path) -> None:
    words = [f'real={folders}/real', f'generated={folders}/one,{folders}/t&o', f'out={folders}/page.html']
    assert main([*words, 'count=3', 'seconds=0.25']) == 0
    text = (folders / 'page.html').read_text(encoding='utf-8')
    assert re.findall(r'<b>(.*?)</b>', text)[:3] == ['real', 'generated: one', 'generated: t&amp;o']
    rows = re.findall(r'<section.*?</section>', text, re.DOTALL)
    assert [(row.count('<audio'), row.count('class="none"')) for row in rows] == [(3, 0), (3, 0), (2, 1)]
    assert text.count('0.25 s at 8000 Hz') == 8
    # Nothing is fetched from elsewhere.
    assert set(re.findall(r'(?:src|href)="(.{6})', text)) == {'data:a', 'data:i', 'data:,'}
    sounds = re.findall(r'data:audio/wav;base64,([^"]+)"', text)
    played, rate = soundfile.read(BytesIO(base64.b64decode(sounds[0])), dtype='float32')
    assert rate == 8000
    torch.testing.assert_close(torch.from_numpy(played), read_audio(folders / 'real' / '0.wav', frames=2000)[0])
    pictures = re.findall(r'data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == len(sounds) == 8
    assert all(base64.b64decode(picture).startswith(b'\x89PNG') for picture in pictures)


def test_which_clips_are_chosen(folders: Path) -> None:
    assert [c.name for c in choose(folders / 'real', 3, 1, spread=True)] == ['0.wav', '1.wav', '3.wav']
    assert [c.name for c in choose(folders / 'real', 3, 1, spread=False)] == ['0.wav', '1.wav', '2.wav']
    # Two files, four clips: each gives its beginning and a later place.
    clips = choose(folders / 'one', 4, 0.1, spread=True)
    assert [c.name for c in clips] == ['0.wav', '0.wav', '1.wav', '1.wav']
    whole, _ = read_audio(folders / 'one' / '0.wav')
    assert torch.equal(clips[0].wave, whole[:800]) and torch.equal(clips[1].wave, whole[1100:1900])


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['generated=x', 'out=y'], 'real must be given'),
        (['real=x', 'generated=x', 'out=y', 'clips=3'], "unknown option 'clips'; known: count, generated, out"),
        (['real=x', 'generated=x', 'out=y', 'count=0'], 'count: expected at least 1, got 0'),
        (['real=x', 'generated=x', 'out=y', 'seconds=0'], 'must be positive, got 6 and 0.0'),
        (['real=/no/such', 'generated=x', 'out=y'], 'no folder at /no/such'),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
# The page in a frame as wide as a phone, and what the browser finds there.
FRAME = """<iframe style="width: 375px; height: 800px; border: 0" srcdoc="{page}"></iframe><script>
onload = async () => {{
  const inner = document.querySelector('iframe').contentDocument;
  const players = [...inner.querySelectorAll('audio')];
  await Promise.all(players.map(player => player.readyState || new Promise(done => player.onloadedmetadata = done)));
  const {{ scrollWidth, clientWidth }} = inner.documentElement;
  const found = {{ scrollWidth, clientWidth, durations: players.map(player => player.duration) }};
  document.body.append('FOUND' + JSON.stringify(found) + 'DONE');
}}</script>"""


@pytest.mark.skipif(BROWSER is None, reason='there is no Chromium')
def test_on_a_phone(folders: Path) -> None:
    (folders / 'one' / f'{"a-long-name-" * 8}.wav').write_bytes((folders / 'one' / '0.wav').read_bytes())
    main([f'real={folders}/real', f'generated={folders}/one', f'out={folders}/page.html', 'count=3', 'seconds=0.25'])
    text = (folders / 'page.html').read_text(encoding='utf-8')
    (folders / 'frame.html').write_text(FRAME.format(page=html.escape(text)), encoding='utf-8')
    words = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--enable-logging=stderr',
        f'--user-data-dir={folders}/profile',
    ]
    command = [str(BROWSER), *words, '--virtual-time-budget=10000', '--dump-dom', str(folders / 'frame.html')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(done.stdout.rpartition('FOUND')[2].partition('DONE')[0])
    assert 340 < found['scrollWidth'] == found['clientWidth'] <= 375
    assert found['durations'] == pytest.approx([0.25] * 6)
    assert 'CONSOLE' not in done.stderr
