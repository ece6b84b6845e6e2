"""Whole classifiers of S5 against the released code in JAX: every gate, norm, place and pool."""

import numpy as np
import pytest
import torch
from torch import Tensor

import s4nd
from s4nd.models.sequence import SequenceModel
from tests.reference.cases import Case, check_covered, load, of_kind


def model_of(case: Case, dtype: torch.dtype) -> SequenceModel:
    meta = case.meta
    gate = meta['act'] if meta['act'] == 'half_glu2' else None  # weights tell the others
    return s4nd.load_published(
        case.param, gate=gate, prenorm=meta['prenorm'], pool='last' if meta['mode'] == 'last' else 'mean',
        conj_sym=meta['conj'], discretization=meta['disc'], clip_eigs=meta['clip'], dtype=dtype,
    )  # fmt: skip


def log_probabilities(model: SequenceModel, case: Case, dtype: torch.dtype) -> Tensor:
    x = case.given['x'].to(dtype)
    if 'lengths' not in case.given:
        return model(x).log_softmax(-1)
    # The released layers see what is padded; ours do not where they are told lengths.
    features = model.features(x)
    pooled = [row[:length].mean(0) for row, length in zip(features, case.given['lengths'].tolist(), strict=True)]
    return model.decoder(torch.stack(pooled)).log_softmax(-1)


@of_kind('s5_model', 'BatchClassificationModel')
@torch.no_grad()
def test_reference_classifiers(case: Case) -> None:
    model = model_of(case, torch.float64)
    assert model.published.format == 's5_classifier' and model.published.tensors == len(case.param)
    case.check('log_probabilities', log_probabilities(model, case, torch.float64))
    y = log_probabilities(model_of(case, torch.float32), case, torch.float32)
    case.check_float32('log_probabilities', y, 2e-4)


def test_reference_is_covered() -> None:
    check_covered('s5_model', {'BatchClassificationModel': {'log_probabilities'}})


@pytest.fixture
def weights() -> dict[str, Tensor]:
    if not load('s5_model'):
        pytest.skip('the folder of golden files holds no S5 model')
    return dict(load('s5_model')['causal'].param)


def test_paths_of_any_form(weights: dict[str, Tensor], tmp_path) -> None:
    """Paths joined by '/' or '.', nested dicts and files of NumPy give the same model."""
    x = torch.randn(1, 9, 3)
    np.savez(tmp_path / 'a.npz', **{name: value.numpy() for name, value in weights.items()})
    nested: dict = {}
    for name, value in weights.items():
        *parents, last = name.split('/')
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value.numpy()
    dotted = {name.replace('/', '.'): value for name, value in weights.items()}
    for source in (tmp_path / 'a.npz', nested, dotted):
        torch.testing.assert_close(s4nd.load_published(source)(x), s4nd.load_published(weights)(x), atol=0, rtol=0)


@pytest.mark.parametrize(('change', 'says'), [
    ({'params/decoder/bias': None}, r'no decoder\.bias'),
    ({'params/encoder/layers_1/seq/D': None}, r'no encoder\.layers_1\.seq\.D'),
    ({'params/encoder/layers_0/out2/bias': torch.zeros(2)}, r'bias: expected shape \[6\], got \[2\]'),
    ({'params/encoder/layers_0/out3/bias': torch.zeros(2)}, r'encoder\.layers_0\.out3\.bias has no place'),
])  # fmt: skip
def test_reference_errors_name_the_key(weights: dict[str, Tensor], change: dict, says: str) -> None:
    weights = {name: value for name, value in (weights | change).items() if value is not None}
    with pytest.raises(ValueError, match=says):
        s4nd.load_published(weights)


def test_a_gate_without_its_map(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"layers_0\.out2\.kernel has no place in a layer with the gate 'gelu'"):
        s4nd.load_published(weights, gate='gelu')
