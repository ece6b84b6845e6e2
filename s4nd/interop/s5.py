"""Weights of S5 as released (lindermanlab/S5, in JAX; i404788/s5-pytorch) in ours, with equal outputs.

Shape legend: H = d_model, P = stored modes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s4nd.interop._names import Names, fill
from s4nd.layers.s5 import S5

# The released clip_eigs keeps the real parts of eigenvalues below this.
_CLIP = -1e-4


def load_s5(
    weights: Mapping[str, Any],
    prefix: str = '',
    *,
    conj_sym: bool | None = None,
    discretization: str = 'zoh',
    clip_eigs: bool = False,
    **place: Any,
) -> S5:
    """Build the layer (S5SSM) whose names begin with `prefix`: Lambda or Lambda_re and Lambda_im, B, C or C1 and C2, D,
    log_step.

    Args:
        weights: arrays or tensors by their released names.
        conj_sym: whether one mode of each pair is stored, which the weights do not tell; None: as the two packages do
            by default, yes in JAX (Lambda_re) and no in torch (Lambda).
        discretization: 'zoh' or 'bilinear', as trained.
        clip_eigs: whether real parts are limited to -1e-4, as a released option does.
        place: device and dtype.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape, and for an eigenvalue
            without decay.
    """
    names = Names(weights, prefix)
    if conj_sym is None:
        conj_sym = 'Lambda' not in names
    A, B, C = _system(names)
    modes = len(A)
    layer = S5(
        B.shape[1],
        d_state=2 * modes if conj_sym else modes,
        bidirectional=len(C) == 2,
        cell='published',
        discretization=discretization,
        conj_sym=conj_sym,
        **place,
    )
    real = A[:, 0].clamp(max=_CLIP) if clip_eigs else A[:, 0]
    state: dict[str, Tensor] = {
        'log_dt': names.take('log_step').flatten(),
        'log_A_real': _log_decay(real, prefix),
        'A_imag': -A[:, 1],
        'B': B,
        'C': C,
        'D': names.take('D'),
    }
    fill(layer, state)
    names.check_empty()
    return layer


def _system(names: Names) -> tuple[Tensor, Tensor, Tensor]:
    """A (P, 2), B (P, H, 2) and C (sides, H, P, 2)."""
    if 'Lambda' in names:
        A = names.take('Lambda')
    else:
        A = torch.stack([names.take(f'Lambda_{part}') for part in ('re', 'im')], -1)
    if 'C1' in names:
        C = torch.stack([names.take('C1'), names.take('C2')])
    else:
        C = names.take('C').unflatten(1, (-1, len(A))).transpose(0, 1)
    return A, names.take('B'), C


def _log_decay(real: Tensor, prefix: str) -> Tensor:
    if not (real < 0).all():
        raise ValueError(
            f'{prefix}Lambda: expected negative real parts, got {float(real.max())} (clip_eigs=True limits them, as '
            'models trained with that option do)'
        )
    return (-real).log()
