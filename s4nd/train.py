"""Train, or evaluate, what a configuration describes.

s4nd train cifar10/s4nd_isotropic_mini epochs=10 data.root=/path/to/cifar10 out=out/my_run
s4nd train out/my_run/config.yaml resume=true
s4nd train out/my_run/config.yaml eval_only=true checkpoint=out/my_run/last.safetensors eval.sizes=[8,16,32,64]

A configuration is a file, or the name of one that ships, which `s4nd list` shows. `key=value`, `--key value` and
`--key=value` mean the same. In a checkout, `python train.py` is the same command.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from s4nd.evaluate import evaluate
from s4nd.options import describe, nearest
from s4nd.tasks import Task, make_task, task_class
from s4nd.training.checkpoint import find_weights, load_weights
from s4nd.training.config import ConfigError, RunConfig, load_config
from s4nd.training.folder import check_unused, claimed
from s4nd.training.loop import fit, make_accelerator
from s4nd.training.report import table, write_report
from s4nd.words import split_words

__all__ = ['find_config', 'help_text', 'main', 'shipped_configs']

_CONFIGS = (Path(__file__).parent / 'configs', Path(__file__).parents[1] / 'configs')  # of a wheel, of a checkout


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Run what `arguments` (a configuration, then key=value words) describe and return the report."""
    plain, words = split_words(arguments)
    if len(plain) != 1:
        usage = '; s4nd train --help shows how' if arguments else f':\n{__doc__}'
        raise ConfigError(f'expected one configuration file, got {" ".join(plain) or "none"}{usage}')
    config = load_config(find_config(plain[0]), words)
    out = _output_folder(config, named=any(word.startswith('out=') for word in words))
    accelerator = make_accelerator(config)
    with claimed(out) if accelerator.is_main_process and not config.eval_only else nullcontext():
        return _run(config, out, accelerator)


def _run(config: RunConfig, out: Path, accelerator: Accelerator) -> dict[str, Any]:
    task = make_task(config)
    set_seed(config.seed)
    summary: dict[str, Any]
    if config.eval_only:
        weights = find_weights(str(config.checkpoint))
        model, summary = task.load_model(weights), {'checkpoint': config.checkpoint}
    else:
        model = _begin(task, config)
        summary = fit(model, task, config, out, accelerator)
        weights = out / f'{config.eval.weights}.safetensors'
        if config.eval.weights == 'best':
            model = task.load_model(weights)
    report = evaluate(task, model.to(accelerator.device), accelerator, weights)
    report['training'] = summary
    if accelerator.is_main_process:
        paths = write_report(out, report, 'evaluation' if config.eval_only else 'report')
        left = [out / name for name in ('config.yaml', 'metrics.csv', 'last.safetensors', 'best.safetensors')]
        print('', table([report]), '', *paths, *(path for path in left if path.is_file()), sep='\n')
    # A process that left early would take the others' connections down with it.
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return report


def help_text(arguments: Sequence[str]) -> str:
    """The module's text, and the options of the task that `arguments` (a configuration, key=value words) name."""
    plain, words = split_words(arguments)
    named = next((word.partition('=')[2] for word in words if word.startswith('task=')), None)
    task = named or (load_config(find_config(plain[0])).task if plain else 'image')
    return (
        f'{__doc__}\nOptions of the task {task} (task=… lists those of another):\n\n{describe(task_class(task).Config)}'
    )


def find_config(name: str) -> Path:
    """A configuration file: a path, or the name of a shipped one, such as cifar10/s4nd_isotropic_mini.

    Raises:
        ConfigError: neither, with the shipped one of the nearest name.
    """
    word = name.removesuffix('.yaml')
    for path in (Path(name), *(folder / f'{word}.yaml' for folder in _CONFIGS)):
        if path.is_file():
            return path
    raise ConfigError(f'{name}: no such configuration file{nearest(word, shipped_configs())}')


def shipped_configs() -> list[str]:
    """The names of the shipped configurations, as `find_config` takes them."""
    folder = next((folder for folder in _CONFIGS if folder.is_dir()), _CONFIGS[0])
    return sorted(file.relative_to(folder).with_suffix('').as_posix() for file in folder.rglob('*.yaml'))


def _output_folder(config: RunConfig, named: bool) -> Path:
    if config.eval_only:
        if config.checkpoint is None:
            raise ConfigError('eval_only=true needs checkpoint=… (a .safetensors file)')
        return Path(config.out) if named else find_weights(config.checkpoint).parent
    out = Path(config.out)
    if not (config.resume or config.overwrite):
        check_unused(out)
    return out


def _begin(task: Task, config: RunConfig) -> nn.Module:
    """A new model, with the weights of `config.checkpoint` if any: their layers keep the grid they were trained on."""
    model = task.build_model()
    if config.checkpoint is not None and not config.resume:
        load_weights(find_weights(config.checkpoint), model, config.model.name)
    return model
