"""Mega: its equations, both directions, chunks, streaming, causality, published initialization, bad input."""

import pytest
import torch

from s4nd import Mega
from tests import oracles
from tests.layers.streaming import (
    check_causal,
    check_half_precision_and_export,
    check_states_are_values,
    check_streaming,
)

DOUBLE = torch.float64


def mega(dtype: torch.dtype = DOUBLE, chunk: int | None = None, bidirectional: bool = False) -> Mega:
    """All parameters of order one: as initialized, attention and gates are nearly constant."""
    torch.manual_seed(0)
    layer = Mega(6, chunk=chunk, d_key=4, d_value=10, d_state=3, bidirectional=bidirectional, dtype=dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.7)
    return layer


@pytest.mark.parametrize('bidirectional', [False, True])
@pytest.mark.parametrize(('length', 'chunk'), [(1, None), (11, None), (12, 4), (11, 4), (3, 4), (6, 1)])
def test_equals_the_equations(length: int, chunk: int | None, bidirectional: bool) -> None:
    """Forward and the gradient of every parameter, lengths that the chunk does not divide included."""
    layer = mega(chunk=chunk, bidirectional=bidirectional)
    x = torch.randn(2, 6, length, dtype=DOUBLE, requires_grad=True)
    p = dict(layer.named_parameters())
    true = torch.stack([oracles.mega(clip.T, p, chunk or length, bidirectional).T for clip in x])
    y = layer(x)
    torch.testing.assert_close(y, true, atol=1e-12, rtol=0)
    weight, inputs = torch.randn_like(y), [x, *p.values()]
    found = torch.autograd.grad((weight * y).sum(), inputs)
    for name, a, b in zip(['x', *p], found, torch.autograd.grad((weight * true).sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-9, msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.parametrize('chunk', [1, 5, None])
def test_as_a_streaming_layer(chunk: int | None) -> None:
    check_streaming(mega(DOUBLE, chunk), 6, 1e-10)
    check_streaming(mega(torch.float32, chunk), 6, 1e-5)
    check_states_are_values(mega(DOUBLE, chunk), 6)
    check_causal(mega(DOUBLE, chunk), 6)


def test_half_precision_and_export() -> None:
    check_half_precision_and_export(Mega(6, chunk=5), 6)


def test_the_state_of_a_chunk_is_bounded() -> None:
    layer = mega(chunk=5)
    state, sizes = layer.init_state(1), []
    for x_t in torch.randn(12, 1, 6, dtype=DOUBLE):
        _, state = layer.step(x_t, state)
        sizes.append(state['keys'].shape[2])
    assert sizes == [1, 2, 3, 4, 5] * 2 + [1, 2]


@pytest.mark.parametrize('chunk', [4, None])
def test_both_directions(chunk: int | None) -> None:
    """Every output sees every sample; reversed time with the two averages exchanged is the same layer, reversed."""
    layer = mega(chunk=chunk, bidirectional=True)
    x = torch.randn(1, 6, 8, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[..., 3].square().sum(), x)
    assert gradient[0].abs().amax(0).min() > 0
    mirror = mega(chunk=chunk, bidirectional=True)
    with torch.no_grad():
        for name in ('alpha', 'delta', 'beta', 'gamma'):
            parameter = getattr(mirror.kernel, name)
            parameter.copy_(parameter.roll(6, -2))
        # A lag changes its sign with the time; the tap at lag 0 is that of the other average.
        mirror.bias.alpha.copy_(layer.bias.beta)
        mirror.bias.beta.copy_(layer.bias.alpha)
        now = layer.kernel(1)[0, :, 0]
        mirror.omega.add_(now[:6] - now[6:])
        torch.testing.assert_close(mirror(x.flip(-1)).flip(-1), layer(x), atol=1e-12, rtol=0)


def test_initialized_as_published() -> None:
    torch.manual_seed(0)
    layer = Mega(64, chunk=16)
    assert (layer.d_key, layer.d_value) == (16, 128)
    for weight in (layer.value.weight, layer.gates.weight, layer.hidden.weight, layer.bias.alpha, layer.scale):
        assert abs(weight.std() - 0.02) < 0.006
    assert all(not zero.any() for zero in (layer.value.bias, layer.gates.bias, layer.shift))
    assert abs(layer.omega.std() - 1) < 0.3


def test_any_length() -> None:
    """Trained at one length, run at longer ones: the first outputs stay; long clips are finite."""
    layer = mega(chunk=16)
    x = torch.randn(1, 6, 700, dtype=DOUBLE)
    torch.testing.assert_close(layer(x)[..., :50], layer(x[..., :50]), atol=1e-11, rtol=0)
    assert Mega(4, chunk=64)(torch.randn(1, 4, 100_000)).isfinite().all()


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: Mega(6, chunk=0), 'chunk must be at least 1, or None .* got 0'),
    (lambda: Mega(6, d_key=0), 'd_key=0 and d_value=12'),
    (lambda: Mega(6, d_state=0), 'd_state must be at least 1, got 0'),
    (lambda: mega()(torch.zeros(1, 6, 3, 3)), r'\(batch, 6, length\), got shape \[1, 6, 3, 3\]'),
    (lambda: mega()(torch.zeros(1, 6, 0)), r'got shape \[1, 6, 0\]'),
    (lambda: mega().step(torch.zeros(1, 5), {}), r'step expects \(batch, 6\), got shape \[1, 5\]'),
    (lambda: mega(bidirectional=True).init_state(1), 'bidirectional Mega .* cannot step'),
    (lambda: mega(bidirectional=True).step(torch.zeros(1, 6), {}), 'bidirectional Mega .* cannot step'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
