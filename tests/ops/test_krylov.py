"""Taps of dense systems against powers of the matrix, forward and gradients, by both paths."""

import sys

import pytest
import torch
from torch import Tensor

from s4nd.ops.krylov import krylov, plain_krylov


def system(features: int, state: int, channels: int) -> list[Tensor]:
    torch.manual_seed(0)
    A = 0.97 * torch.linalg.qr(torch.randn(features, state, state, dtype=torch.float64))[0]
    B, C = (torch.randn(*shape, dtype=torch.float64) for shape in [(features, state), (channels, features, state)])
    return [t.requires_grad_() for t in (A, B, C)]


@pytest.mark.parametrize('length', [1, 2, 3, 4, 5, 16, 17, 33, 100])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('grouped', [False, True])
def test_equals_powers(length: int, channels: int, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    A, B, C = system(3, 4, channels)
    if grouped:
        monkeypatch.setattr(sys.modules['s4nd.ops.krylov'], '_parts', lambda A: [slice(0, 2), slice(2, 4)])
    powers = [torch.linalg.matrix_power(A, lag) for lag in range(length)]
    true = torch.stack([torch.einsum('chn,hnm,hm->ch', C, power, B) for power in powers], -1)
    weight = torch.randn_like(true)
    expected = torch.autograd.grad((true * weight).sum(), [A, B, C], materialize_grads=True)
    for function in (krylov, plain_krylov):
        taps = function(A, B, C, length)
        torch.testing.assert_close(taps, true, atol=1e-12, rtol=0)
        gradients = torch.autograd.grad((taps * weight).sum(), [A, B, C], materialize_grads=True)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lambda *inputs: krylov(*inputs, 9), system(2, 3, 2))
    assert torch.autograd.gradgradcheck(lambda *inputs: krylov(*inputs, 5), system(2, 2, 2))
