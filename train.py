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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
from accelerate.utils import set_seed
from torch import nn

from s4nd.data import ImageTask, VideoTask, load_images, load_video
from s4nd.evaluate import evaluate, load_trained
from s4nd.models import inflate, is_ours, load_checkpoint
from s4nd.training.checkpoint import load_weights, read_metadata
from s4nd.training.config import ConfigError, ImageConfig, RunConfig, VideoConfig, load_config, nearest, to_yaml
from s4nd.training.loop import NonFiniteError, Task, fit, make_accelerator
from s4nd.training.report import table, write_report

# What an earlier run leaves, and a new one must not replace unasked.
_RUN_FILES = ('resume.pt', 'last.safetensors', 'report.json')

# Arguments of our models that speak of the grid their weights were trained on.
_GRID_ARGS = ('img_size', 'num_frames', 'window', 'stem_extent')


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
        weights = config.checkpoint
    else:
        summary = fit(model, task, config, out, accelerator)
        weights = out / f'{config.eval.weights}.safetensors'
        if config.eval.weights == 'best':
            model = _with_weights(config, model, task, weights)
    report = evaluate(config, model.to(accelerator.device), task, accelerator, weights)
    report['training'] = summary
    if accelerator.is_main_process:
        paths = write_report(out, report, 'evaluation' if config.eval_only else 'report')
        print(f'\n{table([report])}\n')
        for path in [*paths, *(out / name for name in ('config.yaml', 'last.safetensors', 'best.safetensors'))]:
            if path.is_file():
                print(path)
    # A process that left early would take the others' connections down with it.
    accelerator.wait_for_everyone()
    accelerator.end_training()
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
        if config.eval_only:
            return load_trained(config.checkpoint, config, task), task
        model = _timm_model(config, task, {'img_size': task.grid(task.stage(0))})
        if config.data.stage_epochs and not is_ours(config.model.name) and hasattr(model, 'set_input_size'):
            raise ConfigError(f'data.stage_epochs: {config.model.name} makes new parameters for another size')
        return model, task
    if isinstance(config, VideoConfig):
        task = VideoTask(config, load_video(config.data, config.seed))
        if config.eval_only:
            return load_trained(config.checkpoint, config, task), task
        if config.model.inflate is not None:
            return _inflated(config, task), task
        return _timm_model(config, task, task.model_grid), task
    from audio.task import build

    name = config.model.name
    model, task = build(config, partial(_create, name) if is_ours(name) else None)
    if config.checkpoint is not None:
        load_weights(config.checkpoint, model, config.model.name)
    return model, task


def _timm_model(config: ImageConfig | VideoConfig, task: ImageTask | VideoTask, grid: dict[str, Any]) -> nn.Module:
    """Build the model through timm, with `config.model.args` completed to what it was built with.

    grid: arguments of our models that say on which grid they are trained, unless the configuration does.
    """
    name, given = config.model.name, dict(config.model.args)
    if not timm.is_model(name):
        ours = [model for model in timm.list_models() if is_ours(model)]
        raise ConfigError(f"model.name: timm has no model '{name}'{nearest(name, ours)}")
    args = {'num_classes': len(task.classes), 'in_chans': task.channels, **given}
    if is_ours(name):
        args = {**grid, **args}
    config.model.args = args
    trained = {} if config.checkpoint is None else json.loads(read_metadata(config.checkpoint).get('args', '{}'))
    at_grid = {key: trained[key] for key in _GRID_ARGS if key in trained} if is_ours(name) else {}
    model = _create(name, {**args, **at_grid})
    if config.checkpoint is not None:
        load_weights(config.checkpoint, model, name)
        if is_ours(name):
            # The weights speak of the grid they were trained on; from here on they shall speak of the new one.
            model.set_input_size(**{key: args[key] for key in grid})
    return model


def _inflated(config: VideoConfig, task: VideoTask) -> nn.Module:
    """The video model of the image model `config.model.inflate`; `model.args` are keywords of `s4nd.inflate`."""
    if config.checkpoint is not None:
        raise ConfigError('checkpoint and model.inflate: expected one of them to begin with, got both')
    known = [key for key in inspect.signature(inflate).parameters if key not in ('model', 'num_frames')]
    for key in config.model.args:
        if key not in known:
            raise ConfigError(f"model.args: s4nd.inflate takes no '{key}'{nearest(key, known)}")
    image = load_checkpoint(config.model.inflate, img_size=task.grid.size)
    if image.in_chans != task.channels:
        raise ConfigError(
            f'model.inflate: {config.model.inflate} sees {image.in_chans} channels, the clips have {task.channels}'
        )
    model = inflate(image, task.grid.frames, **config.model.args)
    model.reset_classifier(len(task.classes))
    return model


def _with_weights(config: RunConfig, model: nn.Module, task: Task, path: Path) -> nn.Module:
    if isinstance(task, ImageTask | VideoTask):
        return load_trained(path, config, task)  # they may be of an earlier stage, on another grid
    load_weights(path, model, config.model.name)
    return model


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
