"""Mega: its equations, both directions, chunks, streaming, causality, published initialization, bad input."""

import pytest
import torch

from s4nd import Mega
from s4nd.layers.mega import MovingAverage, NormalizedFeedForward
from tests import oracles
from tests.layers.streaming import (
    check_causal,
    check_half_precision_and_export,
    check_states_are_values,
    check_streaming,
)

DOUBLE = torch.float64


def mega(dtype: torch.dtype = DOUBLE, chunk: int | None = None, bidirectional: bool = False, **options: object) -> Mega:
    """All parameters of order one: as initialized, attention and gates are nearly constant."""
    torch.manual_seed(0)
    layer = Mega(6, chunk=chunk, d_key=4, d_value=10, d_state=3, bidirectional=bidirectional, dtype=dtype, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.7)
    return layer


@pytest.mark.parametrize('options', [{}, {'attention': 'laplace', 'max_length': 12}, {'attention': 'relu2'}], ids=str)
@pytest.mark.parametrize('bidirectional', [False, True])
@pytest.mark.parametrize(('length', 'chunk'), [(1, None), (11, None), (12, 4), (11, 4), (3, 4), (6, 1)])
def test_equals_the_equations(length: int, chunk: int | None, bidirectional: bool, options: dict) -> None:
    """Forward and the gradient of every parameter, lengths that the chunk does not divide included."""
    layer = mega(chunk=chunk, bidirectional=bidirectional, **options)
    x = torch.randn(2, 6, length, dtype=DOUBLE, requires_grad=True)
    p = dict(layer.named_parameters())
    true = torch.stack([oracles.mega(clip.T, p, chunk or length, bidirectional, layer.attention.kind).T for clip in x])
    y = layer(x)
    torch.testing.assert_close(y, true, atol=1e-12, rtol=0)
    weight, inputs = torch.randn_like(y), [x, *p.values()]
    found = torch.autograd.grad((weight * y).sum(), inputs, materialize_grads=True)
    expected = torch.autograd.grad((weight * true).sum(), inputs, materialize_grads=True)
    for name, a, b in zip(['x', *p], found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-9, msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.parametrize('chunk', [1, 5, None])
def test_as_a_streaming_layer(chunk: int | None) -> None:
    check_streaming(mega(DOUBLE, chunk), 6, 1e-10)
    check_streaming(mega(torch.float32, chunk), 6, 1e-5)
    check_states_are_values(mega(DOUBLE, chunk), 6)
    check_causal(mega(DOUBLE, chunk), 6)


@pytest.mark.parametrize('options', [
    {'attention': 'laplace', 'norm': 'scale', 'prenorm': False},
    {'attention': 'relu2', 'norm': 'rms', 'max_length': 31},
    {'norm': 'batch', 'max_length': 40},
], ids=str)  # fmt: skip
@pytest.mark.parametrize('chunk', [5, None])
def test_all_forms_stream(chunk: int | None, options: dict) -> None:
    layer = mega(DOUBLE, chunk, **options).eval()
    check_streaming(layer, 6, 1e-8)
    check_states_are_values(layer, 6)
    check_causal(layer, 6)


class TestPadding:
    @pytest.mark.parametrize('attention', ['softmax', 'laplace', 'relu2'])
    @pytest.mark.parametrize('chunk', [4, None])
    @torch.no_grad()
    def test_padded_samples_change_nothing(self, attention: str, chunk: int | None) -> None:
        """A padded clip gives what the clip alone gives, as far as chunks and kernels are the same."""
        layer = mega(chunk=chunk, bidirectional=True, attention=attention)
        x = torch.randn(2, 6, 11, dtype=DOUBLE)
        padding = (torch.arange(11) >= 7).expand(2, 11)
        alone, y = layer(x[..., :7]), layer(x, padding=padding)
        torch.testing.assert_close(y[..., :7], alone, atol=1e-12, rtol=0)
        x[..., 7:] = 1e3
        torch.testing.assert_close(layer(x, padding=padding)[..., :7], alone, atol=1e-12, rtol=0)

    def test_gradients_where_a_chunk_is_all_padding(self) -> None:
        layer = mega(chunk=4, bidirectional=True)
        x = torch.randn(1, 6, 8, dtype=DOUBLE, requires_grad=True)
        layer(x, padding=(torch.arange(8) >= 4)[None])[..., :4].square().sum().backward()
        assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in layer.parameters())


