"""Checkpoints of SaShiMi as trained with state-spaces/s4, and of its standalone file, in ours, with equal outputs.

Names: encoder.0 (the embedding), model.d_layers, model.c_layers, model.u_layers, model.norm, and
decoder.0.output_transform (the head). State-space names are those of v4 or of earlier versions.
Shape legend: H = d_model, p = pool.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from audio.models.backbone import Level
from audio.models.sashimi import SaShiMi
from s4nd.interop._names import Names, fill
from s4nd.interop._parts import is_weight_normed, s4_args, s4_state, take_linear, take_norm, take_s4
from s4nd.interop.formats import Format
from s4nd.models.sequence import S4Block


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
    embedding = names.take('encoder.0.weight')
    codes, d_model = embedding.shape
    if codes != 1 << (codes.bit_length() - 1):
        raise ValueError(f'encoder.0.weight: expected a power of 2 codes, got {codes}')
    pools = [i for i in _numbers(names, 'model.d_layers.{}.') if _is_pool(names, f'model.d_layers.{i}.')]
    shapes = [_shape(names, f'model.d_layers.{i}.linear.') for i in pools]
    widths = [d_model, *(out for out, _ in shapes)]
    pool = [features // width for width, (_, features) in zip(widths, shapes, strict=False)]
    center = [f'model.c_layers.{i}.' for i in _numbers(names, 'model.c_layers.{}.')]
    first = take_s4(names, f'{center[0]}layer.') if center else {}
    if not first:
        raise ValueError('no model.c_layers.0.… in the published weights')
    if len(first['C']) != len(first['D']):
        raise ValueError(f'{center[0]}…C: expected a causal model, got {len(first["C"])} kernels per feature')
    ff = [part for part in center if f'{part}layer.ff.0.0.weight' in names]
    last = names.take(f'{center[0]}layer.output_linear.0.weight')
    unet = len(pools) < len(list(_numbers(names, 'model.d_layers.{}.')))
    kind, _ = take_norm(names, f'{center[0]}norm.', '')
    model = SaShiMi(
        codes.bit_length() - 1,
        d_model=d_model,
        n_layers=len(center) - len(ff),
        pool=pool,
        expand=widths[1] // d_model if pools else 1,
        ff=len(names.take(f'{ff[0]}layer.ff.0.0.weight')) // widths[-1] if ff else 0,
        mixer_args=s4_args(first),
        glu=len(last) == 2 * last.shape[1],
        unet=unet,
        norm=kind,
        weight_norm=bool(pools) and is_weight_normed(names, f'model.d_layers.{pools[0]}.linear.'),
        dtype=torch.float64,
    )
    state = {'embedding.weight': embedding} | take_linear(names, 'decoder.0.output_transform.', 'head.')
    state |= take_norm(names, 'model.norm.', 'backbone.norm.')[1]
    for ours, theirs in _places(model):
        state |= _part(model, ours, names, theirs, dt_transform)
    names.check_empty()
    fill(model, state)
    return model.to(device=device, dtype=dtype or torch.float32)


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


def _numbers(names: Names, pattern: str) -> Iterator[int]:
    """Numbers of a list of modules, whose names begin with `pattern`."""
    i = 0
    while names.has(pattern.format(i)):
        yield i
        i += 1


def _is_pool(names: Names, theirs: str) -> bool:
    return names.has(f'{theirs}linear.')


def _shape(names: Names, theirs: str) -> tuple[int, int]:
    """(out, in) of a linear map."""
    (weight,) = [
        value for name, value in take_linear(names, theirs, '').items() if value.dim() == 2 and name[-1] != '0'
    ]
    return weight.shape[0], weight.shape[1]


FORMAT = Format(
    'state-spaces/s4 (SaShiMi, all versions of the names)',
    lambda weights: 'encoder.0.weight' in weights and any(name.startswith('model.c_layers.') for name in weights),
    load_sashimi,
)
