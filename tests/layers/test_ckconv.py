"""CKConv over all axes: the kernel against the network at one lag at a time, the crop, other resolutions, bad input."""

import math

import pytest
import torch
from torch import Tensor, nn

from s4nd.kernels.ckconv import SIREN
from s4nd.layers import CKConv
from tests import oracles

DOUBLE = torch.float64


def make(grid: tuple[int, ...], network: str = 'magnet', mask: bool = True, **options: object) -> CKConv:
    torch.manual_seed(0)
    layer = CKConv(3, grid, network=network, mask=mask, **{'hidden': 5, 'dtype': DOUBLE, **options})
    with torch.no_grad():
        layer.bias.normal_()
        if mask:  # wide enough for some lags, another for each axis
            layer.kernel.log_width.copy_(torch.linspace(math.log(0.15), math.log(0.3), len(grid)))
    return layer


def oracle(layer: CKConv, x: Tensor) -> Tensor:
    """The layer by its definition, through a kernel that is not cut."""
    net = layer.kernel.network
    if isinstance(net, SIREN):
        layers = [(part.weight, part.bias) for part in (*net.linears, net.out)]

        def network(point: Tensor) -> Tensor:
            return oracles.siren(point, layers, net.omega_0)
    else:
        layers = [(part.weight, part.bias) for part in (*net.linears, net.out)]
        gabors = [(g.gamma, g.mu, g.weight, g.bias) for g in net.filters]

        def network(point: Tensor) -> Tensor:
            return oracles.magnet(point, gabors, layers)

    size = x.shape[2:]
    steps = [grid / n for grid, n in zip(layer.grid, size, strict=True)]
    widths = None if layer.kernel.log_width is None else layer.kernel.log_width.exp()
    taps = oracles.coordinate_taps(network, layer.kernel.spacings(), widths, size, steps)
    y = oracles.direct_conv(x, taps, [n - 1 for n in size])
    return y + layer.bias.reshape(-1, *[1] * len(size))


SIZES = [((9,), (9,)), ((9,), (13,)), ((4,), (1,)), ((5, 8), (5, 8)), ((5, 8), (7, 3)), ((6, 4), (1, 5)),
         ((3, 4, 5), (3, 4, 5)), ((2, 4, 3), (1, 3, 4))]  # fmt: skip


