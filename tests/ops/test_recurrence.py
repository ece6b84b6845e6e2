"""Running a recurrence over a stretch equals stepping through it."""

import pytest
import torch

from s4nd import S4
from s4nd.kernels import KERNELS, RecurrentKernel, make_kernel
from s4nd.ops.recurrence import CHUNK, run_recurrence

RECURRENT = sorted(name for name, cls in KERNELS.items() if issubclass(cls, RecurrentKernel))


@pytest.mark.parametrize('name', RECURRENT)
@pytest.mark.parametrize('length', [1, CHUNK - 1, CHUNK, 2 * CHUNK, 3 * CHUNK + 5])
@torch.no_grad()
def test_it_equals_stepping_from_any_state(name: str, length: int) -> None:
    torch.manual_seed(0)
    kernel = make_kernel(name, 3, d_state=8, dtype=torch.float64)
    u, before = torch.randn(2, 3, length, dtype=torch.float64), kernel.init_state(2)['x']
    before = x = torch.randn_like(before)
    system, expected = kernel.system(), []
    for t in range(length):
        y, x = kernel.advance(u[..., t], x, system)
        expected.append(y[:, 0])
    kept = before.clone()
    found, after = run_recurrence(kernel.advance, system, u, before)
    torch.testing.assert_close(found, torch.stack(expected, 2), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(after, x, atol=1e-10, rtol=1e-10)
    assert torch.equal(before, kept)


@torch.no_grad()
def test_it_equals_the_convolution_in_float32() -> None:
    torch.manual_seed(0)
    kernel = make_kernel('s4', 4, d_state=64)
    u = torch.randn(1, 4, 1000)
    y, _ = run_recurrence(kernel.advance, kernel.system(), u, kernel.init_state(1)['x'])
    taps = kernel(1000)[0]
    full = torch.fft.irfft(torch.fft.rfft(u.double(), 2000) * torch.fft.rfft(taps.double(), 2000), 2000)[..., :1000]
    torch.testing.assert_close(y.double(), full, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_signal_can_be_cut_anywhere() -> None:
    torch.manual_seed(0)
    kernel = make_kernel('s4d', 2, d_state=4, dtype=torch.float64)
    u, system, x = torch.randn(1, 2, 300, dtype=torch.float64), kernel.system(), kernel.init_state(1)['x']
    whole, after = run_recurrence(kernel.advance, system, u, x)
    parts = []
    for part in u.split([1, 130, 169], 2):
        y, x = run_recurrence(kernel.advance, system, part, x)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-11, rtol=0)
    torch.testing.assert_close(x, after, atol=1e-11, rtol=0)
    y, same = run_recurrence(kernel.advance, system, u[..., :0], x)
    assert y.shape == (1, 2, 0) and torch.equal(same, x)


def test_shapes_that_do_not_fit_are_refused() -> None:
    kernel = make_kernel('s4d', 2, d_state=4)
    with pytest.raises(ValueError, match=r'got \(1, 2\) and \(1, 2, 2, 2\)'):
        run_recurrence(kernel.advance, kernel.system(), torch.zeros(1, 2), kernel.init_state(1)['x'])
    with pytest.raises(ValueError, match=r'got \(3, 2, 5\) and \(1, 2, 2, 2\)'):
        run_recurrence(kernel.advance, kernel.system(), torch.zeros(3, 2, 5), kernel.init_state(1)['x'])


@pytest.mark.parametrize('kernel', ['s4', 's4d', 'ema'])
@torch.no_grad()
def test_several_channels(kernel: str) -> None:
    """Channel-major, over whole chunks and a rest."""
    layer = S4(3, kernel=kernel, d_state=8, channels=2, dtype=torch.float64)
    x = torch.randn(2, 3, 150, dtype=torch.float64)
    y, state = layer(x, layer.init_state(2))
    torch.testing.assert_close(y, layer(x), atol=1e-10, rtol=0)
    first, state = layer(x[..., :100], layer.init_state(2))
    second, _ = layer(x[..., 100:], state)
    torch.testing.assert_close(torch.cat([first, second], -1), y, atol=1e-10, rtol=0)
    x[..., 140] = torch.nan
    y, _ = layer(x[..., :128], layer.init_state(2))
    assert y.isfinite().all()
    x[..., 70] = torch.nan
    y, _ = layer(x, layer.init_state(2))
    assert y[..., :70].isfinite().all() and y[..., 70:].isnan().all()
