"""LMU: the published matrices, the window in samples, and memory of 100 k steps."""

import math

import pytest
import torch
from torch import Tensor

from s4nd import S4, hippo
from s4nd.kernels import LMUKernel
from s4nd.kernels.lmu import legendre_delay
from tests import oracles


def waves(samples: int, window: int) -> Tensor:
    """Up to 6 cycles a window, rising from zero: what a memory of 64 polynomials can hold."""
    t = torch.arange(samples, dtype=torch.float64) / window
    parts = [torch.sin(2 * math.pi * cycles * t + phase) for cycles, phase in ((1.3, 0.1), (2.7, 1.0), (5.9, 2.0))]
    return sum(parts) / 2 * (1 - torch.exp(-((8 * t) ** 2)))


def delay_line(theta: float, **options: object) -> S4:
    """u(t - θ): every shifted Legendre polynomial is 1 at the end of the window."""
    layer = S4(1, kernel='lmu', skip=False, kernel_args={'theta': theta}, **options)
    torch.nn.init.ones_(layer.kernels[0].C)
    return layer


def test_matrices() -> None:
    A, B = legendre_delay(9, torch.device('cpu'))
    true_A, true_B = oracles.lmu_matrices(9)
    torch.testing.assert_close(A, true_A, atol=0, rtol=0)
    torch.testing.assert_close(B, true_B, atol=0, rtol=0)


def test_state_is_that_of_legt() -> None:
    """x_i = (-1)^i √(2i + 1) times the coefficient of HiPPO-LegT over the same window."""
    u = torch.randn(50, dtype=torch.float64)
    kernel = LMUKernel(1, d_state=8, theta=20.0, dtype=torch.float64)
    memory = hippo.Memory('legt', 8, window=20)
    state, other = kernel.init_state(1), memory.init_state(1)
    for sample in u:
        _, state = kernel.step(sample.reshape(1, 1), state)
        other = memory.step(sample.reshape(1), other)
    i = torch.arange(8, dtype=torch.float64)
    scale = (-1) ** i * (2 * i + 1).sqrt()
    torch.testing.assert_close(state['x'][0, 0], scale * other['x'][0], atol=1e-10, rtol=0)


def test_memory_of_100_k_steps() -> None:
    """A window of 100,000 samples reproduces what went in at its far end, in float32, long after the first window."""
    theta = 100_000
    u = waves(300_000, theta)
    with torch.no_grad():
        y = delay_line(theta)(u.float()[None, None])[0, 0].double()
    assert y.isfinite().all()
    assert y[:theta].abs().max() < 0.05
    assert (y[theta:] - u[:-theta]).abs().max() < 1e-3 * u.abs().max()


def test_float32_steps_remember() -> None:
    """The recurrence at the rate of a window of 100 k samples, from a state that the past has filled."""
    theta, samples = 100_000, 400
    layer, exact = delay_line(theta), delay_line(theta, dtype=torch.float64)
    u = waves(theta + samples, theta)
    with torch.no_grad():
        kernel = exact.kernels[0]
        # The state after `theta` samples, from the taps of each polynomial.
        A, B = kernel.matrices(1.0)
        powers, basis = A[0], B[0, :, None]
        while basis.shape[1] < theta:
            basis, powers = torch.cat([basis, powers @ basis], 1), powers @ powers
        state = {'x': (basis[:, :theta] @ u[:theta].flip(0)).float()[None, None]}
        system = layer.system()
        for k in range(theta, theta + samples):
            y, state = layer.step(u[k].float().reshape(1, 1), state, system)
            assert abs(y.item() - u[k - theta].item()) < 1e-3 * u.abs().max()


@pytest.mark.parametrize('step', [0.5, 1.0, 2.0])
def test_theta_is_in_samples_of_the_training_grid(step: float) -> None:
    """The center of mass of a delay line's taps is the delay, at every step."""
    taps = delay_line(40.0, d_state=16, dtype=torch.float64).kernels[0](int(400 / step), step)[0, 0]
    middle = ((torch.arange(len(taps), dtype=torch.float64) + 0.5) * step * taps).sum() / taps.sum()
    assert abs(middle - 40) < 0.5
    assert abs(taps.sum() - 1) < 1e-6


def test_bandlimit_masks_polynomials() -> None:
    """Degree n has up to n/2 cycles in θ samples: with θ = 10 and α = 0.5 those below 5 pass."""
    kernel = LMUKernel(3, d_state=8, theta=10.0, bandlimit=0.5, dtype=torch.float64)
    free = LMUKernel(3, d_state=8, theta=10.0, dtype=torch.float64)
    with torch.no_grad():
        free.C.copy_(kernel.C * (torch.arange(8) < 5))
    torch.testing.assert_close(kernel(20, 0.5), free(20, 0.5), atol=1e-14, rtol=0)


def test_only_the_readout_is_trained() -> None:
    kernel = LMUKernel(5, channels=2, d_state=8, dt_min=0.05)
    assert [name for name, _ in kernel.named_parameters()] == ['C']
    assert kernel.theta == 20
