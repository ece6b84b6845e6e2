"""State dicts of the published S4, S4D and S4ND layers in ours, with equal outputs.

Published layout: `kernel.{axis}.` (S4ND) or `kernel.` (S4) with inv_dt, A_real, A_imag, B, C, and for S4 kernels P and
l_kernel; `D`; complex tensors as (…, 2) pairs. A = -T(A_real) - i T'(A_imag) and dt = T''(inv_dt), whose transforms are
no part of the file.

Shape legend: H = d_model, S = n_ssm, n = stored modes, N = 2n, c = channels of the kernel, r = rank.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from s4nd.kernels import S4DKernel, S4Kernel
from s4nd.layers import S4ND
from s4nd.ops.lowrank import lowrank_matrices

__all__ = ['load_published_kernel', 'load_published_layer']

TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    'none': lambda p: p,
    'exp': torch.exp,
    'relu': lambda p: F.relu(p) + 1e-4,
    'sigmoid': torch.sigmoid,
    'softplus': F.softplus,
}


def load_published_layer(
    layer: S4ND,
    state_dict: Mapping[str, Tensor],
    prefix: str = '',
    dt_transform: str = 'exp',
    real_transform: str = 'exp',
    imag_transform: str = 'none',
) -> list[str]:
    """Copy a published S4 or S4ND layer into `layer`, built with the same sizes; it then gives the same outputs.

    The state dict tells d_model, d_state, channels, and n_ssm and the rank (`kernel_args={'rank': …}`). The published
    config tells the rest: `tensor_rank`, `bidirectional`, `l_max`, `bandlimit` (arguments of S4ND of these names), the
    number of mixed outputs (`channels`, with `skip=False`) and the discretization.

    Args:
        layer: an S4ND or S4; two-sided ones with `cell='published'`.
        state_dict: of the layer, or of a model that has it under `prefix` (such as 'layers.0.layer.').
        dt_transform, real_transform, imag_transform: 'exp', 'softplus', 'sigmoid', 'relu' or 'none', as published.

    Returns:
        The names under `prefix` that have no place here, such as those of `output_linear`.

    Raises:
        ValueError: a layer of other sizes or another kernel, centered taps, a missing tensor, an unknown transform.
    """
    if layer.cell != 'published' and any(layer.bidirectional):
        raise ValueError(
            "the published backward kernel begins at lag -1: expected a layer with cell='published', "
            f'got {layer.cell!r}'
        )
    first = prefix + ('kernel.0.' if f'{prefix}kernel.0.C' in state_dict else 'kernel.')
    prefixes = [first.replace('kernel.0.', f'kernel.{axis}.') for axis in range(layer.spatial_dims)]
    if len(set(prefixes)) < layer.spatial_dims or f'{prefix}kernel.{layer.spatial_dims}.C' in state_dict:
        raise ValueError(f'{first}… is a layer of another number of axes: this one has {layer.spatial_dims}')
    for kernel, where in zip(layer.kernels, prefixes, strict=True):
        load_published_kernel(kernel, state_dict, where, dt_transform, real_transform, imag_transform)
    own = [*prefixes]
    if layer.D is not None:
        with torch.no_grad():
            layer.D.copy_(_take(state_dict, f'{prefix}D', layer.D.shape))
        own.append(f'{prefix}D')
    return [name for name in state_dict if name.startswith(prefix) and not name.startswith(tuple(own))]


def load_published_kernel(
    kernel: S4DKernel | S4Kernel,
    state_dict: Mapping[str, Tensor],
    prefix: str = '',
    dt_transform: str = 'exp',
    real_transform: str = 'exp',
    imag_transform: str = 'none',
) -> None:
    """Copy one published kernel, whose names begin with `prefix`, into `kernel`. Arguments as `load_published_layer`.

    A published S4 kernel that has run holds C (I - Āˡ) for C, with l in `l_kernel`; C itself is solved for, in float64.

    Raises:
        ValueError: as `load_published_layer`.
    """
    for name in (dt_transform, real_transform, imag_transform):
        if name not in TRANSFORMS:
            raise ValueError(f'unknown transform {name!r}: expected one of {", ".join(TRANSFORMS)}')
    if (f'{prefix}P' in state_dict) != isinstance(kernel, S4Kernel):
        found = 's4' if f'{prefix}P' in state_dict else 's4d'
        raise ValueError(f"{prefix}… is a kernel '{found}' (with P: 's4'), which {type(kernel).__name__} is not")
    pairs = {
        'inv_dt': (kernel.log_dt, lambda p: _log(dt_transform, p)),
        'A_real': (kernel.log_A_real, lambda p: _log(real_transform, p)),
        'A_imag': (kernel.A_imag, TRANSFORMS[imag_transform]),
        'B': (kernel.B, TRANSFORMS['none']),
        'C': (kernel.C, TRANSFORMS['none']),
        'P': (getattr(kernel, 'P', None), TRANSFORMS['none']),
    }
    with torch.no_grad():
        for name, (parameter, convert) in pairs.items():
            if parameter is not None:
                parameter.copy_(convert(_take(state_dict, prefix + name, parameter.shape)))
        length = int(state_dict.get(f'{prefix}l_kernel', 0))
        if length > 0 and isinstance(kernel, S4Kernel):
            kernel.C.copy_(_undo_truncation(kernel, _take(state_dict, f'{prefix}C', kernel.C.shape), length))


def _take(state_dict: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """The tensor in float64, complex as pairs, without the leading axis of size 1 that B has."""
    if name not in state_dict:
        raise ValueError(f'no {name} in the published weights, which hold {sorted(state_dict)[:8]} …')
    value = state_dict[name]
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    if value.dim() == len(shape) + 1 and value.shape[0] == 1:
        value = value[0]
    if value.shape != shape:
        raise ValueError(f'{name} has shape {list(value.shape)}, expected {list(shape)} for this layer')
    return value.double()


def _log(transform: str, p: Tensor) -> Tensor:
    """log T(p); raises ValueError where T(p) is not positive."""
    if transform == 'exp':
        return p
    value = TRANSFORMS[transform](p)
    if not (value > 0).all():
        raise ValueError(f"transform '{transform}' must give positive values, got {float(value.min())}")
    return value.log()


def _undo_truncation(kernel: S4Kernel, C: Tensor, length: int) -> Tensor:
    """The C (c, H, n, 2) whose C (I - Ā^length) is given, at step 1."""
    A = lowrank_matrices(kernel.discretized(1.0))[0]  # (H, N, N), on (Re x, Im x)
    eye = torch.eye(A.shape[-1], device=A.device, dtype=A.dtype)
    rows = torch.cat([C[..., 0], -C[..., 1]], -1).to(A).permute(1, 2, 0)  # (H, N, c)
    rows = torch.linalg.solve((eye - torch.linalg.matrix_power(A, length)).transpose(1, 2), rows)
    real, imag = rows.permute(2, 0, 1).chunk(2, -1)
    return torch.stack([real, -imag], -1)
