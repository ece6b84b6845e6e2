"""Samples at irregular times: the ODE solved exactly, equal steps, missing samples, chunks, both sides, bad input."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s4nd import GSS, S4, S5, GSSHybrid, LiquidS4, Mega
from s4nd.kernels import DSSExpKernel, EMAKernel, Kernel, LMUKernel, LSSLKernel, S4DKernel
from s4nd.layers import LMU, MovingAverage
from s4nd.resolution import time_steps
from tests import oracles
from tests.kernels.test_kernels import EVERY, RECURRENT, complex_, ids

DOUBLE = torch.float64


def s4(name: str, options: dict[str, Any], **more: Any) -> S4:
    torch.manual_seed(0)
    given = {'channels': 2, 'd_state': 8, 'dt_min': 0.01, 'dt_max': 0.5, 'init': options.get('init'), **more}
    return S4(6, kernel=name, kernel_args=options.get('args'), dtype=DOUBLE, **given)


def signal(length: int = 9) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 6, length, dtype=DOUBLE), torch.rand(2, length, dtype=DOUBLE) * 2 + 0.1


def system_of(kernel: Kernel, h: int) -> tuple[Tensor, Tensor, Tensor, str]:
    """x' = A x + B u, y = Re(C x) of feature h with time in samples, and the rule, from the definitions."""
    if isinstance(kernel, EMAKernel):
        p = torch.sigmoid(kernel.alpha[h])
        forgotten = p * torch.sigmoid(kernel.delta[h])
        A = torch.log(1 - forgotten)
        return torch.diag(A), -A / forgotten * p * kernel.beta[h], kernel.gamma[:, h] / kernel.d_state**0.5, 'zoh'
    if isinstance(kernel, LMUKernel):
        A, B = oracles.lmu_matrices(kernel.d_state)
        return A / kernel.theta, B / kernel.theta, kernel.C[:, h], 'zoh'
    s, dt = h % kernel.n_ssm, kernel.log_dt.exp()[h]
    if isinstance(kernel, LSSLKernel):
        return dt * kernel.A[s], dt * kernel.B[s], kernel.C[:, h], 'bilinear'
    if isinstance(kernel, DSSExpKernel):
        A = dt * torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag)[s]
        return torch.diag(A), dt * torch.ones_like(A), complex_(kernel.C)[:, h], 'zoh'
    if isinstance(kernel, S4DKernel):
        imag = torch.zeros_like(kernel.log_A_real) if kernel.A_imag is None else kernel.A_imag
        A = torch.complex(-kernel.log_A_real.exp(), -imag)[s]
        B, C = (kernel.B, kernel.C) if kernel.is_real else (complex_(kernel.B), complex_(kernel.C))
        return torch.diag(dt * A), (dt * B[s]).to(A), 2 * C[:, h].to(A), kernel.discretization
    w = torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag)
    A, B, C = oracles.dplr_matrices(w[s], complex_(kernel.P)[:, s], complex_(kernel.B)[s], complex_(kernel.C)[:, h])
    return dt * A, dt * B, C, 'bilinear'


def by_definition(layer: S4, x: Tensor, dt: Tensor) -> Tensor:
    rows = []
    for u, steps in zip(x, dt, strict=True):
        systems = [system_of(layer.kernels[0], h) for h in range(6)]
        y = [oracles.held_ode(A, B, C, u[h], steps, rule) for h, (A, B, C, rule) in enumerate(systems)]
        rows.append((torch.stack(y, 1) + layer.D[..., None] * u).flatten(0, 1))
    return torch.stack(rows)


