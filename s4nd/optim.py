"""Optimizer groups, as plain dictionaries.

State-space parameters (dt, A, B, P) train at their own learning rate without weight decay; C and D are ordinary weights
(the published rule: S4, arXiv 2111.00396, and the S4ND recipes). Selection is by name, so it survives copies and
rebuilds.
"""

import re
from fnmatch import fnmatch

from torch import nn

from s4nd.kernels import Kernel
from s4nd.layers.lmu import LMU
from s4nd.layers.s5 import S5

SSM_NAMES = (
    'log_dt', 'log_theta', 'log_A_real', 'A_real', 'A_imag', 'log_A_imag', 'A', 'A_diag', 'B', 'P', 'P_left', 'P_right',
    'T_lower', 'T_diag', 'T_upper',
)  # fmt: skip


# What torch calls a parameter that is parametrized (parametrizations.P.original0), pruned (P_orig) or weight-normed.
_REPARAMETRIZED = re.compile(r'^(?:parametrizations\.)?(\w+?)(?:\.original\d*|_orig|_g|_v)?$')


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    ssm_lr: float | None = 1e-3,
    overrides: dict[str, dict] | None = None,
) -> list[dict]:
    """Parameter groups with an explicit lr and weight decay, for any torch or timm optimizer.

    Args:
        model: whose trainable parameters are grouped; every one is in exactly one group.
        lr, weight_decay: of ordinary weights; biases and other 1-D parameters take no weight decay.
        ssm_lr: of dt, A, B and P, which take no weight decay; None: the same as lr. Never above lr.
        overrides: {pattern: options}: parameters whose full name matches (fnmatch; the first match wins) get a group
            with these options, such as {'*.log_dt': {'lr': 1e-4}}.

    Raises:
        ValueError: if a pattern matches no parameter.
    """
    overrides = overrides or {}
    ssm = _ssm_names(model)
    ssm_lr = lr if ssm_lr is None else min(ssm_lr, lr)
    groups: dict[str, dict] = {
        'decay': {'params': [], 'lr': lr, 'weight_decay': weight_decay},
        'no_decay': {'params': [], 'lr': lr, 'weight_decay': 0.0},
        'ssm': {'params': [], 'lr': ssm_lr, 'weight_decay': 0.0},
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        base = 'ssm' if name in ssm else ('no_decay' if parameter.ndim <= 1 or name.endswith('.bias') else 'decay')
        pattern = next((p for p in overrides if fnmatch(name, p)), None)
        if pattern is None:
            groups[base]['params'].append(parameter)
        else:
            group = groups.setdefault(f'{pattern} {base}', {**groups[base], 'params': [], **overrides[pattern]})
            group['params'].append(parameter)
    for pattern in overrides:
        if not any(fnmatch(name, pattern) for name, _ in model.named_parameters()):
            raise ValueError(f"no parameter of {type(model).__name__} matches '{pattern}'")
    return [group for group in groups.values() if group['params']]


def ssm_parameter_patterns(model: nn.Module) -> set[str]:
    """fnmatch patterns of the SSM parameters that exist in `model`, for timm's `no_weight_decay`."""
    return {_pattern(name) for name in _ssm_names(model)}


def _pattern(name: str) -> str:
    """The last parts of a name, from the attribute that holds the kernel on, at any place of any list."""
    parts = ['*' if part.isdigit() else part for part in name.split('.')]
    return '.'.join(parts if len(parts) <= 3 else ['*', *parts[-3:]])


def _ssm_names(model: nn.Module) -> set[str]:
    holders = tuple(f'{name}.' if name else '' for name, m in model.named_modules() if isinstance(m, Kernel | S5 | LMU))
    return {
        name
        for name, _ in model.named_parameters()
        for holder in holders
        if name.startswith(holder) and _REPARAMETRIZED.sub(r'\1', name.removeprefix(holder)) in SSM_NAMES
    }
