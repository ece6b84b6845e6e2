"""Options at random: a start with one strange value ends in a result or in one line, soon and in little memory.

    python -m tests.reliability.mistakes [count=1000] [seed=0]

One option of a small configuration of each task gets a value such as nan, -1, 1e30, [] or nothing, and a run of one
update is started in a process of its own. A start fails that ends in a traceback, takes 30 seconds, holds more than
1 GB, or fails without a line that begins with 'error:'. The exit code is 1 where one failed.
"""

from __future__ import annotations

import collections
import io
import math
import os
import random
import signal
import sys
import tempfile
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from s4nd import cli
from s4nd.options import option_names
from s4nd.tasks import task_class
from tests.data.clips.test_named import write_fashion
from tests.reliability.fuzz import KILOBYTES, peak

SECONDS = 30
CONFIGS = {
    'image': 'model: {name: s4nd_isotropic_mini, args: {dim: 8, depths: [1, 1, 1], d_state: 4, bandlimit: 0.5}}\n'
    'data: {kind: shapes, size: 8, batch_size: 10, train_count: 40, test_count: 20}',
    'video': 'model: {name: s4nd_isotropic3d_mini, args: {dim: 8, depths: [1, 1, 1], d_state: 4, bandlimit: 0.5}}\n'
    'data: {kind: moving, root: FOLDER/fashion, size: 8, seconds: 1, batch_size: 2, train_count: 24, test_count: 12}',
    'audio': 'model: {name: sashimi, args: {d_model: 8, n_layers: 1, pool: [4], d_state: 4}}\n'
    'data: {kind: plucked, sample_rate: 1000, clip_samples: 64, bits: 6, batch_size: 2, train_count: 4, test_count: 2}',
    'sequence': 'model: {name: sequence, args: {d_model: 8, n_layers: 1, layer: s4d, layer_args: {d_state: 4}}}\n'
    'data: {kind: delay, length: 16, lag: 4, batch_size: 4, train_count: 8, test_count: 4}',
    'forecast': 'model: {name: s4_forecaster, args: {d_model: 8, n_layers: 1, layer: s4d, layer_args: {d_state: 4}}}\n'
    'data: {root: FOLDER/a.csv, target: x, context: 16, horizon: 4, batch_size: 4}',
    'series': 'model: {name: sssd_s4, args: {d_model: 8, n_layers: 1}}\n'
    "data: {kind: file, root: FOLDER/a.csv, length: 16, masks: ['random:0.2'], batch_size: 4}",
}
VALUES = ('nan', 'inf', '-1', '0', '1e30', 'abc', '[]', '{}', 'null', '', '99999999999999', '[-1]', 'true', '3.5',
          '/dev/null/none', '[a,b]', '100000')  # fmt: skip
LEFT_OUT = ('data.download', 'compile')  # what fetches, and what takes minutes


def write_configs(folder: Path) -> None:
    """The configurations, and the files that three of them read."""
    rows = (f'{row},{math.sin(row / 5):.3f},{math.cos(row / 7):.3f}' for row in range(400))
    (folder / 'a.csv').write_text('\n'.join(['date,x,y', *rows]) + '\n')
    write_fashion(folder / 'fashion')
    for task, text in CONFIGS.items():
        text = f'task: {task}\n{text.replace("FOLDER", str(folder))}\nepochs: 1\nmax_steps: 1\ndevice: cpu\n'
        (folder / f'{task}.yaml').write_text(text)


def start(folder: Path, task: str, word: str = '') -> str:
    """How `s4nd train` ends: 'trained', 'refused', or what is wrong."""
    words = {'out': f'{folder}/{task}', 'overwrite': 'true', **dict([word.split('=', 1)] if word else [])}
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.setsid()
        signal.alarm(SECONDS)
        torch.set_num_threads(1)
        errors = io.StringIO()
        os.chdir(folder)
        try:
            with redirect_stderr(errors), redirect_stdout(io.StringIO()):
                code = cli.main(['train', f'{task}.yaml', *map('='.join, words.items())])
            said = errors.getvalue().strip().splitlines() or ['']
            found = 'trained' if code == 0 else 'refused' if said[-1].startswith('error: ') else f'code {code}: {said}'
        except BaseException:
            found = traceback.format_exc()[-300:]
        found = found if peak() <= KILOBYTES else f'{peak() / 1e6:.1f} GB'
        os.write(writing, found.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        found = pipe.read().decode(errors='replace')
    os.waitpid(process, 0)
    return found or f'longer than {SECONDS} s, or killed'


def mistakes(count: int, seed: int = 0) -> tuple[collections.Counter[str], list[str]]:
    """How `count` starts ended, and what failed."""
    random_, found, failed = random.Random(seed), collections.Counter[str](), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_configs(folder)
        for task in CONFIGS:
            assert (end := start(folder, task)) == 'trained', f'{task}: {end}'
        names = {task: [o for o in option_names(task_class(task).Config) if o not in LEFT_OUT] for task in CONFIGS}
        for number in range(count):
            task = random_.choice(list(CONFIGS))
            word = f'{random_.choice(names[task])}={random_.choice(VALUES)}'
            end = start(folder, task, word)
            if end in ('trained', 'refused'):
                found[end] += 1
            else:
                failed.append(f'({number}) {task} {word}: {end}')
    return found, failed


def main(words: list[str]) -> int:
    options = dict(word.split('=', 1) for word in words)
    count = int(options.get('count', 1000))
    found, failed = mistakes(count, int(options.get('seed', 0)))
    print(f'{count} starts: {found["trained"]} trained, {found["refused"]} refused, {len(failed)} failed')
    print(*failed[:20], sep='\n', end='\n' if failed else '')
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
