"""Published checkpoints as models: `s4nd.load_published(path or state dict)` finds the format by the names of tensors.

A format is an object `Format`; those of this package are listed here, other packages declare theirs as entry points of
the group 's4nd.published' (name = 'module:FORMAT').
"""

from __future__ import annotations

import importlib
import inspect
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from s4nd.options import nearest

__all__ = ['Format', 'Published', 'format_names', 'load_published']

GROUP = 's4nd.published'
_OWN = {
    'ccnn': 's4nd.interop.ccnn:FORMAT',
    'mega': 's4nd.interop.layer_formats:MEGA',
    'mega_classifier': 's4nd.interop.mega_model:CLASSIFIER',
    'mega_lm': 's4nd.interop.mega_model:LM',
    's4_classifier': 's4nd.interop.layer_formats:S4_CLASSIFIER',
    's5': 's4nd.interop.layer_formats:S5',
    's5_classifier': 's4nd.interop.s5_model:FORMAT',
    'sssd': 's4nd.interop.sssd:FORMAT',
    'vis4mer': 's4nd.interop.vis4mer:FORMAT',
}
# What a checkpoint may keep its state dict under.
_WRAPPERS = ('state_dict', 'model_state_dict', 'model')
_PLACE = ('device', 'dtype')


@dataclass(frozen=True)
class Format:
    """How one published system is recognized and loaded.

    Attributes:
        source: repository and version, for people.
        marks: names of tensors, all of which a state dict of this format has.
        load: (weights, **options) -> model.
    """

    source: str
    marks: Callable[[Mapping[str, Any]], bool]
    load: Callable[..., nn.Module]


@dataclass(frozen=True)
class Published:
    """What `load_published` took. `str()` of it is a summary.

    Attributes:
        format: its name.
        source: repository and version.
        options: what the weights did not tell, as given or by default.
        tensors, values: how many were taken; none was left over.
        model: the class that holds them.
    """

    format: str
    source: str
    options: dict[str, Any]
    tensors: int
    values: int
    model: str

    def __str__(self) -> str:
        told = ', '.join(f'{name}={value!r}' for name, value in self.options.items()) or 'nothing'
        return (
            f'{self.format}: weights of {self.source}, all {self.tensors} tensors with {self.values:,} values are in '
            f'{self.model}; assumed, since weights do not tell it: {told}'
        )


def load_published(source: str | Path | Mapping[str, Any], *, format: str | None = None, **options: Any) -> nn.Module:
    """Build the model that a published checkpoint holds, in evaluation mode.

    `model.published` says what was taken (print it).

    Args:
        source: a state dict (tensors or arrays by name, perhaps nested, as of flax), or a file: .npz, .safetensors, or
            one of torch.save, which may keep its state dict under 'state_dict', 'model_state_dict' or 'model'.
        format: one of `format_names()`; None: found by the names of the tensors.
        options: what weights do not tell, such as dt_transform='softplus'; each is described in the loader's docstring
            (`s4nd.interop.<format>`).

    Raises:
        ValueError: for a file that holds no state dict, an unknown format or option, and naming the first tensor that
            is missing, has no place or has another shape.
    """
    weights = _read(source)
    if format is None:
        format = _find(weights)
    elif format not in _known():
        raise ValueError(f'unknown format {format!r}{nearest(format, format_names())}: expected one of {_list()}')
    found = _format(format)
    parameters = inspect.signature(found.load).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _PLACE}
    for name in options:
        if name not in known and name not in _PLACE:
            raise ValueError(f'{format} takes no option {name!r}{nearest(name, list(known))}')
    model = found.load(weights, **options).eval()
    told = {name: options.get(name, default) for name, default in known.items()}
    sizes = [torch.as_tensor(value).numel() for value in weights.values()]
    model.published = Published(format, found.source, told, len(sizes), sum(sizes), type(model).__name__)
    return model


def format_names() -> list[str]:
    """The formats that `load_published` knows."""
    return list(_known())


@cache
def _known() -> dict[str, str]:
    return {**_OWN, **{entry.name: entry.value for entry in entry_points(group=GROUP)}}


def _list() -> str:
    return ', '.join(_known())


def _format(name: str) -> Format:
    module, _, attribute = _known()[name].partition(':')
    return getattr(importlib.import_module(module), attribute)


def _find(weights: Mapping[str, Any]) -> str:
    for name in _known():
        if _format(name).marks(weights):
            return name
    first = ', '.join(list(weights)[:6])
    raise ValueError(f'no published format has the names {first} …: known are {_list()}')


def _read(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """A flat dict of tensors or arrays, nested names joined by '/'; a common prefix 'module.' of parallel training is
    dropped."""
    weights = source if isinstance(source, Mapping) else _read_file(Path(source))
    for wrapper in _WRAPPERS:
        if isinstance(weights.get(wrapper), Mapping):
            weights = weights[wrapper]
            break
    weights = _flat(weights)
    strange = [name for name, value in weights.items() if not isinstance(value, torch.Tensor | np.ndarray)]
    if strange or not weights:
        got = f'{strange[0]!r} is a {type(weights[strange[0]]).__name__}' if strange else 'it is empty'
        raise ValueError(f'{_name(source)} is no state dict of tensors: {got}')
    if all(name.startswith('module.') for name in weights):
        return {name.removeprefix('module.'): value for name, value in weights.items()}
    return weights


def _flat(weights: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested dicts as one, and what NumPy can read, such as arrays of jax, as its arrays."""
    flat: dict[str, Any] = {}
    for name, value in weights.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f'{prefix}{name}/')
        elif isinstance(value, torch.Tensor) or not hasattr(value, '__array__'):
            flat[f'{prefix}{name}'] = value
        else:
            flat[f'{prefix}{name}'] = np.asarray(value)
    return flat


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ValueError(f'no such file: {path}')
    try:
        if path.suffix == '.npz':
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        if path.suffix == '.safetensors':
            return load_file(path)
        # (fairseq stores its options beside the weights, as a Namespace of plain values.)
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # readers raise errors of a dozen types
        raise ValueError(
            f'{path} cannot be read as .npz, .safetensors or a torch file of tensors ({type(error).__name__}): of one '
            "that holds other objects too, give the dict of tensors, such as torch.load(…)['state_dict']"
        ) from error


def _name(source: str | Path | Mapping[str, Any]) -> str:
    return 'the source' if isinstance(source, Mapping) else str(source)
