"""The S4ND layer: golden vectors, resolution, mixing, ranks, dtypes, compilers, remembered taps, bad input."""

import copy
import math
import os

import pytest
import torch
import torch.nn.functional as F

from s4nd import S4, S4ND
from s4nd.interop import load_published_layer
from tests import oracles
from tests.golden_cases import load, published, tensor

CASES = load('s4nd')
DOUBLE = torch.float64


def golden_layer(case: dict, dtype: torch.dtype, method: str) -> S4ND:
    meta = case['meta']
    if meta['kernel'] == 'dplr':
        args = {'rank': len(case['sd.kernel.0.P'])}
    else:
        args = {'discretization': meta.get('disc', 'zoh'), 'dt_tied': case['sd.kernel.0.inv_dt'].shape[1] == 1}
    layer = S4ND(
        meta['H'],
        tuple(meta['Ls']),
        kernel={'s4d': 's4d', 'dplr': 's4'}[meta['kernel']],
        d_state=meta['N'],
        bandlimit=meta.get('bandlimit'),
        tensor_rank=meta['trank'],
        bidirectional=meta['bidirectional'],
        channels=meta['out_channels'] or meta['channels'],
        l_max=tuple(meta['l_max']),
        cell='published',
        skip=meta['out_channels'] is None,
        kernel_args={'n_ssm': len(case['sd.kernel.0.A_real']), **args},
        dtype=dtype,
    )
    layer.method = method
    load_published_layer(layer, published(case, 'sd.'))
    return layer


def golden_output(layer: S4ND, case: dict, x: torch.Tensor) -> torch.Tensor:
    meta = case['meta']
    x = x if meta['transposed'] else x.movedim(-1, 1)
    y = layer(x, step=[meta['rate']] * layer.spatial_dims)
    if meta['out_channels'] is not None:  # mixes all features
        y = y.unflatten(1, (meta['out_channels'], meta['H'])).sum(2)
    if not meta['linear']:
        weight = tensor(case['sd.output_linear.0.weight']).to(x)
        bias = tensor(case['sd.output_linear.0.bias']).to(x)
        y = F.glu(F.linear(F.gelu(y).movedim(1, -1), weight, bias), -1).movedim(-1, 1)
    return y if meta['transposed'] else y.movedim(1, -1)


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('method', ['toeplitz', 'fft'])
def test_golden_output(name: str, method: str) -> None:
    case = CASES[name]
    fout = case['meta'].get('init') == 'fourier'
    for dtype, tolerance in ((DOUBLE, 1e-10), (torch.float32, 2e-3 if fout else 5e-6)):
        y = golden_output(golden_layer(case, dtype, method), case, tensor(case['x']).to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), tensor(case['y_true']).reshape(y.shape), atol=tolerance, rtol=0)


