"""Weights in safetensors and the state from which a run goes on, both written atomically.

A checkpoint folder holds `config.yaml` (the resolved configuration), `last.safetensors` and `best.safetensors` (weights
to use: the averaged ones where averaging is on), for a model of timm's registry `config.json` (which makes it a folder
that timm loads), `resume.pt` (all that training needs to go on, in one file, so that an interruption can never leave
half of it) and `resume-before.pt`, the state that was saved before it. Weights from elsewhere are read as well: a hub
folder, a checkpoint of timm's train.py, a state dict.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import build_model_with_cfg
from torch import Tensor, nn

from s4nd.files import write_atomically
from s4nd.training.foreign import describe_folder, read_pickled
from s4nd.weights import FOLDER, shipped_file, shipped_names

__all__ = [
    'STATES',
    'UNNAMED',
    'CheckpointError',
    'bad_tensor',
    'config_beside',
    'find_weights',
    'load_newest_state',
    'load_state',
    'load_weights',
    'read_metadata',
    'results_folder',
    'save_state',
    'save_tensors',
    'save_weights',
    'stored_args',
]

logger = logging.getLogger(__name__)

FORMAT = '1'
STATES = ('resume.pt', 'resume-before.pt')  # the newest first
# What a keyword in a file must not be called: a constructor would open another file or address.
_OPENING = re.compile(r'pretrained|checkpoint|(?<!drop_)path|(^|_)file|url|cache|hub|download')
# Numbers of modules: a constructor would go on building them for hours.
_COUNT, _MOST_LAYERS = re.compile(r'depth|layer|block|stage|level'), 1000
_WORD = re.compile(r'[\w.+-]{0,64}')
UNNAMED = (
    'names no model: expected metadata, or a config.json beside it, as s4nd.save_for_hf and the save_for_hf of timm '
    'write it'
)
_NAMES = (
    'best.safetensors', 'last.safetensors', 'model.safetensors', 'model_best.pth.tar', 'last.pth.tar',
    'pytorch_model.bin',
)  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model."""


def save_weights(path: str | Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the model's parameters and buffers; `metadata` must name the model under 'model'."""
    save_tensors(path, model.state_dict(), metadata)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write the state dict of a model, as `save_weights`."""
    if 'model' not in metadata:
        raise CheckpointError(f"metadata must hold 'model', got {sorted(metadata)}")
    # Shared tensors are refused by safetensors, so each is written on its own.
    separate = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    header = {'format': FORMAT, **metadata}
    write_atomically(path, lambda temporary: save_file(separate, temporary, metadata=header))


def find_weights(path: str | Path) -> Path:
    """A weights file itself, or of a folder the best weights, else the last, else a hub's; or a name that ships.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        shipped = shipped_file(path)
        if shipped is None:
            raise FileNotFoundError(f'no checkpoint at {path}, nor of that name among {", ".join(shipped_names())}')
        return shipped
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f'no best.safetensors or last.safetensors in {path}, nor {", ".join(_NAMES[2:])}')


def config_beside(weights: Path) -> Path | None:
    """The configuration of the run that made a weights file, None where there is none beside it."""
    found = (path for path in (weights.with_suffix('.yaml'), weights.parent / 'config.yaml') if path.is_file())
    return next(found, None)


def results_folder(weights: Path) -> Path:
    """Where results about a weights file are written: beside it, or out/<name> for weights that ship."""
    return Path('out') / weights.stem if weights.parent == FOLDER else weights.parent


def read_metadata(path: str | Path) -> dict[str, str]:
    """The strings stored beside the weights: 'model', 'format' and what the writer added.

    Of weights from elsewhere: 'model', 'args' and what else follows from a config.json or from timm's training options.
    """
    return _read(Path(path), tensors=False)[0]


