"""Layers over one axis by name, and the residual block around each.

Shape legend: B = batch, H = d_model, L = length.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from s4nd.kernels import KERNELS
from s4nd.layers.attention import LocalAttention
from s4nd.layers.block import GatedLayer, Residual
from s4nd.layers.gss import GSS
from s4nd.layers.liquid import LiquidS4
from s4nd.layers.lmu import LMU
from s4nd.layers.mega import Mega
from s4nd.layers.s4 import S4
from s4nd.layers.s5 import S5

# Layers that take a norm, a gate and a residual from the block; so does every kernel, in an `S4`.
BARE: dict[str, type[nn.Module]] = {'s5': S5, 'liquid': LiquidS4, 'lmu-cell': LMU}
# Layers that are blocks already.
WHOLE: dict[str, type[nn.Module]] = {'gss': GSS, 'mega': Mega, 'attention': LocalAttention}
NAMES = (*KERNELS, *BARE, *WHOLE)


def make_layer(
    name: str,
    d_model: int,
    *,
    bidirectional: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **args: Any,
) -> nn.Module:
    """Build a layer (B, H, L) -> (B, H, L), or (B, c·H, L) where it has channels.

    Args:
        name: one of NAMES. A kernel's name is an `S4` with that kernel.
        d_model: H.
        bidirectional: whether outputs depend on both sides; such a layer does not stream.
        args: further keywords of the layer's class, such as d_state.

    Raises:
        ValueError: for an unknown name or keyword, a layer that has no two-sided form, and as the layer.
    """
    if name not in NAMES:
        raise ValueError(f"unknown layer '{name}': expected one of {', '.join(NAMES)}")
    kind = S4 if name in KERNELS else (BARE | WHOLE)[name]
    given = {**({'kernel': name} if name in KERNELS else {}), **args}
    known = set(inspect.signature(kind.__init__).parameters) - {'self', 'd_model', 'device', 'dtype'}
    if bidirectional and 'bidirectional' not in known:
        raise ValueError(f"layer '{name}' has no two-sided form: expected bidirectional=False")
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"layer '{name}' has no option {unknown}: expected some of {sorted(known)}")
    if bidirectional:
        given['bidirectional'] = True
    return kind(d_model, **given, device=device, dtype=dtype)


def make_block(
    d_model: int,
    layer: str = 's4',
    *,
    layer_args: Mapping[str, Any] | None = None,
    bidirectional: bool = False,
    glu: bool = True,
    norm: str | None = 'layer',
    prenorm: bool = True,
    dropout: float = 0.0,
    tie_dropout: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Build x + W GELU(layer(norm(x))), or norm(x + W GELU(layer(x))): (B, H, L) -> (B, H, L).

    'gss', 'mega' and 'attention' are whole blocks with gates of their own. They take the dropout; 'mega' takes norm and
    prenorm too.

    Args:
        d_model: H.
        layer, layer_args, bidirectional: see `make_layer`; layer_args are its `args`.
        glu: whether W has 2H outputs, of which one half gates the other.
        norm: see `s4nd.layers.norms.make_norm`; 'layer', 'batch', … or None.
        prenorm: whether the norm stands before the layer or after the sum.
        dropout: on the branch, in training; with tie_dropout all samples of a clip lose the same features.

    Raises:
        ValueError: as `make_layer`, for an unknown norm, and for what a whole block decides itself.
    """
    place: dict[str, Any] = {'device': device, 'dtype': dtype}
    args = dict(layer_args or {})
    if layer in WHOLE:
        own = {'norm': norm, 'prenorm': prenorm} if layer == 'mega' else {}
        changed = {} if own else {key for key, value in (('norm', norm == 'layer'), ('prenorm', prenorm)) if not value}
        if tie_dropout or norm is None or changed:
            what = ', '.join(sorted({*changed, *(['tie_dropout'] if tie_dropout else [])})) or 'norm=None'
            raise ValueError(f"layer '{layer}' is a whole block, which has no such {what}: leave it at its default")
        return make_layer(layer, d_model, bidirectional=bidirectional, **{'dropout': dropout, **own, **args}, **place)
    inner = make_layer(layer, d_model, bidirectional=bidirectional, **args, **place)
    features = getattr(inner, 'd_output', d_model * getattr(inner, 'channels', 1))
    gated = GatedLayer(inner, d_model, features, gate=glu, mix=True, **place)
    return Residual(gated, d_model, norm=norm, prenorm=prenorm, dropout=dropout, tie_dropout=tie_dropout, **place)
