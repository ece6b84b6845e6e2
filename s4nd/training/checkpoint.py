"""Weights in safetensors and the state from which a run goes on, both written atomically.

A checkpoint folder holds `config.yaml` (the resolved configuration), `last.safetensors` and `best.safetensors` (weights
to use: the averaged ones where averaging is on), for a model of timm's registry `config.json` (which makes it a folder
that timm loads) and `resume.pt` (all that training needs to go on, in one file, so that an interruption can never leave
half of it). Weights from elsewhere are read as well: a hub folder, a checkpoint of timm's train.py, a state dict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from s4nd.files import write_atomically
from s4nd.training.foreign import describe_folder, read_pickled

__all__ = [
    'CheckpointError',
    'find_weights',
    'load_state',
    'load_weights',
    'read_metadata',
    'save_state',
    'save_weights',
]

FORMAT = '1'
_NAMES = (
    'best.safetensors', 'last.safetensors', 'model.safetensors', 'model_best.pth.tar', 'last.pth.tar',
    'pytorch_model.bin',
)  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model."""


def save_weights(path: str | Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the model's parameters and buffers; `metadata` must name the model under 'model'."""
    if 'model' not in metadata:
        raise CheckpointError(f"metadata must hold 'model', got {sorted(metadata)}")
    # Shared tensors are refused by safetensors, so each is written on its own.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    header = {'format': FORMAT, **metadata}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def find_weights(path: str | Path) -> Path:
    """A weights file itself, or of a folder the best weights, else the last, else a hub's. FileNotFoundError: none."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f'no checkpoint at {path}')
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f'no best.safetensors or last.safetensors in {path}, nor {", ".join(_NAMES[2:])}')


def read_metadata(path: str | Path) -> dict[str, str]:
    """The strings stored beside the weights: 'model', 'format' and what the writer added.

    Of weights from elsewhere: 'model', 'args' and what else follows from config.json or timm's options.
    """
    return _read(Path(path), tensors=False)[0]


def load_weights(path: str | Path, model: nn.Module, expect: str | None = None) -> dict[str, str]:
    """Fill `model` from `path` and return the metadata.

    `expect`: the model's name; weights saved under another name, or of other shapes, raise one CheckpointError that
    names both sides. The model is untouched unless everything fits.
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
    model.load_state_dict(tensors)
    return metadata


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write a training state of tensors and plain values."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what save_state wrote, onto the CPU; runs no code from the file."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'{path}: no such file, so there is nothing to resume')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types for a damaged file
        raise CheckpointError(f'{path}: damaged or not a training state ({type(error).__name__})') from error


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and, unless they are not wanted, tensors."""
    if not path.is_file():
        raise CheckpointError(f'{path}: no such checkpoint')
    if path.suffix in ('.pt', '.pth', '.tar', '.bin'):
        try:
            return read_pickled(path)
        except Exception as error:  # torch raises half a dozen unrelated types for a damaged file
            raise CheckpointError(
                f'{path}: damaged, or not a file of weights ({type(error).__name__}: {error})'
            ) from error
    try:
        with safe_open(path, framework='pt') as file:
            metadata = dict(file.metadata() or {})
            if 'args' not in metadata:
                metadata = {**describe_folder(path.parent / 'config.json'), **metadata}
            names = file.keys() if tensors else ()
            return metadata, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{path}: damaged or not a safetensors file ({error})') from error
