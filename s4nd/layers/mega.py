"""Mega: damped moving averages and gated attention of one head, over the whole axis or in chunks (arXiv 2209.10655).

Shape legend: B = batch, C = d_model, L = length, N = d_state, Z = d_key, V = d_value.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.kernels import EMAKernel
from s4nd.layers.attention import ChunkedAttention
from s4nd.layers.attention_bias import LagTable, RotaryBias
from s4nd.layers.base import (
    check_dt,
    check_floating,
    check_padding,
    check_sample,
    check_signal,
    check_unit_step,
    without_padding,
)
from s4nd.layers.irregular import irregular
from s4nd.layers.norms import make_norm, normalized
from s4nd.layers.streaming import State, scoped, within
from s4nd.ops import run_recurrence, separable_conv


class MovingAverage(nn.Module):
    """Compute SiLU(EMA(x) + ω ∘ x) of (B, C, L), the sub-layer 'multi-dimensional damped EMA' of Mega (section 3.1).

    Args:
        d_model: C.
        d_state: N, moving averages per feature and direction.
        bidirectional: a second EMA runs from the end. Both count the present sample, so that lag 0 has the sum of their
            first taps. Such a layer does not stream.
        l_max: number of taps that are kept; None: all. A cut average does not stream.

    Raises:
        ValueError: for sizes below 1, an input of another shape, padding that does not fit, and streaming asked of a
            layer that cannot.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        bidirectional: bool = False,
        l_max: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if l_max is not None and l_max < 1:
            raise ValueError(f'l_max must be at least 1, or None for all taps, got {l_max}')
        self.d_model, self.bidirectional, self.l_max = d_model, bidirectional, l_max
        # Both directions have their own decays, so they are features of one kernel.
        self.kernel = EMAKernel((2 if bidirectional else 1) * d_model, d_state=d_state, device=device, dtype=dtype)
        self.omega = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        nn.init.normal_(self.omega)

    def reset_parameters(self) -> None:
        """Initialize the kernel, and ω from N(0, 1)."""
        self.kernel.reset_parameters()
        nn.init.normal_(self.omega)

    def forward(
        self, x: Tensor, state: State | None = None, padding: Tensor | None = None, dt: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Average x (B, C, L); with a state, go on from it and return the output and the state after x.

        padding (B, L) is true for samples that the averages take as zero; ω sees them as they are. dt (B, L) is the
        time of each sample since the one before, see `S4.forward`.
        """
        x = check_signal(x, self.d_model, 1)
        check_padding(padding, x)
        if state is None:
            y = self.convolve(x, padding) if dt is None else self._irregular(without_padding(x, padding), None, dt)[0]
            return F.silu(y + self.omega.to(x.dtype)[:, None] * x)
        self.check_streams(padding)
        if dt is None:
            y, after = run_recurrence(self.kernel.advance, self.system(), x, state['x'])
        else:
            y, after = self._irregular(x, state['x'], dt)
        return F.silu(y + self.omega.to(x.dtype)[:, None] * x), {'x': after}

    def _irregular(self, x: Tensor, before: Tensor | None, dt: Tensor) -> tuple[Tensor, Tensor]:
        """EMA(x) at steps dt and the state after it."""
        check_dt(dt, x)
        if self.l_max is not None:
            raise ValueError(f'an average that is cut after {self.l_max} taps has one step: expected dt=None')
        before = self.kernel.init_state(len(x))['x'] if before is None else before
        if not self.bidirectional:
            return irregular(self.kernel, x, before, dt)
        # Each direction has half of the kernel's features.
        back, after = irregular(self.kernel, torch.cat([x, x], 1), before, dt)
        ahead, _ = irregular(self.kernel, torch.cat([x, x], 1).flip(2), before, dt.flip(1))
        return back[:, : self.d_model] + ahead[:, self.d_model :].flip(2), after

    def convolve(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Compute EMA(x) alone, (B, C, L) -> (B, C, L)."""
        if padding is not None:
            x = x.masked_fill(padding[:, None], 0.0)
        taps, center = self.lag_taps(x.shape[2])
        return separable_conv(x, [taps], [center])

    def lag_taps(self, length: int) -> tuple[Tensor, int]:
        """Taps (1, C, K) over the lags that `length` samples have, and the index of lag 0."""
        taps = self.kernel(length if self.l_max is None else min(length, self.l_max))  # (1, C or 2C, K)
        if not self.bidirectional:
            return taps, 0
        ahead, back = taps[:, self.d_model :].flip(-1), taps[:, : self.d_model]
        both = ahead[..., -1:] + back[..., :1]
        return torch.cat([ahead[..., :-1], both, back[..., 1:]], -1), ahead.shape[-1] - 1

    def init_state(self, batch: int) -> State:
        """Make the zero state {'x': (B, C, N)}."""
        self.check_streams()
        return self.kernel.init_state(batch)

    def system(self, step: float = 1.0) -> list[Tensor]:
        """Discretize: compute it once before a loop of `step` calls. Raises ValueError unless step is 1."""
        check_unit_step(step)
        return self.kernel.system()

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, C) -> (B, C) and the new state; `state` is left as it was."""
        self.check_streams()
        check_sample(x, self.d_model)
        y, new = self.kernel.advance(x, state['x'], self.system() if system is None else system)
        return F.silu(y[:, 0].to(x.dtype) + self.omega.to(x.dtype) * x), {'x': new}

    def check_streams(self, padding: Tensor | None = None) -> None:
        """Raise ValueError unless the layer has a recurrence, and there is no padding."""
        if self.bidirectional:
            raise ValueError('a bidirectional Mega sees the whole clip at once and cannot step: use forward')
        if self.l_max is not None:
            raise ValueError(f'an average that is cut after {self.l_max} taps has no recurrence and cannot stream')
        if padding is not None:
            raise ValueError('streams have no padding: expected padding=None where a state is given')


class Mega(nn.Module):
    """The gated attention block of Mega (section 3): y = x + φ ∘ (h - x), where, with x̂ = norm(x),

        x' = MovingAverage(x̂),
        z = SiLU(W_z x'),  q = κ_q ∘ z + μ_q,  k = κ_k ∘ z + μ_k,  v = SiLU(W_v x̂),  o = attention(q, k, v),
        γ = SiLU(W_γ x'),  φ = σ(W_φ x'),  h = SiLU(W_h x' + U_h (γ ∘ o)).

    Args:
        d_model: C.
        chunk: attention stays inside chunks of so many samples (Mega-chunk), and cost grows with L; None: the whole
            axis. What is farther away is known by the moving average only.
        d_key: Z; None is C/4, at least 1.
        d_value: V; None is 2C.
        d_state: N, moving averages per feature and direction.
        bidirectional: see `MovingAverage`; attention sees both sides. Such a layer does not stream.
        attention: 'softmax', 'laplace' or 'relu2', see `ChunkedAttention`.
        max_length: None: the bias of the lag is rotary and knows all lags. A number: the 'simple' bias, a table of the
            lags below it; chunks (without them, clips) are not longer.
        norm: 'layer', 'scale', 'rms' or 'batch'.
        prenorm: whether x is normalized (as above), or y, with x̂ = x.
        dropout: on x' and on h, in training; attention_dropout: on the weights; hidden_dropout: on v.

    `forward`: (B, C, L) -> (B, C, L), any length. `step`: one sample (B, C) and a state -> (B, C) and the new state;
    stepping through a clip from `init_state` equals the forward. Without chunks the state grows with the clip.

    Raises:
        ValueError: for sizes below 1, unknown names, an input of another shape or longer than the bias knows, and
            streaming asked of a bidirectional layer or with padding.
    """

    def __init__(
        self,
        d_model: int,
        *,
        chunk: int | None = None,
        d_key: int | None = None,
        d_value: int | None = None,
        d_state: int = 16,
        bidirectional: bool = False,
        attention: str = 'softmax',
        max_length: int | None = None,
        norm: str = 'layer',
        prenorm: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d_key = max(1, d_model // 4) if d_key is None else d_key
        d_value = 2 * d_model if d_value is None else d_value
        if d_key < 1 or d_value < 1:
            raise ValueError(f'd_key and d_value must be at least 1, got d_key={d_key} and d_value={d_value}')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_model, self.d_key, self.d_value = d_model, d_key, d_value
        self.bidirectional, self.prenorm = bidirectional, prenorm
        self.norm = make_norm(norm, d_model, **dd)
        self.average = MovingAverage(d_model, d_state=d_state, bidirectional=bidirectional, **dd)
        self.value = nn.Linear(d_model, d_value, **dd)  # W_v
        self.gates = nn.Linear(d_model, d_key + d_value + 2 * d_model, **dd)  # W_z, W_γ, W_φ, W_h
        self.scale = nn.Parameter(torch.empty(2, d_key, **dd))  # κ of q and k
        self.shift = nn.Parameter(torch.empty(2, d_key, **dd))  # μ
        bias = RotaryBias(1, max(1, d_key // 2), **dd) if max_length is None else LagTable(1, max_length, **dd)
        self.attention = ChunkedAttention(
            bias, chunk=chunk, kind=attention, causal=not bidirectional, dropout=attention_dropout
        )
        self.hidden = nn.Linear(d_value, d_model, **dd)  # U_h
        self.drop, self.hidden_drop = nn.Dropout(dropout), nn.Dropout(hidden_dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: weights, κ and biases of the lag from N(0, 0.02²), other biases and μ zero, ω from N(0, 1)."""
        for part in (self.average, self.norm, self.attention.bias):
            part.reset_parameters()
        for weight in (self.value.weight, self.gates.weight, self.hidden.weight, self.scale):
            nn.init.normal_(weight, std=0.02)
        for zero in (self.value.bias, self.gates.bias, self.hidden.bias, self.shift):
            nn.init.zeros_(zero)

    def forward(
        self, x: Tensor, state: State | None = None, padding: Tensor | None = None, dt: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Transform x (B, C, L); with a state, go on from it and return the output and the state after x.

        padding (B, L) is true for samples that neither averages nor attention take in; outputs there mean nothing.
        dt (B, L) is the time of each sample since the one before, for the averages; attention counts samples.
        """
        x = check_signal(x, self.d_model, 1)
        check_padding(padding, x)
        x = x.transpose(1, 2)  # (B, L, C)
        u = normalized(self.norm, x, padding) if self.prenorm else x
        if state is None:
            average, after = self.average(u.transpose(1, 2), padding=padding, dt=dt), None
        else:
            average, after = self.average(u.transpose(1, 2), scoped(state, 'average'), padding, dt)
        q, k, v, gates = self._project(average.transpose(1, 2), u)
        q, k, v = q[:, None], k[:, None], v[:, None]  # one head
        if after is None:
            return self._output(x, self.attention(q, k, v, padding)[:, 0], gates, padding).transpose(1, 2)
        o, seen = self.attention.run(q, k, v, state or {})
        return self._output(x, o[:, 0], gates).transpose(1, 2), {**within('average', after), **seen}

    def attention_weights(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Compute the weights of a clip (B, C, L), (B, chunks, c, c) with rows for queries."""
        x = check_signal(x, self.d_model, 1)
        check_padding(padding, x)
        x = x.transpose(1, 2)
        u = self.norm(x) if self.prenorm else x
        q, k, _, _ = self._project(self.average(u.transpose(1, 2), padding=padding).transpose(1, 2), u)
        return self.attention.weights(q[:, None], k[:, None], padding)[:, 0]

    def init_state(self, batch: int) -> State:
        """Make the state before the first sample: 'average.x', and 'keys' and 'values' of the chunk; batch first.

        Raises:
            ValueError: if the layer is bidirectional.
        """
        average = within('average', self.average.init_state(batch))
        return average | self.attention.init_state(batch, 1, self.d_key, self.d_value, self.hidden.weight)

    def system(self, step: float = 1.0) -> list[Tensor]:
        """Discretize the average: compute it once before a loop of `step` calls. Raises ValueError unless step is 1."""
        return self.average.system(step)

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, C) -> (B, C) and the new state; `state` is left as it was.

        Raises:
            ValueError: if x is not (B, C), or the layer is bidirectional.
        """
        self.average.check_streams()
        check_sample(x, self.d_model)
        u = self.norm(x) if self.prenorm else x
        average, after = self.average.step(u, scoped(state, 'average'), system)
        q, k, v, gates = self._project(average, u)
        o, seen = self.attention.step(q[:, None], k[:, None], v[:, None], state)
        return self._output(x, o[:, 0], gates), {**within('average', after), **seen}

    def _project(self, average: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x' and x̂ (…, C) -> q, k (…, Z), v (…, V) and the projections of the gates (…, V + 2C)."""
        z, gates = self.gates(self.drop(average)).split([self.d_key, self.d_value + 2 * self.d_model], -1)
        q, k = (F.silu(z)[..., None, :] * self.scale + self.shift).unbind(-2)
        return q, k, self.hidden_drop(F.silu(self.value(u))), gates

    def _output(self, x: Tensor, o: Tensor, gates: Tensor, padding: Tensor | None = None) -> Tensor:
        reset, update, h = gates.split([self.d_value, self.d_model, self.d_model], -1)
        h = self.drop(F.silu(h + self.hidden(F.silu(reset) * o)))
        y = x + torch.sigmoid(update) * (h - x)
        return y if self.prenorm else normalized(self.norm, y, padding)


class NormalizedFeedForward(nn.Module):
    """The feed-forward block of Mega: x + W₂ SiLU(W₁ norm(x)), or norm(x + W₂ SiLU(W₁ x)); (B, C, …) -> the same.

    Args:
        d_model: C.
        hidden: width between the maps; None is 2C.
        norm, prenorm, dropout, hidden_dropout: as `Mega`; dropouts are on the output of W₂ and that of the SiLU.

    Raises:
        ValueError: for an unknown norm, and for an input without C features.
    """

    def __init__(
        self,
        d_model: int,
        hidden: int | None = None,
        *,
        norm: str = 'layer',
        prenorm: bool = True,
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        hidden = 2 * d_model if hidden is None else hidden
        self.d_model, self.prenorm = d_model, prenorm
        self.norm = make_norm(norm, d_model, **dd)
        self.linear1, self.linear2 = nn.Linear(d_model, hidden, **dd), nn.Linear(hidden, d_model, **dd)
        self.drop, self.hidden_drop = nn.Dropout(dropout), nn.Dropout(hidden_dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, *, padding: Tensor | None = None) -> Tensor:
        """Map every sample of x (B, C, …) by itself; a batch norm leaves out those where padding (B, …) is true."""
        if x.dim() < 2 or x.shape[1] != self.d_model:
            raise ValueError(f'expected (batch, {self.d_model}, …), got shape {list(x.shape)}')
        check_floating(x)
        x = x.movedim(1, -1)
        u = normalized(self.norm, x, padding) if self.prenorm else x
        y = x + self.drop(self.linear2(self.hidden_drop(F.silu(self.linear1(u)))))
        return (y if self.prenorm else normalized(self.norm, y, padding)).movedim(-1, 1)
