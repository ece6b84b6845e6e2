"""An image checkpoint at many sizes: accuracy and time an image, as a table and a picture.

python -m s4nd.evaluate checkpoint=out/my_run sizes=[8,16,32,24x40] data.root=/path/to/cifar10

`checkpoint` is a weights file of train.py or a run's folder (its best weights, else the last); `sizes` are sides in
pixels, or height x width. Every other word is a key of the run's configuration: eval.limit=1000, device=cpu, out=…
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

import s4nd
from s4nd.data import ImageTask, VideoTask, load_images
from s4nd.models import load_checkpoint
from s4nd.training.checkpoint import CheckpointError, find_weights, read_metadata
from s4nd.training.config import ConfigError, ImageConfig, RunConfig, VideoConfig, load_config
from s4nd.training.loop import Task, make_accelerator
from s4nd.training.report import table, write_report
from s4nd.training.sizes import parse_size, size_name

__all__ = ['evaluate', 'load_trained', 'main', 'time_an_image']


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Evaluate what `arguments` (key=value) name, write evaluation.json, .txt and .png, and return the report."""
    options = dict(word.partition('=')[::2] for word in arguments)
    if 'checkpoint' not in options:
        raise ConfigError(f'expected checkpoint=…:\n{__doc__}')
    weights = find_weights(options['checkpoint'])
    config = _config(weights, [word for word in arguments if not word.startswith('checkpoint=')])
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    task = ImageTask(config, load_images(config.data, config.seed))
    model = load_trained(weights, config, task).to(accelerator.device)
    report = evaluate(config, model, task, accelerator, weights)
    report['training'] = {'checkpoint': str(weights)}
    report['milliseconds'] = {
        name: time_an_image(model, task, name, config.data.batch_size, accelerator)
        for name in (size_name(parse_size(size)) for size in config.eval.sizes or [config.data.size])
    }
    if accelerator.is_main_process:
        out = Path(config.out) if 'out' in options else weights.parent
        paths = write_report(out, report, 'evaluation')
        print('', table([report]), '', *paths, sep='\n')  # noqa: T201 (a command)
    return report


def load_trained(path: str | Path, config: ImageConfig | VideoConfig, task: ImageTask | VideoTask) -> nn.Module:
    """The model of a checkpoint, on the grid it was trained on.

    Raises CheckpointError where it is not the model of `config`, or does not tell the classes of `task` apart.
    """
    saved = read_metadata(path).get('model', 'an unnamed model')
    if saved != config.model.name:
        raise CheckpointError(f'{path} holds the weights of {saved}, expected {config.model.name}')
    model = load_checkpoint(path)
    if model.num_classes != len(task.classes):
        raise CheckpointError(f'{path} tells {model.num_classes} classes apart, the data are of {len(task.classes)}')
    return model


def evaluate(
    config: RunConfig, model: nn.Module, task: Task, accelerator: Accelerator, weights: str | Path
) -> dict[str, Any]:
    """The report on a trained model: images at `eval.sizes`, other tasks as they evaluate themselves.

    weights: the file that holds the model's weights; it knows the size that they were trained at last.
    """
    start = time.monotonic()
    model.eval()
    report: dict[str, Any] = {
        'label': config.label,
        'model': config.model.name,
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'metric': task.monitor.partition('@')[0],
    }
    with torch.no_grad(), accelerator.autocast():
        if isinstance(task, ImageTask):
            sizes = sorted({parse_size(size) for size in config.eval.sizes or [config.data.size]})
            results = task.evaluate_at(model, accelerator.device, sizes)
            report['size'] = read_metadata(weights).get('size', str(config.data.size))
        elif isinstance(task, VideoTask):
            sizes = sorted({parse_size(size) for size in config.eval.sizes or [config.data.size]})
            results = task.evaluate_at(model, accelerator.device, sizes, sorted(set(config.eval.frame_rates)))
            report['size'], report['frame_rate'] = (read_metadata(weights)[key] for key in ('size', 'frame_rate'))
            report['short_clips'] = {'count': len(task.short), 'first': task.short[:10]}
        elif hasattr(task, 'evaluate_at'):  # classes of sound, at several sample rates
            rates = sorted(set(config.eval.sample_rates or [config.data.sample_rate]))
            results = task.evaluate_at(model, accelerator.device, rates)
            report['size'], report['unit'] = config.data.sample_rate, 'Hz'
        else:
            results = task.evaluate(model, accelerator.device)
    skipped = task.splits.skipped if isinstance(task, ImageTask) else task.skipped
    report['skipped_files'] = {'count': len(skipped), 'first': skipped[:10]}
    report['results'] = results
    report['evaluation_seconds'] = round(time.monotonic() - start, 1)
    report['seed'] = config.seed
    report['versions'] = {'s4nd': s4nd.__version__, 'torch': torch.__version__, 'timm': timm.__version__}
    return report


@torch.no_grad()
def time_an_image(
    model: nn.Module, task: ImageTask, size: Any, batch_size: int, accelerator: Accelerator, repeats: int = 5
) -> float:
    """Milliseconds an image in a forward of `batch_size` images: the median of `repeats` after a first one."""
    images = task.as_input(torch.randn(batch_size, task.channels, *parse_size(size), device=accelerator.device))
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with accelerator.autocast():
            model(images).sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:]) / batch_size


def _config(weights: Path, overrides: Sequence[str]) -> ImageConfig:
    """The configuration beside the weights; where there is none, the model's name and size, and what is given."""
    words = [f'eval.{word}' if word.startswith('sizes=') else word for word in overrides]
    path = weights.parent / 'config.yaml'
    if not path.is_file():
        metadata = read_metadata(weights)
        words = [f'model.name={metadata.get("model")}', f'data.size={metadata.get("size", 32)}', *words]
        path = None
    config = load_config(path, [*words, 'eval_only=true', f'checkpoint={weights}'])
    if not isinstance(config, ImageConfig):
        raise ConfigError(f'{weights} is of a run on {config.task}, expected one on images')
    return config


if __name__ == '__main__':
    logging.basicConfig(format='%(message)s')
    if {'-h', '--help'} & set(sys.argv[1:]):
        print(__doc__)  # noqa: T201
        sys.exit()
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as problem:
        sys.exit(f'error: {problem}')
