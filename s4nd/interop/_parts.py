"""Parts that published models have in common: linear maps, weight-normalized or not, norms, S4 layers of all ages.

Each function takes the tensors of a part out of `Names` and returns them under the names that they have here.
Shape legend: H = d_model, S = n_ssm, n = stored modes, c = channels, r = rank of P.
"""

from typing import Any

import torch
from torch import Tensor

from s4nd.interop._names import Names
from s4nd.interop.published import load_published_kernel
from s4nd.layers import S4

# Names of a weight-normalized map: as torch wrote them until 2.0, and as it does now.
_NORMED = [('weight_g', 'weight_v'), ('parametrizations.weight.original0', 'parametrizations.weight.original1')]


def is_weight_normed(names: Names, theirs: str) -> bool:
    """Whether the map under `theirs` ('….linear.') is a direction and a length per row."""
    return any(f'{theirs}{length}' in names for length, _ in _NORMED)


def take_linear(names: Names, theirs: str, ours: str) -> dict[str, Tensor]:
    """A linear map, in theirs perhaps a convolution of width 1; a weight norm is kept."""
    for length, direction in _NORMED:
        if f'{theirs}{length}' in names:
            weight = names.take(theirs + direction).flatten(1)
            found = {
                f'{ours}parametrizations.weight.original0': names.take(theirs + length).flatten(1),
                f'{ours}parametrizations.weight.original1': weight,
            }
            break
    else:
        found = {f'{ours}weight': names.take(f'{theirs}weight').flatten(1)}
    return found | {f'{ours}bias': names.take(f'{theirs}bias').flatten()}


def take_conv(names: Names, theirs: str, ours: str) -> dict[str, Tensor]:
    """A convolution with all its axes; a weight norm is kept."""
    for length, direction in _NORMED:
        if f'{theirs}{length}' in names:
            found = {
                f'{ours}parametrizations.weight.original0': names.take(theirs + length),
                f'{ours}parametrizations.weight.original1': names.take(theirs + direction),
            }
            break
    else:
        found = {f'{ours}weight': names.take(f'{theirs}weight')}
    return found | {f'{ours}bias': names.take(f'{theirs}bias')}


def take_norm(names: Names, theirs: str, ours: str) -> tuple[str, dict[str, Tensor]]:
    """A norm, perhaps one level deeper, with its name for `make_norm`: 'scalar' (m, s) or 'layer' (weight, bias)."""
    deeper = f'{theirs}norm.'
    theirs = deeper if f'{deeper}m' in names or f'{deeper}weight' in names else theirs
    kind, tensors = ('scalar', ('m', 's')) if f'{theirs}m' in names else ('layer', ('weight', 'bias'))
    return kind, {ours + name: names.take(theirs + name) for name in tensors}


def take_s4(names: Names, theirs: str) -> dict[str, Tensor]:
    """An S4 layer under its latest names: D, inv_dt, A_real, A_imag, B, C, and P and l_kernel where it has them.

    theirs: of the block, which holds 'layer.kernel.inv_dt' (v4) or 'kernel.kernel.log_dt' (v2, v3; there Im A has the
    other sign).
    """
    if f'{theirs}kernel.kernel.log_dt' in names:
        old = names.take_all(f'{theirs}kernel.kernel.')
        layer = {
            'D': names.take(f'{theirs}D'),
            'inv_dt': old.pop('log_dt')[:, None],
            'A_real': old.pop('inv_w_real'),
            'A_imag': -old.pop('w_imag'),
        }
        if 'L' in old:
            layer['l_kernel'] = old.pop('L')
        return layer | old
    return {'D': names.take(f'{theirs}layer.D')} | names.take_all(f'{theirs}layer.kernel.')


def s4_args(layer: dict[str, Tensor]) -> dict[str, Any]:
    """Keywords of S4 that the shapes of a layer tell; n_ssm is 'd_model' where each feature has its own A."""
    rows, modes = layer['A_real'].shape
    args: dict[str, Any] = {'n_ssm': 'd_model' if rows == layer['D'].shape[1] else rows}
    if 'P' in layer:
        args['rank'] = len(layer['P'])
    return {'kernel': 's4' if 'P' in layer else 's4d', 'd_state': 2 * modes, 'kernel_args': args}


def s4_state(target: S4, layer: dict[str, Tensor], ours: str, dt_transform: str) -> dict[str, Tensor]:
    """The state of `target` (its sizes and dtype) as the published layer has it; C that was stored as C~ is solved for.

    Raises:
        ValueError: as `load_published_kernel`, naming the layer.
    """
    try:
        load_published_kernel(target.kernels[0], layer, dt_transform=dt_transform)
    except ValueError as error:
        raise ValueError(f'{ours}{error}') from error
    with torch.no_grad():
        state = {name: value.clone() for name, value in target.state_dict().items() if not name.endswith('_grid')}
    return {ours + name: value for name, value in state.items()} | {f'{ours}D': layer['D']}
