"""Checkpoints of SaShiMi as trained with state-spaces/s4, and of its standalone file, in ours, with equal outputs.

Names: encoder.0 (the embedding), model.d_layers, model.c_layers, model.u_layers, model.norm, and
decoder.0.output_transform (the head). State-space names are those of v4 or of earlier versions.
Shape legend: H = d_model, p = pool.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from s4nd.interop._names import Names, fill
from s4nd.interop._parts import is_weight_normed, s4_args, s4_state, take_linear, take_norm, take_s4
from s4nd.interop.formats import Format
from s4nd.models.s4_block import S4Block

from ..models.backbone import Level
from ..models.sashimi import SaShiMi
from ._levels import level_args, pools


def load_sashimi(
    weights: Mapping[str, Any],
    *,
    dt_transform: str = 'exp',
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> SaShiMi:
    """Build the SaShiMi that a checkpoint holds: it gives the same logits, and generates.

    Sizes, norms, weight normalization, U-Net and gates follow from the weights. C that was stored as C (I - Ā^l) is
    solved for. The name of the format is 'sashimi'.

    Args:
        weights: tensors or arrays by their published names.
        dt_transform: 'exp' or 'softplus' (the default of later configurations): what inv_dt goes through. Weights do
            not tell it.
        device, dtype: of the model.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape, and for a number of codes
            that is no power of 2.
    """
    names = Names(weights)
    model = SaShiMi(**_model_args(names), dtype=torch.float64)
    state = take_linear(names, 'decoder.0.output_transform.', 'head.')
    state['embedding.weight'] = names.take('encoder.0.weight')
    state |= take_norm(names, 'model.norm.', 'backbone.norm.')[1]
    for ours, theirs in _places(model):
        state |= _part(model, ours, names, theirs, dt_transform)
    names.check_empty()
    fill(model, state)
    return model.to(device=device, dtype=dtype or torch.float32)


def _model_args(names: Names) -> dict[str, Any]:
    """Keywords of the model that the weights tell."""
    codes, d_model = names.take('encoder.0.weight').shape
    if codes != 1 << (codes.bit_length() - 1):
        raise ValueError(f'encoder.0.weight: expected a power of 2 codes, got {codes}')
    down, center = names.modules('model.d_layers.'), names.modules('model.c_layers.')
    maps = [f'{part}linear.' for part in pools(names, down)]
    levels, width = level_args(names, d_model, maps)
    first = take_s4(names, f'{center[0]}layer.') if center else {}
    if not first:
        raise ValueError('no model.c_layers.0.… in the published weights')
    if len(first['C']) != len(first['D']):
        raise ValueError(f'{center[0]}…C: expected a causal model, got {len(first["C"])} kernels per feature')
    ff = [part for part in center if f'{part}layer.ff.0.0.weight' in names]
    last = names.take(f'{center[0]}layer.output_linear.0.weight')
    return levels | {
        'bits': codes.bit_length() - 1,
        'd_model': d_model,
        'n_layers': len(center) - len(ff),
        'ff': len(names.take(f'{ff[0]}layer.ff.0.0.weight')) // width if ff else 0,
        'mixer_args': s4_args(first),
        'glu': len(last) == 2 * last.shape[1],
        'unet': len(maps) < len(down),
        'norm': take_norm(names, f'{center[0]}norm.', '')[0],
        'weight_norm': bool(maps) and is_weight_normed(names, maps[0]),
    }


def _part(model: SaShiMi, ours: str, names: Names, theirs: str, dt_transform: str) -> dict[str, Tensor]:
    """The state of one block or pool."""
    module = model.get_submodule(ours)
    ours += '.'
    if not hasattr(module, 'norm'):
        return take_linear(names, f'{theirs}linear.', ours)
    state = take_norm(names, f'{theirs}norm.', f'{ours}norm.')[1]
    if isinstance(module, S4Block):
        layer = take_s4(names, f'{theirs}layer.')
        state |= s4_state(module.s4, layer, f'{ours}s4.', dt_transform)
        return state | take_linear(names, f'{theirs}layer.output_linear.0.', f'{ours}linear.')
    state |= take_linear(names, f'{theirs}layer.ff.0.0.', f'{ours}linear1.')
    return state | take_linear(names, f'{theirs}layer.ff.2.', f'{ours}linear2.')


def _places(model: SaShiMi) -> Iterator[tuple[str, str]]:
    """Our name and the published prefix of every block and pool."""
    levels = [cast(Level, level) for level in model.backbone.levels]
    at = 0
    for i, level in enumerate(levels):
        for j in range(len(level.down)):
            yield f'backbone.levels.{i}.down.{j}', f'model.d_layers.{at + j}.'
        at += len(level.down) + 1
        yield f'backbone.levels.{i}.pool', f'model.d_layers.{at - 1}.'
    for j in range(len(model.backbone.center)):
        yield f'backbone.center.{j}', f'model.c_layers.{j}.'
    at = 0
    for i, level in reversed(list(enumerate(levels))):
        for j, ours in enumerate(['unpool', *(f'up.{j}' for j in range(len(level.up)))]):
            # A U-Net has one flat list, others a list for each level.
            theirs = f'{at + j}.' if level.unet else f'{len(levels) - 1 - i}.{j}.'
            yield f'backbone.levels.{i}.{ours}', f'model.u_layers.{theirs}'
        at += len(level.up) + 1


FORMAT = Format(
    'state-spaces/s4 (SaShiMi, all versions of the names)',
    lambda weights: 'encoder.0.weight' in weights and any(name.startswith('model.c_layers.') for name in weights),
    load_sashimi,
)
