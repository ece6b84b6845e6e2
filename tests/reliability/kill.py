"""Runs that are killed at random and resumed end as one that was not: the same weights, bit by bit, and no rests.

    python -m tests.reliability.kill [runs=10] [seed=0] [media=images,sound]

A run is begun, ended by SIGKILL or SIGTERM after a random time, and resumed, again and again, until it is done. The
exit code is 1 where weights, history or the names of the files differ from those of the run that nothing stopped, or
where a resumed run fails.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from s4nd import cli

CONFIGS = {
    'images': """
model: {name: s4nd_isotropic_mini, args: {dim: 8, depths: [1, 1, 1], d_state: 4, bandlimit: 0.5, drop_path_rate: 0.1}}
data: {kind: shapes, size: 8, batch_size: 10, train_count: 200, test_count: 40, flip: true, mixup: 0.2}
optim: {ema: 0.9, accumulate: 2}
save: {updates: 3}
epochs: 4
device: cpu
threads: 1
""",
    'sound': """
task: audio
model: {name: sashimi, args: {d_model: 8, n_layers: 1, pool: [4], d_state: 4, dropout: 0.1}}
data: {kind: plucked, sample_rate: 1000, clip_samples: 64, bits: 6, batch_size: 2, train_count: 40, test_count: 8}
save: {updates: 3}
epochs: 4
device: cpu
threads: 1
""",
}
TRIES = 60


def begin(folder: Path, config: Path, words: list[str]) -> int:
    """A process that trains into `folder`; what it prints is kept beside it."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        with (folder.parent / f'{folder.name}.log').open('ab', buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = cli.main(['train', str(config), f'out={folder}', *words])
    finally:
        os._exit(code)


def left(folder: Path) -> tuple[dict[str, torch.Tensor], list[object], list[str]]:
    """Weights, history and file names of a finished run."""
    tensors = {
        f'{name}.{key}': value
        for name in ('last', 'best')
        for key, value in load_file(folder / f'{name}.safetensors').items()
    }
    training = json.loads((folder / 'report.json').read_text())['training']
    return tensors, [training['history'], training['best'], training['updates']], sorted(os.listdir(folder))


def torment(medium: str, runs: int, seed: int = 0) -> tuple[collections.Counter[str], list[str]]:
    """Signals sent and what became of them, and how runs differ from the one that was left alone."""
    counts: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        config = place / 'config.yaml'
        config.write_text(CONFIGS[medium])
        start = time.monotonic()
        _, status = os.waitpid(begin(place / 'whole', config, []), 0)
        lasts = time.monotonic() - start
        assert status == 0, (place / 'whole.log').read_text()[-2000:]
        tensors, numbers, names = left(place / 'whole')
        for run in range(runs):
            rng, folder, words = random.Random(f'{medium} {seed} {run}'), place / f'run{run}', []
            for _ in range(TRIES):
                process = begin(folder, config, words)
                time.sleep(rng.uniform(0, 0.6 * lasts))
                number = rng.choice((signal.SIGKILL, signal.SIGTERM))
                os.kill(process, number)
                _, status = os.waitpid(process, 0)
                if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                    break
                counts[f'{number.name} ended it'] += 1
                if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 128 + signal.SIGTERM:
                    log = (place / f'{folder.name}.log').read_text().splitlines()
                    failed.append(f'({medium}, {run}): exit code {os.WEXITSTATUS(status)}: {log[-1:]}')
                    break
                # As a scheduler would: what was told to resume is resumed, what left nothing is begun again.
                words = ['resume=true'] if (folder / 'config.yaml').exists() else []
            else:
                _, status = os.waitpid(begin(folder, config, words), 0)
            if status:
                failed.append(f'({medium}, {run}): not done')
                continue
            again, same, found = left(folder)
            different = [key for key, value in tensors.items() if not torch.equal(value, again[key])]
            if different or same != numbers or found != names:
                failed.append(f'({medium}, {run}): {different[:3]}, {same == numbers}, {set(found) ^ set(names)}')
            counts['equal to the bit'] += not different
    return counts, failed


def main(words: list[str]) -> int:
    options = dict(word.split('=', 1) for word in words)
    code = 0
    torch.set_num_threads(1)
    for medium in options.get('media', ','.join(CONFIGS)).split(','):
        counts, failed = torment(medium, int(options.get('runs', 10)), int(options.get('seed', 0)))
        print(f'{medium}: {dict(counts)}; {len(failed)} failed', *failed[:20], sep='\n', flush=True)
        code |= bool(failed)
    return code


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
