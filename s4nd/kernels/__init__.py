"""Kernels: parameters -> taps, chosen by name. `s4nd.catalog` says what each is."""

import inspect
import math

import torch

from s4nd.kernels.base import Kernel
from s4nd.kernels.ckconv import CKConvKernel
from s4nd.kernels.diagonal import S4DKernel
from s4nd.kernels.dplr import S4Kernel
from s4nd.kernels.dss import DSSExpKernel, DSSSoftmaxKernel
from s4nd.kernels.ema import EMAKernel
from s4nd.kernels.lmu import LMUKernel
from s4nd.kernels.lssl import LSSLKernel
from s4nd.kernels.sgconv import SGConvKernel

KERNELS: dict[str, type[Kernel]] = {
    's4d': S4DKernel,
    's4': S4Kernel,
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
    'Kernel',
    'LMUKernel',
    'LSSLKernel',
    'S4DKernel',
    'S4Kernel',
    'SGConvKernel',
    'make_kernel',
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
    n_ssm: int | None = None,
    bandlimit: float | None = None,
    length: float = math.inf,
    options: dict | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Kernel:
    """Build a kernel by name.

    Args:
        name: a key of KERNELS.
        init: None is the kernel's own default.
        length: of the axis in samples of the training grid, for kernels that span it; infinite: not known.
        options: further keywords of that kernel's class (such as {'discretization': 'bilinear'} or {'rank': 2}), or a
            length where the layer knows none.
        The rest: see the kernel classes. A class that has no use for d_state, dt_min, dt_max or length is not given it.

    Raises:
        ValueError: for an unknown name or option, an init, n_ssm or bandlimit given to a kernel that has none, and
            whatever the kernel's class raises.
    """
    if name not in KERNELS:
        raise ValueError(f"unknown kernel '{name}': expected one of {', '.join(KERNELS)}")
    cls = KERNELS[name]
    accepted = set(inspect.signature(cls.__init__).parameters) - {'self', 'd_model', 'device', 'dtype'}
    chosen: dict = {'init': init, 'n_ssm': n_ssm, 'bandlimit': bandlimit}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    for key, value in chosen.items():
        if key not in accepted:
            raise ValueError(f"kernel '{name}' has no {key}: expected None, got {value!r}")
    common = {'channels': channels, 'd_state': d_state, 'dt_min': dt_min, 'dt_max': dt_max}
    own = accepted - {'init', 'n_ssm', 'bandlimit', *common}
    unknown = set(options or {}) - own
    if unknown:
        raise ValueError(f"kernel '{name}' has no option {sorted(unknown)}: expected some of {sorted(own)}")
    given = {key: value for key, value in {**common, 'length': length}.items() if key in accepted}
    return cls(d_model, **{**given, **chosen, **(options or {})}, device=device, dtype=dtype)
