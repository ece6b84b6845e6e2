"""What blocks put around a layer over one axis: padding, GELU, a linear map, gates, norms, dropout and a residual.

Shape legend: B = batch, H = d_model, L = length, c = channels of the layer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.layers.base import check_sample, check_signal, without_padding
from s4nd.layers.norms import make_norm, normalized
from s4nd.layers.s5 import S5
from s4nd.layers.streaming import State


class Wrapper(nn.Module):
    """A block around one `layer`, whose state and discretization are the block's."""

    layer: nn.Module

    def init_state(self, batch: int) -> State:
        """Make the state before the first sample, that of the layer."""
        return self.layer.init_state(batch)

    def system(self, step: float = 1.0) -> Any:
        """Discretize the layer: compute it once before a loop of `step` calls."""
        return self.layer.system(step)


class GatedLayer(Wrapper):
    """Compute GLU(W GELU(layer(x))), the block of S4, DSS and SGConv without its residual: (B, H, L) -> (B, H, L).

    Args:
        layer: (B, H, L) -> (B, c·H, L), such as `S4`; where it streams, the block does.
        d_model: H.
        features: c·H; None: H.
        gate: whether there is a GLU; without it W has H outputs.
        mix: whether W exists; None: as gate. Without W features come out as the layer gives them.

    Raises:
        ValueError: in the forward, for an input of another shape or padding that does not fit.
    """

    def __init__(
        self,
        layer: nn.Module,
        d_model: int,
        features: int | None = None,
        *,
        gate: bool = True,
        mix: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.layer, self.gate = d_model, layer, gate
        features = d_model if features is None else features
        has_linear = gate or bool(mix)
        width = 2 * d_model if gate else d_model
        self.linear = nn.Linear(features, width, device=device, dtype=dtype) if has_linear else None

    def forward(
        self, x: Tensor, state: State | None = None, *, dt: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Map x (B, H, L); with a state, go on from it and return the output and the state after x.

        dt (B, L): see `irregular_steps`. padding (B, L) is true for samples that the layer takes as zero; outputs there
        mean nothing.
        """
        x = without_padding(check_signal(x, self.d_model, 1), padding)
        options = {} if dt is None else {'dt': dt}
        if state is None:
            return self._output(self.layer(x, **options).transpose(1, 2)).transpose(1, 2)
        y, state = self.layer(x, state, **options)
        return self._output(y.transpose(1, 2)).transpose(1, 2), state

    def step(self, x: Tensor, state: State, system: Any = None) -> tuple[Tensor, State]:
        """Take one sample (B, H) and return the output and the new state; `state` is left as it was."""
        check_sample(x, self.d_model)
        y, state = self.layer.step(x, state, system)
        return self._output(y), state

    def _output(self, y: Tensor) -> Tensor:
        y = F.gelu(y)
        if self.linear is None:
            return y
        return F.glu(self.linear(y), dim=-1) if self.gate else self.linear(y)


class Residual(Wrapper):
    """Compute x + layer(norm(x)), or norm(x + layer(x)): (B, H, L) -> (B, H, L), streaming where the layer does.

    Args:
        layer: of H features, such as `GatedLayer`.
        d_model: H.
        norm: see `make_norm`; None: there is none.
        prenorm: whether the norm stands before the layer or after the sum.
        dropout: on the output of the layer, in training.
        tie_dropout: whether all samples of a clip lose the same features.

    Raises:
        ValueError: for an unknown norm, and as the layer.
    """

    def __init__(
        self,
        layer: nn.Module,
        d_model: int,
        *,
        norm: str | None = 'layer',
        prenorm: bool = True,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.layer, self.prenorm = d_model, layer, prenorm
        self.norm = nn.Identity() if norm is None else make_norm(norm, d_model, device=device, dtype=dtype)
        self.drop = nn.Dropout1d(dropout) if tie_dropout else nn.Dropout(dropout)

    def forward(
        self, x: Tensor, state: State | None = None, *, dt: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Map x (B, H, L); with a state, go on from it and return the output and the state after x.

        dt (B, L): see `irregular_steps`. padding (B, L) is true for samples that the layer takes as zero and that a
        batch norm leaves out; outputs there mean nothing.
        """
        x = check_signal(x, self.d_model, 1)
        u = without_padding(self._norm(x, padding) if self.prenorm else x, padding)
        options = {} if dt is None else {'dt': dt}
        if state is None:
            return self._add(x, self.layer(u, **options), padding)
        y, state = self.layer(u, state, **options)
        return self._add(x, y, padding), state

    def step(self, x: Tensor, state: State, system: Any = None) -> tuple[Tensor, State]:
        """Take one sample (B, H) -> (B, H) and the new state; `state` is left as it was."""
        check_sample(x, self.d_model)
        y, state = self.layer.step(self.norm(x) if self.prenorm else x, state, system)
        y = x + self.drop(y[..., None])[..., 0]
        return (y if self.prenorm else self.norm(y)), state

    def _norm(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return normalized(self.norm, x.transpose(1, 2), padding).transpose(1, 2)

    def _add(self, x: Tensor, y: Tensor, padding: Tensor | None) -> Tensor:
        y = x + self.drop(y)
        return y if self.prenorm else self._norm(y, padding)


GATES = ('gelu', 'half_glu1', 'half_glu2', 'full_glu')


class S5Gate(nn.Module):
    """S5 and the gate of its released models (arXiv 2208.04933): (B, H, L) -> (B, H, L).

    With y = S5(x) and g = GELU(y): 'gelu' g; 'half_glu1' g ∘ σ(W g); 'half_glu2' y ∘ σ(W g); 'full_glu' V g ∘ σ(W g).
    As in jax, GELU is its approximation by tanh, which differs from the exact one by at most 5e-4.
    The released block is `Residual(S5Gate(S5(…)), d_model, norm='batch')`.

    Args:
        s5: the layer, of H features.
        gate: see above.
        dropout: after the GELU and after the gate, in training; the same for all samples of a clip.

    Raises:
        ValueError: for an unknown gate, and as S5.
    """

    def __init__(
        self,
        s5: S5,
        *,
        gate: str = 'half_glu1',
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise ValueError(f'unknown gate {gate!r}: expected one of {", ".join(GATES)}')
        place: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_model, self.gate, self.s5 = s5.d_model, gate, s5
        self.linear = None if gate == 'gelu' else nn.Linear(s5.d_model, s5.d_model, **place)
        self.value = nn.Linear(s5.d_model, s5.d_model, **place) if gate == 'full_glu' else None
        self.drop = nn.Dropout1d(dropout)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        step: float | Tensor | None = None,
        *,
        dt: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Map x (B, H, L); with a state, go on from it and return the output and the state after x. As S5."""
        options = {} if dt is None else {'dt': dt}
        if state is None:
            return self._output(self.s5(x, step=step, **options))
        y, state = self.s5(x, state, step, **options)
        return self._output(y), state

    def init_state(self, batch: int) -> State:
        """Make the zero state, that of S5."""
        return self.s5.init_state(batch)

    def system(self, step: float = 1.0) -> list[Tensor]:
        """Discretize S5 at `step`: compute it once before a loop of `step` calls."""
        return self.s5.system(step)

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, H) -> (B, H) and the new state; `state` is left as it was."""
        y, state = self.s5.step(x, state, system)
        return self._output(y[..., None])[..., 0], state

    def _output(self, y: Tensor) -> Tensor:
        g = self.drop(F.gelu(y, approximate='tanh'))
        if self.linear is None:
            return g
        factor = y if self.gate == 'half_glu2' else g
        if self.value is not None:
            factor = self.value(g.transpose(1, 2)).transpose(1, 2)
        return self.drop(factor * torch.sigmoid(self.linear(g.transpose(1, 2)).transpose(1, 2)))