def test_dropouts() -> None:
    """Each acts in training and none in evaluation."""
    x = torch.randn(1, 6, 40, dtype=DOUBLE)
    for name in ('dropout', 'attention_dropout', 'hidden_dropout'):
        for attention in ('softmax', 'laplace'):
            layer = mega(attention=attention, **{name: 0.5})
            assert not torch.equal(layer(x), layer(x)), name
            layer.eval()
            assert torch.equal(layer(x), mega(attention=attention)(x))


def test_feed_forward() -> None:
    for prenorm in (True, False):
        block = NormalizedFeedForward(6, 9, norm='scale', prenorm=prenorm, dtype=DOUBLE)
        x = torch.randn(2, 6, 5, dtype=DOUBLE)
        u = x.mT
        inner = block.norm(u) if prenorm else u
        inner = inner @ block.linear1.weight.T
        y = u + (inner / (1 + torch.exp(-inner))) @ block.linear2.weight.T
        torch.testing.assert_close(block(x), (y if prenorm else block.norm(y)).mT, atol=1e-12, rtol=0)
        torch.testing.assert_close(block(x[..., 2]), block(x)[..., 2], atol=1e-12, rtol=0)


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
            parameter = getattr(mirror.average.kernel, name)
            parameter.copy_(parameter.roll(6, -2))
        # A lag changes its sign with the time.
        mirror.attention.bias.alpha.copy_(layer.attention.bias.beta)
        mirror.attention.bias.beta.copy_(layer.attention.bias.alpha)
        torch.testing.assert_close(mirror(x.flip(-1)).flip(-1), layer(x), atol=1e-12, rtol=0)


def test_initialized_as_published() -> None:
    torch.manual_seed(0)
    layer = Mega(64, chunk=16)
    assert (layer.d_key, layer.d_value) == (16, 128)
    for weight in (
        layer.value.weight,
        layer.gates.weight,
        layer.hidden.weight,
        layer.attention.bias.alpha,
        layer.scale,
    ):
        assert abs(weight.std() - 0.02) < 0.006
    assert all(not zero.any() for zero in (layer.value.bias, layer.gates.bias, layer.shift))
    assert abs(layer.average.omega.std() - 1) < 0.3


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
    (lambda: Mega(6, attention='relu'), "unknown attention 'relu': expected one of softmax, laplace, relu2"),
    (lambda: Mega(6, norm='group'), "unknown norm 'group': expected one of layer, scale, scalar, rms, batch"),
    (lambda: Mega(6, max_length=0), 'max_length must be at least 1, got 0'),
    (lambda: mega(max_length=4)(torch.zeros(1, 6, 5, dtype=DOUBLE)), 'lags below 4, got 5 samples'),
    (lambda: MovingAverage(6, l_max=0), 'l_max must be at least 1.*got 0'),
    (lambda: MovingAverage(6, l_max=4).init_state(1), 'cut after 4 taps .* cannot stream'),
    (lambda: mega()(torch.zeros(1, 6, 3), padding=torch.zeros(1, 4, dtype=torch.bool)), r'\(1, 3\), got .* \[1, 4\]'),
    (lambda: mega()(torch.zeros(1, 6, 3, dtype=DOUBLE), mega().init_state(1), torch.zeros(1, 3, dtype=torch.bool)),
     'streams have no padding'),
    (lambda: NormalizedFeedForward(6)(torch.zeros(1, 5, 3)), r'\(batch, 6, …\), got shape \[1, 5, 3\]'),
    (lambda: mega()(torch.zeros(1, 6, 3, 3)), r'\(batch, 6, length\), got shape \[1, 6, 3, 3\]'),
    (lambda: mega()(torch.zeros(1, 6, 0)), r'empty axis: shape \[1, 6, 0\]'),
    (lambda: mega().step(torch.zeros(1, 5), {}), r'step expects \(batch, 6\), got shape \[1, 5\]'),
    (lambda: mega(bidirectional=True).init_state(1), 'bidirectional Mega .* cannot step'),
    (lambda: mega(bidirectional=True).step(torch.zeros(1, 6), {}), 'bidirectional Mega .* cannot step'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