@pytest.mark.parametrize('name', [name for name, case in CASES.items() if 'grad.w' in case])
def test_golden_gradients(name: str) -> None:
    case = CASES[name]
    layer = golden_layer(case, DOUBLE, 'auto')
    x = tensor(case['x']).requires_grad_()
    y = golden_output(layer, case, x)
    (y * tensor(case['grad.w']).reshape(y.shape)).sum().backward()
    torch.testing.assert_close(x.grad, tensor(case['grad.x']), atol=1e-10, rtol=1e-9)
    pairs = {f'kernel.{i}.{t}': getattr(k, o).grad for i, k in enumerate(layer.kernels) for t, o in (
        ('inv_dt', 'log_dt'), ('A_real', 'log_A_real'), ('A_imag', 'A_imag'), ('B', 'B'), ('C', 'C'))}  # fmt: skip
    if layer.D is not None:
        pairs['D'] = layer.D.grad
    for key, gradient in pairs.items():
        true = tensor(case[f'grad.{key}']).reshape(gradient.shape)
        torch.testing.assert_close(gradient, true, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize('size', [(1,), (9,), (5, 8), (1, 6), (3, 4, 2)], ids=str)
@pytest.mark.parametrize('tensor_rank', [1, 3])
@pytest.mark.parametrize('bidirectional', [True, False])
def test_equals_the_direct_sum(size: tuple[int, ...], tensor_rank: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    layer = S4ND(3, size, d_state=4, tensor_rank=tensor_rank, bidirectional=bidirectional, channels=2, dtype=DOUBLE)
    x = torch.randn(2, 3, *size, dtype=DOUBLE)
    taps, centers = layer.operators(list(size), [1.0] * len(size))
    twice = torch.cat([x, x], 1)
    skip = layer.D.reshape(-1, *[1] * len(size)) * twice
    true = oracles.direct_conv(twice, oracles.full_kernel(taps), centers) + skip
    torch.testing.assert_close(layer(x), true, atol=1e-11, rtol=0)


def test_centered_taps_are_cell_integrals() -> None:
    """Lag l of a zero-order hold is the integral over [l - ½, l + ½]; lag 0 takes half a cell from each side."""
    layer = S4ND(3, (6,), d_state=8, cell='input', kernel_args={'n_ssm': 3}, dtype=DOUBLE)
    kernel = layer.kernels[0]
    A = torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag)
    B, C = torch.view_as_complex(kernel.B.detach()), torch.view_as_complex(kernel.C.detach())
    dt = kernel.log_dt.exp()
    for size in (6, 12, 4):
        taps, center = layer.axis_taps(0, size, 6 / size)
        step = dt * 6 / size
        for lag in range(size):
            low = max(0.0, lag - 0.5)
            ahead, behind = oracles.cell_integral(A, B, C, low * step, (lag + 0.5) * step)
            if lag == 0:
                torch.testing.assert_close(taps[0, :, center], ahead + behind, atol=1e-12, rtol=0)
            else:
                torch.testing.assert_close(taps[0, :, center + lag], ahead, atol=1e-12, rtol=0)
                torch.testing.assert_close(taps[0, :, center - lag], behind, atol=1e-12, rtol=0)


@pytest.mark.parametrize('size', [6, 12, 18, 24, 3])
def test_windowed_taps_average_over_a_training_cell(size: int) -> None:
    """At step s ≤ 1, lag l is s times the integral over [ls - ½, ls + ½]; a coarser grid takes its own cell."""
    layer = S4ND(3, (6,), d_state=8, kernel_args={'n_ssm': 3}, dtype=DOUBLE)
    kernel = layer.kernels[0]
    A = torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag)
    B, C = torch.view_as_complex(kernel.B.detach()), torch.view_as_complex(kernel.C.detach())
    dt, step = kernel.log_dt.exp(), 6 / size
    width = max(1.0, step)
    taps, center = layer.axis_taps(0, size, step)
    assert taps.shape[-1] == 2 * size - 1
    for lag in range(1 - size, size):
        low, high = lag * step - width / 2, lag * step + width / 2
        ahead = oracles.cell_integral(A, B, C, max(0.0, low) * dt, max(0.0, high) * dt)[0]
        behind = oracles.cell_integral(A, B, C, max(0.0, -high) * dt, max(0.0, -low) * dt)[1]
        true = (ahead + behind) * step / width
        torch.testing.assert_close(taps[0, :, center + lag], true, atol=1e-12, rtol=0)


