"""State dicts of Mega as released (facebookresearch/mega) in ours, with equal outputs.

In the released names of the EMA, `delta` is what the paper and this package call α, and `alpha` is δ.
Shape legend: C = d_model, N = d_state, Z = d_key, V = d_value.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s4nd.interop._names import Names, fill
from s4nd.layers.mega import Mega, MovingAverage, NormalizedFeedForward


def load_moving_average(
    weights: Mapping[str, Any], prefix: str = '', *, l_max: int | None = None, **place: Any
) -> MovingAverage:
    """Build the average whose names begin with `prefix` ('move.' in a layer).

    Args:
        weights: tensors or arrays by their released names: delta, alpha, beta, gamma, omega.
        l_max: `truncation` of the released module, which its weights do not tell.
        place: device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over, or of another shape.
    """
    names = Names(weights, prefix)
    rows, d_state = names.take('gamma').shape
    d_model = len(names.take('omega'))
    average = MovingAverage(d_model, d_state=d_state, bidirectional=rows == 2 * d_model, l_max=l_max, **place)
    fill(average, _average(names))
    names.check_empty()
    return average


def load_mega(
    weights: Mapping[str, Any],
    prefix: str = '',
    *,
    attention: str = 'softmax',
    chunk: int | None = None,
    prenorm: bool = True,
    **place: Any,
) -> Mega:
    """Build the layer (MovingAverageGatedAttention) whose names begin with `prefix`.

    Sizes, the norm, the bias and whether it is bidirectional follow from the weights.

    Args:
        weights: tensors or arrays by their released names.
        attention: 'softmax', 'laplace' or 'relu2'.
        chunk, prenorm: as `Mega`, which the weights do not tell either.
        place: device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over, or of another shape.
    """
    names = Names(weights, prefix)
    names.drop('rel_pos_bias._float_tensor')
    d_value, d_model = names.take('v_proj.weight').shape
    scale = names.take('gamma')
    norm, norm_state = take_sequence_norm(names)
    bias, table = _bias(names)
    layer = Mega(
        d_model,
        chunk=chunk,
        d_key=scale.shape[1],
        d_value=d_value,
        d_state=names.take('move.gamma').shape[1],
        bidirectional=len(names.take('move.gamma')) == 2 * d_model,
        attention=attention,
        max_length=table,
        norm=norm,
        prenorm=prenorm,
        **place,
    )
    state = norm_state | bias | {'scale': scale, 'shift': names.take('beta')}
    state |= _maps(names, prefix, [d_model, scale.shape[1], d_value, d_model])
    state |= {f'average.{name}': value for name, value in _average(names, 'move.').items()}
    fill(layer, state)
    names.check_empty()
    return layer


def load_feed_forward(
    weights: Mapping[str, Any], prefix: str = '', *, prenorm: bool = True, **place: Any
) -> NormalizedFeedForward:
    """Build the NormalizedFeedForwardNetwork whose names begin with `prefix`. Raises as `load_mega`."""
    names = Names(weights, prefix)
    hidden, d_model = names.take('fc1.weight').shape
    norm, state = take_sequence_norm(names)
    block = NormalizedFeedForward(d_model, hidden, norm=norm, prenorm=prenorm, **place)
    for i in (1, 2):
        state |= names.take_all(f'fc{i}.', f'linear{i}.')
    fill(block, state)
    names.check_empty()
    return block


def _maps(names: Names, prefix: str, sizes: list[int]) -> dict[str, Tensor]:
    """The linear maps; `sizes`: rows of update, z, reset and h in mx_proj."""
    state = {}
    for part in ('weight', 'bias'):
        if names.take(f'mx_proj.{part}').shape[0] != sum(sizes):
            raise ValueError(f'{prefix}mx_proj.{part}: expected {sum(sizes)} rows, of sizes {sizes}')
        update, z, reset, h = names.take(f'mx_proj.{part}').split(sizes)
        state[f'gates.{part}'] = torch.cat([z, reset, update, h])
        state[f'value.{part}'] = names.take(f'v_proj.{part}')
        state[f'hidden.{part}'] = names.take(f'h_proj.{part}')
    return state


def _average(names: Names, prefix: str = '') -> dict[str, Tensor]:
    ours = {'delta': 'alpha', 'alpha': 'delta', 'beta': 'beta'}
    state = {f'kernel.{name}': names.take(f'{prefix}{theirs}')[..., 0] for theirs, name in ours.items()}
    return state | {'kernel.gamma': names.take(f'{prefix}gamma')[None], 'omega': names.take(f'{prefix}omega')}


def take_sequence_norm(names: Names) -> tuple[str, dict[str, Tensor]]:
    """The name of the norm (SequenceNorm) under 'norm.norm.', and its tensors under 'norm.'."""
    state = names.take_all('norm.norm.', 'norm.')
    for name, mark in (('scale', 'norm.scalar'), ('batch', 'norm.running_mean'), ('layer', 'norm.bias')):
        if mark in state:
            return name, state
    return 'rms', state


def _bias(names: Names) -> tuple[dict[str, Tensor], int | None]:
    """The bias of the lag, and its max_length where it is a table."""
    if 'rel_pos_bias.rel_pos_bias' in names:
        table = names.take('rel_pos_bias.rel_pos_bias')
        return {'attention.bias.weight': table[None]}, (len(table) + 1) // 2
    # Halves of the entries are turned together; ours are pairs.
    pairs = {name: names.take(f'rel_pos_bias.{name}').unflatten(1, (2, -1)).mT for name in ('alpha', 'beta')}
    return {f'attention.bias.{name}': value for name, value in pairs.items()}, None
