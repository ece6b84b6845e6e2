"""S4D in eager mode, whose gradients are written out, against the plain arithmetic that compilers see."""

import copy

import pytest
import torch

from s4nd.kernels import S4DKernel
from s4nd.ops import diagonal


@pytest.mark.parametrize('discretization', ['zoh', 'bilinear'])
@pytest.mark.parametrize(
    'options',
    [
        {},
        {'init': 'real'},
        {'dt_tied': False},
        {'n_ssm': 3, 'init': 'legs'},
        {'n_ssm': 6, 'dt_tied': False, 'bandlimit': 0.3},
        {'bandlimit': 0.2, 'channels': 2},
    ],
    ids=str,
)
@pytest.mark.parametrize('length', [1, 2, 7, 40])
def test_both_paths_agree(discretization: str, options: dict, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    kernel = S4DKernel(6, d_state=8, dt_min=0.01, dt_max=0.5, discretization=discretization, **options).double()
    found = []
    for eager in (True, False):
        monkeypatch.setattr(diagonal, 'by_hand', lambda x, value=eager: value)
        for taps in (kernel(length, 0.7), kernel(length, 0.7, cells=True)):
            weight = torch.cos(torch.arange(taps.numel(), dtype=torch.float64)).reshape(taps.shape)
            gradients = torch.autograd.grad((taps * weight).sum(), list(kernel.parameters()), materialize_grads=True)
            found.append([taps, *gradients])
    for fast, plain in ((found[0], found[2]), (found[1], found[3])):
        for a, b in zip(fast, plain, strict=True):
            torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize('length', [1, 2, 56, 1024, 1025])
@pytest.mark.parametrize('options', [{}, {'init': 'real'}, {'discretization': 'bilinear'}, {'channels': 2}], ids=str)
def test_taps_in_float32(length: int, options: dict) -> None:
    """Rounded as float32 rounds, up to 1024 taps of float32 powers and beyond, with slowly decaying modes."""
    torch.manual_seed(0)
    kernel = S4DKernel(6, d_state=8, dt_min=0.01, dt_max=1.0, **options)
    kernel.log_A_real.data.fill_(-7.0)
    exact = copy.deepcopy(kernel).double()
    for cells in (False, True):
        found = []
        for each in (kernel, exact):
            taps = each(length, 0.7, cells=cells)
            weight = torch.cos(torch.arange(taps.numel(), dtype=torch.float64)).reshape(taps.shape).to(taps.dtype)
            gradients = torch.autograd.grad((taps * weight).sum(), list(each.parameters()), create_graph=True)
            second = torch.autograd.grad(gradients[0].sum(), list(each.parameters()), materialize_grads=True)
            assert all(t.dtype == taps.dtype for t in (*gradients, *second))
            found.append([taps, *gradients, *second])
        for i, (ours, true) in enumerate(zip(*found, strict=True)):
            assert (ours - true).abs().max() <= (1e-5 if i else 2e-6) * true.abs().max()
