"""Kernels: parameters -> taps, chosen by name. `s4nd.catalog` says what each is."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from s4nd.kernels.base import Kernel, RecurrentKernel, form_of, side_by_side
from s4nd.kernels.ckconv import CKConvKernel
from s4nd.kernels.diagonal import S4DKernel
from s4nd.kernels.dplr import S4Kernel
from s4nd.kernels.dss import DSSExpKernel, DSSSoftmaxKernel, GSSKernel
from s4nd.kernels.ema import EMAKernel
from s4nd.kernels.lmu import LMUKernel
from s4nd.kernels.lssl import LSSLKernel
from s4nd.kernels.nplr import NPLRKernel
from s4nd.kernels.sgconv import SGConvKernel

KERNELS: dict[str, type[Kernel]] = {
    's4d': S4DKernel,
    's4': S4Kernel,
    'nplr': NPLRKernel,
    'dss-exp': DSSExpKernel,
    'dss-softmax': DSSSoftmaxKernel,
    'lmu': LMUKernel,
    'lssl': LSSLKernel,
    'ema': EMAKernel,
    'sgconv': SGConvKernel,
    'ckconv': CKConvKernel,
}

__all__ = [
    'KERNELS',
    'CKConvKernel',
    'DSSExpKernel',
    'DSSSoftmaxKernel',
    'EMAKernel',
    'GSSKernel',
    'Kernel',
    'LMUKernel',
    'LSSLKernel',
    'NPLRKernel',
    'RecurrentKernel',
    'S4DKernel',
    'S4Kernel',
    'SGConvKernel',
    'form_of',
    'make_kernel',
    'side_by_side',
]


def make_kernel(
    name: str,
    d_model: int,
    *,
    channels: int = 1,
    d_state: int = 64,
    init: str | None = None,
    dt_min: float = 1e-3,
    dt_max: float = 1e-1,
    bandlimit: float | None = None,
    length: float = math.inf,
    args: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Kernel:
    """Build a kernel by name.

    Args:
        name: a key of KERNELS.
        init: None is the kernel's own default.
        length: of the axis in samples of the training grid, for kernels that span it; infinite: not known.
        args: further keywords of that kernel's class (such as {'discretization': 'bilinear'} or {'n_ssm': 2}).
        The rest: see the kernel classes. A class that has no use for d_state, dt_min, dt_max or length is not given it.

    Raises:
        ValueError: for an unknown name or keyword, an init or bandlimit given to a kernel that has none, and whatever
            the kernel's class raises.
    """
    if name not in KERNELS:
        raise ValueError(f"unknown kernel '{name}': expected one of {', '.join(KERNELS)}")
    known = kernel_keywords(name)
    common = {'channels': channels, 'd_state': d_state, 'dt_min': dt_min, 'dt_max': dt_max, 'length': length}
    given: dict[str, Any] = {key: value for key, value in common.items() if key in known}
    for key, value in (('init', init), ('bandlimit', bandlimit)):
        if value is not None and key not in known:
            raise ValueError(f"kernel '{name}' has no {key}: expected None, got {value!r}")
        if value is not None:
            given[key] = value
    unknown = sorted(set(args or {}) - set(own_keywords(name)))
    if unknown:
        raise ValueError(f"kernel '{name}' has no option {unknown}: expected some of {own_keywords(name)}")
    given.update(args or {}, device=device, dtype=dtype)
    return KERNELS[name](d_model, **given)


def kernel_keywords(name: str) -> set[str]:
    """All keywords of a kernel's class beside d_model, device and dtype."""
    return set(inspect.signature(KERNELS[name].__init__).parameters) - {'self', 'd_model', 'device', 'dtype'}


def own_keywords(name: str) -> list[str]:
    """The keywords that `make_kernel` takes in `args`: those that not every kernel and layer has."""
    return sorted(kernel_keywords(name) - {'channels', 'd_state', 'init', 'dt_min', 'dt_max', 'bandlimit'})
