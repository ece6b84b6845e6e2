"""The configuration of a run: what every task has, one flat YAML file, and `key=value` on the command line.

Later wins: the defaults below and of the task, then the file, then the command line. An unknown key is an error that
names the nearest right one; a value of the wrong type is an error that names the value and what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s4nd.files import write_atomically
from s4nd.options import MISSING, ConfigError, fill, nearest, option, section
from s4nd.tasks.registry import task_class

__all__ = [
    'ConfigError',
    'EvalConfig',
    'ModelConfig',
    'OptimConfig',
    'RunConfig',
    'load_config',
    'nearest',
    'option',
    'save_config',
    'section',
    'to_yaml',
]


@dataclass
class ModelConfig:
    """The model and the keywords of its constructor."""

    name: str = option(MISSING, 'the model, as timm or the task knows it')
    args: dict[str, Any] = option({}, 'keywords of its constructor')


@dataclass
class OptimConfig:
    """Optimizer, schedule and averaging. Learning rates are per update."""

    name: str = option('adamw', "the optimizer, any of timm's")
    lr: float = option(1e-3, 'learning rate', low=0)
    ssm_lr: float = option(1e-3, 'learning rate of dt, A, P and B, which are never decayed', low=0)
    weight_decay: float = option(0.05, 'decay of the other weights', low=0)
    schedule: str = option('cosine', 'course of the learning rate', choices=('cosine', 'constant'))
    warmup_epochs: float = option(1.0, 'epochs of linear warm-up', low=0)
    warmup_lr: float = option(1e-6, 'learning rate at the start of the warm-up', low=0)
    min_lr: float = option(1e-6, 'learning rate at the end of the cosine', low=0)
    clip_grad: float | None = option(None, 'largest norm of the whole gradient; null: not clipped', low=0)
    accumulate: int = option(1, 'batches per update and process', low=1)
    ema: float | None = option(None, 'decay of the averaged weights; null: none', low=0, high=1)


@dataclass
class EvalConfig:
    """When and on what a run is measured; tasks add the points of their axes."""

    every: int = option(1, 'epochs between evaluations', low=1)
    limit: int | None = option(None, 'examples to evaluate on, spread evenly over the classes; null: all', low=1)
    weights: str = option('last', 'the weights that the final evaluation uses', choices=('last', 'best'))
    resample: bool = option(False, 'measure as well what is first brought to the training size or rate')


@dataclass
class RunConfig:
    """What every run has, whatever its task."""

    task: str = option('image', 'the kind of learning')
    seed: int = option(0, 'decides everything random', low=0)
    out: str = option('', 'folder of the results; empty: out/<name of the configuration>')
    label: str = option('', 'name of the run in tables and pictures; empty: the last part of out')
    resume: bool = option(False, 'go on where the run in out stopped')
    overwrite: bool = option(False, 'replace an earlier run in out')
    eval_only: bool = option(False, 'evaluate `checkpoint`, train nothing')
    checkpoint: str | None = option(None, 'weights to evaluate, or to start from: a file or the folder of a run')
    epochs: int = option(10, 'epochs to train', low=1)
    max_steps: int | None = option(None, 'end after this many updates; null: after `epochs`', low=1)
    device: str = option('auto', 'auto takes an accelerator where there is one', choices=('auto', 'cpu'))
    precision: str = option('fp32', 'number format of the forward pass', choices=('fp32', 'bf16', 'fp16'))
    compile: bool = option(False, 'compile the training step (torch.compile)')
    threads: int | None = option(None, "CPU threads; null: torch's choice", low=1)
    model: ModelConfig = section(ModelConfig)
    optim: OptimConfig = section(OptimConfig)
    eval: EvalConfig = section(EvalConfig)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Any:
    """Read the YAML file at `path` (None: no file), apply `key=value` overrides and check every key and value.

    The result is an instance of the `Config` of its task.

    Raises:
        ConfigError: naming the option, its value and what was expected.
    """
    layers = [] if path is None else [(str(path), _read_file(Path(path)))]
    layers += [(text, _parse_override(text)) for text in overrides]
    task = next((str(layer.task) for _, layer in reversed(layers) if 'task' in layer), 'image')
    config = fill(task_class(task).Config, layers)
    if not config.out:
        config.out = str(Path('out') / ('run' if path is None else Path(path).stem))
    if not config.label:
        config.label = Path(config.out).name
    return config


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML; load_config reads it back unchanged."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def save_config(path: Path, config: RunConfig) -> None:
    """Write the resolved configuration to `path`, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(to_yaml(config)))


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f'{path}: no such configuration file')
    try:
        content = OmegaConf.create(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f'{path}: not valid YAML: {error}') from error
    if not OmegaConf.is_dict(content):
        raise ConfigError(f'{path}: expected key: value lines, got a list')
    return content


def _parse_override(text: str) -> Any:
    key, separator, _ = text.partition('=')
    if not separator or not key.strip() or key.startswith('-'):
        raise ConfigError(f"'{text}': expected key=value, such as epochs=10 or data.root=/path")
    try:
        return OmegaConf.from_dotlist([text])
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"'{text}': {str(error).splitlines()[0]}") from error