def load_weights(path: str | Path, model: nn.Module, expect: str | None = None) -> dict[str, str]:
    """Fill `model` from `path` and return the metadata.

    `expect`: the model's name; weights saved under another name, or of other shapes, raise one CheckpointError that
    names both sides. The model is untouched unless everything fits and every number is finite.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    saved = metadata.get('model', 'an unnamed model')
    if expect is not None and saved != expect:
        raise CheckpointError(f'{path} holds the weights of {saved}, expected {expect}')
    own = model.state_dict()
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f'{name}: {tuple(tensors[name].shape)} in the file, {tuple(own[name].shape)} in the model'
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    problems = [
        f'{len(found)} {what} ({", ".join(sorted(found)[:3])}{", …" if len(found) > 3 else ""})'
        for what, found in (('missing', missing), ('surplus', surplus), ('of another shape', shapes))
        if found
    ]
    if problems:
        name = expect or type(model).__name__
        raise CheckpointError(f'{path} (weights of {saved}) does not fit {name}: {"; ".join(problems)}')
    bad = bad_tensor(tensors, {name for name, _ in model.named_buffers()})
    if bad is not None:
        raise CheckpointError(f'{path}: {bad} holds values that are not finite, so its outputs mean nothing')
    model.load_state_dict(tensors)
    return metadata


def bad_tensor(tensors: Mapping[str, Tensor], buffers: Collection[str] = frozenset()) -> str | None:
    """The name of the first tensor with a NaN or an infinity; an infinity may stand in `buffers`."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        wrong = tensor.isnan() if name in buffers else ~tensor.isfinite()
        if wrong.any():
            return name
    return None


def stored_args(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The keywords that the model of a weights file was built with.

    Raises:
        CheckpointError: they are no keywords of a model, or could make a constructor open another file or address.
    """
    try:
        args = json.loads(metadata.get('args', '{}'))
    except ValueError as error:
        raise CheckpointError(f'{path}: its metadata are damaged ({error})') from error
    if not isinstance(args, dict):
        raise CheckpointError(f'{path}: expected keywords of a model in its metadata, got {args!r}')
    for key, value in _entries(args):
        if value not in (None, False) and (key in _factory_words() or _OPENING.search(key)):
            raise CheckpointError(f"{path}: its metadata name the keyword '{key}', which weights may not choose")
        if isinstance(value, str) and not _WORD.fullmatch(value):
            raise CheckpointError(f"{path}: its metadata give '{key}' as {value[:80]!r}, expected a plain word")
        if isinstance(value, int) and value > _MOST_LAYERS and _COUNT.search(key):
            raise CheckpointError(f"{path}: its metadata give '{key}' as {value}, expected at most {_MOST_LAYERS}")
    return args


def _entries(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """All (keyword, value) within nested keywords and lists."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _entries(entry, name)
    elif isinstance(value, list):
        for entry in value:
            yield from _entries(entry, key)
    yield key, value


@cache
def _factory_words() -> set[str]:
    """What timm's factories take beside the keywords of a model: where weights come from, and how they are wrapped."""
    functions = (timm.create_model, build_model_with_cfg)
    words = {name for function in functions for name in inspect.signature(function).parameters}
    return words | {'features_only', 'out_indices', 'feature_cls', 'pruned'}


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write a training state of tensors and plain values; what was there before stays under the older name."""
    path = Path(path)
    write_atomically(path, lambda temporary: torch.save(state, temporary), keep=path.with_name(STATES[1]))


def load_newest_state(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest state of a run that can be read, and its file.

    Raises:
        CheckpointError: there is none.
    """
    found = [folder / name for name in STATES if (folder / name).is_file()]
    for path in found[:-1]:
        try:
            return path, load_state(path)
        except CheckpointError as error:
            logger.warning('%s: going on from %s', error, found[-1].name)
    path = found[-1] if found else folder / STATES[0]
    return path, load_state(path)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what save_state wrote, onto the CPU; runs no code from the file."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'{path}: no such file, so there is nothing to resume')
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types for a damaged file
        raise CheckpointError(f'{path}: damaged or not a training state ({type(error).__name__})') from error
    if not isinstance(state, dict):
        raise CheckpointError(f'{path}: damaged or not a training state (a {type(state).__name__})')
    return state


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and, unless they are not wanted, tensors."""
    if not path.is_file():
        raise CheckpointError(f'{path}: no such checkpoint')
    if path.suffix in ('.pt', '.pth', '.tar', '.bin'):
        try:
            return read_pickled(path)
        except Exception as error:  # torch raises half a dozen unrelated types for a damaged file
            problem = f'{type(error).__name__}: {error}'
            raise CheckpointError(f'{path}: damaged, or not a file of weights ({problem})') from error
    try:
        with safe_open(path, framework='pt') as file:
            metadata = dict(file.metadata() or {})
            if 'args' not in metadata:
                metadata = {**describe_folder(path.parent / 'config.json'), **metadata}
            # Who reads JSON so deep runs out of stack.
            if any(text.count('[') + text.count('{') > 900 for text in metadata.values()):
                raise CheckpointError(f'{path}: its metadata are damaged, they hold more than 900 lists')
            names = file.keys() if tensors else ()
            return metadata, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{path}: damaged or not a safetensors file ({error})') from error
