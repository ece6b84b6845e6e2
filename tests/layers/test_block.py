"""Blocks around a layer: their equations, streaming, lengths, norms, gates; S4 with several channels and with l_max."""

import math

import pytest
import torch
from torch.nn import functional as F

from s4nd import S4, S5
from s4nd.layers import GatedLayer, Residual, S5Gate
from s4nd.layers.block import GATES
from s4nd.layers.norms import NORMS, make_norm
from tests.layers.streaming import check_causal, check_states_are_values, check_streaming

DOUBLE = torch.float64


def s5(**options: object) -> S5:
    torch.manual_seed(0)
    return S5(6, d_state=8, dt_min=0.05, dt_max=0.5, dtype=DOUBLE, **options)


@pytest.mark.parametrize('channels', [1, 3])
def test_gated_layer(channels: int) -> None:
    torch.manual_seed(0)
    layer = S4(6, d_state=8, channels=channels, dtype=DOUBLE)
    block = GatedLayer(layer, 6, 6 * channels, dtype=DOUBLE)
    x = torch.randn(2, 6, 9, dtype=DOUBLE)
    y = F.gelu(layer(x)).mT @ block.linear.weight.T + block.linear.bias
    torch.testing.assert_close(block(x), (y[..., :6] * torch.sigmoid(y[..., 6:])).mT, atol=1e-12, rtol=0)
    check_streaming(block, 6, 1e-10)
    check_states_are_values(block, 6)
    check_causal(block, 6)
    plain = GatedLayer(layer, 6, gate=False)
    torch.testing.assert_close(plain(x), F.gelu(layer(x)), atol=0, rtol=0)


def test_lengths() -> None:
    block = GatedLayer(S4(6, d_state=8, bidirectional=True, dtype=DOUBLE), 6, dtype=DOUBLE)
    x, lengths = torch.randn(3, 6, 9, dtype=DOUBLE), torch.tensor([9, 4, 1])
    padding = torch.arange(9) >= lengths[:, None]
    y = block(x, padding=padding)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(y[row, :, :length], block(x[row : row + 1, :, :length])[0], atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match=r'padding of true and false values \(3, 9\), got .* \[2, 9\]'):
        block(x, padding=padding[:2])


@pytest.mark.parametrize('gate', GATES)
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('prenorm', [True, False])
def test_s5_block(gate: str, norm: str, prenorm: bool) -> None:
    block = Residual(S5Gate(s5(), gate=gate, dtype=DOUBLE), 6, norm=norm, prenorm=prenorm, dtype=DOUBLE).eval()
    x = torch.randn(2, 6, 9, dtype=DOUBLE)

    def normed(x: torch.Tensor) -> torch.Tensor:
        return block.norm(x.mT).mT

    inner = block.layer
    y = inner.s5(normed(x) if prenorm else x)
    g = y / 2 * (1 + ((2 / math.pi) ** 0.5 * (y + 0.044715 * y**3)).tanh())  # jax's default
    if gate != 'gelu':
        sigma = torch.sigmoid(inner.linear(g.mT)).mT
        value = {'half_glu1': g, 'half_glu2': y}.get(gate)
        g = (inner.value(g.mT).mT if value is None else value) * sigma
    true = x + g if prenorm else normed(x + g)
    torch.testing.assert_close(block(x), true, atol=1e-12, rtol=0)
    check_streaming(block, 6, 1e-10)
    check_states_are_values(block, 6)
    step = torch.rand(9, dtype=DOUBLE) + 0.5
    torch.testing.assert_close(block.layer(x, step=step), inner._output(inner.s5(x, step=step)), atol=1e-12, rtol=0)


def test_dropout_of_a_gate_is_the_same_for_all_samples() -> None:
    gate = S5Gate(s5(), gate='gelu', dropout=0.5, dtype=DOUBLE)
    zero = gate(torch.randn(4, 6, 50, dtype=DOUBLE)) == 0
    assert 0 < zero.all(-1).sum() < 24 and (zero.all(-1) == zero.any(-1)).all()


def test_norms() -> None:
    """Their formulas, over the last axis; the scalar norm has no epsilon."""
    x = torch.randn(3, 5, 7, dtype=DOUBLE) * 2 + 1
    for name in NORMS:
        norm = make_norm(name, 7, dtype=DOUBLE)
        for parameter in norm.parameters():
            torch.nn.init.normal_(parameter)
        p = dict(norm.named_parameters())
        centered, size = x - x.mean(-1, keepdim=True), (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        if name == 'layer':
            variance = centered.square().mean(-1, keepdim=True)
            true = centered / (variance + 1e-5).sqrt() * p['weight'] + p['bias']
        elif name == 'scalar':
            std = centered.square().mean(-1, keepdim=True).sqrt()
            true = p['s'] / std * (centered + p['m'])
        elif name == 'batch':
            flat = x.flatten(0, 1)
            variance = flat.var(0, correction=0)
            true = ((x - flat.mean(0)) / (variance + 1e-5).sqrt()) * p['weight'] + p['bias']
        else:
            true = x / size * (p['scalar'] if name == 'scale' else p['weight'])
        torch.testing.assert_close(norm(x), true, atol=1e-12, rtol=0)
        assert norm.float()(x.float()).dtype == torch.float32


def test_s4_with_l_max() -> None:
    """Taps beyond it are zero; kernels without a recurrence can be causal; nothing streams."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, 20, dtype=DOUBLE)
    whole, cut = (S4(6, d_state=8, l_max=l_max, dtype=DOUBLE) for l_max in (None, 5))
    cut.load_state_dict(whole.state_dict())
    taps = whole.kernels[0](20)[0]
    taps[:, 5:] = 0
    true = torch.stack([sum(taps[:, lag] * x[0, :, t - lag] for lag in range(t + 1)) for t in range(20)], -1)
    torch.testing.assert_close(cut(x)[0], true + whole.D.T * x[0], atol=1e-12, rtol=0)
    assert S4(6, kernel='sgconv', d_state=4, l_max=16)(x.float()).isfinite().all()
    with pytest.raises(ValueError, match=r'ends after 5\.0 samples'):
        cut.init_state(1)
    with pytest.raises(ValueError, match=r"'sgconv' has no recurrence, .* give l_max"):
        S4(6, kernel='sgconv')


@pytest.mark.parametrize(('call', 'says'), [
    (lambda: S5Gate(s5(), gate='glu'), "unknown gate 'glu': expected one of gelu, half_glu1, half_glu2, full_glu"),
    (lambda: Residual(s5(), 6, norm='group'), "unknown norm 'group'"),
    (lambda: Residual(s5(), 6)(torch.zeros(1, 5, 3)), r'\(batch, 6, length\), got shape \[1, 5, 3\]'),
    (lambda: GatedLayer(s5(), 6).step(torch.zeros(1, 5), {}), r'step expects \(batch, 6\), got shape \[1, 5\]'),
])  # fmt: skip
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
