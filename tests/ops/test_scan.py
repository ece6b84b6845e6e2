"""The scan against one sample after the other, by both paths and from both ends, forward and gradients."""

import pytest
import torch
from torch import Tensor

from s4nd.ops.scan import diagonal_scan, plain_diagonal_scan
from tests import oracles


def poles_and_drive(length: int, dtype: torch.dtype = torch.complex128) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    a = torch.polar(torch.rand(3, dtype=torch.float64), 6 * torch.rand(3, dtype=torch.float64))
    a[0] = a[0] / a[0].abs()  # as slow as a mode can be
    return a, torch.randn(2, length, 3, dtype=dtype)


def by_hand(a: Tensor, b: Tensor, reverse: bool = False) -> Tensor:
    return torch.view_as_complex(diagonal_scan(a.real, a.imag, torch.view_as_real(b), reverse))


def plain(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    return torch.complex(*plain_diagonal_scan(a.real, a.imag, b.real, b.imag, reverse))


@pytest.mark.parametrize('length', [1, 2, 3, 4, 7, 32, 33, 101])
@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('scan', [by_hand, plain])
def test_equals_the_recurrence(scan: object, reverse: bool, length: int) -> None:
    a, b = (t.requires_grad_() for t in poles_and_drive(length))
    turned = b.flip(1) if reverse else b
    true = oracles.diagonal_states(a, turned)
    true = true.flip(1) if reverse else true
    weight = torch.randn_like(true)
    expected = torch.autograd.grad((true * weight).real.sum(), [a, b], materialize_grads=True)
    kept = b.detach().clone()
    found = scan(a, b, reverse)
    torch.testing.assert_close(found, true, atol=1e-12, rtol=0)
    gradients = torch.autograd.grad((found * weight).real.sum(), [a, b], materialize_grads=True)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    assert torch.equal(b, kept)


@pytest.mark.parametrize('reverse', [False, True])
def test_gradcheck(reverse: bool) -> None:
    a, b = poles_and_drive(6)
    a = (0.9 * a).requires_grad_()
    inputs = (a, b.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: by_hand(a, b, reverse), inputs)
    assert torch.autograd.gradgradcheck(lambda a, b: by_hand(a, b, reverse), inputs)


def test_single_precision_and_other_layouts() -> None:
    a, b = poles_and_drive(500, torch.complex64)
    true = oracles.diagonal_states(a, b.to(torch.complex128))
    found = by_hand(a, b)
    assert found.dtype == torch.complex64
    assert (found - true).abs().max() / true.abs().max() < 1e-6
    torch.testing.assert_close(by_hand(a, b.mT.contiguous().mT), found, atol=0, rtol=0)
    torch.testing.assert_close(by_hand(a, b[0]), found[0], atol=1e-6, rtol=1e-6)


def test_a_hundred_thousand_samples() -> None:
    """A constant drive has a closed form; poles from no memory at all, through powers that underflow, to a sum."""
    length = 100_000
    a = torch.tensor([0.0, 1e-30, 0.5, 0.9999 + 0.01j, -1.0, 1.0], dtype=torch.complex128).requires_grad_()
    b = torch.ones(1, length, 6, dtype=torch.complex64).requires_grad_()
    x = by_hand(a, b)
    n = torch.arange(1, length + 1)[:, None]
    with torch.no_grad():
        true = torch.where(a == 1, n, (1 - a**n) / (1 - a))
    assert (x[0] - true).abs().max() / true.abs().max() < 1e-6
    assert ((x[0] - true).abs().amax(0) <= 1e-5 * true.abs().amax(0)).all()
    x.abs().sum().backward()
    assert torch.isfinite(torch.view_as_real(b.grad)).all() and torch.isfinite(torch.view_as_real(a.grad)).all()


def test_only_the_states_are_kept() -> None:
    a, b = (t.requires_grad_() for t in poles_and_drive(1000))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        by_hand(a, b)
    assert 0 < sum(kept) <= b.numel() + 3 * a.numel()
