"""Weights that others wrote: what stands beside the tensors in a hub folder, or in a checkpoint of timm's train.py."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ['describe_folder', 'read_pickled']

# Choices of timm's command line that are arguments of the model, and their names there.
_ARGUMENTS = {'num_classes': 'num_classes', 'in_chans': 'in_chans', 'gp': 'global_pool'}


def describe_folder(config: Path) -> dict[str, str]:
    """Metadata of weights from the `config.json` beside them; {} where there is none of timm's."""
    if not config.is_file():
        return {}
    try:
        found = json.loads(config.read_text(encoding='utf-8'))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or 'architecture' not in found:
        return {}
    args = {**found.get('model_args', {})}
    if 'num_classes' in found:
        args.setdefault('num_classes', found['num_classes'])
    size = found.get('pretrained_cfg', {}).get('input_size')
    labels = found.get('label_names')
    return _metadata(found['architecture'], args, size and size[-2:], labels)


def read_pickled(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and weights of a file of torch.save, such as timm's last.pth.tar; runs no code from the file.

    The averaged weights are taken where there are any.
    """
    with torch.serialization.safe_globals([Namespace]):  # the options of timm's train.py
        found = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(found, Mapping):
        raise ValueError(f'expected a dict of tensors, got {type(found).__name__}')
    tensors = next((found[key] for key in ('state_dict_ema', 'state_dict', 'model') if key in found), found)
    tensors = {key.removeprefix('module.').removeprefix('_orig_mod.'): value for key, value in tensors.items()}
    grid = tensors.get('stem.training_grid')
    size = None if grid is None else [round(n) for n in grid.tolist()[-2:]]  # (averages are floats)
    if 'arch' not in found:
        return describe_folder(path.parent / 'config.json'), tensors
    options = vars(found.get('args', Namespace()))
    args = {name: options[option] for option, name in _ARGUMENTS.items() if options.get(option) is not None}
    return _metadata(found['arch'], {**args, **(options.get('model_kwargs') or {})}, size, None), tensors


def _metadata(name: str, args: Mapping[str, Any], size: Any, labels: Any) -> dict[str, str]:
    found = {'model': name, 'args': json.dumps(args)}
    if args.get('num_frames') is not None:
        found['task'] = 'video'
    if size:
        found['size'] = str(size[0]) if size[0] == size[1] else f'{size[0]}x{size[1]}'
    if labels:
        found['classes'] = json.dumps(list(labels.values()) if isinstance(labels, Mapping) else labels)
    return found
