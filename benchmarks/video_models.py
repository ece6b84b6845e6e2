"""Twelve motions: S4ND over time and space, from scratch and inflated, against I3D, S3D and a model of single frames.

    python benchmarks/video_models.py data=/path/to/fashion-mnist [runs=s4nd,i3d out=out/video_models speed=false]
        [data.train_count=… optim.lr=… …]

The recipes are configs/video/moving_*.yaml, and fashion_s4nd.yaml for the images that the inflated model begins with;
further key=value words change them for all runs on clips. Each run trains as train.py does, into out/<run>. What is
done is not done again, and an interrupted run goes on after its last epoch. Prints accuracy at every size and frame
rate, writes video_models.txt and .png, moving.png with a clip of each class, then measures a training step and its
memory (speed=false: not).
"""

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from common import peak_memory, save, setup, table
from matplotlib.figure import Figure
from torch import Tensor

from s4nd import pictures
from s4nd.data import MOTIONS, ClipGrid, MovingSet, Splits, fashion_mnist
from s4nd.models import load_checkpoint
from s4nd.tasks.clips import VideoTask
from s4nd.training import report
from s4nd.training.config import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs' / 'video'
IMAGES = 'fashion_s4nd'
RUNS = ('s4nd', 'inflated', 'i3d', 's3d', 'frames')
CLIPS, ROUNDS = 8, 5  # in a timed step, and how often it is timed


def main(words: list[str]) -> None:
    options = dict(word.split('=', 1) for word in words)
    root, out = options.pop('data', None), Path(options.pop('out', 'out/video_models'))
    wanted = options.pop('runs', ','.join(RUNS)).split(',')
    speed = options.pop('speed', 'true') == 'true'
    unknown = [run for run in wanted if run not in RUNS]
    if unknown:
        sys.exit(f'unknown run {unknown[0]!r}: expected some of {", ".join(RUNS)}')
    if root is not None:
        show_motions(root, out / 'moving.png')
        for run in wanted:
            train_one(run, root, out, [f'{key}={value}' for key, value in options.items()])
    found = [out / run for run in RUNS if (out / run / 'report.json').is_file()]
    if not found:
        sys.exit('nothing to show: give data=FOLDER with the files of Fashion-MNIST')
    report.main([*map(str, found), f'picture={out / "video_models.png"}', f'table={out / "video_models.txt"}'])
    if speed:
        measure(found, out)


def show_motions(root: str, path: Path) -> None:
    """One clip of each class beside its name, in two columns, two frames per second."""
    scenes = MovingSet.draw(fashion_mnist(root, download=False, train=False).images, len(MOTIONS), seed=0)
    clips = scenes.at(ClipGrid((64, 64), 2, 2))[:, 0].float()
    frames = F.pad(clips.transpose(1, 2), (0, 4), value=math.nan).flatten(2)  # side by side, a gap after each
    labels = scenes.labels.tolist()
    pictures.write(path, lambda: motions(frames, labels), dark=True)


def motions(frames: Tensor, labels: list[int]) -> Figure:
    """A strip of frames per motion, in two columns."""
    figure = pictures.figure(5)
    places = figure.subplots(len(MOTIONS) // 2, 2).T.flatten()
    for place, strip, label in zip(places, frames, labels, strict=True):
        place.imshow(strip, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
        place.set_ylabel(MOTIONS[label], rotation=0, ha='right', va='center')
        place.set(xticks=[], yticks=[])
        place.set_frame_on(False)
    return figure


def train_one(run: str, root: str, out: Path, overrides: list[str]) -> None:
    """Train and evaluate a run that is not done yet; the images first, for the inflated one."""
    if run == 'inflated' and not (out / IMAGES / 'report.json').is_file():
        run_training(CONFIGS / f'{IMAGES}.yaml', out / IMAGES, [f'data.root={root}'])
    if not (out / run / 'report.json').is_file():
        inflate = [f'model.inflate={out / IMAGES / "last.safetensors"}'] if run == 'inflated' else []
        run_training(CONFIGS / f'moving_{run}.yaml', out / run, [f'data.root={root}', *inflate, *overrides])


def run_training(recipe: Path, out: Path, overrides: list[str]) -> None:
    words = [str(recipe), f'out={out}', f'resume={str((out / "resume.pt").is_file()).lower()}', *overrides]
    subprocess.run([sys.executable, str(ROOT / 'train.py'), *words], check=True)


def measure(runs: list[Path], out: Path) -> None:
    """Time of a training step in turn, in time of one core whatever else the machine does, and the memory it takes."""
    measured = setup('1', 'cpu')
    steps = {run: make_step(str(run)) for run in runs}
    seconds: dict[Path, list[float]] = {run: [] for run in runs}
    for _ in range(ROUNDS + 1):  # the first round warms up
        for run, step in steps.items():
            start = time.process_time()
            step()
            seconds[run].append(time.process_time() - start)
    rows = [
        {
            'model': run.name,
            'ms per clip': 1000 * median(seconds[run][1:]) / CLIPS,
            'peak MB': 1000 * peak_memory(make_step, str(run)),
        }
        for run in runs
    ]
    print(f'\nA training step on {CLIPS} clips\n{table(rows)}')
    save(str(out), 'video_speed', measured, rows)


def make_step(folder: str) -> Callable[[], object]:
    """Forward and backward of a trained run, on its training grid."""
    config = load_config(Path(folder) / 'config.yaml')
    model = load_checkpoint(folder).train()
    scenes = MovingSet.draw(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), CLIPS, seed=0)  # the clouds alone
    task = VideoTask(config, Splits(scenes, None, scenes))
    clips = scenes.at(task.grid)

    def step() -> None:
        task.loss(model, (clips, scenes.labels)).backward()

    return step


if __name__ == '__main__':
    main(sys.argv[1:])
