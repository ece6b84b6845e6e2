"""timm's own train.py, validate.py, avg_checkpoints.py, benchmark.py and onnx_export.py on an S4ND model.

    python examples/clients/timm_scripts.py [small=true] [model=s4nd_isotropic_mini] [timm=FOLDER] [out=FOLDER]

The scripts stand in timm's repository, not in its packages: `timm` is a checkout of it, made with git in the version
that is installed where there is none. They learn of our models from a launcher of one line, which imports s4nd and runs
them. The images are the embedded shapes, written as class folders.

Two sizes are told apart: `--model-kwargs img_size=16` is the grid that the model is trained on, `--img-size 32` the
size of the images. small=true: a few images and one epoch, in seconds.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from onnxruntime import InferenceSession
from torchvision.io import write_png

from s4nd import save_for_hf
from s4nd.data import ShapeSet
from s4nd.files import write_atomically

REPOSITORY = 'https://github.com/huggingface/pytorch-image-models'
LAUNCHER = 'import runpy, sys, s4nd; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'


def checkout(folder: Path) -> Path:
    """timm's repository in the installed version; raises CalledProcessError where it cannot be fetched."""
    if not (folder / 'train.py').is_file():
        git = ['git', 'clone', '--quiet', '--depth', '1', '--branch', f'v{version("timm")}', REPOSITORY, str(folder)]
        subprocess.run(git, check=True)
    return folder


def write_images(folder: Path, size: int, counts: dict[str, int]) -> None:
    """<folder>/<split>/<class>/<number>.png of the embedded shapes, `counts` of them a split."""
    for seed, (split, count) in enumerate(counts.items()):
        scenes = ShapeSet.draw(count, seed=seed)
        for number, (image, label) in enumerate(zip(scenes.at(size), scenes.labels.tolist(), strict=True)):
            place = folder / split / scenes.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            write_png(image, str(place / f'{number:05}.png'))


def run(script: Path, arguments: Sequence[str]) -> None:
    """Run a script of timm in a process that knows our models."""
    subprocess.run([sys.executable, '-c', LAUNCHER, str(script), *arguments], check=True)


def train_and_validate(model: str, small: bool, scripts: Path, out: Path) -> dict[str, float]:
    """Accuracy at the training size and at twice that size, of a run of train.py in channels_last with averaging."""
    size, epochs, batch = (16, 1, 10) if small else (16, 5, 50)
    images = out / 'images'
    counts = {'train': 20, 'validation': 20} if small else {'train': 4000, 'validation': 1000}
    write_images(images, 2 * size, counts)
    common = ['--data-dir', str(images), '--model', model, '--num-classes', '10', '--device', 'cpu', '-j', '1']
    common += ['-b', str(batch), '--channels-last', '--model-kwargs', f'img_size={size}']
    recipe = [
        '--opt',
        'adamw',
        '--lr',
        '4e-3',
        '--warmup-epochs',
        '0',
        '--epochs',
        str(epochs),
        '--no-aug',
        '--model-ema',
    ]
    run(scripts / 'train.py', [*common, *recipe, '--img-size', str(size), '--output', str(out), '--experiment', 'run'])
    results = {}
    for at in (size, 2 * size):
        found = out / f'validation_{at}.json'
        weights = ['--checkpoint', str(out / 'run' / 'last.pth.tar'), '--img-size', str(at)]
        run(scripts / 'validate.py', [*common, *weights, '--results-file', str(found), '--results-format', 'json'])
        results[f'top1@{at}'] = json.loads(found.read_text(encoding='utf-8'))['top1']
    return results


def others(model: str, scripts: Path, out: Path) -> dict[str, float]:
    """avg_checkpoints.py on the run, then benchmark.py and onnx_export.py, each held to what it promises."""
    run(scripts / 'avg_checkpoints.py', ['--input', str(out / 'run'), '--output', str(out / 'average.pth'), '-n', '2'])
    averaged = timm.create_model(model, num_classes=10, img_size=16, checkpoint_path=str(out / 'average.pth')).eval()
    assert all(parameter.isfinite().all() for parameter in averaged.parameters())
    save_for_hf(averaged, out / 'hub')
    timing = ['--model', model, '--device', 'cpu', '-b', '4', '--img-size', '32', '--channels-last', '--bench', 'both']
    found = out / 'benchmark.json'
    timing += ['--num-warm-iter', '1', '--num-bench-iter', '10', '--results-file', str(found)]
    run(scripts / 'benchmark.py', [*timing, '--results-format', 'json'])
    graph = ['--model', f'local-dir:{out / "hub"}', '--img-size', '32', '--dynamo', '--opset', '18', '-b', '2']
    run(scripts / 'onnx_export.py', [str(out / 'model.onnx'), *graph])
    images = torch.randn(2, 3, 32, 32)
    (logits,) = InferenceSession(out / 'model.onnx').run(None, {'input0': images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), averaged(images), atol=1e-4, rtol=1e-4)
    timed = json.loads(found.read_text(encoding='utf-8'))
    return {name: timed[f'{name}_samples_per_sec'] for name in ('infer', 'train')}


def main(model: str, small: bool, timm_folder: Path, out: Path) -> dict[str, float]:
    scripts = checkout(timm_folder)
    results = train_and_validate(model, small, scripts, out) | others(model, scripts, out)
    write_atomically(out / 'report.json', lambda path: path.write_text(json.dumps(results, indent=2), encoding='utf-8'))
    print(json.dumps(results))
    return results


if __name__ == '__main__':
    options = dict(word.partition('=')[::2] for word in sys.argv[1:])
    main(
        options.get('model', 's4nd_isotropic_mini'),
        options.get('small') == 'true',
        Path(options.get('timm', 'out/timm-repository')),
        Path(options.get('out', 'out/clients/timm')),
    )
