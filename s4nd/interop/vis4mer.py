"""Checkpoints of ViS4mer as released (md-mohaiminul/ViS4mer) in ours, with equal outputs.

Shape legend: H = d_model of a level, n = stored modes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s4nd.interop._names import Names, fill
from s4nd.interop._parts import take_linear, take_norm
from s4nd.interop.formats import Format
from s4nd.interop.published import undo_truncation
from s4nd.layers import S4
from s4nd.models.vis4mer_head import ViS4merBlock, ViS4merHead


def load_vis4mer(
    weights: Mapping[str, Any],
    *,
    l_max: int = 2048,
    prenorm: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ViS4merHead:
    """Build the head that a checkpoint holds: it classifies features alike. The name of the format is 'vis4mer'.

    Args:
        weights: tensors or arrays by their released names.
        l_max: tokens of a training clip, as the released model was built with. C is stored as C (I - Ā^l), with
            l = l_max, l_max // 2, … at the levels, and is solved for. Weights do not tell it.
        prenorm: whether norms stand before the S4 layers (the released default), which weights do not tell either.
        device, dtype: of the model.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights)
    dim, in_chans = names.take('encoder.weight').shape
    depth = 0
    while names.has(f's4_layers.{depth}.'):
        depth += 1
    classes, _ = names.take('decoder.weight').shape
    spectrum = names.take('s4_layers.0.kernel.krylov.w')
    model = ViS4merHead(
        in_chans,
        classes,
        dim=dim,
        depth=depth,
        mixer_args={'d_state': 2 * len(spectrum)},
        prenorm=prenorm,
        dtype=torch.float64,
    )
    state = take_linear(names, 'encoder.', 'proj.') | take_linear(names, 'decoder.', 'fc.')
    for i, block in enumerate(model.blocks):
        assert isinstance(block, ViS4merBlock)
        ours = f'blocks.{i}.'
        state |= _s4(names, f's4_layers.{i}.', block.mixer, f'{ours}mixer.', l_max // 2**i)
        state |= take_linear(names, f's4_layers.{i}.output_linear.', f'{ours}out.')
        state |= take_norm(names, f'norms.{i}.', f'{ours}norm.')[1]
        state |= take_linear(names, f'linears.{i}.', f'{ours}reduce.')
    names.check_empty()
    fill(model, state)
    return model.to(device=device, dtype=dtype or torch.float32)


@torch.no_grad()
def _s4(names: Names, theirs: str, layer: S4, ours: str, length: int) -> dict[str, Tensor]:
    """The state of one S4 layer; rows of B are B and p, of C the conjugates of C and q."""
    w, B, C = (names.take(f'{theirs}kernel.krylov.{name}') for name in ('w', 'B', 'C'))
    C = torch.stack([C[..., 0], -C[..., 1]], -1)
    state = {
        'D': names.take(f'{theirs}D')[None],
        'kernels.0.log_dt': names.take(f'{theirs}kernel.krylov.log_dt')[:, None],
        'kernels.0.A_real': w[None, :, 0],
        'kernels.0.A_imag': -w[None, :, 1],
        'kernels.0.B': B[:, 0],
        'kernels.0.P': B[None, :, 1],
        # (A = diag(w) - p q*, and q is stored: not its conjugate, as C is.)
        'kernels.0.Q': names.take(f'{theirs}kernel.krylov.C')[None, :, 1],
        'kernels.0.C': C[None, :, 0],
    }
    fill(layer, state)
    state['kernels.0.C'] = undo_truncation(layer.kernels[0], state['kernels.0.C'], length)
    return {ours + name: value for name, value in state.items()}


FORMAT = Format(
    'md-mohaiminul/ViS4mer',
    lambda weights: {'s4_layers.0.kernel.krylov.w', 'decoder.weight'} <= weights.keys(),
    load_vis4mer,
)
