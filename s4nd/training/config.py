"""The configuration of a run: what every task has, one flat YAML file, and `key=value` on the command line.

Later wins: the defaults below and of the task, then the file, then the command line. An unknown key is an error that
names the nearest right one; a value of the wrong type is an error that names the value and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s4nd.files import write_atomically
from s4nd.options import MISSING, ConfigError, fill, nearest, option, section
from s4nd.tasks.registry import task_class
from s4nd.training.schedule import SCHEDULES
from s4nd.training.tracking import TRACKERS

__all__ = [
    'ConfigError',
    'EvalConfig',
    'ModelConfig',
    'OptimConfig',
    'RunConfig',
    'SaveConfig',
    'check_plain',
    'check_resumable',
    'flat_options',
    'load_config',
    'nearest',
    'option',
    'save_config',
    'section',
    'to_yaml',
]


def _parse_device(name: str) -> str:
    if not re.fullmatch(r'auto|cpu|mps|cuda(:\d{1,3})?', name):
        raise ValueError(f"expected auto, cpu, mps, cuda or cuda:1, got '{name}'")
    return name


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
    schedule: str = option('cosine', 'course of the learning rate', choices=SCHEDULES)
    warmup_epochs: float = option(1.0, 'epochs of linear warm-up, at most half of the training (or stage)', low=0)
    warmup_lr: float = option(1e-6, 'learning rate at the start of the warm-up', low=0)
    min_lr: float = option(1e-6, 'learning rate at the end of the cosine, and the lowest after reductions', low=0)
    plateau_factor: float = option(0.2, 'reduce-on-plateau: what the learning rate is multiplied by', low=0, high=1)
    plateau_patience: int = option(10, 'reduce-on-plateau: evaluations without a better one before it is', low=0)
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
class SaveConfig:
    """When the state of a run is saved within an epoch; it always is at the end of one, and when it is told to end."""

    minutes: float | None = option(10.0, 'minutes between states; null: by time never', low=0)
    updates: int | None = option(None, 'updates between states; null: by number never', low=1)


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
    device: str = option('auto', 'auto (an accelerator if there is one), cpu, mps, cuda or cuda:1', parse=_parse_device)
    precision: str = option('fp32', 'number format of the forward pass', choices=('fp32', 'bf16', 'fp16'))
    compile: bool = option(False, 'compile the training step (torch.compile)')
    channels_last: bool = option(False, 'keep the channels of images and clips side by side in memory')
    threads: int | None = option(None, "CPU threads; null: torch's choice", low=1, high=1024)
    track: str = option('none', 'where figures are sent as well', choices=('none', *TRACKERS))
    model: ModelConfig = section(ModelConfig)
    optim: OptimConfig = section(OptimConfig)
    eval: EvalConfig = section(EvalConfig)
    save: SaveConfig = section(SaveConfig)


# What a run may go on with changed: its end, its measurement, its learning rates, and where and how fast it computes.
_CHANGEABLE = re.compile(
    r'resume|overwrite|eval_only|out|label|epochs|max_steps|device|compile|threads|track|eval\..*|save\..*'
    r'|optim\.(lr|ssm_lr|warmup_lr|warmup_epochs|min_lr|schedule|plateau_factor|plateau_patience)|data\.(root|cache|download|workers|split_files)'
)

_MOST_ALIASES = 100  # a few of them expand to gigabytes


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
    write_atomically(path, lambda temporary: temporary.write_text(to_yaml(config), encoding='utf-8'))


def flat_options(config: RunConfig) -> dict[str, Any]:
    """Every option by its full name, 'optim.lr', as plain values; dictionaries such as model.args are one value."""
    plain: Any = OmegaConf.to_container(OmegaConf.structured(config))
    sections = {item.name for item in fields(config) if is_dataclass(getattr(config, item.name))}
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        flat |= {f'{name}.{key}': entry for key, entry in value.items()} if name in sections else {name: value}
    return flat


def check_resumable(path: Path, before: dict[str, Any], config: RunConfig) -> None:
    """Raise ConfigError for an option that differs from the one a run began with and cannot be changed on the way."""
    now = flat_options(config)
    before = flat_options(type(config)()) | before  # options that the run began without had their defaults
    for name in sorted(before):
        old, new = before.get(name), now.get(name)
        if old == new or _CHANGEABLE.fullmatch(name):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            key = next((key for key in (*new, *old) if old.get(key) != new.get(key)), 'a null')
            name, old, new = f'{name}.{key}', old.get(key), new.get(key)
        raise ConfigError(f'{name}: {path} was trained with {old!r}, which resume=true cannot change to {new!r}')


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f'{path}: no such configuration file')
    try:
        text = path.read_text('utf-8')
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)) > _MOST_ALIASES:
            raise ConfigError(f'{path}: expected at most {_MOST_ALIASES} aliases')
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.MappingNode):
            found = 'a list' if isinstance(root, yaml.SequenceNode) else repr(text.strip()[:60])
            raise ConfigError(f'{path}: expected key: value lines, got {found}')
        content = OmegaConf.create(text)
        plain = OmegaConf.to_container(content)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f'{path}: not valid YAML: {" ".join(str(error).split())[:300]}') from error
    check_plain(str(path), plain)
    return content


def check_plain(origin: str, content: Any) -> None:
    """Raise ConfigError for a value with an interpolation: what a file says must not read the environment."""
    for entry in content.values() if isinstance(content, dict) else content:
        if isinstance(entry, (dict, list)):
            check_plain(origin, entry)
        elif isinstance(entry, str) and '${' in entry:
            raise ConfigError(f'{origin}: {entry!r} is an interpolation, expected a value')


def _parse_override(text: str) -> Any:
    key, separator, _ = text.partition('=')
    if not separator or not key.strip() or key.startswith('-'):
        raise ConfigError(f"'{text}': expected key=value, such as epochs=10 or data.root=/path")
    try:
        return OmegaConf.from_dotlist([text])
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"'{text[:200]}': {reason}") from error
