"""Sums of exponentials against the definition, forward and gradients, by both paths."""

import pytest
import torch
from torch import Tensor

from s4nd.ops.exponentials import (
    complex_exponential_sum,
    exponential_sum,
    plain_exponential_sum,
    slopes_of_powers,
    sum_of_powers,
)


def weights_and_bases(channels: int, features: int, modes: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    size = 0.3 + 0.7 * torch.rand(features, modes, dtype=torch.float64)
    bases = torch.polar(size, 6.0 * torch.rand(features, modes, dtype=torch.float64))
    return torch.randn(channels, features, modes, dtype=torch.complex128), bases


def by_definition(w: Tensor, a: Tensor, length: int) -> Tensor:
    return torch.stack([2 * (w * a**lag).sum(-1).real for lag in range(length)], -1)


@pytest.mark.parametrize('length', [1, 2, 3, 4, 5, 16, 17, 33, 100])
@pytest.mark.parametrize('channels', [1, 3])
def test_equals_the_definition(length: int, channels: int) -> None:
    w, a = (t.requires_grad_() for t in weights_and_bases(channels, 2, 5))
    true = by_definition(w, a, length)
    weight = torch.randn_like(true)
    expected = torch.autograd.grad((true * weight).sum(), [w, a])
    for taps in (
        complex_exponential_sum(w, a, length),
        exponential_sum(w.real, w.imag, a.real, a.imag, length),
        plain_exponential_sum(w.real, w.imag, a.real, a.imag, length),
    ):
        torch.testing.assert_close(taps, true, atol=1e-12, rtol=0)
        gradients = torch.autograd.grad((taps * weight).sum(), [w, a], materialize_grads=True)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize('length', [1, 2, 7, 64, 100, 1024])
@pytest.mark.parametrize('autocast', [False, True])
def test_float32_powers_of_exact_bases(length: int, autocast: bool) -> None:
    """Undamped modes too: nowhere does a rounded base meet a long power."""
    torch.manual_seed(0)
    a = torch.polar(torch.ones(3, 16, dtype=torch.float64), 3.14 * torch.rand(3, 16, dtype=torch.float64))
    w, grad = torch.randn(3, 2, 16, dtype=torch.complex128), torch.randn(3, 2, length, dtype=torch.float64)
    taps, *powers = sum_of_powers(w, a, length)
    true = [taps, *slopes_of_powers(grad, w, *powers)]
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        taps, *powers = sum_of_powers(w, a, length, torch.complex64)
        ours = [taps, *slopes_of_powers(grad.float(), w.to(torch.complex64), *powers)]
    for fine, exact in zip(ours, true, strict=True):
        assert fine.dtype in (torch.float32, torch.complex64)
        assert (fine - exact).abs().max() <= 2e-6 * exact.abs().max()


def test_gradcheck() -> None:
    w, a = (t.requires_grad_() for t in weights_and_bases(2, 2, 3))
    assert torch.autograd.gradcheck(lambda w, a: complex_exponential_sum(w, a, 7), (w, a))
    assert torch.autograd.gradgradcheck(lambda w, a: complex_exponential_sum(w, a, 7), (w, a))


def test_memory_grows_with_the_root_of_the_length() -> None:
    w, a = (t.requires_grad_() for t in weights_and_bases(1, 2, 4))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        complex_exponential_sum(w, a, 10_000)
    assert 0 < sum(kept) <= 2 * 4 * (2 * 128 + 3)
