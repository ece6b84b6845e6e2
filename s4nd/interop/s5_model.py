"""Classifiers of S5 as released (lindermanlab/S5, in JAX) in ours, with equal outputs.

Shape legend: H = d_model.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from s4nd.interop._names import Names, fill
from s4nd.interop.formats import Format
from s4nd.interop.s5 import load_s5
from s4nd.layers.block import Residual, S5Gate
from s4nd.models.sequence import SequenceModel

# flax's epsilon of a LayerNorm; that of a BatchNorm is 1e-5, as here.
_LAYER_NORM_EPS = 1e-6


def load_s5_classifier(
    weights: Mapping[str, Any],
    *,
    gate: str | None = None,
    prenorm: bool = True,
    pool: str = 'mean',
    conj_sym: bool = True,
    discretization: str = 'zoh',
    clip_eigs: bool = False,
    **place: Any,
) -> SequenceModel:
    """Build the classifier (BatchClassificationModel) that a checkpoint holds. The format's name is 's5_classifier'.

    It gives logits, the released code their log-softmax. With lengths, layers and pool leave out padded samples; the
    released code leaves them out of the pool alone, which is the same unless it is two-sided.

    Args:
        weights: arrays by their paths, joined by '/' or '.': params/encoder/layers_0/seq/B, …, and with batch norms
            batch_stats/encoder/layers_0/norm/mean, ….
        gate: `activation` of the released model; None: 'half_glu1', or 'full_glu' or 'gelu' as the weights tell. They
            do not tell 'half_glu2'.
        prenorm, pool: see `Residual`, and `SequenceModel` for its head; released defaults.
        conj_sym, discretization, clip_eigs: see `load_s5`; released defaults.
        place: device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape, and for an eigenvalue
            without decay.
    """
    weights = {_path(name): value for name, value in weights.items()}
    names = Names(weights)
    state = _dense(names, 'encoder.encoder.', 'encoder.') | _dense(names, 'decoder.', 'decoder.')
    options: dict[str, Any] = {'conj_sym': conj_sym, 'discretization': discretization, 'clip_eigs': clip_eigs}
    layers: list[nn.Module] = []
    while names.has(f'encoder.layers_{len(layers)}.'):
        theirs = f'encoder.layers_{len(layers)}.'
        s5 = load_s5(weights, f'{theirs}seq.', **options, **place)
        names.take_all(f'{theirs}seq.')
        layers.append(_layer(names, theirs, S5Gate(s5, gate=_gate(names, theirs, gate), **place), prenorm, place))
    names.check_empty()
    d_model, d_input = state['encoder.weight'].shape
    classes = len(state['decoder.weight'])
    model = SequenceModel(d_input, classes, layers, d_model=d_model, norm=None, head=pool, **place)
    filled = {name: value for name, value in model.state_dict().items() if name.startswith('layers.')}
    fill(model, filled | state)
    return model


def _layer(names: Names, theirs: str, gated: S5Gate, prenorm: bool, place: Mapping[str, Any]) -> Residual:
    """A SequenceLayer, whose S5 is filled."""
    for name, part in (('out1', 'value'), ('out2', 'linear')):
        if names.has(f'{theirs}{name}.'):
            own = getattr(gated, part)
            if own is None:
                raise ValueError(f'{theirs}{name}.kernel has no place in a layer with the gate {gated.gate!r}')
            fill(own, _dense(names, f'{theirs}{name}.'))
    norm = {'weight': names.take(f'{theirs}norm.scale'), 'bias': names.take(f'{theirs}norm.bias')}
    batch = f'{theirs}norm.mean' in names
    residual = Residual(gated, gated.d_model, norm='batch' if batch else 'layer', prenorm=prenorm, **place)
    if batch:
        norm |= {f'running_{name}': names.take(f'{theirs}norm.{name}') for name in ('mean', 'var')}
        norm['num_batches_tracked'] = residual.norm.num_batches_tracked
    else:
        residual.norm.eps = _LAYER_NORM_EPS
    fill(residual.norm, norm)
    return residual


def _gate(names: Names, theirs: str, gate: str | None) -> str:
    if gate is not None:
        return gate
    return 'full_glu' if names.has(f'{theirs}out1.') else 'half_glu1' if names.has(f'{theirs}out2.') else 'gelu'


def _dense(names: Names, theirs: str, ours: str = '') -> dict[str, Tensor]:
    """A linear map, whose kernel is (in, out) in flax."""
    return {f'{ours}weight': names.take(f'{theirs}kernel').T, f'{ours}bias': names.take(f'{theirs}bias')}


def _path(name: str) -> str:
    """A path with dots and without its collection."""
    name = name.replace('/', '.')
    return name.removeprefix('params.').removeprefix('batch_stats.')


FORMAT = Format(
    'lindermanlab/S5 (classifier)',
    lambda weights: {'encoder.encoder.kernel', 'encoder.layers_0.seq.log_step'} <= {_path(name) for name in weights},
    load_s5_classifier,
)
