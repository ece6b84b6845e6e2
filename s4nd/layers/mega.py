"""Mega: a damped moving average and gated attention of one head, over the whole axis or in chunks (arXiv 2209.10655).

Shape legend: B = batch, C = d_model, L = length, Z = d_key, V = d_value, c = chunk.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.kernels import EMAKernel
from s4nd.layers.attention import (
    RotaryBias,
    State,
    attention_state,
    attention_step,
    check_chunk,
    chunk_bias,
    chunked_attention,
)
from s4nd.layers.checks import check_clip, check_sample
from s4nd.ops import separable_conv


class Mega(nn.Module):
    """The gated attention block of Mega (section 3): y = x + φ ∘ (h - x), where, with x̂ = norm(x),

        x' = SiLU(EMA(x̂) + ω ∘ x̂),
        z = SiLU(W_z x'),  q = κ_q ∘ z + μ_q,  k = κ_k ∘ z + μ_k,  v = SiLU(W_v x̂),  o = softmax(q kᵀ/√Z + bias) v,
        γ = SiLU(W_γ x'),  φ = σ(W_φ x'),  h = SiLU(W_h x' + U_h (γ ∘ o)).

    Args:
        d_model: C.
        chunk: c: attention stays inside chunks of c samples (Mega-chunk), and cost grows with L; None: the whole axis.
            What is farther away is known by the moving average only.
        d_key: Z; None is C/4, at least 1.
        d_value: V; None is 2C.
        d_state: N, moving averages a feature and direction.
        bidirectional: two moving averages, of which the one that looks ahead leaves out the present sample; attention
            sees both sides. Such a layer does not stream.

    `forward`: (B, C, L) -> (B, C, L), any length. `step`: one sample (B, C) and a state -> (B, C) and the new state;
    stepping through a clip from `init_state` equals the forward. Without chunks the state grows with the clip.

    Raises:
        ValueError: for sizes below 1, an input of another shape, and streaming asked of a bidirectional layer.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_chunk(chunk)
        d_key = max(1, d_model // 4) if d_key is None else d_key
        d_value = 2 * d_model if d_value is None else d_value
        if d_key < 1 or d_value < 1:
            raise ValueError(f'd_key and d_value must be at least 1, got d_key={d_key} and d_value={d_value}')
        place = {'device': device, 'dtype': dtype}
        self.d_model, self.d_key, self.d_value = d_model, d_key, d_value
        self.chunk, self.bidirectional = chunk, bidirectional
        self.norm = nn.LayerNorm(d_model, **place)
        # Both directions have their own decays, so they are features of one kernel.
        self.kernel = EMAKernel((2 if bidirectional else 1) * d_model, d_state=d_state, **place)
        self.omega = nn.Parameter(torch.empty(d_model, **place))
        self.value = nn.Linear(d_model, d_value, **place)  # W_v
        self.gates = nn.Linear(d_model, d_key + d_value + 2 * d_model, **place)  # W_z, W_γ, W_φ, W_h
        self.scale = nn.Parameter(torch.empty(2, d_key, **place))  # κ of q and k
        self.shift = nn.Parameter(torch.empty(2, d_key, **place))  # μ
        self.bias = RotaryBias(1, max(1, d_key // 2), **place)
        self.hidden = nn.Linear(d_value, d_model, bias=False, **place)  # U_h
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: weights and κ from N(0, 0.02²), biases and μ zero, ω from N(0, 1)."""
        self.kernel.reset_parameters()
        self.norm.reset_parameters()
        self.bias.reset_parameters()
        nn.init.normal_(self.omega)
        for weight in (self.value.weight, self.gates.weight, self.hidden.weight, self.scale):
            nn.init.normal_(weight, std=0.02)
        for zero in (self.value.bias, self.gates.bias, self.shift):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        check_clip(x, self.d_model)
        u = self.norm(x.transpose(1, 2))  # (B, L, C)
        average = self._average(u.transpose(1, 2)).transpose(1, 2)
        q, k, gates = self._project(average)
        bias = chunk_bias(self.bias, min(self.chunk or x.shape[2], x.shape[2]), causal=not self.bidirectional)
        o = chunked_attention(q[:, None], k[:, None], F.silu(self.value(u))[:, None], bias)[:, 0]
        return self._output(x.transpose(1, 2), o, gates).transpose(1, 2)

    def init_state(self, batch: int) -> State:
        """The state before the first sample: 'x' of the average, 'keys' and 'values' of the chunk so far; batch first.

        Raises:
            ValueError: if the layer is bidirectional.
        """
        self._check_causal()
        return self.kernel.init_state(batch) | attention_state(batch, 1, self.d_key, self.d_value, self.hidden.weight)

    def system(self) -> list[Tensor]:
        """The discretized average: compute it once before a loop of `step` calls."""
        return self.kernel.system()

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """One sample (B, C) -> (B, C) and the new state; `state` is left as it was.

        Raises:
            ValueError: if x is not (B, C), or the layer is bidirectional.
        """
        self._check_causal()
        check_sample(x, self.d_model)
        u = self.norm(x)
        average, new = self.kernel.advance(u, state['x'], self.system() if system is None else system)
        q, k, gates = self._project(F.silu(average[:, 0].to(u.dtype) + self.omega.to(u.dtype) * u))
        value = F.silu(self.value(u))[:, None]
        o, attention = attention_step(q[:, None], k[:, None], value, state, self.bias, self.chunk)
        return self._output(x, o[:, 0], gates), {'x': new, **attention}

    def _average(self, u: Tensor) -> Tensor:
        """x' of normed u (B, C, L)."""
        taps, center = self.kernel(u.shape[2]), 0  # (1, C, L)
        if self.bidirectional:
            ahead = taps[:, self.d_model :, 1:].flip(-1)  # lag -l takes tap l; tap 0 is dropped
            taps, center = torch.cat([ahead, taps[:, : self.d_model]], -1), ahead.shape[-1]
        return F.silu(separable_conv(u, [taps], [center], skip=self.omega))

    def _project(self, average: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x' (…, C) -> q, k (…, Z) and the projections of the gates (…, V + 2C)."""
        z, gates = self.gates(average).split([self.d_key, self.d_value + 2 * self.d_model], -1)
        q, k = (F.silu(z)[..., None, :] * self.scale + self.shift).unbind(-2)
        return q, k, gates

    def _output(self, x: Tensor, o: Tensor, gates: Tensor) -> Tensor:
        reset, update, h = gates.split([self.d_value, self.d_model, self.d_model], -1)
        h = F.silu(h + self.hidden(F.silu(reset) * o))
        return x + torch.sigmoid(update) * (h - x)

    def _check_causal(self) -> None:
        if self.bidirectional:
            raise ValueError('a bidirectional Mega sees the whole clip at once and cannot step: use forward')
