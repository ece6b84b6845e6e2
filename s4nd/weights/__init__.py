"""Weights that ship with the package: `timm.create_model('s4nd_isotropic_mini.cifar10', pretrained=True)`.

A file `<model>.<tag>.safetensors` holds the weights, and among its metadata the arguments that its model was built
with. Beside it stand a model card (.md) and the configuration of its training (.yaml). Commands take the name in place
of a file: `s4nd generate checkpoint=sashimi.piano`.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open

__all__ = ['FOLDER', 'shipped_args', 'shipped_file', 'shipped_names', 'with_shipped']

FOLDER = Path(__file__).parent


def shipped_names(model: str = '*') -> list[str]:
    """The names <model>.<tag> of all weights that ship, or of those of one model, in order."""
    return sorted(path.stem for path in FOLDER.glob(f'{model}.*.safetensors'))


def shipped_file(name: str | Path) -> Path | None:
    """The file of the weights `name`, None where none of that name ship."""
    return FOLDER / f'{name}.safetensors' if str(name) in shipped_names() else None


def with_shipped(cfgs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """timm's configurations {'model.tag': cfg}, before those of each model one for each of its weights that ship."""
    found: dict[str, dict[str, Any]] = {}
    for tagged, cfg in cfgs.items():
        model = tagged.partition('.')[0]
        for name in shipped_names(model):
            prepared = json.loads(_metadata(name).get('data_config', '{}'))
            prepared = {key: tuple(value) if isinstance(value, list) else value for key, value in prepared.items()}
            found[name] = {**cfg, **prepared, 'file': str(FOLDER / f'{name}.safetensors')}
        found[tagged] = dict(cfg)
    return found


def shipped_args(model: str, pretrained: bool, tag: Any) -> dict[str, Any]:
    """Arguments that the weights `tag` of a model were trained with, of the first where only `pretrained` is said."""
    names = shipped_names(model)
    name = names[0] if pretrained and tag is None and names else f'{model}.{tag}'
    return json.loads(_metadata(name)['args']) if name in names else {}


@cache
def _metadata(name: str) -> dict[str, str]:
    with safe_open(FOLDER / f'{name}.safetensors', framework='pt') as file:
        return file.metadata()
