"""Attention in chunks: the slow definition, the bias of the lag, streaming, causality, bad input."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from s4nd import LocalAttention
from s4nd.layers.attention import KINDS, ChunkedAttention
from s4nd.layers.attention_bias import LagTable, RotaryBias
from tests import oracles
from tests.layers.streaming import check_causal, check_states_are_values, check_streaming

DOUBLE = torch.float64


def loud(bias: RotaryBias) -> RotaryBias:
    """With a bias of order one: as initialized it is too small to be seen in a test."""
    with torch.no_grad():
        bias.alpha.normal_()
        bias.beta.normal_()
    return bias


def rotary(bias: RotaryBias, head: int) -> Callable[[int, int], Tensor]:
    return lambda i, j: oracles.rotary_bias(i, j, bias.alpha[head], bias.beta[head])


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize(('length', 'chunk'), [(1, 1), (5, 1), (7, 7), (8, 4), (11, 4), (4, 3)])
@pytest.mark.parametrize('kind', KINDS)
def test_equals_the_definition(length: int, chunk: int, causal: bool, kind: str) -> None:
    """Forward and gradients, whole and ragged last chunks."""
    torch.manual_seed(0)
    bias = loud(RotaryBias(2, 3, dtype=DOUBLE))
    q, k, v = (torch.randn(2, 2, length, e, dtype=DOUBLE, requires_grad=True) for e in (6, 6, 5))
    attention = ChunkedAttention(bias, chunk=chunk, kind=kind, causal=causal)
    y = attention(q, k, v)
    true = torch.stack([
        torch.stack([
            oracles.chunked_attention(q[b, n], k[b, n], v[b, n], rotary(bias, n), chunk, causal, kind)
            for n in range(2)
        ])
        for b in range(2)
    ])  # fmt: skip
    torch.testing.assert_close(y, true, atol=1e-12, rtol=0)
    inputs, weight = [q, k, v, bias.alpha, bias.beta], torch.randn_like(y)
    found = torch.autograd.grad((weight * y).sum(), inputs)
    for gradient, expected in zip(found, torch.autograd.grad((weight * true).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def test_the_bias_is_a_function_of_the_lag() -> None:
    """⟨R_i α, R_j β⟩ depends on i - j alone, also far out and in float32."""
    torch.manual_seed(0)
    bias = loud(RotaryBias(1, 4, dtype=DOUBLE))
    lags = torch.tensor([-3, 0, 5, 100_000])
    pairs = [(2, 5), (7, 7), (9, 4), (100_003, 3)]
    true = torch.stack([oracles.rotary_bias(i, j, bias.alpha[0], bias.beta[0]) for i, j in pairs])
    torch.testing.assert_close(bias(lags)[0], true, atol=1e-9, rtol=0)
    torch.testing.assert_close(bias.float()(lags)[0], true.float(), atol=1e-4, rtol=0)
    assert bias(lags).dtype == torch.float32


def test_a_table_of_lags() -> None:
    bias = LagTable(2, 4, dtype=DOUBLE)
    assert torch.equal(bias(torch.tensor([-3, 0, 3])), bias.weight[:, [6, 3, 0]])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('length', [8, 11])
def test_weights_and_padding(kind: str, causal: bool, length: int) -> None:
    """The weights times v are the output; padded keys have none, but in a softmax over nothing else."""
    torch.manual_seed(0)
    attention = ChunkedAttention(loud(RotaryBias(2, 3, dtype=DOUBLE)), chunk=4, kind=kind, causal=causal)
    q, k, v = (torch.randn(2, 2, length, e, dtype=DOUBLE) for e in (6, 6, 5))
    padding = torch.zeros(2, length, dtype=torch.bool)
    padding[0, 3:] = padding[1, 5] = True
    padding[:, 0] = False
    y, weights = attention(q, k, v, padding), attention.weights(q, k, padding)
    chunks = -(-length // 4)
    assert weights.shape == (2, 2, chunks, 4, 4)
    parts = torch.nn.functional.pad(v, (0, 0, 0, 4 * chunks - length)).unflatten(2, (chunks, 4))
    torch.testing.assert_close((weights @ parts).flatten(2, 3)[:, :, :length], y, atol=1e-12, rtol=0)
    bias = attention.bias
    true = torch.stack([
        torch.stack([
            oracles.chunked_attention(
                q[b, n], k[b, n], v[b, n], rotary(bias, n), 4, causal, kind, padding[b].tolist()
            )
            for n in range(2)
        ])
        for b in range(2)
    ])  # fmt: skip
    torch.testing.assert_close(y, true, atol=1e-12, rtol=0)


def layer(dtype: torch.dtype, chunk: int | None = 5) -> LocalAttention:
    torch.manual_seed(0)
    made = LocalAttention(6, num_heads=2, chunk=chunk, dtype=dtype)
    loud(made.attention.bias)
    return made


@pytest.mark.parametrize('chunk', [1, 5, None])
def test_as_a_streaming_layer(chunk: int | None) -> None:
    check_streaming(layer(DOUBLE, chunk), 6, 1e-10)
    check_streaming(layer(torch.float32, chunk), 6, 1e-5)
    check_states_are_values(layer(DOUBLE, chunk), 6)
    check_causal(layer(DOUBLE, chunk), 6, first=0 if chunk is None else 12 // chunk * chunk)


def test_the_block_is_a_transformer_block() -> None:
    """y = x + W attention(norm(x)), y + MLP(norm(y)), head by head."""
    block = layer(DOUBLE)
    x, p = torch.randn(13, 6, dtype=DOUBLE), dict(block.named_parameters())
    u = oracles.layer_norm(x, p['norm.weight'], p['norm.bias'])
    q, k, v = (u @ p['qkv.weight'].T + p['qkv.bias']).split(6, -1)
    heads = [slice(0, 3), slice(3, 6)]
    o = torch.cat([
        oracles.chunked_attention(q[:, h], k[:, h], v[:, h], rotary(block.attention.bias, n), 5, True)
        for n, h in enumerate(heads)
    ], -1)  # fmt: skip
    y = x + o @ p['out.weight'].T + p['out.bias']
    inner = oracles.layer_norm(y, p['mlp.0.weight'], p['mlp.0.bias']) @ p['mlp.1.weight'].T + p['mlp.1.bias']
    inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
    y = y + inner @ p['mlp.3.weight'].T + p['mlp.3.bias']
    torch.testing.assert_close(block(x.T[None])[0].T, y, atol=1e-12, rtol=0)


def test_every_parameter_learns() -> None:
    block = layer(DOUBLE)
    block(torch.randn(1, 6, 8, dtype=DOUBLE)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in block.parameters())


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: LocalAttention(6, num_heads=2, chunk=0), 'chunk must be at least 1, or None .* got 0'),
    (lambda: LocalAttention(6, num_heads=4), 'num_heads=4 and d_model=6'),
    (lambda: LocalAttention(6, num_heads=2)(torch.zeros(1, 5, 3)), r'\(batch, 6, length\), got shape \[1, 5, 3\]'),
    (lambda: LocalAttention(6, num_heads=2)(torch.zeros(1, 6, 0)), r'empty axis: shape \[1, 6, 0\]'),
    (lambda: layer(DOUBLE).step(torch.zeros(1, 6, 1), {}), r'step expects \(batch, 6\), got shape \[1, 6, 1\]'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
