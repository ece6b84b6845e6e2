"""LSSL against its released code: structured and dense transitions, one for all features or one each."""

import pytest
import torch

from s4nd.interop.lssl import load_lssl, load_lssl_transition
from s4nd.kernels import LSSLKernel
from s4nd.layers import S4
from tests.reference.cases import Case, check_covered, of_kind


def layer_of(case: Case, dtype: torch.dtype) -> S4:
    layer = load_lssl(case.param, dtype=dtype)
    structure = {'dense': 'dense', 'cumsum': 'cumsum'}.get(case.meta['measure'].partition('_')[2], 'tridiagonal')
    assert layer.kernels[0].structure == structure
    assert (layer.d_model, layer.channels) == (case.meta['H'], case.meta['channels'])
    return layer


@of_kind('lssl', 'LSSL')
@torch.no_grad()
def test_reference_layers(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        layer, u = layer_of(case, dtype), case.given['u'].transpose(1, 2).to(dtype)
        check = case.check if dtype == torch.float64 else case.check_float32
        y = layer(u).unflatten(1, (layer.channels, -1))  # (B, c, H, L)
        check('y', y.permute(0, 3, 2, 1))
        kernel = layer.kernels[0]
        check('kernel', kernel(u.shape[2]).transpose(0, 1))
        if dtype == torch.float32:
            continue
        y, _ = layer(u, layer.init_state(len(u)))
        check('y', y.unflatten(1, (layer.channels, -1)).permute(0, 3, 2, 1))
        A, B = kernel.transition()
        case.check('A', A.expand(layer.d_model, -1, -1))
        case.check('B', B.expand(layer.d_model, -1))
        dA, dB = kernel.matrices(1.0)
        case.check('dA', dA)
        case.check('dB', dB)


@of_kind('lssl', 'structured parameters at initialisation')
@torch.no_grad()
def test_reference_initialization(case: Case) -> None:
    """The structured parameters give HiPPO, and so do ours from the start."""
    loaded = load_lssl_transition(case.param, dtype=torch.float64)
    ours = LSSLKernel(
        1, d_state=case.meta['N'], init=case.meta['measure'], structure='tridiagonal', dtype=torch.float64
    )
    for kernel in (loaded, ours):
        A, B = kernel.transition()
        case.check('A', A[0])
        case.check('B', B[0])


def test_reference_is_covered() -> None:
    check_covered('lssl', {
        'LSSL': {'A', 'B', 'dA', 'dB', 'kernel', 'y'}, 'structured parameters at initialisation': {'A', 'B'},
    })  # fmt: skip


def test_reference_errors_name_the_key() -> None:
    with pytest.raises(ValueError, match=r'no transition\.a'):
        load_lssl({'C': torch.zeros(2, 1, 4)})
    weights = {'transition.a': torch.zeros(()), 'transition.b': torch.zeros(())}
    with pytest.raises(ValueError, match='does not tell the size'):
        load_lssl_transition(weights)
