"""Weights that ship with the package: `timm.create_model('s4nd_isotropic_mini.cifar10', pretrained=True)`.

A file `weights/<model>.<tag>.safetensors` holds the weights, and among its metadata the arguments that its model was
built with; beside it stands a model card of the same name (.md).
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open

FOLDER = Path(__file__).parents[1] / 'weights'


def shipped_cfgs(model: str, cfg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """timm's configurations {'model.tag': cfg} of the weights that ship for a model, best first; {} for none."""
    return {path.stem: {**cfg, 'file': str(path)} for path in sorted(FOLDER.glob(f'{model}.*.safetensors'))}


def shipped_args(model: str, pretrained: bool, tag: Any) -> dict[str, Any]:
    """Arguments that the weights `tag` of a model were trained with, of the first where only `pretrained` is said."""
    known = [path.stem.removeprefix(f'{model}.') for path in sorted(FOLDER.glob(f'{model}.*.safetensors'))]
    if pretrained and tag is None and known:
        tag = known[0]
    return _stored_args(f'{model}.{tag}') if tag in known else {}


@cache
def _stored_args(name: str) -> dict[str, Any]:
    with safe_open(FOLDER / f'{name}.safetensors', framework='pt') as file:
        return json.loads(file.metadata()['args'])
