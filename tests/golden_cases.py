"""Golden vectors: files of named cases, from $S4ND_GOLDEN if set, else tests/golden/."""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(os.environ.get('S4ND_GOLDEN') or Path(__file__).parent / 'golden')

TRANSFORMS = {
    'none': lambda p: p,
    'exp': np.exp,
    'relu': lambda p: np.maximum(p, 0) + 1e-4,
    'sigmoid': lambda p: 1 / (1 + np.exp(-p)),
    'softplus': lambda p: np.log1p(np.exp(p)),
}


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


def transformed(case: dict, item: str, default: str = 'exp') -> np.ndarray:
    """A stored raw parameter after its transform, such as dt from inv_dt."""
    option = {'inv_dt': 'dt_transform', 'A_real': 'real_transform', 'A_imag': 'imag_transform'}[item]
    return TRANSFORMS[case['meta'].get(option, default)](case[item])
