"""State dicts of SGConv (ctlllll/SGConv) in ours, with equal outputs.

Shape legend: H = d_model, c = channels, d = taps of a sub-kernel.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s4nd.interop._names import Names, build_gated
from s4nd.layers.block import GatedLayer
from s4nd.layers.s4 import S4


def load_sgconv(
    weights: Mapping[str, Any], prefix: str = '', *, length: int | None = None, mode: str = 'cat_randn', **place: Any
) -> GatedLayer:
    """Build the layer (GConv) whose names begin with `prefix`: D, multiplier, kernel_norm, kernel_list.…,
    output_linear.0.….

    Args:
        weights: tensors or arrays by their released names.
        length: `l_max` of the released layer. None: all taps that the weights give, a power of two times d.
        mode: as released, 'cat' or 'sum', '_randn', and '_nearest' for that interpolation.
        place: device and dtype.

    Raises:
        ValueError: for an unknown mode, and naming the first tensor that is missing, left over or of another shape.
    """
    parts = mode.split('_')
    if parts[0] not in ('cat', 'sum') or set(parts[1:]) - {'randn', 'linear', 'nearest'}:
        raise ValueError(f"unknown mode {mode!r}: expected 'cat_randn' or 'sum_randn', with '_nearest' or without")
    names = Names(weights, prefix)
    D = names.take('D')
    weight = _sub_kernels(names)
    whole = weight.shape[3] * 2 ** (weight.shape[2] - 1)
    layer = S4(
        D.shape[1],
        kernel='sgconv',
        d_state=weight.shape[3],
        bidirectional=len(weight) == 2 * len(D),
        l_max=whole if length is None else length,
        channels=len(D),
        cell='published',
        kernel_args={
            'length': whole,
            'mode': parts[0],
            'interpolation': 'nearest' if 'nearest' in parts else 'linear',
        },
        **place,
    )
    state = {
        'layer.D': D,
        'layer.kernels.0.weight': weight,
        'layer.kernels.0.norm': names.take('kernel_norm'),
        'layer.kernels.0.decay': names.take('multiplier').flatten(),
    }
    is_normed = 'kernel_norm_initialized' not in names or bool(names.take('kernel_norm_initialized'))
    block = build_gated(names, layer, state, place)
    if not is_normed:
        layer.kernels[0].reset_norm()
    return block


def _sub_kernels(names: Names) -> Tensor:
    """All sub-kernels, (c, H, S, d)."""
    kernels = [names.take('kernel_list.0')]
    while f'kernel_list.{len(kernels)}' in names:
        kernels.append(names.take(f'kernel_list.{len(kernels)}'))
    return torch.stack(kernels, 2)
