"""The convolution with a kernel of all axes, against the direct sum."""

import pytest
import torch

from s4nd.ops.fullconv import full_conv
from tests import oracles

SHAPES = [((7,), (5,)), ((1,), (1,)), ((4,), (9,)), ((5, 6), (3, 7)), ((1, 6), (1, 11)), ((3, 4, 2), (3, 1, 3))]


@pytest.mark.parametrize(('size', 'lags'), SHAPES, ids=str)
def test_matches_the_direct_sum(size: tuple[int, ...], lags: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, *lags, dtype=torch.float64, requires_grad=True)
    got, true = full_conv(x, kernel), oracles.direct_conv(x, kernel, [k // 2 for k in lags])
    torch.testing.assert_close(got, true, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(torch.jit.script(full_conv)(x, kernel), true, atol=1e-12, rtol=1e-12)
    weight = torch.randn_like(true)
    for ours, theirs in zip(
        torch.autograd.grad((weight * got).sum(), (x, kernel)),
        torch.autograd.grad((weight * true).sum(), (x, kernel)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize('shape', [(3, 4, 5), (2, 3, 5), (3, 3), (3, 3, 3, 3)])
def test_kernels_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r'expected a kernel \(3, 2 odd numbers of lags\)') as error:
        full_conv(torch.zeros(1, 3, 4, 4), torch.zeros(shape))
    assert str(list(shape)) in str(error.value)
