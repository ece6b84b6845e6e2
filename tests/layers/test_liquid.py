"""Liquid-S4: its terms are those of the liquid recurrence, causal, streaming equals the forward; bad input."""

import copy
import itertools

import pytest
import torch
from torch import Tensor

from s4nd import S4, LiquidS4, param_groups
from s4nd.kernels import KERNELS, RecurrentKernel
from s4nd.layers.liquid import MODES
from tests import oracles
from tests.layers.streaming import check_chunks

DOUBLE = torch.float64
STREAMING = sorted(name for name, kernel in KERNELS.items() if issubclass(kernel, RecurrentKernel))


def build(kernel: str = 's4', **options: object) -> LiquidS4:
    torch.manual_seed(0)
    # Large dt: products weigh as much as the linear part.
    return LiquidS4(3, kernel=kernel, **{'d_state': 8, 'dt_min': 0.2, 'dt_max': 1.0, 'dtype': DOUBLE, **options})


def system(layer: LiquidS4, feature: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dense Ā (N, N), B̄ (N,) and C (N,) of one feature, in the numbers of which powers are meant."""
    kernel = layer.kernels[0]
    if kernel.__class__.__name__ not in ('S4Kernel', 'S4DKernel'):  # real entries, and what a step makes of each
        zero = kernel.init_state(8)['x']
        basis = torch.eye(8, dtype=DOUBLE)[:, None].expand(-1, 3, -1)
        columns = kernel.advance(zero[:, :, 0], basis, kernel.system())[1][:, feature]
        impulse = kernel.advance(torch.ones(1, 3, dtype=DOUBLE), zero[:1], kernel.system())[1][0, feature]
        return columns.T, impulse, kernel.system()[-1][0, feature]
    dt = kernel.log_dt[feature].exp()
    w = torch.complex(-kernel.log_A_real[0].exp(), -kernel.A_imag[0])
    B, C = torch.view_as_complex(kernel.B)[0], torch.view_as_complex(kernel.C)[:, feature]
    if kernel.__class__.__name__ == 'S4DKernel':
        a = torch.exp(dt * w)
        b = (a - 1) / w * B
        return torch.diag(torch.cat([a, a.conj()])), torch.cat([b, b.conj()]), torch.cat([C[0], C[0].conj()])
    A, B, C = oracles.dplr_matrices(w, torch.view_as_complex(kernel.P)[:, 0], B, C)
    eye = torch.eye(len(A), dtype=A.dtype)
    A_bar = torch.linalg.solve(eye - dt / 2 * A, eye + dt / 2 * A)
    return A_bar, torch.linalg.solve(eye - dt / 2 * A, dt * B), C[0]


def by_definition(layer: LiquidS4, x: Tensor) -> Tensor:
    systems = [system(layer, h) for h in range(3)]
    terms = [[oracles.liquid_terms(u, *systems[h], layer.degree, layer.mode) for h, u in enumerate(row)] for row in x]
    return torch.stack([torch.stack(row) for row in terms]) + layer.D.T * x


@pytest.mark.parametrize('kernel', ['s4', 's4d', 'lssl', 'ema'])
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize(('degree', 'length'), [(2, 1), (3, 2), (4, 17)])
def test_equals_the_definition(kernel: str, mode: str, degree: int, length: int) -> None:
    layer = build(kernel, degree=degree, mode=mode)
    x = torch.randn(2, 3, length, dtype=DOUBLE, requires_grad=True)
    y, true = layer(x), by_definition(layer, x)
    torch.testing.assert_close(y, true, atol=1e-10, rtol=1e-10)
    linear = S4.forward(layer, x)
    assert length == 1 or (y - linear).abs().max() > 0.01
    weight, inputs = torch.randn_like(y), [x, *layer.parameters()]
    expected = torch.autograd.grad((true * weight).sum(), inputs, materialize_grads=True)
    found = torch.autograd.grad((y * weight).sum(), inputs, materialize_grads=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-8)


@torch.no_grad()
def test_coefficients_are_those_of_the_liquid_recurrence() -> None:
    """Both are multilinear in the samples: a product's coefficient is a signed sum over its subsets."""
    layer = build(degree=3, mode='kb')
    systems = [system(layer, h) for h in range(3)]

    def coefficient(product: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ours = whole = torch.zeros(3, 9, dtype=DOUBLE)
        for subset in itertools.product((0, 1), repeat=len(product)):
            u = torch.zeros(9, dtype=DOUBLE)
            u[list(product)] = torch.tensor(subset, dtype=DOUBLE)
            sign = (-1) ** (len(product) - sum(subset))
            ours = ours + sign * layer(u.expand(1, 3, 9))[0]
            whole = whole + sign * torch.stack([oracles.liquid(u, *one) for one in systems])
        return ours, whole

    for product in ((2, 3), (0, 1), (2, 3, 4), (6, 7, 8)):
        ours, whole = coefficient(product)
        assert whole.abs().max() > 1e-3
        torch.testing.assert_close(ours, whole, atol=1e-10, rtol=0)
    for product in ((2, 4), (1, 2, 4), (1, 2, 3, 4)):  # samples skipped; more factors than the degree
        ours, whole = coefficient(product)
        assert ours.abs().max() < 1e-10 and whole.abs().max() > 1e-6


@pytest.mark.parametrize('kernel', STREAMING)
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(DOUBLE, 1e-10), (torch.float32, 1e-4)])
@torch.no_grad()
def test_stepping_equals_forward(kernel: str, mode: str, dtype: torch.dtype, tolerance: float) -> None:
    layer = build(kernel, degree=4, mode=mode, dtype=dtype)
    for length in (1, 2, 40):
        x = torch.randn(2, 3, length, dtype=dtype)
        state, system, outputs = layer.init_state(2), layer.system(), []
        assert all(value.shape[0] == 2 and value.dtype == dtype for value in state.values())
        for x_t in x.unbind(-1):
            kept = copy.deepcopy(state)
            y, after = layer.step(x_t, state, system)
            assert all(torch.equal(state[key], kept[key]) for key in kept)
            outputs.append(y)
            state = after
        true = layer(x)
        check_chunks(layer, x, true, tolerance * float(true.abs().max()))
        torch.testing.assert_close(torch.stack(outputs, -1), true, atol=tolerance * float(true.abs().max()), rtol=0)
    torch.testing.assert_close(layer.step(x[..., 0], layer.init_state(2))[0], outputs[0])


