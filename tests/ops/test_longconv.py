"""The separable convolution against the direct sum, forward and gradients, by every method."""

import pytest
import torch

from s4nd.ops import fftconv, joint_matrix, lag_taps, separable_conv, toeplitz
from s4nd.ops.fftconv import fft_size
from tests import oracles

SIZES = [(1,), (2,), (11,), (16,), (1, 1), (1, 9), (7, 4), (6, 6), (1, 1, 1), (3, 5, 4), (4, 1, 6)]
METHODS = ['toeplitz', 'fft', 'auto']


def random_taps(size: tuple[int, ...], rank: int, features: int, kind: str) -> tuple[list, list[int]]:
    taps, centers = [], []
    for length in size:
        reach = {'short': max(1, length // 2), 'long': length + 3}.get(kind, length)
        lags, center = (reach, 0) if kind == 'causal' else (2 * reach - 1, reach - 1)
        taps.append(torch.randn(rank, features, lags, dtype=torch.float64, requires_grad=True))
        centers.append(center)
    return taps, centers


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('kind', ['bidirectional', 'causal', 'short', 'long'])
@pytest.mark.parametrize('rank', [1, 2, 3])
def test_equals_the_direct_sum(size: tuple[int, ...], method: str, kind: str, rank: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    taps, centers = random_taps(size, rank, 3, kind)
    y = separable_conv(x, taps, centers, method)
    true = oracles.direct_conv(x, oracles.full_kernel(taps), centers)
    torch.testing.assert_close(y, true, atol=1e-11, rtol=0)
    weight = torch.randn_like(true)
    ours = torch.autograd.grad((y * weight).sum(), [x, *taps])
    for a, b in zip(ours, torch.autograd.grad((true * weight).sum(), [x, *taps]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize('size', [(1,), (9,), (4, 7), (3, 1, 5)], ids=str)
@pytest.mark.parametrize('method', ['toeplitz', 'fft'])
@pytest.mark.parametrize('rank', [1, 2])
def test_skip_and_scripted_path(size: tuple[int, ...], method: str, rank: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    taps, centers = random_taps(size, rank, 3, 'bidirectional')
    skip = torch.randn(3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    true = oracles.direct_conv(x, oracles.full_kernel(taps), centers) + skip.reshape(3, *[1] * len(size)) * x
    gradients = torch.autograd.grad((true * weight).sum(), [x, skip, *taps])
    for function in (separable_conv, torch.jit.script(separable_conv)):
        y = function(x, taps, centers, method, skip)
        torch.testing.assert_close(y, true, atol=1e-11, rtol=0)
        for a, b in zip(torch.autograd.grad((y * weight).sum(), [x, skip, *taps]), gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_matrices_stand_for_taps() -> None:
    x, (taps, centers) = torch.randn(2, 3, 6, 4), random_taps((6, 4), 2, 3, 'bidirectional')
    taps = [k.detach().float() for k in taps]
    matrices = [toeplitz(k, center, length) for k, center, length in zip(taps, centers, (6, 4), strict=True)]
    torch.testing.assert_close(separable_conv(x, matrices, centers), separable_conv(x, taps, centers, 'fft'))
    # Lag 0 after as many lags as the axis is long, as in the published two-sided layout.
    taps = [torch.randn(1, 3, 2 * length) for length in (6, 4)]
    matrices = [toeplitz(k, length, length) for k, length in zip(taps, (6, 4), strict=True)]
    torch.testing.assert_close(separable_conv(x, matrices, [6, 4]), separable_conv(x, taps, [6, 4], 'fft'))


@pytest.mark.parametrize('size', [(3, 4), (2, 1, 3)], ids=str)
def test_joint_matrix(size: tuple[int, ...]) -> None:
    x, (taps, centers) = torch.randn(2, 3, *size, dtype=torch.float64), random_taps(size, 2, 3, 'bidirectional')
    matrices = [toeplitz(k, center, length) for k, center, length in zip(taps, centers, size, strict=True)]
    y = separable_conv(x.flatten(2), [joint_matrix(matrices)], [0]).reshape(x.shape)
    torch.testing.assert_close(y, separable_conv(x, taps, centers), atol=1e-12, rtol=0)


def test_features_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 5, 40, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(1, 5, 50, dtype=torch.float64, requires_grad=True)
    whole = separable_conv(x, [taps], [7], 'fft')
    expected = torch.autograd.grad(whole.square().sum(), [x, taps])
    monkeypatch.setattr(fftconv, 'feature_groups', lambda x: [slice(0, 2), slice(2, 4), slice(4, 6)])
    parts = separable_conv(x, [taps], [7], 'fft')
    torch.testing.assert_close(parts, whole)
    for a, b in zip(torch.autograd.grad(parts.square().sum(), [x, taps]), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_only_what_is_needed_gets_a_gradient() -> None:
    for size in [(8,), (4, 4)]:
        x, taps = torch.randn(1, 2, *size), [torch.randn(1, 2, 9, requires_grad=True) for _ in size]
        for method in ('toeplitz', 'fft'):
            separable_conv(x, taps, [4] * len(size), method).sum().backward()
            assert x.grad is None
            assert all(k.grad.abs().max() > 0 for k in taps)


def test_backward_of_exact_products_under_autocast_stays_in_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12, requires_grad=True)
    taps = [torch.randn(1, 3, 23, requires_grad=True) for _ in range(2)]
    expected = torch.autograd.grad(separable_conv(x, taps, [11, 11]).square().sum(), [x, *taps])
    with torch.autocast('cpu', torch.bfloat16):
        y = separable_conv(x, taps, [11, 11], exact=True).square().sum()
        for a, b in zip(torch.autograd.grad(y, [x, *taps]), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('method', ['toeplitz', 'fft'])
def test_gradcheck(method: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    taps, centers = random_taps((3, 4), 2, 2, 'bidirectional')
    skip = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def conv(x: torch.Tensor, skip: torch.Tensor, *taps: torch.Tensor) -> torch.Tensor:
        return separable_conv(x, list(taps), centers, method, skip)

    assert torch.autograd.gradcheck(conv, (x, skip, *taps))
    assert torch.autograd.gradgradcheck(conv, (x, skip, *taps))


@pytest.mark.parametrize('method', ['toeplitz', 'fft'])
def test_gradcheck_on_one_axis(method: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    taps, centers = random_taps((5,), 2, 2, 'bidirectional')
    assert torch.autograd.gradcheck(lambda x, k: separable_conv(x, [k], centers, method), (x, *taps))
    assert torch.autograd.gradgradcheck(lambda x, k: separable_conv(x, [k], centers, method), (x, *taps))


@pytest.mark.parametrize(('size', 'layout'), [((4, 6), torch.channels_last), ((2, 3, 4), torch.channels_last_3d)])
@pytest.mark.parametrize('method', METHODS)
def test_memory_format_out_is_memory_format_in(size: tuple[int, ...], layout: torch.memory_format, method: str) -> None:
    x = torch.randn(2, 3, *size)
    taps, centers = random_taps(size, 2, 3, 'bidirectional')
    taps = [k.detach().float() for k in taps]
    true = separable_conv(x, taps, centers, method, torch.ones(3))
    y = separable_conv(x.contiguous(memory_format=layout), taps, centers, method, torch.ones(3))
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, true)


def test_no_rows() -> None:
    taps, centers = random_taps((4, 6), 1, 3, 'bidirectional')
    assert separable_conv(torch.zeros(0, 3, 4, 6), taps, centers).shape == (0, 3, 4, 6)


@pytest.mark.parametrize('length', [1, 5, 300])
@pytest.mark.parametrize('method', METHODS)
def test_causal_kernels_do_not_leak(length: int, method: str) -> None:
    x = torch.randn(1, 2, length, requires_grad=True)
    taps = torch.randn(1, 2, length + 7)
    middle = length // 2
    y = separable_conv(x, [taps], [0], method)
    (gradient,) = torch.autograd.grad(y[..., middle].sum(), x)
    scale = gradient.abs().max()
    assert scale > 0
    assert (gradient[..., middle + 1 :].abs() <= 1e-5 * scale).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('method', METHODS)
def test_dtype_out_is_dtype_in(dtype: torch.dtype, method: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 6, dtype=torch.float64).to(dtype)
    taps, centers = random_taps((9, 6), 1, 3, 'bidirectional')
    y = separable_conv(x, [t.float() for t in taps], centers, method, exact=True)
    assert y.dtype == dtype
    assert y.is_contiguous()
    true = oracles.direct_conv(x.double(), oracles.full_kernel([t.float().double() for t in taps]), centers)
    # Computed in float32 at least: the error is one rounding of the result.
    relative = (y.double() - true).abs().max() / true.abs().max()
    assert relative < max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps * 8)


def relative(ours: torch.Tensor, true: torch.Tensor) -> float:
    return float((ours.double() - true.double()).detach().norm() / true.double().norm())


@pytest.mark.parametrize(('dtype', 'limit'), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize('size', [(40,), (56, 31), (8, 5, 7)], ids=str)
@pytest.mark.parametrize('rank', [1, 3])
@pytest.mark.parametrize('method', ['toeplitz', 'fft'])
def test_error_of_products_in_half_precision(
    dtype: torch.dtype, limit: float, size: tuple[int, ...], rank: int, method: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size).to(dtype)
    taps, centers = random_taps(size, rank, 3, 'bidirectional')
    inputs = [x.double().requires_grad_(), *taps, torch.randn(3, dtype=torch.float64, requires_grad=True)]
    weight = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    true = separable_conv(inputs[0], taps, centers, 'fft', inputs[-1])
    expected = torch.autograd.grad((true * weight.double()).sum(), inputs)
    halves = [x.requires_grad_(), *(t.detach().float().requires_grad_() for t in inputs[1:])]
    y = separable_conv(x, halves[1:-1], centers, method, halves[-1])
    assert y.dtype == dtype
    assert relative(y, true) < limit
    for a, b in zip(torch.autograd.grad(y, halves, weight), expected, strict=True):
        assert relative(a, b) < limit


def test_autocast_as_for_convolutions() -> None:
    x = torch.randn(2, 3, 8, 8)
    taps, centers = random_taps((8, 8), 1, 3, 'bidirectional')
    taps = [t.float() for t in taps]
    with torch.autocast('cpu', torch.bfloat16):
        inside, exact = (separable_conv(x, taps, centers, 'toeplitz', exact=exact) for exact in (False, True))
        assert inside.dtype == torch.nn.functional.conv2d(x, x).dtype == torch.bfloat16
    assert torch.equal(inside, separable_conv(x.bfloat16(), taps, centers, 'toeplitz'))
    assert torch.equal(exact, separable_conv(x, taps, centers, 'toeplitz'))


def test_lag_taps() -> None:
    forward, backward = torch.arange(1.0, 6.0), 10 * torch.arange(1.0, 6.0)
    taps, center = lag_taps(forward, backward, centered=True)
    assert taps.tolist() == [90, 50, 11, 5, 9]
    assert center == 2
    taps, center = lag_taps(forward, backward, centered=False)
    assert taps.tolist() == [50, 40, 30, 20, 10, 1, 2, 3, 4, 5]
    assert center == 5


def test_fft_sizes_have_small_primes() -> None:
    for minimum in (1, 2, 3, 11, 100, 1000, 15361, 32001):
        size = fft_size(minimum)
        assert size >= minimum
        assert size % 2 == 0
        for prime in (2, 3, 5):
            while size % prime == 0:
                size //= prime
        assert size == 1


@pytest.mark.parametrize(('call', 'says'), [
    (lambda x, t: separable_conv(x, [t], [0, 0]), '2 axes.*1 and 2'),
    (lambda x, t: separable_conv(x, [t, t], [0, 0], 'conv'), "'conv'.*'toeplitz'"),
    (lambda x, t: separable_conv(x[:, :1], [t, t], [0, 0]), r'\(rank, 1, lags\).*\[1, 2, 4\]'),
    (lambda x, t: separable_conv(x, [t, t.repeat(2, 1, 1)], [0, 0]), r'axis 1.*\[2, 2, 4\]'),
    (lambda x, t: separable_conv(x, [t, t], [0, 4]), 'center 4 of axis 1'),
    (lambda x, t: separable_conv(x[..., :0], [t, t], [0, 0]), r'empty.*\[1, 2, 3, 0\]'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4))
