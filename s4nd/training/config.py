"""The configuration of a run: dataclasses, one flat YAML file, and `key=value` on the command line.

Later wins: the defaults below, then the file, then the command line. An unknown key is an error that names the nearest
right one; a value of the wrong type is an error that names the value and what was expected.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from s4nd.files import write_atomically
from s4nd.training.sizes import parse_size

__all__ = [
    'AudioConfig',
    'AudioData',
    'ConfigError',
    'EvalConfig',
    'ImageConfig',
    'ImageData',
    'ModelConfig',
    'OptimConfig',
    'RunConfig',
    'VideoConfig',
    'VideoData',
    'VideoModel',
    'load_config',
    'nearest',
    'save_config',
    'to_yaml',
]


class ConfigError(ValueError):
    """A configuration that cannot be run, with the option and what was expected."""


def option(
    default: Any,
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    parse: Callable[[Any], Any] | None = None,
):
    """A dataclass field with the values it admits: one of `choices`, a number in [low, high], or what `parse` reads."""
    metadata = {'choices': choices, 'low': low, 'high': high, 'parse': parse}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    """`name` as timm (or the task) knows it, `args` handed to its constructor."""

    name: str = MISSING
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class VideoModel(ModelConfig):
    inflate: str | None = None  # begin with the weights of this 2-D model: a weights file, or a run's folder
    frame_by_frame: bool = False  # `name` is a model of images; its scores are averaged over the frames


@dataclass
class OptimConfig:
    """Optimizer (any of timm's), schedule and averaging. Learning rates are per update."""

    name: str = 'adamw'
    lr: float = option(1e-3, low=0)
    ssm_lr: float = option(1e-3, low=0)  # dt, A, P, B; these are never decayed
    weight_decay: float = option(0.05, low=0)
    schedule: str = option('cosine', choices=('cosine', 'constant'))
    warmup_epochs: float = option(1.0, low=0)
    warmup_lr: float = option(1e-6, low=0)
    min_lr: float = option(1e-6, low=0)
    clip_grad: float | None = option(None, low=0)  # largest norm of the whole gradient
    accumulate: int = option(1, low=1)  # batches an update
    ema: float | None = option(None, low=0, high=1)  # decay of the averaged weights; null: none


@dataclass
class EvalConfig:
    """What is measured: `sizes` after training, the training size after every `every` epochs."""

    sizes: list[Any] = option([], parse=parse_size)  # noqa: RUF009 (it makes a field)  # images: 16 or 24x40; empty: the training size
    sample_rates: list[int] = option([], low=1)  # noqa: RUF009  # classes of sound: Hz; empty: the training rate
    frame_rates: list[float] = option([], low=0.01)  # noqa: RUF009  # video: frames a second; empty: the training rate
    every: int = option(1, low=1)
    limit: int | None = option(None, low=1)  # evaluate on this many images, evenly over the classes
    weights: str = option('last', choices=('last', 'best'))  # which weights the final evaluation uses


@dataclass
class ImageData:
    """Images of one set, trained at `size` × `size` pixels."""

    kind: str = option('cifar10', choices=('cifar10', 'cifar100', 'fashion_mnist', 'imagenet', 'folder', 'shapes'))
    root: str | None = None  # a folder or a tar of class folders, or the set's own files
    download: bool = False  # through torchvision, into root (cifar10, cifar100, fashion_mnist)
    cache: str | None = 'out/cache'  # decoded images are kept here; null: decode every time
    size: int = option(32, low=1)
    sizes: list[Any] = option([], parse=parse_size)  # noqa: RUF009 (it makes a field)  # sizes shown in training; empty: `size`
    stage_epochs: list[int] = option([], low=1)  # noqa: RUF009  # epochs at each of `sizes` in turn; empty: a size drawn a batch
    source_size: int | None = option(None, low=1)  # folder: side to which decoded images are brought
    sequence: bool = False  # read row by row, as height · width samples: for models of one axis
    stream: bool = False  # folder: decode during training (always so for imagenet)
    workers: int = option(4, low=0)  # stream: loader processes
    batch_size: int = option(128, low=1)  # images a process and step
    val_fraction: float = option(0.0, low=0, high=0.9)  # held out of the training images, class by class
    train_count: int = option(8000, low=1)  # shapes: scenes to train on
    test_count: int = option(1000, low=1)  # shapes: scenes to evaluate on
    crop_padding: int = option(0, low=0)  # random crop after this zero padding, in pixels of the source
    flip: bool = False  # random mirror image, left and right
    mixup: float = option(0.0, low=0)
    cutmix: float = option(0.0, low=0)
    mix_prob: float = option(1.0, low=0, high=1)
    label_smoothing: float = option(0.0, low=0, high=1)
    auto_augment: str | None = None  # stream: timm's policy, such as rand-m9-mstd0.5-inc1
    random_erasing: float = option(0.0, low=0, high=1)  # stream: probability
    repeats: int = option(1, low=1)  # stream: each drawn image is augmented this many times an epoch
    crop_pct: float = option(0.875, low=0.1, high=1)  # stream: center crop at evaluation


@dataclass
class AudioData:
    """Waveforms cut into clips of `clip_samples`, quantized to 2**`bits` values."""

    kind: str = option('folder', choices=('folder', 'digits', 'sc09', 'plucked'))
    root: str | None = None  # a folder or a tar of recordings; sc09: where Speech Commands is, or is to be
    download: bool = False  # sc09: fetch Speech Commands into root
    cache: str = 'out/cache'  # a tar is unpacked here
    sample_rate: int = option(16000, low=1)
    clip_samples: int = option(16000, low=1)
    quantizer: str = option('mu-law', choices=('mu-law', 'linear'))
    convention: str = option('standard', choices=('standard', 'torchaudio', 'reference'))
    bits: int = option(8, low=1, high=16)
    normalize: str = option('none', choices=('none', 'peak', 'min-max'))  # each file's peak, each clip's extremes
    # The ends of each file, whole files, files named in lists, or by the index in the name (spoken digits).
    split: str = option('time', choices=('time', 'files', 'lists', 'digits'))
    val_fraction: float = option(0.06, low=0, high=0.45)  # held out, and as much again for the test
    labels: str = option('none', choices=('none', 'folder', 'name'))  # a file's class: its folder, its name up to a '_'
    batch_size: int = option(8, low=1)
    train_count: int = option(256, low=1)  # plucked: clips to train on
    test_count: int = option(32, low=1)  # plucked: clips to validate on, and as many again for the test


@dataclass
class VideoData:
    """Clips of `seconds` at `frame_rate` frames a second, `size` × `size` pixels."""

    kind: str = option('moving', choices=('moving', 'folder', 'hmdb51', 'ucf101'))
    root: str | None = None  # a folder of class folders with video files or folders of frames; moving: Fashion-MNIST
    download: bool = False  # moving: fetch Fashion-MNIST through torchvision, into root
    split_files: str | None = None  # hmdb51, ucf101: the folder of the official lists
    split: int = option(1, low=1, high=3)  # hmdb51, ucf101: which of the three
    stored_rate: float | None = option(None, low=0.01)  # folders of frames: frames a second as they are stored
    size: int = option(32, low=1)
    frame_rate: float = option(8.0, low=0.01)
    seconds: float = option(2.0, low=0.01)
    workers: int = option(4, low=0)  # files: loader processes
    batch_size: int = option(16, low=1)  # clips a process and step
    val_fraction: float = option(0.0, low=0, high=0.9)  # held out of the training clips, class by class
    train_count: int = option(6000, low=1)  # moving: clips an epoch, new ones in every epoch
    test_count: int = option(1200, low=1)  # moving: clips to evaluate on
    flip: bool = False  # files: random mirror image, left and right
    crop_scale: float = option(1.0, low=0.01, high=1)  # files: smallest share of the picture that a random crop keeps
    rand_augment_layers: int = option(0, low=0)  # files: RandAugment, the same for all frames of a clip
    rand_augment_magnitude: int = option(7, low=0, high=10)
    crop_pct: float = option(1.0, low=0.1, high=1)  # files: center crop at evaluation


@dataclass
class RunConfig:
    """What every run has, whatever its task."""

    task: str = option('image', choices=('image', 'video', 'audio'))
    seed: int = option(0, low=0)
    out: str = ''  # results; empty: out/<name of the file>
    label: str = ''  # the run's name in tables and pictures; empty: the last part of out
    resume: bool = False  # go on where the run in out stopped
    overwrite: bool = False  # replace an earlier run in out
    eval_only: bool = False  # evaluate `checkpoint`, train nothing
    checkpoint: str | None = None  # weights to evaluate, or to start from
    epochs: int = option(10, low=1)
    max_steps: int | None = option(None, low=1)  # end after this many updates
    device: str = option('auto', choices=('auto', 'cpu'))
    precision: str = option('fp32', choices=('fp32', 'bf16', 'fp16'))
    compile: bool = False  # torch.compile for the training step
    threads: int | None = option(None, low=1)  # CPU threads
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class ImageConfig(RunConfig):
    data: ImageData = field(default_factory=ImageData)


@dataclass
class VideoConfig(RunConfig):
    model: VideoModel = field(default_factory=VideoModel)
    data: VideoData = field(default_factory=VideoData)


@dataclass
class AudioConfig(RunConfig):
    data: AudioData = field(default_factory=AudioData)


SCHEMAS: dict[str, type[RunConfig]] = {'image': ImageConfig, 'video': VideoConfig, 'audio': AudioConfig}


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or the list of all where none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f'; known: {", ".join(sorted(known))}'


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> ImageConfig | VideoConfig | AudioConfig:
    """Read the YAML file at `path` (None: no file), apply `key=value` overrides and check every key and value.

    Raises ConfigError, naming the option, its value and what was expected.
    """
    layers = [] if path is None else [(str(path), _read_file(Path(path)))]
    for text in overrides:
        layers.append((text, _parse_override(text)))
    task = next((str(layer.task) for _, layer in reversed(layers) if 'task' in layer), 'image')
    if task not in SCHEMAS:
        raise ConfigError(f"task: expected one of {', '.join(SCHEMAS)}, got '{task}'")
    config = _merge(SCHEMAS[task], layers)
    _check_values(config)
    if not config.out:
        config.out = str(Path('out') / ('run' if path is None else Path(path).stem))
    if not config.label:
        config.label = Path(config.out).name
    return config


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


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML; load_config reads it back unchanged."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def save_config(path: Path, config: RunConfig) -> None:
    """Write the resolved configuration to `path`, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(to_yaml(config)))


def _parse_override(text: str) -> Any:
    key, separator, _ = text.partition('=')
    if not separator or not key.strip() or key.startswith('-'):
        raise ConfigError(f"'{text}': expected key=value, such as epochs=10 or data.root=/path")
    try:
        return OmegaConf.from_dotlist([text])
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"'{text}': {str(error).splitlines()[0]}") from error


def _merge(schema: type[RunConfig], layers: Sequence[tuple[str, Any]]) -> Any:
    known = list(_schema_keys(schema))
    merged = OmegaConf.structured(schema)
    for origin, layer in layers:
        for key, problem in _misplaced(schema, OmegaConf.to_container(layer)):
            raise ConfigError(
                f'{key}: {problem}' if problem else f"{origin}: unknown option '{key}'{nearest(key, known)}"
            )
        try:
            merged = OmegaConf.merge(merged, layer)
        except (ValidationError, OmegaConfBaseException) as error:
            key = getattr(error, 'full_key', None) or origin
            raise ConfigError(
                f'{key}: {_expected(schema, key)}, got {OmegaConf.select(layer, key.split("[")[0])!r}'
            ) from error
    try:
        return OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(f'{error.full_key}: must be given') from error
    except OmegaConfBaseException as error:
        raise ConfigError(f'{error.full_key}: {str(error).splitlines()[0]}') from error


def _schema_keys(schema: type, prefix: str = '') -> Iterator[str]:
    hints = get_type_hints(schema)
    for item in fields(schema):
        yield prefix + item.name
        if is_dataclass(hints[item.name]):
            yield from _schema_keys(hints[item.name], f'{prefix}{item.name}.')


def _misplaced(schema: type, content: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
    """Each key that the schema does not have (with no text), or that it has as a section (with what was expected)."""
    hints = get_type_hints(schema)
    for key, value in content.items():
        name = f'{prefix}{key}'
        if key not in hints:
            yield name, ''
        elif (is_dataclass(hints[key]) or key == 'args') and not isinstance(value, Mapping):
            yield name, f'expected a section with options of its own, got {value!r}'
        elif is_dataclass(hints[key]):
            yield from _misplaced(hints[key], value, f'{name}.')


def _expected(schema: type, key: str) -> str:
    kind: Any = schema
    for part in key.split('[')[0].split('.'):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    words = {
        int: 'a whole number',
        float: 'a number',
        bool: 'true or false',
        str: 'text',
        list[int]: 'whole numbers, [8, 16]',
        list[float]: 'numbers, [7.5, 15]',
        list[Any]: 'a list, [8, 16]',
    }
    options = [words.get(part, str(part)) for part in getattr(kind, '__args__', (kind,)) if part is not type(None)]
    return 'expected ' + words.get(kind, ' or '.join(options))


def _check_values(config: Any, prefix: str = '') -> None:
    for item in fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            _check_values(value, f'{name}.')
            continue
        choices, low, high, parse = (item.metadata.get(word) for word in ('choices', 'low', 'high', 'parse'))
        if choices and value not in choices:
            raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got '{value}'")
        if parse is not None:
            for entry in value:
                try:
                    parse(entry)
                except ValueError as error:
                    raise ConfigError(f'{name}: {error}') from error
        for number in value if isinstance(value, list) else [value]:
            if low is not None and number is not None and not number >= low:
                raise ConfigError(f'{name}: expected at least {low}, got {number}')
            if high is not None and number is not None and not number <= high:
                raise ConfigError(f'{name}: expected at most {high}, got {number}')