@pytest.mark.parametrize('mode', MODES)
def test_causal(mode: str) -> None:
    layer = build(degree=3, mode=mode)
    x = torch.randn(1, 3, 12, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[..., 5].sum(), x)
    assert gradient[..., :6].abs().min() > 0
    assert gradient[..., 6:].abs().max() < 1e-14 * gradient.abs().max()


@pytest.mark.parametrize('mode', MODES)
@torch.no_grad()
def test_evaluation_notices_a_changed_parameter(mode: str) -> None:
    layer = build(mode=mode).eval()
    x = torch.randn(1, 3, 9, dtype=DOUBLE)
    layer(x)
    layer.kernels[0].C.mul_(2)
    torch.testing.assert_close(layer(x), by_definition(layer, x), atol=1e-10, rtol=0)
    torch.testing.assert_close(layer(x[..., :4]), by_definition(layer, x[..., :4]), atol=1e-10, rtol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    layer = build(degree=3, mode='kb', dtype=torch.float32)
    x = torch.randn(2, 3, 20).to(dtype)
    true, y = layer(x.float()), layer(x)
    assert y.dtype == dtype
    assert (y.float() - true).abs().max() / true.abs().max() < 2 * torch.finfo(dtype).eps
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(layer(x.float()), true, atol=1e-5, rtol=1e-5)


def test_compiled_training_equals_eager() -> None:
    layer = build('s4d', degree=3, mode='kb')
    x = torch.randn(2, 3, 9, dtype=DOUBLE)
    inputs = list(layer.parameters())
    y = torch.compile(layer, fullgraph=True, backend='aot_eager')(x)
    torch.testing.assert_close(y, layer(x), atol=1e-10, rtol=0)
    expected = torch.autograd.grad(layer(x).square().sum(), inputs)
    for ours, theirs in zip(torch.autograd.grad(y.square().sum(), inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8)


def test_it_trains() -> None:
    """The running product of neighbors, which no linear layer can give: S4 stays at the variance of the target."""
    losses = {}
    for name in ('liquid', 'linear'):
        torch.manual_seed(0)
        options = {'kernel': 's4d', 'd_state': 8, 'dt_min': 0.2, 'dt_max': 1.0}
        layer = LiquidS4(2, degree=2, **options) if name == 'liquid' else S4(2, **options)
        optimizer = torch.optim.AdamW(param_groups(layer, 2e-2, ssm_lr=1e-2))
        for _ in range(80):
            x = torch.randn(16, 2, 32)
            loss = (layer(x)[..., 1:] - x[..., 1:] * x[..., :-1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x = torch.randn(500, 2, 32)
        losses[name] = float((layer(x)[..., 1:] - x[..., 1:] * x[..., :-1]).detach().square().mean())
    assert losses['liquid'] < 0.3 < 0.95 < losses['linear']


def test_no_parameters_beyond_those_of_s4() -> None:
    layer = build()
    assert layer.state_dict().keys() == S4(3, d_state=8).state_dict().keys()
    ssm = {id(p) for group in param_groups(layer, 0.01) if group['lr'] == 1e-3 for p in group['params']}
    kernel = layer.kernels[0]
    assert ssm == {id(p) for p in (kernel.log_dt, kernel.log_A_real, kernel.A_imag, kernel.B, kernel.P)}


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: LiquidS4(3, degree=1), 'degree must be at least 2.*got 1'),
    (lambda: LiquidS4(3, mode='polyb'), "unknown mode 'polyb': expected one of kb, pb, allcombs, exact"),
    (lambda: LiquidS4(3, kernel='sgconv'), "'sgconv' has no recurrence"),
    (lambda: LiquidS4(3, kernel='s6'), "unknown kernel 's6'"),
    (lambda: build().system(0.5), 'expected 1, got 0.5'),
    (lambda: build()(torch.zeros(1, 3, 5), step=2.0), 'expected 1, got 2.0'),
    (lambda: build()(torch.zeros(1, 2, 5)), r'\(batch, 3, length\).*\[1, 2, 5\]'),
    (lambda: build()(torch.zeros(1, 3, 0)), 'empty'),
    (lambda: build().step(torch.zeros(1, 2), build().init_state(1)), r'\(batch, 3\).*\[1, 2\]'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
