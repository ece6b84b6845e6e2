"""Checkpoints of SSSD-S4 as released (AI4HealthUOL/SSSD, SSSDS4Imputer) in ours, with equal outputs.

Shape legend: H = width of an S4 layer, n = stored modes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s4nd.diffusion import step_network
from s4nd.interop._names import Names, fill
from s4nd.interop._parts import s4_args, s4_state, take_conv, take_linear, take_norm
from s4nd.interop.formats import Format
from s4nd.models.sssd import SSSDS4

_BLOCKS = 'residual_layer.residual_blocks'
_MAPS = {  # ours: released
    'enter.': 'init_conv.0.conv.',
    'step_embedding.0.': 'residual_layer.fc_t1.',
    'step_embedding.2.': 'residual_layer.fc_t2.',
    'leave.0.': 'final_conv.0.conv.',
    'leave.2.': 'final_conv.2.conv.',
}


def load_sssd(
    weights: Mapping[str, Any],
    *,
    l_max: int = 100,
    steps: int = 200,
    beta_min: float = 1e-4,
    beta_max: float = 0.02,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> SSSDS4:
    """Build the imputer that a checkpoint holds. The name of the format is 'sssd'.

    Args:
        weights: tensors or arrays by their released names.
        l_max: released s4_lmax. C is stored as C (I - Ā^l_max), and is solved for; weights do not tell it.
        steps, beta_min, beta_max: the schedule (released: 200, 1e-4, 0.02).
        device, dtype: of the model.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape, and for Q that is not the
            conjugate of P.
    """
    names = Names(weights)
    count = len(names.modules(f'{_BLOCKS}.'))
    first = f'{_BLOCKS}.0.'
    layer = _layer(names, f'{first}S41.s4_layer.', l_max)
    condition, hidden = names.take('residual_layer.fc_t2.weight').shape
    model = SSSDS4(
        len(names.take('final_conv.2.conv.bias')),
        len(names.take('init_conv.0.conv.bias')),
        count,
        mixer_args=s4_args(layer),
        bidirectional=len(layer['C']) == 2 * len(layer['D']),
        norm='layer' if names.has(f'{first}S41.norm_layer.') else None,
        skip=len(names.take('final_conv.0.conv.bias')),
        condition=condition,
        diffusion={'steps': steps, 'beta_min': beta_min, 'beta_max': beta_max},
    ).double()
    features = names.take('residual_layer.fc_t1.weight').shape[1]
    model.step_embedding = step_network(condition, hidden, features).double()
    state: dict[str, Tensor] = {}
    for ours, theirs in _MAPS.items():
        state |= take_linear(names, theirs, ours)
    for i in range(count):
        state |= _block(model, names, i, l_max)
    names.check_empty()
    fill(model, state)
    return model.to(device=device, dtype=dtype or torch.float32)


def _block(model: SSSDS4, names: Names, i: int, l_max: int) -> dict[str, Tensor]:
    block, ours, theirs = model.blocks[i], f'blocks.{i}.', f'{_BLOCKS}.{i}.'
    state = take_linear(names, f'{theirs}fc_t.', f'{ours}condition.')
    state |= take_conv(names, f'{theirs}conv_layer.conv.', f'{ours}conv.')
    state |= take_linear(names, f'{theirs}cond_conv.conv.', f'{ours}known.')
    both = [take_linear(names, f'{theirs}{part}_conv.', f'{ours}out.') for part in ('res', 'skip')]
    state |= {name: torch.cat([part[name] for part in both]) for name in both[0]}
    for name, ours_name in (('S41', 's4_1'), ('S42', 's4_2')):
        part = getattr(block, ours_name)
        layer = _layer(names, f'{theirs}{name}.s4_layer.', l_max)
        state |= s4_state(part.s4, layer, f'{ours}{ours_name}.s4.', 'exp')
        state |= take_linear(names, f'{theirs}{name}.s4_layer.output_linear.', f'{ours}{ours_name}.linear.')
        if names.has(f'{theirs}{name}.norm_layer.'):
            state |= take_norm(names, f'{theirs}{name}.norm_layer.', f'{ours}{ours_name}.norm.')[1]
    return state


def _layer(names: Names, theirs: str, l_max: int) -> dict[str, Tensor]:
    """An S4 layer under the names of state-spaces/s4, version 4."""
    kernel = {name: names.take(f'{theirs}kernel.kernel.{name}') for name in ('w', 'P', 'Q', 'B', 'C', 'log_dt')}
    w, P, Q = kernel.pop('w'), kernel['P'], kernel.pop('Q')
    if not torch.equal(Q[..., 0], P[..., 0]) or not torch.equal(Q[..., 1], -P[..., 1]):
        raise ValueError(f'{theirs}kernel.kernel.Q: expected the conjugate of P, with which it is never trained')
    if not (w[..., 0] < 0).all():
        raise ValueError(f'{theirs}kernel.kernel.w: expected negative real parts, got {float(w[..., 0].max())}')
    return kernel | {
        'D': names.take(f'{theirs}D'),
        'inv_dt': kernel.pop('log_dt')[:, None],
        'A_real': (-w[..., 0]).log(),
        'A_imag': -w[..., 1],
        'l_kernel': torch.tensor(l_max),
    }


FORMAT = Format('AI4HealthUOL/SSSD (SSSDS4Imputer)', lambda weights: f'{_BLOCKS}.0.fc_t.weight' in weights, load_sssd)
