"""GSS and its hybrid: the recurrence of the paper, its kernel, streaming, causality, other lengths, bad input."""

import pytest
import torch

from s4nd import GSS, GSSHybrid, param_groups
from s4nd.kernels import GSSKernel
from tests import oracles
from tests.layers.streaming import (
    check_causal,
    check_half_precision_and_export,
    check_states_are_values,
    check_streaming,
)

DOUBLE = torch.float64


def gss(dtype: torch.dtype = DOUBLE) -> GSS:
    torch.manual_seed(0)
    return GSS(8, d_ssm=4, expand=3, d_state=16, dtype=dtype)


def hybrid(dtype: torch.dtype = DOUBLE) -> GSSHybrid:
    torch.manual_seed(0)
    return GSSHybrid(8, 3, attention_every=2, chunk=5, num_heads=2, d_state=16, dtype=dtype)


def test_equals_the_recurrence() -> None:
    """Forward and the gradient of every parameter."""
    layer = gss()
    x = torch.randn(2, 8, 21, dtype=DOUBLE, requires_grad=True)
    p = dict(layer.named_parameters())
    true = torch.stack([oracles.gss(clip.T, p).T for clip in x])
    y = layer(x)
    torch.testing.assert_close(y, true, atol=1e-12, rtol=0)
    weight, inputs = torch.randn_like(y), [x, *p.values()]
    found = torch.autograd.grad((weight * y).sum(), inputs)
    for name, a, b in zip(['x', *p], found, torch.autograd.grad((weight * true).sum(), inputs), strict=True):
        assert b.abs().max() > 0, name
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-9, msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.parametrize('step', [1.0, 0.5])
def test_kernel(step: float) -> None:
    torch.manual_seed(0)
    kernel = GSSKernel(3, channels=2, d_state=8, dtype=DOUBLE)
    pole = torch.complex(-kernel.log_A_real.exp(), -kernel.log_A_imag.exp())
    true = oracles.dss_taps(torch.ones(3, 1, dtype=DOUBLE), pole, torch.view_as_complex(kernel.C), 40, step)
    torch.testing.assert_close(kernel(40, step), true, atol=1e-12, rtol=0)


def test_kernel_as_published() -> None:
    """a, b and C from N(0, 1); dt is 1 and no parameter."""
    torch.manual_seed(0)
    kernel = GSSKernel(64, d_state=512)
    assert set(dict(kernel.named_parameters())) == {'log_A_real', 'log_A_imag', 'C'}
    for parameter in kernel.parameters():
        assert parameter.mean().abs() < 0.2 and (parameter.std() - 1).abs() < 0.15


@pytest.mark.parametrize('make', [gss, hybrid])
def test_as_a_streaming_layer(make: object) -> None:
    check_streaming(make(DOUBLE), 8, 1e-10)
    check_streaming(make(torch.float32), 8, 1e-5)
    check_states_are_values(make(DOUBLE), 8)
    check_causal(make(DOUBLE), 8)


def test_half_precision_and_export() -> None:
    check_half_precision_and_export(hybrid(torch.float32), 8)


def test_any_length() -> None:
    """The first outputs are those of a shorter clip, however long the clip is."""
    for layer in (gss(), hybrid()):
        x = torch.randn(1, 8, 700, dtype=DOUBLE)
        torch.testing.assert_close(layer(x)[..., :64], layer(x[..., :64]), atol=1e-11, rtol=0)
    long = gss(torch.float32)(torch.randn(1, 8, 100_000))
    assert long.isfinite().all() and long[..., -1000:].std() < 2 * long[..., :1000].std()


def test_the_hybrid_is_a_stack() -> None:
    stack = GSSHybrid(8, 8, num_heads=2, d_state=4)
    assert [type(layer).__name__ for layer in stack.layers] == ['GSS', 'LocalAttention', 'GSS', 'GSS'] * 2
    assert all(key.startswith('layers.') for key in stack.init_state(1))


def test_width_of_the_state_and_optimizer_groups() -> None:
    """H features in the convolution; a and b train as SSM parameters."""
    layer = GSS(16, d_state=8)
    assert layer.kernel.C.shape == (1, 4, 4, 2) and layer.out.weight.shape == (16, 64)
    rates = {id(p): (g['lr'], g['weight_decay']) for g in param_groups(layer, 0.01, 0.1) for p in g['params']}
    assert rates[id(layer.kernel.log_A_real)] == rates[id(layer.kernel.log_A_imag)] == (1e-3, 0.0)
    assert rates[id(layer.kernel.C)] == rates[id(layer.out.weight)] == (0.01, 0.1)


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: GSS(6, d_ssm=0), 'expand=4 and d_ssm=0'),
    (lambda: GSS(6, reverse=True).init_state(1), 'in reverse .* cannot stream'),
    (lambda: GSS(8, expand=0), 'expand=0 and d_ssm=2'),
    (lambda: GSS(8, d_state=5), 'd_state must be even .* got 5'),
    (lambda: gss()(torch.zeros(8, 3)), r'\(batch, 8, length\), got shape \[8, 3\]'),
    (lambda: gss().step(torch.zeros(1, 7), {}), r'step expects \(batch, 8\), got shape \[1, 7\]'),
    (lambda: GSSHybrid(8, 0), 'got depth=0'),
    (lambda: GSSHybrid(8, 4, attention_every=1), 'attention_every=1'),
    (lambda: GSSHybrid(8, 2, num_heads=2, chunk=0), 'chunk must be at least 1.* got 0'),
    (lambda: hybrid()(torch.zeros(1, 8, 2, 2)), r'\(batch, 8, length\), got shape \[1, 8, 2, 2\]'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
