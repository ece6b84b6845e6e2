"""Flat keywords of a model, sorted into those of the model, of its layers and of their kernels.

Configurations and calls name all of them side by side, `SaShiMi(d_model=64, kernel='s4d', n_ssm=2)`; each keyword is
declared only by the class that uses it.
"""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from s4nd.kernels import KERNELS, own_keywords
from s4nd.layers import S4ND
from s4nd.options import nearest

# What the models here decide themselves.
_NO_LAYER_KEYWORDS = {'d_model', 'grid', 'bidirectional', 'channels', 'tensor_rank', 'skip', 'device', 'dtype'}


def model_keywords(
    cls: type, given: Mapping[str, Any], *, owner: str, without: Collection[str] = (), layer: type = S4ND
) -> dict[str, Any]:
    """Return all keywords of `cls`, defaults filled in and those of its layers and kernels in `mixer_args`.

    Args:
        cls: a class that takes `mixer_args`.
        given: flat keywords; where `mixer_args` is among them, the flat ones are added to it.
        owner: name of the model, for the error.
        without: keywords of `cls` that the model decides itself.
        layer: class that takes `mixer_args`.

    Raises:
        ValueError: for an unknown keyword, naming the nearest known one.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(cls).parameters.items()
        if name not in ('device', 'dtype', *without)
    }
    own = {name: value for name, value in given.items() if name in defaults}
    rest = {name: value for name, value in given.items() if name not in defaults}
    mixer_args = {**(own.get('mixer_args') or {}), **layer_keywords(rest, owner=owner, known=defaults, layer=layer)}
    return {**defaults, **own, 'mixer_args': mixer_args}


def layer_keywords(
    given: Mapping[str, Any], *, owner: str, known: Collection[str] = (), layer: type = S4ND
) -> dict[str, Any]:
    """Return keywords of a layer, with those that only its kernel has in `kernel_args`.

    Raises:
        ValueError: for a keyword that neither the layer nor its kernel has, naming the nearest of these and `known`.
    """
    parameters = inspect.signature(layer).parameters
    layers = set(parameters) - _NO_LAYER_KEYWORDS
    kernel = given.get('kernel', parameters['kernel'].default)
    kernels = set(own_keywords(kernel)) if kernel in KERNELS else set()
    for name in given:
        if name not in layers | kernels:
            raise ValueError(f"{owner} takes no '{name}'{nearest(name, sorted({*known, *layers, *kernels}))}")
    args = {name: value for name, value in given.items() if name in layers}
    kernel_args = {name: value for name, value in given.items() if name not in layers}
    return args | {'kernel_args': {**(args.get('kernel_args') or {}), **kernel_args}} if kernel_args else args