@pytest.mark.parametrize(('name', 'options'), RECURRENT, ids=ids(RECURRENT))
def test_equals_the_ode(name: str, options: dict[str, Any]) -> None:
    """Outputs, and gradients of all parameters, the signal and the steps; from a state too; and equal steps."""
    layer, (x, dt) = s4(name, options), signal()
    inputs = [*layer.parameters(), x.requires_grad_(), dt.requires_grad_()]
    true = by_definition(layer, x, dt)
    y = layer(x, dt=dt)
    torch.testing.assert_close(y, true, atol=1e-10, rtol=1e-10)
    weight = torch.randn_like(true)
    expected = torch.autograd.grad((true * weight).sum(), inputs)
    for ours, theirs in zip(torch.autograd.grad((y * weight).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8)
    first, state = layer(x[..., :4], layer.init_state(2), dt=dt[:, :4])
    rest, _ = layer(x[..., 4:], state, dt=dt[:, 4:])
    torch.testing.assert_close(torch.cat([first, rest], -1), y, atol=1e-12, rtol=1e-12)
    for step in (1.0, 0.7):
        equal = layer(x, dt=torch.full((2, 9), step, dtype=DOUBLE))
        torch.testing.assert_close(equal, layer(x, step=step), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize('name', ['s4d', 's4', 'ema', 'lmu'])
def test_second_derivatives(name: str) -> None:
    layer, (x, dt) = s4(name, dict(EVERY)[name] if name == 'ema' else {}), signal(4)
    inputs = (x.requires_grad_(), dt.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x, dt: layer(x, dt=dt), inputs, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize(('name', 'options'), RECURRENT, ids=ids(RECURRENT))
@pytest.mark.parametrize('cell', ['input', 'published'])
def test_both_sides_equal_the_regular_ones(name: str, options: dict[str, Any], cell: str) -> None:
    layer, (x, _) = s4(name, options, bidirectional=True, cell=cell), signal()
    for step in (1.0, 0.7):
        y = layer(x, dt=torch.full((2, 9), step, dtype=DOUBLE))
        torch.testing.assert_close(y, layer(x, step=step), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('name', ['s4d', 's4'])
def test_batched_gradients_and_transforms(name: str) -> None:
    layer, (x, dt) = s4(name, {}), signal(4)

    def call(x: Tensor) -> Tensor:
        return layer(x, dt=dt)

    true = torch.autograd.functional.jacobian(call, x)
    batched = torch.autograd.functional.jacobian(call, x, vectorize=True)
    torch.testing.assert_close(batched, true, atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.func.jacrev(call)(x), true, atol=1e-10, rtol=0)


def small(name: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    place: dict[str, Any] = {'dtype': DOUBLE, **more}
    return {
        's4d': lambda: S4(6, kernel='s4d', d_state=8, **place),
        's4d-two-sided': lambda: S4(6, kernel='s4d', d_state=8, bidirectional=True, cell='input', **place),
        's5': lambda: S5(6, d_state=8, **place),
        's5-two-sided': lambda: S5(6, d_state=8, bidirectional=True, **place),
        'gss': lambda: GSS(6, d_ssm=3, d_state=8, **place),
        'gss-reverse': lambda: GSS(6, d_ssm=3, d_state=8, reverse=True, **place),
        'hybrid': lambda: GSSHybrid(6, 2, chunk=4, num_heads=2, d_ssm=3, d_state=8, **place),
        'average': lambda: MovingAverage(6, d_state=4, **place),
        'average-two-sided': lambda: MovingAverage(6, d_state=4, bidirectional=True, **place),
        'mega': lambda: Mega(6, d_state=4, **place),
        'mega-two-sided': lambda: Mega(6, d_state=4, bidirectional=True, **place),
        'lmu': lambda: LMU(6, memories=2, d_state=5, theta=7.0, hidden_to_memory=True, **place),
        'liquid-exact': lambda: LiquidS4(6, 's4d', d_state=8, mode='exact', **place),
        'liquid-allcombs': lambda: LiquidS4(6, 's4d', d_state=8, degree=3, mode='allcombs', **place),
        'liquid-exact-s4': lambda: LiquidS4(6, 's4', d_state=8, mode='exact', **place),
        'liquid-allcombs-s4': lambda: LiquidS4(6, 's4', d_state=8, mode='allcombs', **place),
    }[name]()


SMALL = (
    's4d', 's4d-two-sided', 's5', 's5-two-sided', 'gss', 'gss-reverse', 'hybrid', 'average', 'average-two-sided',
    'mega', 'mega-two-sided', 'lmu', 'liquid-exact', 'liquid-allcombs', 'liquid-exact-s4', 'liquid-allcombs-s4',
)  # fmt: skip


@pytest.mark.parametrize('name', SMALL)
def test_equal_steps_and_chunks(name: str) -> None:
    layer, (x, dt) = small(name), signal()
    torch.testing.assert_close(layer(x, dt=torch.ones_like(dt)), layer(x), atol=1e-10, rtol=1e-10)
    y = layer(x, dt=dt)
    assert not torch.allclose(y, layer(x))
    if 'two-sided' in name or 'reverse' in name:
        return
    state, outputs = layer.init_state(2), []
    for part, steps in zip(x.split(4, -1), dt.split(4, 1), strict=True):
        one, state = layer(part, state, dt=steps)
        outputs.append(one)
    torch.testing.assert_close(torch.cat(outputs, -1), y, atol=1e-10, rtol=1e-10)
    single = layer.float()(x.float(), dt=dt.float())
    torch.testing.assert_close(single, y.float(), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize('name', ['s4d', 's5', 'gss', 'average'])
def test_missing_samples_are_longer_steps(name: str) -> None:
    """Where the signal keeps a value for some samples, one sample with their time stands for them."""
    layer, (x, _) = small(name), signal(5)
    counts = torch.tensor([1, 3, 2, 1, 4])
    held = x.repeat_interleave(counts, -1)
    y = layer(x, dt=counts.to(DOUBLE).expand(2, -1))
    torch.testing.assert_close(y, layer(held)[..., counts.cumsum(0) - 1], atol=1e-10, rtol=1e-10)


def test_lmu_equals_the_ode() -> None:
    layer, (x, dt) = LMU(6, hidden=0, memories=2, d_state=5, theta=7.0, dtype=DOUBLE), signal()
    A, B = oracles.lmu_matrices(5)
    u = torch.einsum('md,bdl->bml', layer.encoder.weight, x)
    eye = torch.eye(5, dtype=DOUBLE)
    true = [[oracles.held_ode(A / 7, B / 7, eye, u[b, m], dt[b]) for m in range(2)] for b in range(2)]
    true = torch.stack([torch.cat(row) for row in true])
    torch.testing.assert_close(layer(x, dt=dt), true, atol=1e-10, rtol=0)


@pytest.mark.parametrize('mode', ['exact', 'allcombs'])
def test_liquid_by_its_recurrence(mode: str) -> None:
    """x_k = (Ā_k + B̄_k u_k) x_{k-1} + B̄_k u_k, and its part with products of up to three inputs."""
    layer, (x, dt) = LiquidS4(6, 's4d', d_state=8, degree=3, mode=mode, dtype=DOUBLE), signal()
    kernel = layer.kernels[0]
    A = torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag) * kernel.log_dt.exp()  # (H, n)
    B, C = complex_(kernel.B) * kernel.log_dt.exp(), complex_(kernel.C)[0]
    orders = [torch.zeros(2, 6, 4, dtype=torch.complex128) for _ in range(3)]
    for k in range(x.shape[2]):
        moved = torch.exp(A * dt[:, k, None, None])
        drive = (moved - 1) / A * B * x[..., k, None]
        if mode == 'exact':
            orders = [(moved + drive) * orders[0] + drive]
        else:
            below = [torch.ones_like(drive), *orders[:-1]]
            orders = [moved * order + drive * lower for order, lower in zip(orders, below, strict=True)]
        true = 2 * (C * sum(orders)).sum(-1).real + layer.D[0] * x[..., k]
        torch.testing.assert_close(layer(x, dt=dt)[..., k], true, atol=1e-9, rtol=1e-9)


def test_steps_of_times() -> None:
    times = torch.tensor([[0.0, 1.0, 4.0, 4.5], [2.0, 3.0, 0.0, 0.0]])
    dt = time_steps(times, torch.tensor([4, 2]), first=0.5)
    assert dt.tolist() == [[0.5, 1.0, 3.0, 0.5], [0.5, 1.0, 1.0, 1.0]]
    assert time_steps(torch.arange(3)[None]).tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(('call', 'says'), [
    (lambda x, dt: small('s4d')(x, dt=-dt), 'dt must be positive and finite, got -'),
    (lambda x, dt: small('s5')(x, dt=0 * dt), 'dt must be positive and finite, got 0.0'),
    (lambda x, dt: small('gss')(x, dt=dt * torch.nan), 'dt must be positive and finite, got nan'),
    (lambda x, dt: small('lmu')(x, dt=dt * torch.inf), 'dt must be positive and finite, got inf'),
    (lambda x, dt: small('mega')(x, dt=dt[:, :4]), r'\(2, 9\), got torch.float64 of shape \[2, 4\]'),
    (lambda x, dt: small('liquid-exact')(x, dt=dt.long()), 'floating-point numbers .*, got torch.int64'),
    (lambda x, dt: small('s4d')(x, dt=dt, step=0.5), 'in place of step: expected step=None beside it, got 0.5'),
    (lambda x, dt: small('s5')(x, dt=dt, step=0.5), 'in place of step'),
    (lambda x, dt: small('s4d-two-sided')(x, {}, dt=dt), 'cannot stream'),
    (lambda x, dt: S4(6, l_max=4, dtype=DOUBLE)(x, dt=dt), 'without a recurrence has one step'),
    (lambda x, dt: LiquidS4(6, dtype=DOUBLE)(x, dt=dt), "mode 'pb' has one step"),
    (lambda x, dt: MovingAverage(6, l_max=4, dtype=DOUBLE)(x, dt=dt), 'cut after 4 taps has one step'),
    (lambda x, dt: time_steps(torch.tensor([[0.0, 2.0, 1.0]])), r'must increase, got a step of -1.0 before sample 2'),
    (lambda x, dt: time_steps(torch.tensor([[0.0, 2.0, 2.0]])), 'times must increase, got a step of 0.0'),
    (lambda x, dt: time_steps(torch.tensor([[-1.0, 2.0, 3.0]])), 'times must be at least 0, got -1.0'),
    (lambda x, dt: time_steps(torch.tensor([0.0, 2.0])), r'\(batch, length\), got shape \[2\]'),
])  # fmt: skip
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(*signal())
