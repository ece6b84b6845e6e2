"""Checkpoints of DiffWave-SaShiMi as released (albertfgu/diffwave-sashimi) in ours, with equal outputs.

Shape legend: H = d_model, p = pool.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from s4nd.diffusion import step_network
from s4nd.interop._names import Names, fill
from s4nd.interop._parts import s4_args, s4_state, take_conv, take_linear, take_norm, take_s4
from s4nd.interop.formats import Format

from ..models.backbone import Level
from ..models.denoiser import DenoisingBlock, DiffusionSaShiMi
from ._levels import level_args, pools

_MAPS = {  # ours: released
    'step_embedding.0.': 'fc_t1.',
    'step_embedding.2.': 'fc_t2.',
    'leave.0.': 'final_conv.0.conv.',
    'leave.2.': 'final_conv.2.conv.',
}


def load_diffwave(
    weights: Mapping[str, Any],
    *,
    length: int | None = None,
    steps: int = 200,
    beta_min: float = 1e-4,
    beta_max: float = 0.02,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> DiffusionSaShiMi:
    """Build the denoiser that a checkpoint holds: it predicts the same noise, and draws waveforms.

    Sizes, pools, U-Net and the upsampling of a spectrogram follow from the weights. The name of the format is
    'diffwave_sashimi'.

    Args:
        weights: tensors or arrays by their released names.
        length: L in training, which bounds the reach of kernels. None: that of the finest kernels that have run (L in
            their weights), or no bound.
        steps, beta_min, beta_max: the schedule (released: 200, 1e-4, 0.02, and 50 steps to 0.05 for vocoders).
        device, dtype: of the model.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights)
    length = _trained_length(names, length)
    model = DiffusionSaShiMi(
        steps=steps, beta_min=beta_min, beta_max=beta_max, length=length, **_model_args(names)
    ).double()
    model.step_embedding = step_network(len(names.take('fc_t2.bias')), len(names.take('fc_t1.bias'))).double()
    state = take_linear(names, 'init_conv.0.conv.', 'enter.') | take_norm(names, 'norm.', 'backbone.norm.')[1]
    for ours, theirs in _MAPS.items():
        state |= take_linear(names, theirs, ours)
    for ours, theirs in _places(model):
        state |= _part(model.get_submodule(ours), f'{ours}.', names, theirs)
    names.check_empty()
    fill(model, state)
    return model.to(device=device, dtype=dtype or torch.float32)


def _model_args(names: Names) -> dict[str, Any]:
    """Keywords of the model that the weights tell."""
    down, center = names.modules('d_layers.'), names.modules('c_layers.')
    if not center:
        raise ValueError('no c_layers.0.… in the published weights')
    d_model, first, ff = len(names.take('init_conv.0.conv.bias')), center[0], f'{center[0]}ff.ff.0.conv.bias'
    levels, width = level_args(names, d_model, [f'{part}linear.conv.' for part in pools(names, down)])
    return levels | {
        'condition': len(names.take('fc_t2.bias')),
        'd_model': d_model,
        'n_layers': len(center),
        'ff': len(names.take(ff)) // width if ff in names else 0,
        'mixer_args': s4_args(take_s4(names, f'{first}layer.')),
        'unet': len(down) > len(levels['pool']),
        'mel': [_factor(names, part) for part in names.modules(f'{first}upsample_conv2d.')] or None,
    }


def _part(module: nn.Module, ours: str, names: Names, theirs: str) -> dict[str, Tensor]:
    """The state of one block or pool."""
    if not isinstance(module, DenoisingBlock):
        return take_linear(names, f'{theirs}linear.conv.', ours)
    state = s4_state(module.s4.s4, take_s4(names, f'{theirs}layer.'), f'{ours}s4.s4.', 'exp')
    state |= take_linear(names, f'{theirs}layer.output_linear.0.', f'{ours}s4.linear.')
    state |= take_linear(names, f'{theirs}fc_t.', f'{ours}s4.condition.')
    state |= take_norm(names, f'{theirs}norm1.', f'{ours}s4.norm.')[1]
    if not isinstance(module.ff, nn.Identity):
        state |= take_norm(names, f'{theirs}norm2.', f'{ours}ff.norm.')[1]
        state |= take_linear(names, f'{theirs}ff.ff.0.conv.', f'{ours}ff.linear1.')
        state |= take_linear(names, f'{theirs}ff.ff.2.conv.', f'{ours}ff.linear2.')
    if module.mel is not None:
        state |= take_linear(names, f'{theirs}mel_conv.conv.', f'{ours}mel.linear.')
        for i in (0, 1):
            state |= take_conv(names, f'{theirs}upsample_conv2d.{i}.', f'{ours}mel.upsample.{i}.')
    return state


def _places(model: DiffusionSaShiMi) -> Iterator[tuple[str, str]]:
    """Our name and the released prefix of every block and pool; both lists of levels are flat."""
    levels = [cast(Level, level) for level in model.backbone.levels]
    down = [(i, name) for i, level in enumerate(levels) for name in [*_numbered('down', level.down), 'pool']]
    up = [(i, name) for i, level in reversed([*enumerate(levels)]) for name in ['unpool', *_numbered('up', level.up)]]
    for which, places in (('d_layers', down), ('u_layers', up)):
        for at, (i, name) in enumerate(places):
            yield f'backbone.levels.{i}.{name}', f'{which}.{at}.'
    for j in range(len(model.backbone.center)):
        yield f'backbone.center.{j}', f'c_layers.{j}.'


def _numbered(name: str, blocks: nn.ModuleList) -> list[str]:
    return [f'{name}.{j}' for j in range(len(blocks))]


def _factor(names: Names, theirs: str) -> int:
    (kernel,) = [
        value for name, value in take_conv(names, theirs, '').items() if name.endswith(('original1', 'weight'))
    ]
    return kernel.shape[-1] // 2


def _trained_length(names: Names, given: int | None) -> int | None:
    """The length in training: as given, or what the finest level's kernels have stored."""
    up = names.modules('u_layers.')
    stored = f'{up[-1]}layer.kernel.kernel.L' if up else ''
    if given is not None or stored not in names:
        return given
    return int(names.take(stored)) or None


FORMAT = Format(
    'albertfgu/diffwave-sashimi',
    lambda weights: 'fc_t1.weight' in weights and any(name.startswith('c_layers.0.layer.') for name in weights),
    load_diffwave,
)
