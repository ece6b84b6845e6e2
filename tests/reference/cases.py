"""Golden vectors of public reference code: $S4ND_GOLDEN_REFERENCE if set, else tests/golden/reference/.

The README there names the sources, parameters and conventions. A file holds named cases, and a case the weights of the
reference ('param', under its own names), inputs ('in'), results ('out') and 'meta'. Every test runs over all cases of a
file that are of its kind, so that other draws of the same form can be tried.
"""

import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(os.environ.get('S4ND_GOLDEN_REFERENCE') or Path(__file__).parents[1] / 'golden' / 'reference')


@dataclass(frozen=True)
class Case:
    """One case: arrays as tensors, floats in float64, complex ones as they are."""

    name: str
    meta: dict[str, Any]
    param: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    out: dict[str, Tensor] = field(default_factory=dict)

    def check(self, name: str, value: Tensor) -> None:
        """Hold a float64 result against out.`name`; 'tol' of the case is the largest absolute error."""
        true = self.out[name]
        value = torch.view_as_complex(value) if true.is_complex() and not value.is_complex() else value
        assert value.shape == true.shape, (name, value.shape, true.shape)
        torch.testing.assert_close(value, true, atol=self.meta['tol'], rtol=0)

    def check_float32(self, name: str, value: Tensor, tolerance: float = 2e-5) -> None:
        """Hold a float32 result against out.`name`: an error of `tolerance` of its maximum."""
        assert value.dtype == torch.float32
        true = self.out[name]
        torch.testing.assert_close(value.double(), true, atol=tolerance * true.abs().max().item(), rtol=0)


@cache
def load(name: str) -> dict[str, Case]:
    """All cases of a file by name; empty where the folder lacks it."""
    path = FOLDER / f'{name}.npz'
    if not path.is_file():
        return {}
    cases: dict[str, Case] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            case, item = key.split('.', 1)
            if item == 'meta':
                cases.setdefault(case, Case(case, {})).meta.update(json.loads(str(file[key])))
                continue
            group, name = item.split('.', 1)
            of = cases.setdefault(case, Case(case, {}))
            {'param': of.param, 'in': of.given, 'out': of.out}[group][name] = _tensor(file[key])
    return cases


def of_kind(file: str, *kinds: str) -> pytest.MarkDecorator:
    """Parametrize a test over the cases of a file whose kind begins with one of `kinds`; argument: case."""
    cases = [case for case in load(file).values() if case.meta['kind'].startswith(kinds)]
    return pytest.mark.parametrize('case', cases, ids=lambda case: case.name)


def check_covered(file: str, covered: dict[str, set[str]], reasons: dict[str, str] | None = None) -> None:
    """Fail unless every output of every case is in a test: {kind (its beginning): names of outputs}.

    reasons: {output: why it is not held against ours}.
    """
    for case in load(file).values():
        kind = next((kind for kind in covered if case.meta['kind'].startswith(kind)), None)
        assert kind is not None, f'{file}: no test for {case.name}, {case.meta["kind"]!r}'
        missing = case.out.keys() - covered[kind] - (reasons or {}).keys()
        assert not missing, f'{file}, {case.name}: no test for {sorted(missing)}'


def _tensor(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return tensor.double() if tensor.is_floating_point() else tensor
