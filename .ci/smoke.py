"""Every command of an installed s4nd in the folder that it is called from: python .ci/smoke.py PATH_OF_S4ND.

Trains on embedded data, evaluates the weights that ship on a folder of images at four sizes, generates, exports. The
command itself and `python -m s4nd` start once each; the others share this process, since a start takes seconds.
"""

import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import s4nd
from s4nd.cli import main

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


def run(*words: str, code: int = 0) -> str:
    """Run a command, check its exit code, and return what it printed."""
    start, printed = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        found = main(words)
    print(f'{time.perf_counter() - start:6.1f} s  s4nd {" ".join(words)}', flush=True)
    if found != code:
        sys.exit(f'expected the exit code {code}, got {found}\n{printed.getvalue()}')
    return printed.getvalue()


def expect(*paths: str) -> None:
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        sys.exit(f'not written: {missing}')


def images(folder: Path) -> None:
    """Two random images of 40 x 30 pixels per class of CIFAR-10."""
    random = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / name / f'{number}.png')


location = Path(s4nd.__file__).parent
if location.is_relative_to(Path(__file__).resolve().parents[1]):
    sys.exit(f'expected an installed s4nd, found {location}')
for start in ([sys.argv[1]], [sys.executable, '-m', 's4nd']):
    listed = subprocess.run([*start, 'list', 'cifar10'], capture_output=True, text=True, check=True).stdout
    assert 'cifar10/s4nd_isotropic_mini' in listed, listed
for command in ('train', 'evaluate', 'export', 'report', 'list', 'completion', 'generate', 'metrics', 'page'):
    assert len(run(command, '--help').splitlines()) > 2, command
assert 'cifar10/s4nd_isotropic_mini' in run('completion', 'bash')
run('trian', code=2)
run('train', 'cifar10/s4nd_isotropic_mini', 'data.root=nowhere', code=2)

small = ('data.train_count=64', 'data.test_count=20', 'epochs=1', 'max_steps=2', 'device=cpu', 'threads=1')
run('train', 'demo/shapes_s4nd', *small, 'out=images')
run('evaluate', 'checkpoint=images', 'sizes=[8,16]')
run('report', 'images', 'picture=report.png', 'table=report.txt')
run('export', 'checkpoint=images', 'size=16', 'out=model.onnx')
expect('images/last.safetensors', 'images/evaluation.json', 'report.png', 'report.txt', 'model.onnx')

images(Path('pictures'))
weights = 's4nd_isotropic_mini.cifar10'
run(
    'evaluate',
    f'checkpoint={weights}',
    'data.root=pictures',
    'data.source_size=64',
    'data.batch_size=10',
    'device=cpu',
    'sizes=[8,16,32,64]',
)
assert len(json.loads(Path('out', weights, 'evaluation.json').read_text('utf-8'))['milliseconds']) == 4

run('train', 'demo/sashimi', 'data.train_count=4', 'data.test_count=2', *small[2:], 'out=sound')
run('generate', 'checkpoint=sound', 'seconds=0.1', 'batch=2', 'out=clips/a.wav')
run('metrics', 'checkpoint=sound')
run('page', 'real=clips', 'generated=clips', 'out=page.html', 'count=1')
expect('clips/a-0.wav', 'clips/a-1.png', 'page.html')
print('every command of the wheel ran')
