"""Attention inside chunks of one axis, over a clip or one sample at a time: what the GSS hybrid and Mega share.

Chunks do not overlap: the samples kc … kc + c - 1 see each other and nothing else, so that cost and memory grow with
L·c. Where the chunks begin is counted from the first sample; the last chunk may be shorter.
Shape legend: B = batch, C = d_model, L = length, n = heads, E = width of a key, V = width of a value, c = chunk.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.kernels.base import wide
from s4nd.layers.checks import check_clip, check_sample
from s4nd.ops import toeplitz

State = dict[str, Tensor]


class RotaryBias(nn.Module):
    """A trained function of the lag that is added to attention logits, a head at a time (Mega, arXiv 2209.10655).

    bias(i - j) = ⟨R_i α, R_j β⟩, where R_i turns every pair of entries by an angle proportional to i: a sum of waves
    of fixed wavelengths, 2π … 2π·10⁴ samples, which knows lags of any size.
    """

    def __init__(
        self,
        num_heads: int,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(num_heads, width, 2, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.empty(num_heads, width, 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: N(0, 0.02²)."""
        nn.init.normal_(self.alpha, std=0.02)
        nn.init.normal_(self.beta, std=0.02)

    def forward(self, lags: Tensor) -> Tensor:
        """Lags (K,) -> bias (n, K)."""
        alpha, beta = wide(self.alpha), wide(self.beta)
        width = alpha.shape[1]
        frequency = 1e4 ** (-torch.arange(width, device=lags.device, dtype=alpha.dtype) / width)
        angle = lags[:, None] * frequency
        even = (alpha * beta).sum(-1)  # ⟨R_m α, β⟩ = Σ (α·β) cos + (α ∧ β) sin
        odd = alpha[..., 0] * beta[..., 1] - alpha[..., 1] * beta[..., 0]
        return (even @ angle.cos().T + odd @ angle.sin().T).to(self.alpha.dtype)


def chunk_bias(bias: RotaryBias, size: int, causal: bool) -> Tensor:
    """What is added to the logits of a chunk of `size` samples, (n, size, size); -inf for keys after their query."""
    lags = torch.arange(1 - size, size, device=bias.alpha.device)
    table = bias(lags)
    if causal:
        table = table.masked_fill(lags < 0, -math.inf)
    return toeplitz(table[None], size - 1, size)[0].mT


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q kᵀ/√E + bias) v inside chunks: q, k (B, n, L, E), v (B, n, L, V), bias (n, c, c) -> (B, n, L, V).

    c <= L is the size of a chunk; a last, shorter one takes the upper left part of the bias.
    """
    chunk, length = bias.shape[-1], q.shape[2]
    whole = length - length % chunk
    parts = []
    if whole:
        chunks = [t[:, :, :whole].unflatten(2, (-1, chunk)).transpose(1, 2).flatten(0, 1) for t in (q, k, v)]
        y = F.scaled_dot_product_attention(*chunks, attn_mask=bias.to(q.dtype))  # (B·L/c, n, c, V)
        parts.append(y.unflatten(0, (len(q), -1)).transpose(1, 2).flatten(2, 3))
    if whole < length:
        rest = length - whole
        tails = [t[:, :, whole:] for t in (q, k, v)]
        parts.append(F.scaled_dot_product_attention(*tails, attn_mask=bias[:, :rest, :rest].to(q.dtype)))
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


def attention_state(batch: int, num_heads: int, key_width: int, value_width: int, like: Tensor) -> State:
    """'keys' (B, n, 0, E) and 'values' (B, n, 0, V): no sample yet; they grow with the chunk, then begin anew."""
    return {
        'keys': like.new_zeros(batch, num_heads, 0, key_width),
        'values': like.new_zeros(batch, num_heads, 0, value_width),
    }


def attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: State, bias: RotaryBias, chunk: int | None
) -> tuple[Tensor, State]:
    """One sample of `chunked_attention`: q, k (B, n, E), v (B, n, V) -> (B, n, V) and the new state."""
    begins = state['keys'].shape[2] == chunk
    k, v = k[:, :, None], v[:, :, None]
    keys = k if begins else torch.cat([state['keys'], k], 2)
    values = v if begins else torch.cat([state['values'], v], 2)
    seen = keys.shape[2]
    lags = torch.arange(seen - 1, -1, -1, device=keys.device)
    y = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=bias(lags)[:, None].to(q.dtype))
    return y[:, :, 0], {'keys': keys, 'values': values}


def check_chunk(chunk: int | None) -> None:
    """Raise ValueError unless the chunk is None (the whole axis) or at least 1."""
    if chunk is not None and chunk < 1:
        raise ValueError(f'chunk must be at least 1, or None for the whole axis, got {chunk}')


class LocalAttention(nn.Module):
    """A Transformer block, causal, with attention inside chunks: y = x + W_o attention(norm(x)), y + MLP(norm(y)).

    Args:
        d_model: C, a multiple of num_heads.
        num_heads: n.
        chunk: c, samples of a chunk; None: the whole clip.
        expand: width of the MLP over d_model.

    `forward`: (B, C, L) -> (B, C, L). `step`: one sample (B, C) and a state -> (B, C) and the new state.

    Raises:
        ValueError: for arguments that do not fit each other, and for an input of another shape.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 8,
        chunk: int | None = 512,
        expand: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_chunk(chunk)
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f'num_heads must divide d_model, got num_heads={num_heads} and d_model={d_model}')
        place = {'device': device, 'dtype': dtype}
        self.d_model, self.num_heads, self.chunk = d_model, num_heads, chunk
        self.norm = nn.LayerNorm(d_model, **place)
        self.qkv = nn.Linear(d_model, 3 * d_model, **place)
        self.bias = RotaryBias(num_heads, max(1, d_model // num_heads // 2), **place)
        self.out = nn.Linear(d_model, d_model, **place)
        self.mlp = nn.Sequential(
            nn.LayerNorm(d_model, **place),
            nn.Linear(d_model, expand * d_model, **place),
            nn.GELU(),
            nn.Linear(expand * d_model, d_model, **place),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_clip(x, self.d_model)
        x = x.transpose(1, 2)  # (B, L, C)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = chunk_bias(self.bias, min(self.chunk or x.shape[1], x.shape[1]), causal=True)
        y = chunked_attention(q, k, v, bias)  # (B, n, L, C/n)
        return self._output(x, y.transpose(1, 2).flatten(2)).transpose(1, 2)

    def init_state(self, batch: int) -> State:
        """The state before the first sample: keys and values of the chunk, (B, n, samples so far, C/n) each."""
        width = self.d_model // self.num_heads
        return attention_state(batch, self.num_heads, width, width, self.out.weight)

    def system(self) -> list[Tensor]:
        """Nothing is discretized here."""
        return []

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """One sample (B, C) -> (B, C) and the new state; `state` is left as it was. Raises ValueError as `forward`."""
        check_sample(x, self.d_model)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # (B, n, C/n)
        y, state = attention_step(q, k, v, state, self.bias, self.chunk)
        return self._output(x, y.flatten(1)), state

    def _output(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.out(y)
        return x + self.mlp(x)
