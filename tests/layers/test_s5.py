"""S5: scan = recurrence = oracle, forward and gradients; resolution by the step; streaming, compilers, bad input."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from s4nd import S5, hippo, param_groups, ssm_parameter_patterns
from s4nd.ops import scan
from tests import oracles
from tests.layers.streaming import check_chunks

DOUBLE = torch.float64


def build(d_model: int = 4, grid: tuple[int] | None = None, **options: object) -> S5:
    torch.manual_seed(0)
    return S5(d_model, grid, **{'d_state': 8, 'dt_min': 0.05, 'dt_max': 0.5, 'dtype': DOUBLE, **options})


def by_definition(layer: S5, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
    A = torch.complex(-layer.log_A_real.exp(), -layer.A_imag)
    B, C = torch.view_as_complex(layer.B), torch.view_as_complex(layer.C)
    D = torch.zeros(layer.d_model, dtype=DOUBLE) if layer.D is None else layer.D
    C = C if layer.conj_sym else C / 2
    steps = step if isinstance(step, Tensor) and step.dim() == 2 else [step] * len(x)
    if layer.bidirectional and layer.cell == 'input':
        return torch.stack([oracles.two_sided_s5(u, layer.log_dt.exp(), A, B, C, D, step) for u in x])
    oracle, rule = oracles.published_two_sided_s5, 'bilinear' if layer.bilinear else 'zoh'
    if not layer.bidirectional:
        oracle, C = oracles.s5, C[0]
    return torch.stack([oracle(u, layer.log_dt.exp(), A, B, C, D, s, rule) for u, s in zip(x, steps, strict=True)])


@pytest.mark.parametrize('length', [1, 2, 33])
@pytest.mark.parametrize('options', [
    {},
    {'blocks': 2, 'skip': False, 'discretization': 'bilinear'},
    {'bidirectional': True},
    {'bidirectional': True, 'cell': 'published', 'discretization': 'bilinear'},
    {'conj_sym': False, 'C_init': 'complex_normal'},
], ids=str)  # fmt: skip
@pytest.mark.parametrize('compiled', [False, True])
def test_equals_the_definition(options: dict, length: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled:  # the arithmetic that compilers and exporters see
        monkeypatch.setattr(scan, 'by_hand', lambda x: False)
    layer = build(**options)
    x = torch.randn(2, 4, length, dtype=DOUBLE, requires_grad=True)
    inputs = [x, *layer.parameters()]
    irregular = torch.rand(2, length, dtype=DOUBLE) + 0.2
    steps = [1.0, 0.4]
    if not layer.bidirectional or layer.cell == 'published':
        steps += [irregular[0], irregular]
    for step in steps:
        y, true = layer(x, step=step), by_definition(layer, x, step)
        torch.testing.assert_close(y, true, atol=1e-12, rtol=1e-10)
        weight = torch.randn_like(y)
        expected = torch.autograd.grad((true * weight).sum(), inputs, materialize_grads=True)
        found = torch.autograd.grad((y * weight).sum(), inputs, materialize_grads=True)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(DOUBLE, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize('step', [1.0, 0.5])
@torch.no_grad()
def test_stepping_equals_forward(dtype: torch.dtype, tolerance: float, step: float) -> None:
    layer = build(d_state=64, blocks=4, dtype=dtype)
    x = torch.randn(2, 4, 100, dtype=dtype)
    state, system, outputs = layer.init_state(2), layer.system(step), []
    assert state['x'].dtype == dtype and state['x'].shape[0] == 2
    for x_t in x.unbind(-1):
        kept = copy.deepcopy(state)
        y, after = layer.step(x_t, state, system)
        assert torch.equal(state['x'], kept['x'])
        outputs.append(y)
        state = after
    torch.testing.assert_close(torch.stack(outputs, -1), layer(x, step=step), atol=tolerance, rtol=0)
    check_chunks(layer, x, layer(x, step=1.0), tolerance)
    if step == 1.0:
        torch.testing.assert_close(layer.step(x[..., 0], layer.init_state(2))[0], outputs[0])


def test_irregular_steps() -> None:
    """Equal steps are one step; centered sides agree with the one-sided form; streams go on from any sample."""
    x, step = torch.randn(2, 4, 20, dtype=DOUBLE), torch.rand(2, 20, dtype=DOUBLE) + 0.1
    for options in ({}, {'bidirectional': True}, {'bidirectional': True, 'cell': 'published'}):
        layer = build(**options)
        torch.testing.assert_close(layer(x, step=torch.full((20,), 0.7)), layer(x, step=0.7), atol=1e-6, rtol=0)
    layer = build()
    y, state = layer(x[..., :8], layer.init_state(2), step[:, :8])
    rest, _ = layer(x[..., 8:], state, step[:, 8:])
    torch.testing.assert_close(torch.cat([y, rest], -1), layer(x, step=step), atol=1e-12, rtol=0)
    # Samples of half and double the length are two samples and half of one.
    held = x[..., :10].repeat_interleave(2, -1)
    halves = build()(held, step=torch.full((20,), 0.5, dtype=DOUBLE))
    torch.testing.assert_close(halves[..., 1::2], layer(x[..., :10], step=1.0), atol=1e-12, rtol=0)
    two = build(bidirectional=True)
    mixed = torch.cat([torch.ones(5, dtype=DOUBLE), torch.full((15,), 1 / 3, dtype=DOUBLE)])
    held = torch.cat([x[..., :5], x[..., 5:10].repeat_interleave(3, -1)], -1)
    y = two(held, step=mixed)
    torch.testing.assert_close(y[..., :5], two(x[..., :10], step=1.0)[..., :5], atol=1e-12, rtol=0)
    torch.testing.assert_close(y[..., 6::3], two(x[..., :10], step=1.0)[..., 5:], atol=1e-12, rtol=0)


def test_causal() -> None:
    x = torch.randn(1, 4, 40, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(build()(x)[..., 17].sum(), x)
    assert gradient[..., :18].abs().min() > 0
    assert (gradient[..., 18:] == 0).all()


class TestResolution:
    """step = grid / size: the same system, sampled more or less densely."""

    @pytest.mark.parametrize('rate', [2, 3])
    def test_a_held_input_gives_the_same_output(self, rate: int) -> None:
        """Zero-order hold is exact for it: at the ends of samples, or for both sides at their middles."""
        layer = build(grid=(20,))
        x = torch.randn(2, 4, 20, dtype=DOUBLE)
        held = x.repeat_interleave(rate, -1)
        torch.testing.assert_close(layer(held)[..., rate - 1 :: rate], layer(x), atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(layer(held), layer(held, step=1 / rate), atol=0, rtol=0)
        assert (build()(held)[..., rate - 1 :: rate] - layer(x)).abs().max() > 0.1  # without a grid it would not
        layer, held = build(grid=(20,), bidirectional=True), x.repeat_interleave(3, -1)
        torch.testing.assert_close(layer(held)[..., 1::3], layer(x), atol=1e-12, rtol=1e-10)

    @pytest.mark.parametrize('bidirectional', [False, True])
    @torch.no_grad()
    def test_a_smooth_signal_at_half_and_double_rate(self, bidirectional: bool) -> None:
        """The outputs at the same times agree within 1 %, and the error falls with the square of the step."""
        layer = build(grid=(64,), bidirectional=bidirectional, skip=False, dt_min=0.01, dt_max=0.1)

        def output(size: int) -> Tensor:
            time = (torch.arange(size, dtype=DOUBLE) + 0.5) / size
            waves = torch.stack([torch.sin(2 * math.pi * (k + 1) * time + k) for k in range(4)])
            y = layer(waves[None])[0]
            # The times that all sizes share: ends of the coarsest samples, or as the mean of two their middles.
            y = y.unflatten(-1, (32, -1))
            return y.mean(-1) if bidirectional else y[..., -1]

        true = output(2048)
        errors = [float((output(size) - true).norm() / true.norm()) for size in (32, 64, 128)]
        assert errors[1] < 0.01 and errors[2] < 0.003
        assert errors[0] > 3.5 * errors[1] > 12 * errors[2]

    def test_weights_keep_their_grid(self) -> None:
        layer, other = build(grid=(24,), bandlimit=0.5), build(grid=(48,), bandlimit=0.5)
        other.load_state_dict(layer.state_dict())
        assert other.grid == (24,)
        x = torch.randn(1, 4, 16, dtype=DOUBLE)
        torch.testing.assert_close(other(x), layer(x), atol=0, rtol=0)

    def test_the_bandlimit_masks_modes(self) -> None:
        layer, masked = build(d_state=16), build(d_state=16, bandlimit=0.2)
        cycles = layer.log_dt.exp() * layer.A_imag.abs() / (2 * math.pi)
        assert 0 < (cycles >= 0.1).sum() < 8
        with torch.no_grad():
            layer.C[:, :, cycles >= 0.1] = 0
        x = torch.randn(1, 4, 9, dtype=DOUBLE)
        torch.testing.assert_close(masked(x), layer(x), atol=1e-12, rtol=0)
        with pytest.warns(UserWarning, match='coarser'):
            masked(x, step=8.0)


def test_initialization() -> None:
    """Blocks of HiPPO-N: V B̃ is real with variance 1/N, whatever H is, and |C̃|² has the mean 2/N."""
    layer = build(d_model=64, d_state=32, blocks=2)
    w, _, _, V = hippo.nplr('legs', 16)
    for block in range(2):
        modes = slice(8 * block, 8 * block + 8)
        torch.testing.assert_close(layer.A_imag[modes].detach(), -w.imag)
        torch.testing.assert_close(layer.log_A_real[modes].detach().exp(), -w.real)
        B = torch.view_as_complex(layer.B.detach())[modes]
        assert abs((V @ B + V.conj() @ B.conj()).real.var() * 32 - 1) < 0.2
    assert abs(layer.C.detach().square().sum(-1).mean() * 16 - 1) < 0.2
    assert layer.log_dt.min() >= math.log(0.05) and layer.log_dt.max() <= math.log(0.5)
    assert len(layer.log_dt) == 16 == len(layer.log_dt.unique())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    layer = build(dtype=torch.float32)
    x = torch.randn(2, 4, 50).to(dtype)
    true, y = layer(x.float()), layer(x)
    assert y.dtype == dtype
    assert (y.float() - true).abs().max() / true.abs().max() < 2 * torch.finfo(dtype).eps
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(layer(x.float()), true, atol=1e-5, rtol=0)
        y, _ = layer.step(x[..., 0].float(), layer.init_state(2))
        torch.testing.assert_close(y, true[..., 0], atol=1e-5, rtol=0)
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize('bidirectional', [False, True])
def test_a_hundred_thousand_samples(bidirectional: bool) -> None:
    layer = build(2, d_state=16, dt_min=1e-4, dt_max=10.0, dtype=torch.float32, bidirectional=bidirectional)
    x = torch.randn(1, 2, 100_000, requires_grad=True)
    y = layer(x)
    y.square().mean().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() and not p.is_complex() for p in layer.parameters())


def test_compiled_and_exported() -> None:
    layer, x = build(), torch.randn(2, 4, 9, dtype=DOUBLE)
    # (Inductor adds nothing to the graph but minutes.)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    y = compiled(x)
    y.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    torch.testing.assert_close(y, layer(x))
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    layer = build(grid=(20,), bidirectional=True)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_it_trains() -> None:
    """Three samples of delay with the two features swapped, from noise: what takes memory and mixing."""
    layer = build(2, d_state=32, dtype=torch.float32)
    optimizer = torch.optim.AdamW(param_groups(layer, 1e-2, ssm_lr=5e-3))
    losses = []
    for _ in range(100):
        x = torch.randn(8, 2, 64)
        loss = (layer(x)[..., 3:] - x.flip(1)[..., :-3]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_optimizer_groups() -> None:
    model = nn.Sequential(nn.Linear(4, 4), build())
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group['lr'] for group in param_groups(model, 0.01, 0.05) for p in group['params']}
    ssm = {'1.log_dt', '1.log_A_real', '1.A_imag', '1.B'}
    assert {name for name, lr in rates.items() if lr == 1e-3} == ssm
    assert rates['1.C'] == rates['1.D'] == 0.01
    assert ssm_parameter_patterns(model) == {'*.log_dt', '*.log_A_real', '*.A_imag', '*.B'}


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: S5(0), 'd_model must be at least 1, got 0'),
    (lambda: S5(4, d_state=10, blocks=3), 'd_state=10 and blocks=3'),
    (lambda: S5(4, d_state=8, blocks=4), 'd_state=8 and blocks=4'),
    (lambda: S5(4, blocks=0), 'blocks=0'),
    (lambda: S5(4, dt_min=0.2), 'dt_min=0.2 and dt_max=0.1'),
    (lambda: S5(4, bandlimit=0.0), 'bandlimit must be positive'),
    (lambda: S5(4, (8, 8)), r'one axis.*\(8, 8\)'),
    (lambda: S5(4, (0,)), 'at least 1 each'),
    (lambda: S5(4)(torch.zeros(1, 3, 5)), r'\(batch, 4, length\).*\[1, 3, 5\]'),
    (lambda: S5(4)(torch.zeros(1, 4, 5, 5)), r'\[1, 4, 5, 5\]'),
    (lambda: S5(4)(torch.zeros(1, 4, 0)), r'\[1, 4, 0\]'),
    (lambda: S5(4)(torch.zeros(1, 4, 5), step=0.0), 'step must be positive and finite, got 0.0'),
    (lambda: S5(4).system(-1.0), 'step must be positive and finite, got -1.0'),
    (lambda: S5(4).step(torch.zeros(1, 3), S5(4).init_state(1)), r'\(batch, 4\).*\[1, 3\]'),
    (lambda: S5(4, cell='training'), "unknown cell 'training': expected one of input, published"),
    (lambda: S5(4, discretization='euler'), "unknown discretization 'euler'"),
    (lambda: S5(4, C_init='normal'), "unknown C_init 'normal'"),
    (lambda: S5(4)(torch.zeros(1, 4, 5), step=torch.ones(4)), r'\(5,\) or \(1, 5\), got shape \[4\]'),
    (lambda: S5(4)(torch.zeros(1, 4, 5), step=torch.zeros(5)), 'steps must be positive, got 0.0'),
    (lambda: S5(4, bidirectional=True).init_state(1), 'bidirectional S5 cannot step'),
    (lambda: S5(4, bidirectional=True).step(torch.zeros(1, 4), {'x': torch.zeros(1, 32, 2)}), 'cannot step'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
