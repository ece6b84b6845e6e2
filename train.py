"""Train, or evaluate, what a configuration describes.

python train.py configs/cifar10/s4nd_isotropic_mini.yaml epochs=10 data.root=/path/to/cifar10
python train.py out/my_run/config.yaml resume=true
python train.py out/my_run/config.yaml eval_only=true checkpoint=out/my_run/last.safetensors eval.sizes=[8,16,32,64]
"""

from __future__ import annotations

import inspect
import json
import logging
import re
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

import s4nd.models
from s4nd.data import ImageTask, load_images
from s4nd.training.checkpoint import load_weights, read_metadata
from s4nd.training.config import ConfigError, ImageConfig, RunConfig, load_config, nearest, to_yaml
from s4nd.training.loop import NonFiniteError, Task, fit, make_accelerator
from s4nd.training.report import table, write_report

# What an earlier run leaves, and a new one must not replace unasked.
_RUN_FILES = ('resume.pt', 'last.safetensors', 'report.json')


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Run what `arguments` (a YAML file, then key=value) describe and return the report."""
    if not arguments:
        raise ConfigError(f'expected a configuration file:\n{__doc__}')
    config = load_config(arguments[0], arguments[1:])
    out = _output_folder(config, named=any(text.startswith('out=') for text in arguments[1:]))
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    model, task = _make(config)
    if config.eval_only:
        summary: dict[str, Any] = {'checkpoint': config.checkpoint}
        model.to(accelerator.device)
    else:
        summary = fit(model, task, config, out, accelerator)
        if config.eval.weights == 'best':
            load_weights(out / 'best.safetensors', model, config.model.name)
    report = _evaluate(config, model, task, accelerator, summary)
    if accelerator.is_main_process:
        paths = write_report(out, report, 'evaluation' if config.eval_only else 'report')
        print(f'\n{table([report])}\n')
        for path in [*paths, *(out / name for name in ('config.yaml', 'last.safetensors', 'best.safetensors'))]:
            if path.is_file():
                print(path)
    return report


def _output_folder(config: RunConfig, named: bool) -> Path:
    if config.eval_only:
        if config.checkpoint is None:
            raise ConfigError('eval_only=true needs checkpoint=… (a .safetensors file)')
        return Path(config.out) if named else Path(config.checkpoint).parent
    out = Path(config.out)
    found = [name for name in _RUN_FILES if (out / name).exists()]
    if found and not (config.resume or config.overwrite):
        raise ConfigError(
            f'{out} holds an earlier run ({found[0]}): resume=true goes on with it, overwrite=true replaces it, '
            'out=… writes elsewhere'
        )
    return out


def _make(config: RunConfig) -> tuple[nn.Module, Task]:
    """Model and task, the model with the weights of `config.checkpoint` if any."""
    if isinstance(config, ImageConfig):
        task = ImageTask(config, load_images(config.data, config.seed))
        return _image_model(config, task), task
    from audio.task import build

    model, task = build(config)
    if config.checkpoint is not None:
        load_weights(config.checkpoint, model, config.model.name)
    return model, task


def _image_model(config: ImageConfig, task: ImageTask) -> nn.Module:
    """Build the model through timm, with `config.model.args` completed to what it was built with."""
    name, given = config.model.name, dict(config.model.args)
    if not timm.is_model(name):
        ours = [model for model in timm.list_models() if _is_ours(model)]
        raise ConfigError(f"model.name: timm has no model '{name}'{nearest(name, ours)}")
    args = {'num_classes': len(task.classes), 'in_chans': task.channels, **given}
    if _is_ours(name):
        args.setdefault('img_size', config.data.size)
    config.model.args = args
    if config.checkpoint is None:
        return _create(name, args)
    trained = json.loads(read_metadata(config.checkpoint).get('args', '{}')).get('img_size')
    model = _create(name, {**args, 'img_size': trained} if _is_ours(name) and trained is not None else args)
    load_weights(config.checkpoint, model, name)
    if not config.eval_only and _is_ours(name) and trained not in (None, args['img_size']):
        # The weights speak of the grid they were trained on; from here on they shall speak of the new one.
        model.set_input_size(img_size=args['img_size'])
    return model


def _is_ours(name: str) -> bool:
    return timm.model_entrypoint(name).__module__.startswith('s4nd.')


def _create(name: str, args: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **args)
    except TypeError as error:
        unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        family = getattr(sys.modules[timm.model_entrypoint(name).__module__], unknown[1], None)
        known = [] if family is None else [key for key in inspect.signature(family).parameters if key != 'self']
        raise ConfigError(f"model.args: {name} takes no '{unknown[2]}'{nearest(unknown[2], known)}") from error


def _evaluate(
    config: RunConfig, model: nn.Module, task: Task, accelerator: Accelerator, summary: dict[str, Any]
) -> dict[str, Any]:
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
            sizes = sorted(set(config.eval.sizes or [config.data.size]))
            results = task.evaluate_at(model, accelerator.device, sizes)
            report['size'] = config.data.size
            report['skipped_files'] = {'count': len(task.splits.skipped), 'first': task.splits.skipped[:10]}
        else:
            results = task.evaluate(model, accelerator.device)
    report['results'] = results
    report['evaluation_seconds'] = round(time.monotonic() - start, 1)
    report['training'] = summary
    report['seed'] = config.seed
    report['versions'] = {'s4nd': s4nd.__version__, 'torch': torch.__version__, 'timm': timm.__version__}
    return report


if __name__ == '__main__':
    logging.basicConfig(format='%(message)s')
    if {'-h', '--help'} & set(sys.argv[1:]):
        print(f'{__doc__}\nOptions and their defaults:\n\n{to_yaml(ImageConfig())}')
        sys.exit()
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, NonFiniteError) as problem:
        sys.exit(f'error: {problem}')
    except KeyboardInterrupt:
        sys.exit('interrupted: resume=true goes on after the last complete epoch')
