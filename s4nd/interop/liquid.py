"""Weights of Liquid-S4 (raminmh/liquid-s4) with a diagonal kernel in ours.

The released liquid terms are faulty (see layers/liquid.py), so that trained outputs are not reproduced where they are
on: the layer computes what they stand for. Without them, outputs are equal.
Shape legend: H = d_model, n = stored modes.
"""

from collections.abc import Mapping
from typing import Any

import torch

from s4nd.interop._names import Names, fill
from s4nd.layers.liquid import LiquidS4


def load_liquid(
    weights: Mapping[str, Any], prefix: str = '', *, mode: str = 'allcombs', degree: int = 2, **place: Any
) -> LiquidS4:
    """Build the layer whose names begin with `prefix`: D, kernel.kernel.….

    Args:
        weights: tensors or arrays by their released names.
        mode, degree: as `LiquidS4`; released allcombs=True is 'allcombs', else liquid_kernel 'kb' is 'kb' and 'polyb'
            is 'pb'.
        place: device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights, prefix)
    names.drop('kernel.kernel.A')  # a copy from construction that nothing reads
    D, C, B = names.take('D'), names.take('kernel.kernel.C'), names.take('kernel.kernel.B')
    layer = LiquidS4(
        D.shape[1],
        kernel='s4d',
        degree=degree,
        mode=mode,
        d_state=2 * C.shape[2],
        kernel_args={'n_ssm': len(B), 'discretization': 'bilinear'},
        **place,
    )
    state = {
        # Im A is positive there: all is conjugated.
        'C': torch.stack([C[..., 0], -C[..., 1]], -1),
        'B': torch.stack([B[..., 0], -B[..., 1]], -1),
        'log_dt': names.take('kernel.kernel.log_dt')[:, None],
        'log_A_real': names.take('kernel.kernel.inv_A_real'),
        'A_imag': names.take('kernel.kernel.A_imag'),
    }
    fill(layer, {f'kernels.0.{name}': value for name, value in state.items()} | {'D': D})
    names.check_empty()
    return layer
