"""Formats of `load_published` for published layers and the classifier of state-spaces/s4."""

from collections.abc import Mapping
from typing import Any

from s4nd.interop.formats import Format
from s4nd.interop.mega import load_mega
from s4nd.interop.s4_block import load_s4_classifier
from s4nd.interop.s5 import load_s5
from s4nd.models.sequence import SequenceModel


def load_classifier(
    weights: Mapping[str, Any],
    *,
    pool: str = 'mean',
    l_max: int | None = None,
    discretization: str = 'zoh',
    dt_transform: str = 'exp',
    **place: Any,
) -> SequenceModel:
    """Build the classifier that a checkpoint holds; see `load_s4_classifier`."""
    return load_s4_classifier(
        weights, pool=pool, l_max=l_max, discretization=discretization, dt_transform=dt_transform, **place
    )


MEGA = Format(
    'facebookresearch/mega (one layer)', lambda weights: {'mx_proj.weight', 'move.omega'} <= weights.keys(), load_mega
)
S5 = Format(
    'lindermanlab/S5 or i404788/s5-pytorch (one layer)',
    lambda weights: 'log_step' in weights and ('Lambda_re' in weights or 'Lambda' in weights),
    load_s5,
)
S4_CLASSIFIER = Format(
    'state-spaces/s4 (classifier)',
    lambda weights: (
        'encoder.weight' in weights and any(name.startswith('model.layers.0.layer.layer.') for name in weights)
    ),
    load_classifier,
)