@pytest.mark.parametrize(('network', 'mask'), [('magnet', True), ('magnet', False), ('siren', True), ('siren', False)])
@pytest.mark.parametrize(('grid', 'size'), SIZES, ids=str)
def test_matches_the_direct_sum(grid: tuple[int, ...], size: tuple[int, ...], network: str, mask: bool) -> None:
    """Forward and gradients of signal and parameters; odd sizes, not square, of length one, other than the grid."""
    layer = make(grid, network, mask)
    x = torch.randn(2, 3, *size, dtype=DOUBLE, requires_grad=True)
    inputs = [x, *layer.parameters()]
    weight = torch.randn(2, 3, *size, dtype=DOUBLE)
    got, true = layer(x), oracle(layer, x)
    torch.testing.assert_close(got, true, atol=1e-10, rtol=1e-10)
    assert true.detach().std() > 0.02
    got = torch.autograd.grad((weight * got).sum(), inputs, allow_unused=True, materialize_grads=True)
    true = torch.autograd.grad((weight * true).sum(), inputs, allow_unused=True, materialize_grads=True)
    for ours, theirs in zip(got, true, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    if min(size) > 1:
        assert all(gradient.abs().max() > 0 for gradient in got)


def test_the_kernel_is_not_separable() -> None:
    kernel = make((9, 9), mask=False).kernel([9, 9], [1.0, 1.0])
    assert torch.linalg.matrix_rank(kernel[0], rtol=1e-6) > 2


def test_the_kernel_is_cut_where_the_mask_is_small() -> None:
    """As many lags as reach within 2.15 widths; a graph that may not depend on values multiplies by zeros instead."""
    layer = make((12, 20))
    reach = math.sqrt(2 * math.log(10)) * layer.kernel.log_width.exp().detach()
    # 13 and 21 points in [-1, 1].
    counts = [2 * math.ceil(float(end) * n / 2) - 1 for end, n in zip(reach, (12, 20), strict=True)]
    kernel = layer.kernel([12, 20], [1.0, 1.0])
    assert list(kernel.shape[1:]) == counts
    assert counts[0] < 2 * 12 - 1
    x = torch.randn(1, 3, 12, 20, dtype=DOUBLE)
    exported, scripted = torch.export.export(layer, (x,)).module(), torch.jit.script(layer)
    for width in (None, 1.0):
        if width is not None:
            with torch.no_grad():
                for model in (layer, exported):
                    dict(model.named_parameters())['kernel.log_width'].fill_(math.log(width))
        y = layer(x)
        torch.testing.assert_close(exported(x), y, atol=1e-10, rtol=0)
        torch.testing.assert_close(scripted(x), y, atol=1e-10, rtol=0)


def smooth(*size: int) -> Tensor:
    """Cell means of slow waves, the same scene at any size: (1, 1, …)."""
    scene = torch.ones(1, 1, *[1] * len(size), dtype=DOUBLE)
    for axis, n in enumerate(size):
        edges = torch.arange(n + 1, dtype=DOUBLE) / n
        wave = sum(torch.sin(2 * math.pi * c * edges + c + axis) / c for c in (0.7, 1.6, 2.3)).diff() * n
        scene = scene * wave.reshape(-1, *[1] * (len(size) - 1 - axis))
    return scene


@pytest.mark.parametrize('network', ['magnet', 'siren'])
@pytest.mark.parametrize('grid', [(64,), (32, 48)], ids=str)
@pytest.mark.parametrize('factor', [2.0, 0.5])
def test_another_resolution_is_the_same_function(grid: tuple[int, ...], network: str, factor: float) -> None:
    """Twice and half as many samples an axis, with no call by the user."""
    layer = make(grid, network, omega_0=5.0 if network == 'siren' else 0.1)
    with torch.no_grad():
        layer.kernel.log_width.copy_(torch.linspace(math.log(0.3), math.log(0.45), len(grid)))
    other = tuple(int(n * factor) for n in grid)
    with torch.no_grad():
        base = layer(smooth(*grid).expand(1, 3, *grid)) - layer.bias.reshape(-1, *[1] * len(grid))
        got = layer(smooth(*other).expand(1, 3, *other)) - layer.bias.reshape(-1, *[1] * len(grid))
    fine, coarse = (got, base) if factor > 1 else (base, got)
    for axis in range(len(grid)):
        fine = fine.unflatten(axis + 2, (-1, 2)).mean(axis + 3)
    assert (fine - coarse).norm() < (0.02 if factor > 1 else 0.07) * coarse.norm()


def test_taps_are_divided_by_the_number_of_new_samples() -> None:
    layer = make((10, 6), 'siren', mask=False)
    taps, fine = layer.kernel([10, 6], [1.0, 1.0]), layer.kernel([30, 12], [1 / 3, 0.5])
    torch.testing.assert_close(fine[:, 1:-1:3, 1:-1:2], taps / 6, atol=1e-12, rtol=0)


def test_weights_keep_their_grid() -> None:
    layer, other = make((6, 8)).eval(), CKConv(3, (9, 7), hidden=5, dtype=DOUBLE).eval()
    other.load_state_dict(layer.state_dict())
    assert other.grid == (6, 8)
    with torch.no_grad():
        for size in ((6, 8), (5, 9), (12, 12)):
            x = torch.randn(1, 3, *size, dtype=DOUBLE)
            assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize(('grid', 'taps'), [((33,), 5), ((32,), 5), ((33, 65), 5 * 11), ((9, 33), 5 * 5)])
def test_kernels_start_as_published(grid: tuple[int, ...], taps: int) -> None:
    """The mask reaches 0.16 of [-1, 1], and the output map is divided by the root of the number of taps in it."""
    torch.manual_seed(0)
    kernel = CKConv(32, grid).kernel
    assert kernel(list(grid), [1.0] * len(grid)).shape[1:].numel() == taps
    bound = math.sqrt(3 / 32 / taps)
    assert 0.95 * bound < kernel.network.out.weight.abs().max() <= bound
    if min(grid) >= 28:  # on a shorter axis the mask begins wider than published
        assert max(gabor.mu.abs().max() for gabor in kernel.network.filters) <= 0.1251


def test_kernels_start_with_frequencies_below_nyquist() -> None:
    torch.manual_seed(0)
    cycles = CKConv(4, (44, 110), hidden=2048).kernel.network.filters[0].weight.detach().abs() / (2 * math.pi)
    # Up to ω0 γ / √2, where E γ = 6 and 12.5 ω0 is half a cycle per sample, uniform: half of it on average.
    torch.testing.assert_close(cycles.mean(0), torch.tensor([11.0, 27.5]) / 12.5 * 3 / math.sqrt(2), rtol=0.1, atol=0)


@torch.no_grad()
@pytest.mark.parametrize('mask', [True, False])
@pytest.mark.parametrize('network', ['magnet', 'siren'])
def test_a_causal_layer_reads_no_later_sample(network: str, mask: bool) -> None:
    layer = make((20,), network, mask, causal=True)
    x = torch.randn(2, 3, 20, dtype=DOUBLE)
    moved = x.clone()
    moved[..., 12:] += 1.0
    y, other = layer(x), layer(moved)
    torch.testing.assert_close(other[..., :12], y[..., :12], atol=1e-12, rtol=0)
    assert (other[..., 12] - y[..., 12]).abs().min() > 1e-6
    fine = layer(x.repeat_interleave(2, -1))  # the same scene at twice the rate
    assert fine.shape == (2, 3, 40) and fine.isfinite().all()


@torch.no_grad()
def test_full_mixing_is_a_sum_over_inputs() -> None:
    layer = make((5, 6), out_channels=2)
    x = torch.randn(1, 3, 5, 6, dtype=DOUBLE)
    taps = layer.kernel([5, 6], [1.0, 1.0]).unflatten(0, (2, 3))
    center = [size // 2 for size in taps.shape[2:]]
    each = [sum(oracles.direct_conv(x[:, i : i + 1], taps[o, i : i + 1], center) for i in range(3)) for o in (0, 1)]
    torch.testing.assert_close(layer(x), torch.cat(each, 1) + layer.bias[:, None, None], atol=1e-10, rtol=0)


def test_in_evaluation_the_kernel_is_remembered_until_it_changes() -> None:
    layer, x = make((5, 6)).eval(), torch.randn(1, 3, 5, 6, dtype=DOUBLE)
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first)
        layer.kernel.log_width += 0.3
        assert not torch.allclose(layer(x), first)
        torch.testing.assert_close(layer(x), oracle(layer, x), atol=1e-10, rtol=0)


@torch.no_grad()
def test_precision_follows_the_input() -> None:
    layer = make((5, 6), dtype=torch.float32)
    x = torch.randn(2, 3, 5, 6)
    y = layer(x)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(layer(x), y, atol=1e-5, rtol=1e-5)
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert nn.Sequential(CKConv(3, (5, 6), device='meta'))(x.to('meta')).shape == x.shape


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(grid=(8, 1)), "'ckconv' needs an axis of at least 2 samples, got length 1"),
        (dict(grid=()), 'grid must hold 1 to 3 sizes'),
        (dict(grid=(4, 4, 4, 4)), 'grid must hold 1 to 3 sizes'),
        (dict(grid=(4,), network='mlp'), "unknown network 'mlp' for kernel 'ckconv': expected one of magnet, siren"),
        (dict(grid=(4,), hidden=0), 'hidden must be at least 1, got 0'),
        (dict(grid=(4,), d_model=0), 'd_model must be at least 1, got 0'),
        (dict(grid=(4,), layers=0), 'layers must be at least 1, got 0'),
        (dict(grid=(4, 4), causal=True), 'a causal kernel has one axis, got 2'),
        (dict(grid=(4,), crop=1.0), 'crop must be between 0 and 1, or None, got 1.0'),
        (dict(grid=(4, 4), points=(3,)), 'points must be at least 2, one number or one for each of 2 axes'),
        (dict(grid=(4,), out_channels=0), 'out_channels must be at least 1, or None, got 0'),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace('(', r'\(')):
        CKConv(**{'d_model': 2, **arguments})


@pytest.mark.parametrize('shape', [(2, 3, 5), (2, 4, 5, 6), (3, 5, 6), (2, 3, 5, 6, 7), (2, 3, 0, 6)])
def test_bad_input(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match='shape') as error:
        make((5, 6))(torch.zeros(shape, dtype=DOUBLE))
    assert str(list(shape)) in str(error.value)
