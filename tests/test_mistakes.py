"""Plain mistakes on the command line: one line that names the option, never a traceback."""

from pathlib import Path

import pytest
from PIL import Image

from s4nd import cli

CONFIG = """
model: {name: s4nd_isotropic_mini, args: {dim: 8, depths: [1, 1, 1], d_state: 4, bandlimit: 0.5}}
data: {kind: shapes, size: 8, batch_size: 10, train_count: 40, test_count: 20}
epochs: 1
device: cpu
"""
AUDIO = """
task: audio
model: {name: sashimi, args: {d_model: 8, n_layers: 1, pool: [4], d_state: 4}}
data: {kind: plucked, sample_rate: 1000, clip_samples: 64, bits: 6, batch_size: 2, train_count: 4, test_count: 2}
epochs: 1
device: cpu
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('runs')
    (folder / 'tiny.yaml').write_text(CONFIG)
    (folder / 'sound.yaml').write_text(AUDIO)
    for name in ('tiny', 'sound'):
        assert cli.main(['train', f'{folder}/{name}.yaml', f'out={folder}/{name}', 'max_steps=1']) == 0
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    code = cli.main(list(words))
    printed = capsys.readouterr().err.strip()
    assert code in (1, 2) and printed.startswith('error: ') and '\n' not in printed and len(printed) < 500, printed
    return printed


TRAIN = [
    'model.args.depths=[]', 'model.args.depths=0', 'model.args.depths=[a]',
    'model.args.dim=abc', 'model.args.dim=0', 'model.args.dim=-3', 'model.args.dim=1.5', 'model.args.dim=[8]',
    'model.args.drop_path_rate=2', 'model.args.drop_path_rate=-1', 'model.args.drop_path_rate=nan',
    'model.args.bandlimit=nan', 'model.args.bandlimit=.nan', 'model.args.bandlimit=-1', 'model.args.dt_min=abc',
    'model.args.num_classes=3', 'model.args.num_classes=0', 'model.args.in_chans=1', 'model.args.d_state=0',
    'model.args.img_size=0', 'model.args.patch=100', 'model.args.kernel=nosuch', 'model.args.init=nosuch',
    'model.args.foo=null', 'model.args.foo=1', 'model.args.mixer_args=3', 'model.args=[1]', 'model=3', 'model.name=',
    'model.name=nosuch', 'data.sizes={}', 'data.sizes=3', 'data.sizes=[0]', 'data.sizes=[99999999]', 'data.size=0',
    'data.size=100000', 'data.crop_padding=999999999', 'data.batch_size=999999999999', 'data.train_count=999999999999',
    'data.batch_size=0', 'data.workers=100000', 'data.kind=folder', 'data.sequence=true', 'eval.limit=0',
    'optim.warmup_epochs=inf', 'optim.lr=nan', 'optim.lr=inf',
    'optim.lr=abc', 'optim.name=nosuch', 'optim.ema=2', 'optim.clip_grad=nan', 'seed=99999999999999999999999',
    'seed=-1', 'epochs=0', 'epochs=99999999999999999999999', 'threads=999999', 'lr=1', 'epoch=1', '=3', 'a=[1',
    'save.minutes=-1', 'save.updates=0', 'optim.lr=${oc.env:HOME', 'precision=fp8', 'device=tpu', 'model.args.=1',
]  # fmt: skip


@pytest.mark.parametrize('word', TRAIN)
def test_train(folder: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    before = (folder / 'tiny' / 'last.safetensors').read_bytes()
    printed = told(capsys, 'train', f'{folder}/tiny.yaml', f'out={folder}/tiny', 'overwrite=true', word)
    key = word.partition('=')[0]
    if word.startswith(('model', 'data', 'optim')) and key not in ('model.args.', 'data.kind'):
        assert key.split('.')[-1] in printed or word.partition('=')[2] in printed, printed
    assert (folder / 'tiny' / 'last.safetensors').read_bytes() == before  # a mistake costs nothing


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        (['sound.yaml', 'data.sample_rate=99'], 'data.sample_rate: expected at least 100, got 99'),
        (['sound.yaml', 'data.sample_rate=10000001'], 'data.sample_rate: expected at most 10000000, got 10000001'),
        (['video/moving_s4nd', 'data.rand_augment_layers=101'], 'expected at most 100, got 101'),
        (['tiny.yaml', 'data.kind=folder', 'data.root=images', 'data.cache=/dev/null'], '/dev/null is no folder'),
        (['tiny.yaml', 'data.kind=folder', 'data.root=images', 'data.cache=tiny.yaml/a'], 'tiny.yaml is no folder'),
        (
            ['tiny.yaml', 'data.kind=folder', 'data.root=/dev/zero'],
            'data.root: /dev/zero is neither a file nor a folder',
        ),
        (['sound.yaml', 'data.kind=folder', 'data.root=/dev/zero'], 'data.root: /dev/zero is neither'),
        (
            ['tiny.yaml', 'data.kind=folder', 'data.stream=true', 'data.root=images', 'data.sequence=true'],
            'no sequences',
        ),
    ],
)
def test_bounds_and_places(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    monkeypatch.chdir(folder)
    for name in ('a/1.png', 'a/2.png', 'b/1.png', 'b/2.png'):
        (folder / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(folder / 'images' / name)
    printed = told(capsys, 'train', *words, 'data.val_fraction=0.4', 'out=new')
    assert expected in printed, printed


@pytest.mark.parametrize(
    'word', ['data.size=16', 'optim.name=sgd', 'optim.weight_decay=5', 'model.args.bandlimit=null']
)
def test_resume(folder: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    printed = told(capsys, 'train', f'{folder}/tiny/config.yaml', 'resume=true', word)
    assert word.partition('=')[0] in printed and 'resume=true cannot change' in printed


@pytest.mark.parametrize(
    'text', ['42', '[1]', 'abc', '', 'a: b: c', '1: 2', '\x00', 'model: {args: {1: 2}}', '- ', 'epochs: ${oc.env:HOME}']
)
def test_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / 'c.yaml').write_text(text)
    told(capsys, 'train', str(tmp_path / 'c.yaml'), f'out={tmp_path}/out')


def test_other_files(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'latin.yaml').write_bytes('label: Größe'.encode('latin-1'))
    bomb = 'a0: &a0 [x, x]\n' + ''.join(f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]\n' for n in range(1, 20))
    (tmp_path / 'bomb.yaml').write_text(bomb)
    for name in ('latin.yaml', 'bomb.yaml', 'nosuch.yaml', ''):
        told(capsys, 'train', str(tmp_path / name), 'model.name=x')


@pytest.mark.parametrize(
    'words',
    [
        ['sizes=[100000]'], ['sizes=[0]'], ['sizes=[a]'], ['limit=0'], ['nosuch=1'], ['data.size=abc'],
        ['checkpoint=/nowhere'],
    ],
)  # fmt: skip
def test_evaluate(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    told(capsys, 'evaluate', f'checkpoint={folder}/tiny', *words)


@pytest.mark.parametrize(
    'word',
    [
        'seconds=1e308', 'seconds=nan', 'seconds=-1', 'seconds=0', 'batch=999999999999', 'batch=0', 'length=0',
        'length=999999999999', 'temperature=-1', 'top_p=2', 'temperature=nan', 'label=a', 'prompt=/nowhere.wav',
        'seed=x', 'out=a.xyz', 'device=tpu', 'nosuch=1', 'checkpoint=/nowhere',
    ],
)  # fmt: skip
def test_generate(folder: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    words = [f'checkpoint={folder}/sound', f'out={folder}/a.wav']
    told(capsys, 'generate', *(entry for entry in words if entry.partition('=')[0] != word.partition('=')[0]), word)
