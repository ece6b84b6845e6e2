"""Runs of two processes (gloo, on the CPU) that begin as torchrun begins them, without a new start of Python for each.

    python -m tests.training.two FOLDER

Prints what each run left as JSON, for `test_processes.py`. Compared with runs of one process at the same global batch.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tarfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from accelerate.state import AcceleratorState, GradientState
from torch.distributed.tensor import DTensor

import s4nd.training.loop as loop
from audio.data.datasets import FolderClips
from s4nd import cli

IMAGES = """
model: {name: s4nd_isotropic_mini, args: {dim: 8, depths: [1, 1, 1], d_state: 4, bandlimit: 0.5}}
data: {kind: shapes, size: 8, batch_size: 8, train_count: 64, test_count: 36, flip: true}
epochs: 2
optim: {lr: 0.01, ssm_lr: 0.01, schedule: constant, warmup_epochs: 0.5}
device: cpu
threads: 1
"""
SOUND = """
task: audio
model: {name: sashimi, args: {d_model: 8, n_layers: 1, pool: [4], d_state: 4}}
data: {sample_rate: 1000, clip_samples: 64, bits: 6, batch_size: 4, split: files, val_fraction: 0.2}
epochs: 2
optim: {lr: 0.01, ssm_lr: 0.01}
device: cpu
threads: 1
"""


def launch(
    count: int,
    folder: Path,
    config: Path,
    words: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    stop: tuple[int, float] | None = None,
) -> list[int]:
    """The exit codes of `count` processes that train into `folder`; what they print is kept in FOLDER.<number>.log.

    stop: (process, seconds): which one gets SIGTERM, that long after the first state was saved.
    """
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            _work(number, count, folder, config, words, {'MASTER_PORT': str(port), **(env or {})})
        children.append(child)
    if stop is not None:
        while not (folder / 'resume.pt').exists():
            time.sleep(0.01)
        time.sleep(stop[1])
        os.kill(children[stop[0]], signal.SIGTERM)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _work(number: int, count: int, folder: Path, config: Path, words: Sequence[str], env: Mapping[str, str]) -> None:
    code = 70
    try:
        with folder.with_name(f'{folder.name}.{number}.log').open('ab', buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if count > 1:
            rank = {'RANK': str(number), 'LOCAL_RANK': str(number)}
            size = {'WORLD_SIZE': str(count), 'LOCAL_WORLD_SIZE': str(count)}
            os.environ.update({**rank, **size, 'MASTER_ADDR': '127.0.0.1', **env})
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        _watch(folder.with_name(f'{folder.name}.{number}.json'))
        code = cli.main(['train', str(config), f'out={folder}', *words])
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _watch(path: Path) -> None:
    """Note which windows of sound are read, and how much of the model is here."""
    read: list[int] = []
    get, finish = FolderClips.__getitem__, loop._Training.finish_epoch

    def counted(clips: FolderClips, index: int) -> torch.Tensor:
        read.append(index)
        return get(clips, index)

    def noted(run: loop._Training, progress: Any) -> None:
        finish(run, progress)
        parts = [p.to_local() if isinstance(p, DTensor) else p for p in run.raw.parameters()]
        held, whole = sum(part.numel() for part in parts), sum(p.numel() for p in run.raw.parameters())
        path.write_text(json.dumps({'held': held, 'whole': whole, 'read': len(read)}))

    FolderClips.__getitem__, loop._Training.finish_epoch = counted, noted


def recordings(folder: Path) -> Path:
    """A tar of 40 tones."""
    rng = np.random.default_rng(0)
    with tarfile.open(folder / 'tones.tar', 'w') as tar:
        for number in range(40):
            wave = 0.5 * np.sin(2 * np.pi * rng.uniform(50, 300) * np.arange(64) / 1000)
            soundfile.write(folder / 'tone.wav', wave, 1000)
            tar.add(folder / 'tone.wav', f'tones/{number}.wav')
    return folder / 'tones.tar'


def main(folder: Path) -> dict[str, Any]:
    images, sound = folder / 'images.yaml', folder / 'sound.yaml'
    images.write_text(IMAGES)
    sound.write_text(SOUND)
    tar = recordings(folder)
    sharded = {'ACCELERATE_USE_FSDP': 'true', 'FSDP_VERSION': '2', 'FSDP_AUTO_WRAP_POLICY': 'TRANSFORMER_BASED_WRAP'}
    block = 'FSDP_TRANSFORMER_CLS_TO_WRAP'
    codes: dict[str, Any] = {}

    def begin(name: str, *args: Any, **options: Any) -> None:
        codes.setdefault(name, []).append(launch(args[0], folder / name, *args[1:], **options))

    begin('images_one', 1, images, ['data.batch_size=16'])
    begin('images_two', 2, images)
    # Begun in whole copies, gone on with in parts.
    begin('images_sharded', 2, images, ['max_steps=4'])
    begin('images_sharded', 2, images, ['resume=true', 'max_steps=null'], env={**sharded, block: 'IsotropicBlock'})
    begin('sound_one', 1, sound, ['data.batch_size=8', f'data.root={tar}', f'data.cache={folder / "cache_one"}'])
    begin('sound_two', 2, sound, [f'data.root={tar}', f'data.cache={folder / "cache_two"}'])
    words = [f'data.root={tar}', f'data.cache={folder / "cache_two"}']
    begin('sound_sharded', 2, sound, words, env={**sharded, block: 'S4Block'})
    begin('stopped', 2, images, ['epochs=40', 'save.updates=3', 'eval.every=40'], stop=(1, 0.5))
    begin('stopped', 2, images, ['epochs=40', 'resume=true', 'save.updates=3', 'eval.every=40'])
    begin('whole', 2, images, ['epochs=40', 'eval.every=40'])
    begin('diverged', 2, images, ['optim.lr=1e9', 'optim.warmup_epochs=0'])
    return codes


if __name__ == '__main__':
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
