"""Runs that are killed at random and resumed end as one that was not: the same weights, bit by bit, and no rests.

    python -m tests.reliability.kill [runs=10] [seed=0] [media=images,sound] [processes=1]

A run is begun, ended by SIGKILL, SIGTERM, SIGUSR1 or SIGHUP to one or all of its processes after a random time, and
resumed, again and again, until it is done. The exit code is 1 where weights, history or the names of the files differ
from those of the run that nothing stopped, or where a resumed run fails.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
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
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

Left = tuple[dict[str, torch.Tensor], list[object], list[str]]


def begin(folder: Path, config: Path, words: list[str], processes: int = 1) -> list[int]:
    """Processes that train into `folder`; what they print is kept beside it."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        place = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(probe.getsockname()[1]), 'WORLD_SIZE': str(processes)}
    children = []
    for number in range(processes):
        child = os.fork()
        if not child:
            if processes > 1:
                os.environ.update({**place, 'RANK': str(number), 'LOCAL_RANK': str(number)})
            _train(folder, config, words)
        children.append(child)
    return children


def _train(folder: Path, config: Path, words: list[str]) -> None:
    code = 70
    try:
        with (folder.parent / f'{folder.name}.log').open('ab', buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = cli.main(['train', str(config), f'out={folder}', *words])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end(children: list[int]) -> list[int]:
    """The exit codes (-n: ended by signal n). Where one fails the others are ended, as torchrun does."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.waitpid(-1, 0)
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in set(children) - codes.keys():
                os.kill(other, signal.SIGTERM)
    return [codes[child] for child in children]


def left(folder: Path) -> Left:
    """Weights, history and file names of a finished run."""
    tensors = {
        f'{name}.{key}': value
        for name in ('last', 'best')
        for key, value in load_file(folder / f'{name}.safetensors').items()
    }
    training = json.loads((folder / 'report.json').read_text())['training']
    return tensors, [training['history'], training['best'], training['updates']], sorted(os.listdir(folder))


def torment(medium: str, runs: int, seed: int = 0, processes: int = 1) -> tuple[collections.Counter[str], list[str]]:
    """Signals sent and what became of them, and how runs differ from the one that was left alone."""
    counts: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        config = place / 'config.yaml'
        config.write_text(CONFIGS[medium])
        start = time.monotonic()
        codes = end(begin(place / 'whole', config, [], processes))
        lasts = time.monotonic() - start
        assert not any(codes), (place / 'whole.log').read_text()[-2000:]
        whole = left(place / 'whole')
        for run in range(runs):
            rng = random.Random(f'{medium} {seed} {run}')
            problem = _torment_one(place / f'run{run}', config, rng, lasts, processes, counts)
            if problem is None:
                problem = _difference(whole, left(place / f'run{run}'))
                counts['equal to the bit'] += problem is None
            if problem is not None:
                failed.append(f'({medium}, {run}): {problem}')
    return counts, failed


def _torment_one(
    folder: Path, config: Path, rng: random.Random, lasts: float, processes: int, counts: collections.Counter[str]
) -> str | None:
    """End a run at random and resume it until it is done; what went wrong, if something did."""
    words: list[str] = []
    for _ in range(TRIES):
        children = begin(folder, config, words, processes)
        time.sleep(rng.uniform(0, 0.6 * lasts))
        number = rng.choice(SIGNALS)
        for child in rng.choice(([rng.choice(children)], children)):
            os.kill(child, number)  # not yet waited for, so it is there
        codes = end(children)
        if not any(codes):
            return None
        counts[f'{number.name} ended it'] += 1
        # Who hears a signal in time saves and exits by it; who was to wait for a process that was killed exits by 1.
        if not set(codes) <= {-number, 128 + number, -signal.SIGTERM, 128 + signal.SIGTERM, *([1] * (processes > 1))}:
            return f'exit codes {codes}'
        log = folder.with_name(f'{folder.name}.log')
        if log.exists() and 'Traceback' in log.read_text():
            return 'a traceback'
        # As a scheduler would: what was told to resume is resumed, what left nothing is begun again.
        words = ['resume=true'] if (folder / 'config.yaml').exists() else []
    return 'not done' if any(end(begin(folder, config, words, processes))) else None


def _difference(whole: Left, again: Left) -> str | None:
    (tensors, numbers, names), (others, same, found) = whole, again
    different = [key for key, value in tensors.items() if not torch.equal(value, others[key])]
    if not different and same == numbers and found == names:
        return None
    return f'{different[:3]}, {same == numbers}, {set(found) ^ set(names)}'


def main(words: list[str]) -> int:
    options = dict(word.split('=', 1) for word in words)
    code = 0
    torch.set_num_threads(1)
    for medium in options.get('media', ','.join(CONFIGS)).split(','):
        runs, seed, processes = (int(options.get(*pair)) for pair in (('runs', 10), ('seed', 0), ('processes', 1)))
        counts, failed = torment(medium, runs, seed, processes)
        print(f'{medium}: {dict(counts)}; {len(failed)} failed', *failed[:20], sep='\n', flush=True)
        code |= bool(failed)
    return code


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
