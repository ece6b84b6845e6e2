"""Mega against its released code: averages, layers with every attention, bias, norm and place, feed-forward."""

import re

import pytest
import torch
from torch import Tensor

from s4nd.interop.mega import load_feed_forward, load_mega, load_moving_average
from s4nd.layers.mega import Mega, MovingAverage
from tests.reference.cases import Case, check_covered, load, of_kind

NORMS = {'layernorm': 'layer', 'scalenorm': 'scale', 'rmsnorm': 'rms', 'batchnorm': 'batch'}


def ours(x: Tensor) -> Tensor:
    """(L, B, D) -> (B, D, L), and back by `theirs`."""
    return x.permute(1, 2, 0)


def theirs(y: Tensor) -> Tensor:
    return y.permute(2, 0, 1)


def average_of(case: Case, dtype: torch.dtype) -> MovingAverage:
    average = load_moving_average(case.param, l_max=case.meta.get('truncation'), dtype=dtype).eval()
    assert average.bidirectional == case.meta['bidirectional']
    return average


def layer_of(case: Case, dtype: torch.dtype) -> Mega:
    meta = case.meta
    assert meta['activation'] == 'silu'
    chunk = None if meta['chunk'] < 0 else meta['chunk']
    layer = load_mega(case.param, attention=meta['attention'], chunk=chunk, prenorm=meta['prenorm'], dtype=dtype).eval()
    assert layer.bidirectional == meta['bidirectional']
    return layer


@of_kind('mega', 'MultiHeadEMA')
@torch.no_grad()
def test_reference_averages(case: Case) -> None:
    average, padding = average_of(case, torch.float64), case.given.get('padding')
    x = ours(case.given['x'])
    case.check('y', theirs(average(x, padding=padding)))
    case.check_float32('y', theirs(average_of(case, torch.float32)(x.float(), padding=padding)))
    if 'kernel' in case.out:
        taps = x.shape[2] if average.l_max is None else min(average.l_max, x.shape[2])
        case.check('kernel', average.kernel(taps)[0])
    if 'y_linear' in case.out:
        case.check('y_linear', theirs(average.convolve(x)))
    if 'state_final' in case.out:
        half = x.shape[2] // 2
        first, state = average(x[..., :half], average.init_state(len(x)))
        case.check('state_half', state['x'])
        second, state = average(x[..., half:], state)
        case.check('state_final', state['x'])
        case.check('y', theirs(torch.cat([first, second], -1)))


@of_kind('mega', 'MovingAverageGatedAttention')
@torch.no_grad()
def test_reference_layers(case: Case) -> None:
    layer, padding = layer_of(case, torch.float64), case.given.get('padding')
    x = ours(case.given['x'])
    case.check('y', theirs(layer(x, padding=padding)))
    case.check_float32('y', theirs(layer_of(case, torch.float32)(x.float(), padding=padding)))
    if 'weights' in case.out:
        case.check('weights', layer.attention_weights(x, padding))
    if not layer.bidirectional:
        state, outputs, system = layer.init_state(len(x)), [], layer.system()
        for x_t in x.unbind(-1):
            y, state = layer.step(x_t, state, system)
            outputs.append(y)
        case.check('y', theirs(torch.stack(outputs, -1)))
        y, _ = layer(x, layer.init_state(len(x)))
        case.check('y', theirs(y))


@of_kind('mega', 'NormalizedFeedForwardNetwork')
@torch.no_grad()
def test_reference_feed_forwards(case: Case) -> None:
    x = ours(case.given['x'])
    for dtype in (torch.float64, torch.float32):
        block = load_feed_forward(case.param, prenorm=case.meta['prenorm'], dtype=dtype).eval()
        y = theirs(block(x.to(dtype)))
        case.check('y', y) if dtype == torch.float64 else case.check_float32('y', y)


@of_kind('mega', 'initial distributions')
def test_reference_initialization(case: Case) -> None:
    """The number of parameters, and mean and deviation of each, at the size of the case."""
    torch.manual_seed(0)
    sizes = re.search(r'of a (\d+)/(\d+)/(\d+)/(\d+) (two-sided)?', case.meta['kind'])
    d_model, d_key, d_value, d_state = (int(size) for size in sizes.groups()[:4])
    layer = Mega(d_model, d_key=d_key, d_value=d_value, d_state=d_state, bidirectional=sizes[5] is not None)
    assert sum(p.numel() for p in layer.parameters()) == case.meta['params']
    names = {
        'gamma': layer.scale, 'beta': layer.shift, 'norm.norm.weight': layer.norm.weight,
        'norm.norm.bias': layer.norm.bias, 'move.delta': layer.average.kernel.alpha,
        'move.alpha': layer.average.kernel.delta, 'move.beta': layer.average.kernel.beta,
        'move.gamma': layer.average.kernel.gamma, 'move.omega': layer.average.omega,
        'v_proj.weight': layer.value.weight, 'v_proj.bias': layer.value.bias,
        'mx_proj.weight': layer.gates.weight, 'mx_proj.bias': layer.gates.bias,
        'h_proj.weight': layer.hidden.weight, 'h_proj.bias': layer.hidden.bias,
        'rel_pos_bias.alpha': layer.attention.bias.alpha, 'rel_pos_bias.beta': layer.attention.bias.beta,
    }  # fmt: skip
    assert names.keys() == case.meta['stats'].keys()
    for name, (std, mean) in case.meta['stats'].items():
        found = names[name].detach()
        assert abs(found.std() - std) < 0.15 * std + 1e-6, name
        assert abs(found.mean() - mean) < 6 * max(std, 1e-6) / found.numel() ** 0.5 + 1e-6, name


def test_reference_is_covered() -> None:
    check_covered('mega', {
        'MultiHeadEMA': {'y', 'kernel', 'y_linear', 'state_half', 'state_final'},
        'MovingAverageGatedAttention': {'y', 'weights'},
        'NormalizedFeedForwardNetwork': {'y'},
        'initial distributions': set(),
    })  # fmt: skip


@pytest.mark.parametrize('edit', ['missing', 'left over', 'shape'])
def test_reference_errors_name_the_key(edit: str) -> None:
    case = next((case for case in load('mega').values() if 'move.omega' in case.param), None)
    if case is None:
        pytest.skip('the folder of golden files holds no Mega layer')
    weights = dict(case.param)
    if edit == 'missing':
        del weights['move.beta']
    elif edit == 'left over':
        weights['move.extra'] = torch.zeros(1)
    else:
        weights['h_proj.bias'] = torch.zeros(1, 2)
    name = {'missing': 'move.beta', 'left over': 'move.extra', 'shape': 'hidden.bias'}[edit]
    with pytest.raises(ValueError, match=name):
        load_mega(weights)
