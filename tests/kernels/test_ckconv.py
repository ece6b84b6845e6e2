"""CKConv: the networks in one and more dimensions, their initial frequencies, the mask."""

import math

import pytest
import torch

from s4nd.kernels import CKConvKernel
from s4nd.kernels.ckconv import SIREN, Gabor, MAGNet
from tests import oracles

DOUBLE = torch.float64


@pytest.mark.parametrize('dims', [1, 2, 3])
def test_networks_of_several_coordinates(dims: int) -> None:
    """For kernels that are truly N-D: (M, D) coordinates, one value for each output."""
    torch.manual_seed(0)
    x = torch.rand(7, dims, dtype=DOUBLE) * 2 - 1
    siren = SIREN(dims, 5, 4, 20.0, dtype=DOUBLE)
    layers = [(layer.weight, layer.bias) for layer in (*siren.linears, siren.out)]
    true = torch.stack([oracles.siren(point, layers, 20.0) for point in x])
    torch.testing.assert_close(siren(x), true, atol=1e-12, rtol=0)
    magnet = MAGNet(dims, 5, 4, 0.7, dtype=DOUBLE)
    layers = [(layer.weight, layer.bias) for layer in (*magnet.linears, magnet.out)]
    gabors = [(g.gamma, g.mu, g.weight, g.bias) for g in magnet.filters]
    true = torch.stack([oracles.magnet(point, gabors, layers) for point in x])
    torch.testing.assert_close(magnet(x), true, atol=1e-12, rtol=0)


@pytest.mark.parametrize('layers', [2, 4])
def test_numbers_of_layers(layers: int) -> None:
    siren, magnet = SIREN(2, 5, 3, layers=layers), MAGNet(2, 5, 3, 1.0, layers)
    assert (len(siren.linears), len(magnet.linears), len(magnet.filters)) == (layers - 1, layers, layers + 1)
    for network, least in ((SIREN, 2), (MAGNet, 1)):
        with pytest.raises(ValueError, match=f'layers must be at least {least}, got {least - 1}'):
            network(2, 5, 3, 1.0, least - 1)


@pytest.mark.parametrize('dims', [1, 2])
def test_initial_frequencies(dims: int) -> None:
    """SIREN: up to ω0 radians a unit. MAGNet: γ ~ Gamma(6/i, 1), up to ω0 γ/√D cycles a unit, below Nyquist in sum."""
    torch.manual_seed(0)
    siren = SIREN(1, 1024, 1)
    assert 0.99 < siren.linears[0].weight.abs().max() <= 1
    omega_0 = CKConvKernel(1, length=88).network.filters[0].omega_0
    total = torch.zeros(())
    for order in (1, 2, 3, 4):
        gabor = Gabor(dims, 4096, order, omega_0, (-1.0, -0.875))
        assert abs(gabor.gamma.mean() / (6 / order) - 1) < 0.06
        assert abs(gabor.gamma.var() / (6 / order) - 1) < 0.15
        cycles = gabor.weight.abs() / (2 * math.pi) * dims**0.5
        assert (cycles <= omega_0 * gabor.gamma + 1e-5).all() and (cycles / gabor.gamma).max() > 0.99 * omega_0
        assert -1 <= gabor.mu.min() < -0.99 and -0.88 < gabor.mu.max() <= -0.875
        assert not gabor.bias.any()
        total = total + omega_0 * gabor.gamma.mean()
    assert abs(total / (88 / 4) - 1) < 0.05  # Nyquist: 88 samples in 2 units


@pytest.mark.parametrize('network', ['magnet', 'siren'])
def test_kernels_start_with_norm_one(network: str) -> None:
    torch.manual_seed(0)
    for length in (2, 9, 500):
        kernel = CKConvKernel(32, channels=2, length=length, network=network)
        norm = kernel(length).square().sum(-1)
        assert abs(norm.mean() - 1) < 1e-4
        assert norm.max() < 20


def test_mask_is_about_lag_0_and_trained() -> None:
    kernel = CKConvKernel(2, channels=2, length=100, dtype=DOUBLE)
    bare = CKConvKernel(2, channels=2, length=100, mask=False, dtype=DOUBLE)
    bare.load_state_dict({key: value for key, value in kernel.state_dict().items() if key != 'log_width'})
    ratio = kernel(100) / bare(100)
    distance = 2 * (torch.arange(100, dtype=DOUBLE) + 0.5) / 100
    torch.testing.assert_close(ratio[0, 0], torch.exp(-0.5 * (distance / 0.075) ** 2), rtol=1e-9, atol=1e-300)
    assert CKConvKernel(2, length=4).log_width.exp() == 0.5  # a sample of the training grid


def test_taps_end_with_the_axis() -> None:
    kernel = CKConvKernel(1, length=12, network='siren', mask=False)
    taps = kernel(30, 0.5)
    assert taps[..., :24].abs().min() > 0
    assert taps[..., 24:].abs().max() == 0


def test_a_finer_grid_samples_the_same_function() -> None:
    torch.manual_seed(0)
    kernel = CKConvKernel(8, length=32, omega_0=0.1, dtype=DOUBLE)
    with torch.no_grad():
        kernel.log_width.fill_(math.log(0.5))
    whole = kernel(32)
    fine = kernel(128, 0.25).unflatten(-1, (32, 4)).sum(-1)
    assert (fine - whole).norm() < 0.02 * whole.norm()
