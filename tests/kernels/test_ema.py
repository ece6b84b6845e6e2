"""EMA: the recurrence as the paper writes it, the published initialization, other steps."""

import math

import torch

from s4nd.kernels import EMAKernel

DOUBLE = torch.float64


def test_recurrence_of_the_paper() -> None:
    """x_k = α β u_k + (1 - α δ) x_{k-1}, y_k = γ·x_k/√h, sample by sample."""
    torch.manual_seed(0)
    kernel, u = EMAKernel(3, channels=2, d_state=4, dtype=DOUBLE), torch.randn(3, 40, dtype=DOUBLE)
    alpha, delta = torch.sigmoid(kernel.alpha), torch.sigmoid(kernel.delta)
    x, outputs = torch.zeros(3, 4, dtype=DOUBLE), []
    for u_k in u.unbind(-1):
        x = alpha * kernel.beta * u_k[:, None] + (1 - alpha * delta) * x
        outputs.append((kernel.gamma * x).sum(-1) / math.sqrt(4))
    taps = kernel(40)
    y = torch.stack([(taps[..., : t + 1] * u[:, : t + 1].flip(-1)).sum(-1) for t in range(40)], -1)
    torch.testing.assert_close(y, torch.stack(outputs, -1), atol=1e-12, rtol=0)


def test_a_constant_input_gives_the_same_at_every_step() -> None:
    torch.manual_seed(0)
    kernel = EMAKernel(3, d_state=4, dtype=DOUBLE)
    for step in (0.25, 2.0):
        held = kernel(int(4 * 30 / step), step).sum(-1)
        torch.testing.assert_close(held, kernel(120).sum(-1), atol=1e-9, rtol=0)
    # Two half steps of the same input are one step.
    torch.testing.assert_close(kernel(20, 0.5).unflatten(-1, (10, 2)).sum(-1), kernel(10), atol=1e-12, rtol=0)


def test_published_initialization() -> None:
    torch.manual_seed(0)
    kernel = EMAKernel(256, d_state=16)
    for parameter, mean, std in ((kernel.alpha, 0, 0.2), (kernel.delta, 0, 0.2), (kernel.gamma, 0, 1)):
        assert abs(parameter.mean() - mean) < 5 * std / 64
        assert abs(parameter.std() / std - 1) < 0.05
    assert (kernel.beta[:, 0::2] - 1).abs().max() < 0.1
    assert (kernel.beta[:, 1::2] + 1).abs().max() < 0.1


def test_slow_decays_keep_their_precision() -> None:
    """1 - q of 1e-9: a float32 kernel still tells its taps apart from a constant, and is finite at 100 k samples."""
    kernel = EMAKernel(1, d_state=1)
    with torch.no_grad():
        kernel.alpha.fill_(0.0)
        kernel.delta.fill_(-20.0)
    taps = kernel.double()(100_000)
    decay = 0.5 * torch.sigmoid(torch.tensor(-20.0, dtype=DOUBLE))
    torch.testing.assert_close(
        taps[0, 0, -1] / taps[0, 0, 0], torch.exp(99_999 * torch.log1p(-decay)), rtol=1e-9, atol=0
    )