def smooth_signal(seed: int, size: int) -> torch.Tensor:
    """64 sums of 6 cosines of up to 5 cycles across the axis, sampled at the middles of `size` cells: (1, 64, size)."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 5 * torch.rand(64, 6, 1, generator=generator, dtype=DOUBLE)
    amplitude = torch.randn(64, 6, 1, generator=generator, dtype=DOUBLE)
    phase = torch.rand(64, 6, 1, generator=generator, dtype=DOUBLE)
    time = (torch.arange(size, dtype=DOUBLE) + 0.5) / size
    return (amplitude * torch.cos(2 * math.pi * (frequency * time + phase))).sum(1)[None]


def drift(low: int, high: int, draws: int = 8, **options: object) -> float:
    """Mean relative difference of the outputs at two sizes, in the middle half of the axis."""
    total = 0.0
    for seed in range(draws):
        torch.manual_seed(seed)
        layer = S4ND(64, (low,), d_state=64, bandlimit=0.5, skip=False, dtype=DOUBLE, **options)
        coarse = layer(smooth_signal(seed, low))
        fine = layer(smooth_signal(seed, high)).unflatten(2, (low, high // low)).mean(-1)
        inside = slice(low // 4, low - low // 4)
        total += ((coarse - fine)[..., inside].norm() / coarse[..., inside].norm()).item()
    return total / draws


# (At 8 samples the waves beyond 4 cycles are aliased in the signal itself.)
@pytest.mark.parametrize(('low', 'high', 'cell', 'limit'), [(32, 64, 'input', 0.015), (8, 32, 'training', 0.15)])
def test_resolution_drift(low: int, high: int, cell: str, limit: float) -> None:
    """The same scene, sampled more densely, gives the same output: centered taps with a bandlimit."""
    assert drift(low, high, cell=cell) <= limit
    assert drift(low, high, cell='published') > 2 * limit


def test_step_is_per_axis() -> None:
    layer = S4ND(4, (8, 6), d_state=4, bidirectional=(True, False), l_max=(None, 3), cell='input', dtype=DOUBLE)
    taps, centers = layer.operators([16, 3], [0.5, 2.0])
    assert [t.shape[-1] for t in taps] == [31, 2]
    assert centers == [15, 0]
    torch.testing.assert_close(taps[1][0], layer.kernels[1](2, 2.0)[0], atol=0, rtol=0)


def test_weights_keep_their_grid() -> None:
    torch.manual_seed(0)
    options = {'d_state': 16, 'bandlimit': 0.5, 'l_max': 6, 'dtype': DOUBLE}
    layer, other = S4ND(4, (8, 8), **options).eval(), S4ND(4, (16, 24), **options).eval()
    x = torch.randn(1, 4, 16, 12, dtype=DOUBLE)
    before = other(x)
    other.load_state_dict(layer.state_dict())
    assert other.grid == (8, 8)
    torch.testing.assert_close(other(x), layer(x), atol=0, rtol=0)
    assert not torch.equal(other(x), before)
    # Without a grid in the file the layer keeps its own.
    third = S4ND(4, (16, 24), **options)
    third.load_state_dict({name: value for name, value in layer.state_dict().items() if name != 'training_grid'})
    assert third.grid == (16, 24)


def test_another_grid_is_more_scene_at_the_same_scale() -> None:
    """Zero padding aside, a crop of the larger picture gives the crop of its output."""
    layer = S4ND(3, (8, 8), d_state=4, l_max=3, dtype=DOUBLE)
    x = torch.randn(1, 3, 16, 12, dtype=DOUBLE)
    small = layer(x[..., 4:12, 2:10])
    layer.grid = (16, 12)
    assert layer.state_dict()['training_grid'].tolist() == [16, 12]
    torch.testing.assert_close(layer(x)[..., 6:10, 4:8], small[..., 2:6, 2:6], atol=1e-12, rtol=0)


def test_coarser_than_the_bandlimit_warns() -> None:
    layer = S4ND(4, (8,), bandlimit=0.8).eval()
    with pytest.warns(UserWarning, match='bandlimit 0.8 .* 2 times coarser'), torch.no_grad():
        layer(torch.randn(1, 4, 4))


@pytest.mark.parametrize('method', ['toeplitz', 'fft'])
def test_full_mixing(method: str) -> None:
    torch.manual_seed(0)
    layer = S4ND(3, (5, 6), channels=4, skip=False, d_state=4, l_max=3, tensor_rank=2, dtype=DOUBLE)
    layer.method = method
    x = torch.randn(2, 3, 5, 6, dtype=DOUBLE)
    taps, centers = layer.operators([5, 6], [1.0, 1.0])
    torch.testing.assert_close(
        layer(x).unflatten(1, (4, 3)).sum(2), oracles.mixed_conv(x, taps, centers), atol=1e-11, rtol=0
    )


@pytest.mark.parametrize('options', [
    {}, {'kernel': 's4'}, {'tensor_rank': 2}, {'channels': 5, 'skip': False}, {'bidirectional': False},
    {'bandlimit': 0.2}, {'kernel': 's4d', 'init': 'real'}, {'channels': 2}, {'cell': 'published'}, {'l_max': 2},
])  # fmt: skip
def test_every_parameter_gets_a_gradient(options: dict) -> None:
    torch.manual_seed(0)
    layer = S4ND(4, (6, 6), d_state=8, **options)
    layer(torch.randn(2, 4, 6, 6)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.is_complex()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = S4ND(4, (8, 8), d_state=8)
    x = torch.randn(2, 4, 8, 8).to(dtype)
    true = layer(x.float())
    y = layer(x)
    assert y.dtype == dtype
    assert (y.float() - true).norm() / true.norm() < 1e-2
    with torch.autocast('cpu', dtype):
        assert torch.equal(layer(x.float()), y)
    layer.exact = True
    y = layer(x)
    assert y.dtype == dtype
    assert (y.float() - true).abs().max() / true.abs().max() < 2 * torch.finfo(dtype).eps
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(layer(x.float()), true, atol=1e-5, rtol=0)
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_compiled_training_equals_eager() -> None:
    torch.manual_seed(0)
    layer = S4ND(4, (6, 5), d_state=4, tensor_rank=2)
    x = torch.randn(2, 4, 6, 5)
    # The default backend compiles C++ for half a minute.
    backend = 'inductor' if 'S4ND_SLOW' in os.environ else 'aot_eager'
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    y = compiled(x)
    y.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    torch.testing.assert_close(y, layer(x), atol=1e-5, rtol=1e-5)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('kernel', ['s4d', 's4'])
def test_script_and_export(kernel: str) -> None:
    layer = S4ND(4, (6, 5), kernel=kernel, d_state=4, tensor_rank=2).eval()
    x = torch.randn(2, 4, 7, 5)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))
        exported = torch.export.export(layer, (x,)).module()
        torch.testing.assert_close(exported(x), layer(x))


class TestRememberedTaps:
    """In evaluation without autograd taps are computed once, and again as soon as anything changes."""

    def setup_method(self) -> None:
        torch.manual_seed(0)
        self.layer = S4ND(4, (6, 6), d_state=4).eval()
        self.x = torch.randn(1, 4, 6, 6)
        with torch.no_grad():
            self.before = self.layer(self.x)

    def fresh(self) -> torch.Tensor:
        self.layer.forget()
        with torch.no_grad():
            return self.layer(self.x)

    def test_are_reused(self) -> None:
        with torch.no_grad():
            calls = []
            self.layer.operators = lambda *size: calls.append(size)
            torch.testing.assert_close(self.layer(self.x), self.before)
        assert calls == []

    @pytest.mark.parametrize('change', [
        lambda layer: layer.kernels[0].C.mul_(2),
        lambda layer: setattr(layer.kernels[0], 'C', torch.nn.Parameter(2 * layer.kernels[0].C)),
        lambda layer: layer.load_state_dict(S4ND(4, (6, 6), d_state=4).state_dict()),
        lambda layer: layer.kernels[1].C.data.mul_(2),
        lambda layer: setattr(layer, 'grid', (9, 9)),
        lambda layer: layer.reset_parameters(),
        lambda layer: torch.optim.SGD(layer.parameters(), lr=0.0, weight_decay=0).step() or layer.kernels[0].B.add_(1),
    ])  # fmt: skip
    def test_notice_a_change(self, change: object) -> None:
        with torch.no_grad():
            change(self.layer)
            after = self.layer(self.x)
        assert not torch.equal(after, self.before)
        torch.testing.assert_close(after, self.fresh(), atol=0, rtol=0)

    def test_notice_dtype_size_and_grid(self) -> None:
        with torch.no_grad():
            double = self.layer.double()(self.x.double())
            torch.testing.assert_close(double.float(), self.before)
            assert self.layer(torch.randn(1, 4, 9, 3, dtype=DOUBLE)).shape == (1, 4, 9, 3)
            torch.testing.assert_close(self.layer(self.x.double()), double, atol=0, rtol=0)

    def test_training_step_in_between(self) -> None:
        self.layer.train()
        self.layer(self.x).square().sum().backward()
        torch.optim.SGD(self.layer.parameters(), lr=0.1).step()
        self.layer.eval()
        with torch.no_grad():
            after = self.layer(self.x)
        torch.testing.assert_close(after, self.fresh(), atol=0, rtol=0)
        assert not torch.equal(after, self.before)

    def test_copies_and_inference_mode(self) -> None:
        clone = copy.deepcopy(self.layer)
        with torch.inference_mode():
            clone.kernels[0].C.mul_(2)
            changed = clone(self.x)
        assert not torch.equal(changed, self.before)
        with torch.no_grad():
            torch.testing.assert_close(self.layer(self.x), self.before, atol=0, rtol=0)

    def test_gradients_flow_in_evaluation(self) -> None:
        self.layer(self.x).sum().backward()
        assert self.layer.kernels[0].C.grad is not None


def test_axes_with_kernels_of_their_own() -> None:
    layer = S4ND(
        4, (6, 5), kernel=('s4', 's4d'), init=('hippo', 'lin'), d_state=8, dtype=DOUBLE,
        kernel_args=({'rank': 2, 'n_ssm': 4}, {'discretization': 'bilinear', 'n_ssm': 2}),
    )  # fmt: skip
    first, second = layer.kernels
    assert (type(first).__name__, first.n_ssm, first.rank) == ('S4Kernel', 4, 2)
    assert (type(second).__name__, second.n_ssm, second.discretization) == ('S4DKernel', 2, 'bilinear')
    x = torch.randn(2, 4, 6, 5, dtype=DOUBLE)
    taps, centers = layer.operators([6, 5], [1.0, 1.0])
    true = oracles.direct_conv(x, oracles.full_kernel(taps), centers) + layer.D.reshape(4, 1, 1) * x
    torch.testing.assert_close(layer(x), true, atol=1e-11, rtol=0)


def test_a_given_step_takes_the_place_of_grid_over_size() -> None:
    layer, longer = (S4ND(3, grid, d_state=4, bandlimit=1.0, dtype=DOUBLE) for grid in ((4, 6), (8, 6)))
    x = torch.randn(2, 3, 8, 6, dtype=DOUBLE)
    stored = {name: value for name, value in layer.state_dict().items() if name != 'training_grid'}
    longer.load_state_dict(stored)
    torch.testing.assert_close(layer(x, step=[1.0, 1.0]), longer(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: S4ND(4), 'give grid='),
    (lambda: S4(4, (8, 8)), r'grid of one size, got \(8, 8\)'),
    (lambda: S4ND(4, (8, 0)), r'grid.*\(8, 0\)'),
    (lambda: S4ND(4, (8, 8, 8, 8)), '1 to 3 sizes'),
    (lambda: S4ND(4, (8,), kernel='s6'), "unknown kernel 's6'"),
    (lambda: S4ND(4, (8,), init='legz'), "unknown init 'legz'"),
    (lambda: S4ND(4, (8,), kernel_args={'n_ssm': 3}), 'n_ssm=3 and d_model=4'),
    (lambda: S4ND(4, (8,), dt_min=-1.0), 'dt_min=-1.0'),
    (lambda: S4ND(4, (8, 8), init=('lin', 'inv', 'lin')), 'init must be one value or one for each of 2 axes'),
    (lambda: S4ND(4, (8,), tensor_rank=0), 'tensor_rank.*0'),
    (lambda: S4ND(4, (8,), l_max=0), 'l_max.*0'),
    (lambda: S4ND(4, (8,), cell='pixel'), "unknown cell 'pixel': expected one of training, input, published"),
    (lambda: S4ND(4, (8,))(torch.zeros(1, 4, 8), step=[1.0, 2.0]), r'step for each of 1 axes, got \[1.0, 2.0\]'),
    (lambda: S4ND(4, (8,))(torch.zeros(1, 4, 8), step=[-2.0]), 'step.*-2.0'),
    (lambda: S4ND(4, (8,))(torch.ones(1, 4, 8, dtype=torch.int64)), 'expected floating-point numbers, got torch.int64'),
    (lambda: S4ND(4, (8,))(torch.zeros(1, 4, 8, 8)), r'\(batch, 4, length\).*\[1, 4, 8, 8\]'),
    (lambda: S4ND(4, (8,))(torch.zeros(1, 3, 8)), r'\(batch, 4, length\).*\[1, 3, 8\]'),
    (lambda: S4ND(4, (8,))(torch.zeros(1, 4, 0)), r'empty.*\[1, 4, 0\]'),
    (lambda: setattr(S4ND(4, (8,)), 'grid', (4, 4)), r'expected 1 sizes.*got \(4, 4\)'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_unknown_keyword() -> None:
    with pytest.raises(TypeError, match='dropuot'):
        S4ND(4, (8,), dropuot=0.1)


@pytest.mark.parametrize('method', ['toeplitz', 'fft'])
@pytest.mark.parametrize('cell', ['training', 'input', 'published'])
@pytest.mark.parametrize(
    ('grid', 'size', 'modes', 'sides', 'l_max'),
    [
        ((6,), (6,), ('circular',), (True,), None),
        ((6,), (9,), ('circular',), (False,), 4),
        ((4, 5), (5, 3), ('circular', 'zeros'), (False, True), None),
        ((2, 3, 1), (3, 3, 1), ('zeros', 'circular', 'circular'), (True, True, False), None),
    ],
)
def test_circular_axes_equal_direct_sums(
    method: str, cell: str, grid: tuple, size: tuple, modes: tuple, sides: tuple, l_max: int | None
) -> None:
    torch.manual_seed(0)
    args = dict(d_state=4, cell=cell, bidirectional=sides, l_max=l_max, tensor_rank=2, dtype=DOUBLE)
    layer, plain = S4ND(2, grid, padding_mode=modes, **args), S4ND(2, grid, **args)
    plain.load_state_dict(layer.state_dict())
    layer.method = method
    x = torch.randn(2, 2, *size, dtype=DOUBLE, requires_grad=True)
    taps, centers = plain.all_taps(list(size), [g / n for g, n in zip(grid, size, strict=True)])
    expected = oracles.circular_conv(x, oracles.full_kernel(taps), centers, [mode == 'circular' for mode in modes])
    expected = expected + layer.D.reshape(1, 2, *[1] * len(size)) * x
    y = layer(x)
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-10)
    g = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, x, g)[0], torch.autograd.grad(expected, x, g)[0], atol=1e-10, rtol=1e-10
    )


def test_a_circular_layer_commutes_with_rotation() -> None:
    torch.manual_seed(0)
    layer = S4ND(3, (8, 8), d_state=8, padding_mode='circular', dtype=DOUBLE)
    x = torch.randn(1, 3, 8, 12, dtype=DOUBLE)
    rotated = layer(x.roll((3, -5), (2, 3)))
    torch.testing.assert_close(rotated, layer(x).roll((3, -5), (2, 3)), atol=1e-10, rtol=1e-10)
    with pytest.raises(ValueError, match='reflect'):
        S4ND(3, (8, 8), padding_mode='reflect')
