"""Residual blocks over one axis: an S4 block (arXiv 2202.09729, section 4.2) and a feed-forward.

Shape legend: B = batch, L = samples, W = d_model, E = width of a condition.
The residual stream is (B, L, W), so that norms and linear maps serve a clip and a single sample (B, W) alike.
"""

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm as normalize_weight

from s4nd.layers import S4
from s4nd.layers.norms import make_norm
from s4nd.layers.streaming import State

__all__ = ['FeedForward', 'S4Block', 'make_linear']


class S4Block(nn.Module):
    """Compute x + W(GELU(S4(norm(x)))), where W may end in a gated linear unit: (B, L, W) -> (B, L, W).

    With prenorm False it is norm(x + W(GELU(S4(x)))) (SSSD-S4).

    Args:
        d_model: W.
        mixer_args: keywords of `s4nd.S4`. In its kernel_args, n_ssm='d_model' gives each feature its own state matrix.
        glu: W maps to 2 d_model features, of which one half gates the other.
        bidirectional: use the published two-sided layer, whose backward kernel begins at lag -1; it cannot stream.
        dropout: on the output of W, in training.
        condition: E; a vector per row is added to the input of S4 through a linear map. None: there is none.
        norm: see `s4nd.layers.norms.make_norm`; 'layer', or 'scalar' as in trained published models. None: none.
        prenorm: whether the norm stands before S4, or after the sum.

    Raises:
        ValueError: for an unknown norm or n_ssm, and as `s4nd.S4`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        mixer_args: Mapping[str, Any] | None = None,
        glu: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
        condition: int | None = None,
        norm: str | None = 'layer',
        prenorm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {'device': device, 'dtype': dtype}
        layer = dict(mixer_args or {})
        options = dict(layer.get('kernel_args') or {})
        if isinstance(options.get('n_ssm'), str):
            if options['n_ssm'] != 'd_model':
                raise ValueError(f"n_ssm must be a whole number, None or 'd_model', got {options['n_ssm']!r}")
            layer['kernel_args'] = options | {'n_ssm': d_model}
        if bidirectional:
            layer |= {'bidirectional': True, 'cell': 'published'}
        self.norm = nn.Identity() if norm is None else make_norm(norm, d_model, **place)
        self.prenorm = prenorm
        self.s4 = S4(d_model, **layer, **place)
        self.condition = None if condition is None else nn.Linear(condition, d_model, **place)
        self.glu = glu
        self.linear = nn.Linear(d_model, 2 * d_model if glu else d_model, **place)
        self.drop = nn.Dropout(dropout)

    @overload
    def forward(self, x: Tensor, state: None = None, *, condition: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, state: State, *, condition: Tensor | None = None) -> tuple[Tensor, State]: ...
    def forward(
        self, x: Tensor, state: State | None = None, *, condition: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Map a clip (B, L, W) with condition (B, E), or a stretch from a state to output and state."""
        u = self.norm(x) if self.prenorm else x
        if self.condition is not None and condition is not None:
            u = u + self.condition(condition)[:, None]
        u = u.transpose(1, 2)  # (B, W, L)
        if state is None:
            return self._add(x, self.s4(u).transpose(1, 2))
        y, state = self.s4(u, state)
        return self._add(x, y.transpose(1, 2)), state

    def init_state(self, batch: int) -> State:
        """Return the state before the first sample: a flat dict of tensors, batch first."""
        return self.s4.init_state(batch)

    def system(self, step: float = 1.0) -> Any:
        """Return the discretized recurrence: compute it once before a loop of `step` calls."""
        return self.s4.system(step)

    def step(self, x: Tensor, state: State, system: Any = None) -> tuple[Tensor, State]:
        """Map one sample (B, W) -> (B, W) and return the new state; `state` itself is not changed."""
        y, state = self.s4.step(self.norm(x) if self.prenorm else x, state, system)
        return self._add(x, y), state

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's output from its input x and that of its S4 layer, y."""
        y = self.linear(F.gelu(y))
        y = x + self.drop(F.glu(y, dim=-1) if self.glu else y)
        return y if self.prenorm else self.norm(y)


class FeedForward(nn.Module):
    """Compute x + W2(GELU(W1(norm(x)))), position by position: (…, W) -> (…, W), with ff · W hidden features.

    norm: as `S4Block`. weight_norm: whether W1 and W2 are a direction and a length per row (DiffWave).
    """

    def __init__(
        self,
        d_model: int,
        ff: int = 2,
        dropout: float = 0.0,
        *,
        norm: str = 'layer',
        weight_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.norm = make_norm(norm, d_model, **place)
        self.linear1 = make_linear(d_model, ff * d_model, weight_norm, **place)
        self.linear2 = make_linear(ff * d_model, d_model, weight_norm, **place)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.linear2(F.gelu(self.linear1(self.norm(x)))))


def make_linear(
    features: int,
    out: int,
    weight_norm: bool = False,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear:
    """Build a linear map, with torch's weight normalization (arXiv 1602.07868) or without."""
    linear = nn.Linear(features, out, device=device, dtype=dtype)
    return normalize_weight(linear) if weight_norm else linear
