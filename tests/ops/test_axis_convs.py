"""One depthwise convolution per axis, in channels_last: the direct sum, its gradients and second derivatives."""

import pytest
import torch
from torch import Tensor

from s4nd import S4ND
from s4nd.ops import separable_conv, use_axis_convs
from tests import oracles
from tests.ops.test_longconv import random_taps

SIZES = [(1, 9), (7, 1), (7, 4), (6, 6), (64, 5), (3, 5, 4), (4, 1, 6)]


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('kind', ['bidirectional', 'causal', 'short', 'long'])
def test_equals_the_direct_sum(size: tuple[int, ...], kind: str) -> None:
    torch.manual_seed(0)
    x, skip = torch.randn(2, 16, *size).double().requires_grad_(), torch.randn(16).double().requires_grad_()
    taps, centers = random_taps(size, 1, 16, kind)
    true = oracles.direct_conv(x, oracles.full_kernel(taps), centers) + skip.reshape(16, *[1] * len(size)) * x
    weight = torch.randn_like(true)
    theirs = torch.autograd.grad((true * weight).sum(), [x, skip, *taps])
    u, *rest = [t.detach().float().requires_grad_() for t in (x, skip, *taps)]
    u = last(u.detach()).requires_grad_()
    assert use_axis_convs(u, 1, 'auto', False)
    y = separable_conv(u, rest[1:], centers, skip=rest[0])
    assert type(y.grad_fn).__name__ == '_AxisConvsBackward'
    assert y.stride() == u.stride()
    torch.testing.assert_close(y.double(), true, atol=2e-5, rtol=1e-5)
    for a, b in zip(torch.autograd.grad((y * weight.float()).sum(), [u, *rest]), theirs, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('needed', [[0], [1], [2, 3], [0, 3], [0, 1, 2, 3]], ids=str)
def test_second_derivatives_and_parts(needed: list[int]) -> None:
    """The matrix products in float64, which are held to the direct sum, are the measure."""
    torch.manual_seed(0)
    taps, centers = random_taps((5, 4), 1, 16, 'bidirectional')
    inputs = [torch.randn(2, 16, 5, 4), torch.randn(16), *(0.3 * k.detach() for k in taps)]

    def derivatives(x: Tensor, skip: Tensor, *taps: Tensor) -> list[Tensor]:
        parts = [(x, skip, *taps)[i].requires_grad_() for i in needed]
        first = torch.autograd.grad(separable_conv(x, list(taps), centers, skip=skip).sin().sum(), parts)
        y = separable_conv(x, list(taps), centers, skip=skip)
        graph = torch.autograd.grad(y.sin().sum(), parts, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.cos().sum() for g in graph), parts)]

    theirs = derivatives(*(t.double() for t in inputs))
    ours = derivatives(*(last(t.float()) if t.dim() == 4 else t.float() for t in inputs))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() / b.norm() < 1e-5


@pytest.mark.parametrize('autocast', [False, True])
@torch.no_grad()
def test_bfloat16(autocast: bool) -> None:
    torch.manual_seed(0)
    x = last(torch.randn(2, 16, 7, 6))
    taps, centers = random_taps((7, 6), 1, 16, 'bidirectional')
    true = oracles.direct_conv(x.double(), oracles.full_kernel(taps), centers)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        y = separable_conv(x if autocast else x.bfloat16(), [k.float() for k in taps], centers)
        exact = separable_conv(x, [k.float() for k in taps], centers, exact=True)
    assert y.dtype == torch.bfloat16
    assert (y.double() - true).norm() / true.norm() < 1e-2
    torch.testing.assert_close(exact.double(), true, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_nan_reaches_its_whole_feature() -> None:
    x = torch.randn(2, 16, 6, 5)
    x[1, 2, 3, 4] = torch.nan
    taps, centers = random_taps((6, 5), 1, 16, 'causal')
    y = separable_conv(last(x), [k.float() for k in taps], centers)
    assert y[1, 2].isnan().all()
    assert y.isnan().sum() == 30


def test_where_they_are_taken() -> None:
    x = last(torch.randn(2, 16, 7, 6))
    assert use_axis_convs(x, 1, 'auto', False)
    others = [
        (x.contiguous(), 1, 'auto'), (x.double(), 1, 'auto'), (x.half(), 1, 'auto'), (x, 2, 'auto'),
        (x, 1, 'toeplitz'), (last(torch.randn(1, 16, 65, 3)), 1, 'auto'), (x[:, :, 0], 1, 'auto'),
        (last(torch.randn(1, 15, 4, 3)), 1, 'auto'),
    ]  # fmt: skip
    assert not any(use_axis_convs(*other, False) for other in others)
    assert not torch.vmap(lambda x: torch.tensor(use_axis_convs(x, 1, 'auto', False)))(x[None]).any()


@torch.no_grad()
def test_a_layer_remembers_what_each_format_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = S4ND(16, (7, 6), d_state=8).eval()
    x = torch.randn(2, 16, 7, 6)
    true = layer(x)
    calls = []
    kernels = type(layer.kernels[0])
    taps = kernels.cells
    monkeypatch.setattr(kernels, 'cells', lambda *args: calls.append(1) or taps(*args))
    for _ in range(3):
        torch.testing.assert_close(layer(last(x)), true, atol=1e-5, rtol=1e-5)
    assert len(calls) == 2  # one per axis
    torch.testing.assert_close(layer(x), true, atol=0, rtol=0)
