"""What published blocks put around a layer over one axis: lengths, GELU, a linear map, gates, norms and a residual.

Shape legend: B = batch, H = d_model, L = length, c = channels of the layer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.layers.base import check_sample, check_signal
from s4nd.layers.norms import make_norm
from s4nd.layers.s5 import S5
from s4nd.layers.streaming import State


class GatedLayer(nn.Module):
    """Compute GLU(W GELU(layer(x))), the block of S4, DSS and SGConv without its residual: (B, H, L) -> (B, H, L).

    Args:
        layer: (B, H, L) -> (B, c·H, L), such as `S4`; where it streams, the block does.
        d_model: H.
        features: c·H; None: H.
        gate: whether W and GLU follow the GELU; without them features come out as the layer gives them.

    Raises:
        ValueError: in the forward, for an input of another shape or lengths that do not fit.
    """

    def __init__(
        self,
        layer: nn.Module,
        d_model: int,
        features: int | None = None,
        *,
        gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.layer = d_model, layer
        features = d_model if features is None else features
        self.linear = nn.Linear(features, 2 * d_model, device=device, dtype=dtype) if gate else None

    def forward(
        self, x: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Map x (B, H, L); with a state, go on from it and return the output and the state after x.

        lengths (B,): samples of each clip; the rest is taken as zero. Outputs there mean nothing.
        """
        check_signal(x, self.d_model, 1)
        if lengths is not None:
            if lengths.shape != x.shape[:1]:
                raise ValueError(f'lengths: expected shape [{x.shape[0]}], got {list(lengths.shape)}')
            inside = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
            x = x.masked_fill(~inside[:, None], 0.0)
        if state is None:
            return self._output(self.layer(x).transpose(1, 2)).transpose(1, 2)
        y, state = self.layer(x, state)
        return self._output(y.transpose(1, 2)).transpose(1, 2), state

    def init_state(self, batch: int) -> State:
        """Make the state before the first sample, that of the layer."""
        return self.layer.init_state(batch)

    def system(self, step: float = 1.0) -> Any:
        """Discretize the layer: compute it once before a loop of `step` calls."""
        return self.layer.system(step)

    def step(self, x: Tensor, state: State, system: Any = None) -> tuple[Tensor, State]:
        """Take one sample (B, H) and return the output and the new state; `state` is left as it was."""
        check_sample(x, self.d_model)
        y, state = self.layer.step(x, state, system)
        return self._output(y), state

    def _output(self, y: Tensor) -> Tensor:
        y = F.gelu(y)
        return y if self.linear is None else F.glu(self.linear(y), dim=-1)


GATES = ('gelu', 'half_glu1', 'half_glu2', 'full_glu')


class S5Block(nn.Module):
    """Compute x + gate(S5(norm(x))), or norm(x + gate(S5(x))), the block of S5's released models (arXiv 2208.04933).

    The gate of y is, with g = GELU(y): 'gelu' g; 'half_glu1' g ∘ σ(W g); 'half_glu2' y ∘ σ(W g); 'full_glu'
    V g ∘ σ(W g).

    Args:
        s5: the layer, of H features.
        norm: 'batch' (over the batch and all samples) or 'layer'; see `make_norm`.
        prenorm: whether the norm stands before the layer or after the sum.
        gate: see above.
        dropout: after the GELU and after the gate, in training; the same for all samples of a clip.

    `forward`: (B, H, L) -> (B, H, L). `step`: one sample (B, H) and a state.

    Raises:
        ValueError: for an unknown norm or gate, and as S5.
    """

    def __init__(
        self,
        s5: S5,
        *,
        norm: str = 'batch',
        prenorm: bool = True,
        gate: str = 'half_glu1',
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise ValueError(f'unknown gate {gate!r}: expected one of {", ".join(GATES)}')
        d_model, place = s5.d_model, {'device': device, 'dtype': dtype}
        self.d_model, self.gate, self.prenorm = d_model, gate, prenorm
        self.norm, self.s5 = make_norm(norm, d_model, **place), s5
        self.linear = None if gate == 'gelu' else nn.Linear(d_model, d_model, **place)
        self.value = nn.Linear(d_model, d_model, **place) if gate == 'full_glu' else None
        self.drop = nn.Dropout1d(dropout)

    def forward(
        self, x: Tensor, state: State | None = None, step: float | Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Map x (B, H, L); with a state, go on from it and return the output and the state after x. step: as S5."""
        check_signal(x, self.d_model, 1)
        u = self._norm(x) if self.prenorm else x
        if state is None:
            return self._output(x, self.s5(u, step=step))
        y, state = self.s5(u, state, step)
        return self._output(x, y), state

    def init_state(self, batch: int) -> State:
        """Make the zero state, that of S5."""
        return self.s5.init_state(batch)

    def system(self, step: float = 1.0) -> list[Tensor]:
        """Discretize S5 at `step`: compute it once before a loop of `step` calls."""
        return self.s5.system(step)

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, H) -> (B, H) and the new state; `state` is left as it was."""
        check_sample(x, self.d_model)
        u = self._norm(x[..., None])[..., 0] if self.prenorm else x
        y, state = self.s5.step(u, state, system)
        return self._output(x[..., None], y[..., None])[..., 0], state

    def _norm(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)

    def _output(self, x: Tensor, y: Tensor) -> Tensor:
        g = self.drop(F.gelu(y))
        if self.linear is not None:
            factor = y if self.gate == 'half_glu2' else g
            if self.value is not None:
                factor = self.value(g.transpose(1, 2)).transpose(1, 2)
            g = self.drop(factor * torch.sigmoid(self.linear(g.transpose(1, 2)).transpose(1, 2)))
        return x + g if self.prenorm else self._norm(x + g)
