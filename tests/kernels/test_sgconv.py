"""SGConv: the published concatenation, growth with the logarithm of the length, the norm."""

import pytest
import torch
import torch.nn.functional as F

from s4nd.kernels import SGConvKernel
from tests import oracles

DOUBLE = torch.float64


@pytest.mark.parametrize(('length', 'd_state'), [(64, 8), (60, 8), (40, 5), (16, 16), (7, 3)])
def test_the_published_kernel_at_the_training_step(length: int, d_state: int) -> None:
    """Sub-kernels interpolated by torch, halved from scale to scale, joined, normalized and cut."""
    kernel = SGConvKernel(3, channels=2, d_state=d_state, length=length, dtype=DOUBLE)
    parts = []
    for i, weight in enumerate(kernel.weight.unbind(2)):
        stretched = F.interpolate(weight, scale_factor=2.0 ** max(0, i - 1), mode='linear')
        parts.append(stretched / 2**i)
    joined = torch.cat(parts, -1)
    joined = (joined / joined.norm(dim=-1, keepdim=True))[..., :length]
    torch.testing.assert_close(kernel(length), joined, atol=1e-12, rtol=0)


@pytest.mark.parametrize('mode', ['cat', 'sum'])
@pytest.mark.parametrize('interpolation', ['linear', 'nearest'])
@pytest.mark.parametrize('step', [1.0, 0.5, 3.0])
def test_modes_equal_the_oracle(mode: str, interpolation: str, step: float) -> None:
    kernel = SGConvKernel(
        3, channels=2, d_state=4, length=30, mode=mode, interpolation=interpolation, decay=(1.5, 3.0), dtype=DOUBLE
    )
    true = oracles.sgconv_taps(kernel.weight, 45, step, mode, interpolation, torch.linspace(1.5, 3.0, 3, dtype=DOUBLE))
    torch.testing.assert_close(kernel(45, step), true / kernel.norm, atol=1e-12, rtol=0)


def test_parameters_grow_with_the_logarithm_of_the_length() -> None:
    sizes = [SGConvKernel(2, d_state=16, length=2**k).weight.numel() for k in range(4, 15)]
    assert sizes == [2 * 16 * (1 + k) for k in range(11)]
    assert SGConvKernel(2, d_state=64, length=9).weight.shape == (1, 2, 1, 9)  # no more taps than the axis has


def test_norm_is_kept() -> None:
    """1 at the start, and a trained kernel is divided by the norm it started with, also after a reload."""
    kernel = SGConvKernel(3, d_state=4, length=30, dtype=DOUBLE)
    assert kernel.total_length == 32
    torch.testing.assert_close(kernel(32).norm(dim=-1), torch.ones(1, 3, dtype=DOUBLE))
    with torch.no_grad():
        kernel.weight.mul_(2)
    torch.testing.assert_close(kernel(32).norm(dim=-1), torch.full((1, 3), 2.0, dtype=DOUBLE))
    other = SGConvKernel(3, d_state=4, length=30, dtype=DOUBLE)
    other.load_state_dict(kernel.state_dict())
    assert torch.equal(other(11, 0.5), kernel(11, 0.5))


def test_nothing_after_the_last_scale() -> None:
    kernel = SGConvKernel(1, d_state=4, length=16, dtype=DOUBLE)
    taps = kernel(40)
    assert taps[..., :16].abs().min() > 0
    assert taps[..., 16:].abs().max() == 0


def test_a_finer_grid_samples_the_same_function() -> None:
    """Pairs of half-step taps approach the taps of a smooth kernel; at step 1/8 the function is all but resolved."""
    kernel = SGConvKernel(1, d_state=8, length=64, dtype=DOUBLE)
    with torch.no_grad():
        kernel.weight.copy_(torch.linspace(1, 0.5, 8, dtype=DOUBLE).expand(1, 1, 4, 8))
    whole = kernel(64)
    for parts in (2, 8):
        fine = kernel(64 * parts, 1 / parts).unflatten(-1, (64, parts)).sum(-1)
        assert (fine - whole).abs().max() < 0.02 * whole.abs().max()
