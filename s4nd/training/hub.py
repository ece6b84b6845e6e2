"""Folders that timm and transformers load: `config.json` beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models._hub import save_config_for_hf
from torch import nn

from s4nd.files import write_atomically
from s4nd.training.checkpoint import save_weights

__all__ = ['save_for_hf', 'write_hub_config']


def write_hub_config(
    path: str | Path, model: nn.Module, labels: Sequence[str] = (), data_config: Mapping[str, Any] | None = None
) -> None:
    """Write timm's `config.json` for a model of timm's registry: how to build it, how images are prepared.

    Args:
        labels: names of the classes; empty: none are written.
        data_config: mean, std, crop_pct, interpolation of the inputs; the rest is the model's own.
    """

    def write(temporary: Path) -> None:
        named = {'label_names': list(labels)} if labels else {}
        save_config_for_hf(model, str(temporary), model_config=named, data_config=dict(data_config or {}))
        config = json.loads(temporary.read_text(encoding='utf-8'))
        # It stands at the top level as well, and transformers passes both on to timm.
        config.get('model_args', {}).pop('num_classes', None)
        temporary.write_text(json.dumps(config, indent=2), encoding='utf-8')

    write_atomically(path, write)


def save_for_hf(
    model: nn.Module,
    folder: str | Path,
    labels: Sequence[str] = (),
    data_config: Mapping[str, Any] | None = None,
) -> None:
    """Write `model.safetensors` and `config.json`: a folder for timm ('local-dir:FOLDER') and for transformers.

    Use it in place of timm's function of this name, whose folders transformers' Auto classes do not load (timm 1.0.31
    and transformers 5.24: the number of classes reaches timm twice).

    Args:
        model: of timm's registry.
        labels, data_config: as in `write_hub_config`.
    """
    folder = Path(folder)
    name = model.pretrained_cfg['architecture']
    save_weights(folder / 'model.safetensors', model, {'model': name})
    write_hub_config(folder / 'config.json', model, labels, data_config)
