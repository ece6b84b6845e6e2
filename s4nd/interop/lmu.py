"""Weights of the LMU cell (nengo/keras-lmu) in ours, with equal outputs. Keras stores maps as (in, out).

Shape legend: D = features in, M = memories, N = polynomials, H = hidden features.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from s4nd.interop._names import Names, fill
from s4nd.layers.lmu import LMU


def load_lmu(
    weights: Mapping[str, Any],
    prefix: str = '',
    *,
    d_state: int,
    theta: float,
    discretization: str = 'zoh',
    hidden_to_memory: bool | None = None,
    input_to_hidden: bool | None = None,
    **place: Any,
) -> LMU:
    """Build the cell whose names begin with `prefix`: kernel, bias, recurrent_kernel, hidden_cell.….

    Args:
        weights: arrays or tensors by their released names.
        d_state: N (`order`).
        theta: θ in samples, which is not among the weights.
        discretization: 'zoh' or 'euler'.
        hidden_to_memory: None: whether there is a bias of the encoder, as released.
        input_to_hidden: whether x enters the cell. None: as the sizes of the cell tell; no without one.
        place: device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    names = Names(weights, prefix)
    encoder = names.take('kernel')
    memories, has_cell = encoder.shape[1], 'hidden_cell.kernel' in names
    hidden = names.take('hidden_cell.recurrent_kernel').shape[0] if has_cell else 0
    if hidden_to_memory is None:
        hidden_to_memory = 'bias' in names
    d_model = len(encoder) - (hidden if hidden_to_memory else 0)
    if input_to_hidden is None:
        input_to_hidden = has_cell and len(names.take('hidden_cell.kernel')) > memories * d_state
    layer = LMU(
        d_model,
        hidden=hidden,
        memories=memories,
        d_state=d_state,
        theta=theta,
        discretization=discretization,
        hidden_to_memory=hidden_to_memory,
        memory_to_memory='recurrent_kernel' in names,
        input_to_hidden=input_to_hidden,
        **place,
    )
    fill(layer, _state(names))
    names.check_empty()
    return layer


def _state(names: Names) -> dict[str, Tensor]:
    state = {'encoder.weight': names.take('kernel').T}
    if 'bias' in names:
        state['encoder.bias'] = names.take('bias')
    if 'recurrent_kernel' in names:
        state['recall.weight'] = names.take('recurrent_kernel').T
    if 'hidden_cell.kernel' in names:
        state['cell.weight'] = names.take('hidden_cell.kernel').T
        state['cell.bias'] = names.take('hidden_cell.bias')
        state['cell_recall.weight'] = names.take('hidden_cell.recurrent_kernel').T
    return state
