"""Every kernel where kernels are used: S4ND on one to three axes, other resolutions, SaShiMi (timm: tests/models)."""

import math

import pytest
import timm
import torch
from torch import Tensor

from audio.models.backbone import SaShiMiBackbone
from s4nd import S4, S4ND
from s4nd.kernels import KERNELS, RecurrentKernel
from tests import oracles

DOUBLE = torch.float64
STREAMING = [name for name, kernel in KERNELS.items() if issubclass(kernel, RecurrentKernel)]


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('grid', [(9,), (4, 7), (3, 2, 4)], ids=str)
def test_any_axes(kernel: str, grid: tuple[int, ...]) -> None:
    """The layer is the direct convolution with its kernels' centered taps; every parameter learns; other sizes run."""
    torch.manual_seed(0)
    layer = S4ND(4, grid, kernel=kernel, d_state=4, skip=False, dtype=DOUBLE)
    x = torch.randn(2, 4, *grid, dtype=DOUBLE)
    taps = []
    for axis, size in zip(layer.kernels, grid, strict=True):
        forward, backward = axis(2 * size - 1, 0.5).unflatten(0, (2, 1))  # half samples
        both = {0: forward[..., 0] + backward[..., 0]}
        for lag in range(1, size):
            both[lag] = forward[..., 2 * lag - 1] + forward[..., 2 * lag]
            both[-lag] = backward[..., 2 * lag - 1] + backward[..., 2 * lag]
        taps.append(torch.stack([both[lag] for lag in range(1 - size, size)], -1))
    true = oracles.direct_conv(x, oracles.full_kernel(taps), [size - 1 for size in grid])
    y = layer(x)
    torch.testing.assert_close(y, true, atol=1e-10, rtol=0)
    gradients = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    for (name, _), gradient in zip(layer.named_parameters(), gradients, strict=True):
        assert gradient.abs().max() > 0, name
    assert layer(torch.randn(1, 4, *(2 * n + 1 for n in grid), dtype=DOUBLE)).isfinite().all()


def smooth(size: int) -> Tensor:
    """Cell means of a few slow waves on [0, 1], at any number of samples: (1, 1, size)."""
    edges = torch.arange(size + 1, dtype=DOUBLE) / size
    parts = [torch.sin(2 * math.pi * c * edges + p) / c for c, p in ((0.7, 0.3), (1.6, 1.1), (2.3, 2.9))]
    return sum(parts).diff()[None, None] * size


# Largest relative drift of three seeds at twice and four times the size: .016 (s4), .063 (lssl), .024 (siren).
LIMIT = {'bandlimit': 0.5}


@pytest.mark.parametrize(('kernel', 'options', 'tolerance'), [
    ('s4d', LIMIT, 0.03), ('s4', LIMIT, 0.03), ('dss-exp', LIMIT, 0.03), ('dss-softmax', LIMIT, 0.03),
    ('lmu', LIMIT, 0.03), ('lssl', {'dt_min': 0.01, 'dt_max': 0.2}, 0.1), ('ema', {}, 0.03), ('sgconv', {}, 0.03),
    ('ckconv', {}, 0.03), ('ckconv', {'kernel_args': {'network': 'siren'}}, 0.04)])  # fmt: skip
def test_another_resolution_is_the_same_function(kernel: str, options: dict, tolerance: float) -> None:
    """Trained grid 32, run at 64 with no call by the user: the outputs, averaged in pairs, stay close."""
    torch.manual_seed(0)
    layer = S4ND(16, (32,), kernel=kernel, d_state=16, skip=False, dtype=DOUBLE, **options)
    with torch.no_grad():
        coarse = layer(smooth(32).expand(1, 16, 32))
        fine = layer(smooth(64).expand(1, 16, 64)).unflatten(-1, (32, 2)).mean(-1)
    assert (fine - coarse).norm() < tolerance * coarse.norm()


@pytest.mark.parametrize('kernel', KERNELS)
def test_weights_keep_their_grid(kernel: str) -> None:
    """A layer built for another grid computes what the trained one does once it has its weights."""
    torch.manual_seed(0)
    options = {'kernel': kernel, 'd_state': 4, 'dtype': DOUBLE}
    layer, other = S4ND(3, (6, 8), **options).eval(), S4ND(3, (9, 7), **options).eval()
    if kernel == 'sgconv':  # whose number of scales follows from the grid it was made for
        other = S4ND(3, (5, 6), **options).eval()
    other.load_state_dict(layer.state_dict())
    assert other.grid == (6, 8)
    with torch.no_grad():
        for size in ((6, 8), (5, 9), (12, 12)):
            x = torch.randn(1, 3, *size, dtype=DOUBLE)
            torch.testing.assert_close(other(x), layer(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize('kernel', STREAMING)
def test_sashimi_streams(kernel: str) -> None:
    torch.manual_seed(0)
    model = SaShiMiBackbone(4, 1, (2,), mixer_args={'kernel': kernel, 'd_state': 4}, dtype=DOUBLE).eval()
    x = torch.randn(2, 7, 4, dtype=DOUBLE)
    with torch.no_grad():
        state, system, outputs = model.init_state(2), model.system(), []
        for x_t in x.unbind(1):
            y, state = model.step(x_t, state, system=system)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), model(x), atol=1e-9, rtol=0)


@pytest.mark.parametrize('kernel', [name for name in KERNELS if name not in STREAMING])
def test_sashimi_needs_a_recurrence(kernel: str) -> None:
    with pytest.raises(ValueError, match=f"kernel '{kernel}' has no recurrence"):
        SaShiMiBackbone(4, 1, (2,), mixer_args={'kernel': kernel})


def test_an_axis_too_short_for_a_coordinate_network() -> None:
    with pytest.raises(ValueError, match="'ckconv' needs an axis of at least 2 samples, got length 1"):
        S4ND(4, (8, 1), kernel='ckconv')
    with pytest.raises(ValueError, match="'ckconv' needs an axis of at least 2 samples, got length 1"):
        timm.create_model('s4nd_convnext_micro', img_size=32, kernel='ckconv')


@pytest.mark.parametrize('kernel', ['dss-softmax', 'sgconv', 'ckconv'])
def test_length_without_a_grid(kernel: str) -> None:
    """An option gives it; l_max, where there is one, cuts the axis."""
    with pytest.raises(ValueError, match=f"'{kernel}' spans its axis and needs its length"):
        S4(4, kernel=kernel, bidirectional=True)
    options = {'kernel': kernel, 'd_state': 8, 'bidirectional': False, 'skip': False}
    free = S4ND(4, (30,), kernel_args={'length': 10}, **options)
    cut = S4ND(4, (30,), l_max=10, **options)
    cut.load_state_dict(free.state_dict())
    x = torch.randn(1, 4, 30)
    torch.testing.assert_close(cut(x)[..., :10], free(x)[..., :10], atol=1e-5, rtol=0)


@pytest.mark.parametrize('kernel', KERNELS)
def test_script_export_and_autocast(kernel: str) -> None:
    torch.manual_seed(0)
    layer = S4ND(4, (6, 7), kernel=kernel, d_state=8)
    x = torch.randn(2, 4, 6, 7)
    y = layer(x)
    torch.testing.assert_close(torch.jit.script(layer)(x), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), y, atol=1e-5, rtol=1e-5)
    layer.exact = True
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(layer(x), y, atol=1e-5, rtol=1e-5)
