"""Kernels: parameters -> taps, chosen by name."""

import inspect

import torch

from s4nd.kernels.base import Kernel
from s4nd.kernels.diagonal import S4DKernel
from s4nd.kernels.dplr import S4Kernel

KERNELS: dict[str, type[Kernel]] = {'s4d': S4DKernel, 's4': S4Kernel}

__all__ = ['KERNELS', 'Kernel', 'S4DKernel', 'S4Kernel', 'make_kernel']


def make_kernel(
    name: str,
    d_model: int,
    *,
    channels: int = 1,
    d_state: int = 64,
    init: str | None = None,
    dt_min: float = 1e-3,
    dt_max: float = 1e-1,
    n_ssm: int | None = None,
    bandlimit: float | None = None,
    options: dict | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Kernel:
    """Build a kernel by name.

    Args:
        name: a key of KERNELS.
        init: None is the kernel's own default.
        options: further keywords of that kernel's class (such as {'discretization': 'bilinear'} or {'rank': 2}).
        The rest: see the kernel classes.

    Raises:
        ValueError: for an unknown name or option, and whatever the kernel's class raises.
    """
    if name not in KERNELS:
        raise ValueError(f"unknown kernel '{name}': expected one of {', '.join(KERNELS)}")
    cls = KERNELS[name]
    common: dict = {'channels': channels, 'd_state': d_state, 'n_ssm': n_ssm}
    common |= {'dt_min': dt_min, 'dt_max': dt_max, 'bandlimit': bandlimit}
    if init is not None:
        common['init'] = init
    own = set(inspect.signature(cls.__init__).parameters) - {'self', 'd_model', 'device', 'dtype', 'init', *common}
    unknown = set(options or {}) - own
    if unknown:
        raise ValueError(f"kernel '{name}' has no option {sorted(unknown)}: expected some of {sorted(own)}")
    return cls(d_model, **common, **(options or {}), device=device, dtype=dtype)
