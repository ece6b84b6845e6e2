"""Golden vectors: files of named cases, from $S4ND_GOLDEN if set, else tests/golden/."""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(os.environ.get('S4ND_GOLDEN') or Path(__file__).parent / 'golden')


@cache
def load(name: str) -> dict[str, dict]:
    """{case: {item: array}} of a golden file, empty where the folder lacks it; 'meta' is decoded."""
    cases: dict[str, dict] = {}
    if not (FOLDER / f'{name}.npz').is_file():
        return cases
    with np.load(FOLDER / f'{name}.npz') as file:
        for key in file.files:
            case, item = key.split('/', 1)
            cases.setdefault(case, {})[item] = json.loads(str(file[key])) if item == 'meta' else file[key]
    return cases


def tensor(array: np.ndarray) -> Tensor:
    """As a tensor; complex arrays as (…, 2) pairs."""
    out = torch.from_numpy(np.ascontiguousarray(array))
    return torch.view_as_real(out) if out.is_complex() else out


def published(case: dict, prefix: str = '') -> dict[str, Tensor]:
    """The published state dict in a case: its items under `prefix`, in their layout."""
    arrays = {key: value for key, value in case.items() if key.startswith(prefix) and isinstance(value, np.ndarray)}
    return {key.removeprefix(prefix): tensor(value) for key, value in arrays.items() if value.dtype.kind in 'iufc'}


def transforms(case: dict) -> dict[str, str]:
    """The transforms that a case names, as `s4nd.interop.load_published_layer` takes them."""
    return {key: value for key, value in case['meta'].items() if key.endswith('_transform')}
