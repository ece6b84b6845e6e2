"""Attention inside chunks of one axis, over a clip or one sample at a time: what the GSS hybrid and Mega share.

Chunks do not overlap: the samples kc … kc + c - 1 see each other and nothing else, so that cost and memory grow with
L·c. Where the chunks begin is counted from the first sample; the last chunk may be shorter.
Shape legend: B = batch, C = d_model, L = length, n = heads, E = width of a key, V = width of a value, c = chunk.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.layers.attention_bias import LagTable, RotaryBias
from s4nd.layers.base import check_padding, check_sample, check_signal, check_unit_step
from s4nd.layers.streaming import State
from s4nd.ops import toeplitz


class ChunkedAttention(nn.Module):
    """Attention inside chunks: weights(q kᵀ + bias) v, with q, k (B, n, L, E) and v (B, n, L, V) -> (B, n, L, V).

    The last chunk may be shorter. With m keys that a query may see, the weights are

        'softmax'   softmax(q·k/√E + bias)
        'laplace'   ½ (1 + erf((s - √½) / (√2 √(1/4π)))),  s = q·k/m + bias     not normalized
        'relu2'     max(s, 0)²                                                  not normalized

    (arXiv 2209.10655, section 3.2 and appendix). m is the number of keys in the chunk up to the query where attention
    is causal, else that of all keys in the chunk, padded ones left out, and at least 1.

    Args:
        bias: a function of the lag, `RotaryBias` or `LagTable`.
        chunk: c; None: the whole axis.
        kind: 'softmax', 'laplace' or 'relu2'.
        causal: whether a query sees no later keys.
        dropout: on the weights, in training.

    Raises:
        ValueError: for an unknown kind, a chunk below 1, and in the forward for chunks longer than the bias knows.
    """

    def __init__(
        self, bias: RotaryBias | LagTable, *, chunk: int | None, kind: str, causal: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_chunk(chunk)
        if kind not in KINDS:
            raise ValueError(f'unknown attention {kind!r}: expected one of {", ".join(KINDS)}')
        self.bias, self.chunk, self.kind, self.causal, self.dropout = bias, chunk, kind, causal, dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend over a clip; padding (B, L) is true for keys that nothing may see.

        Where all keys of a chunk are padded, softmax ignores the padding.
        """
        parts = []
        for first, last, size in self._groups(q.shape[2]):
            # (B·chunks, n, size, …)
            queries, keys, values = (_chunks(t[:, :, first:last], size) for t in (q, k, v))
            hidden = None if padding is None else padding[:, first:last].reshape(-1, size)
            parts.append(
                _unchunks(self._attend(queries, keys, values, self._table(size), hidden), len(q), last - first)
            )
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]

    def weights(self, q: Tensor, k: Tensor, padding: Tensor | None = None) -> Tensor:
        """Compute the weights of a clip alone, (B, n, chunks, c, c), rows for queries; zero beyond the clip's end."""
        parts = []
        full = min(self.chunk or q.shape[2], q.shape[2])
        for first, last, size in self._groups(q.shape[2]):
            queries, keys = (_chunks(t[:, :, first:last], size) for t in (q, k))
            hidden = None if padding is None else padding[:, first:last].reshape(-1, size)
            weights = self._weights(queries, keys, self._table(size), hidden)
            weights = F.pad(weights, (0, full - size, 0, full - size))
            parts.append(weights.unflatten(0, (len(q), (last - first) // size)).transpose(1, 2))
        return torch.cat(parts, 2)

    def init_state(self, batch: int, num_heads: int, key_width: int, value_width: int, like: Tensor) -> State:
        """'keys' (B, n, 0, E) and 'values' (B, n, 0, V): no sample yet; they grow with the chunk, then begin anew."""
        return {
            'keys': like.new_zeros(batch, num_heads, 0, key_width),
            'values': like.new_zeros(batch, num_heads, 0, value_width),
        }

    def step(self, q: Tensor, k: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:
        """One sample of a causal clip: q, k (B, n, E), v (B, n, V) -> (B, n, V) and the new state."""
        begins = state['keys'].shape[2] == self.chunk
        k, v = k[:, :, None], v[:, :, None]
        keys = k if begins else torch.cat([state['keys'], k], 2)
        values = v if begins else torch.cat([state['values'], v], 2)
        seen = keys.shape[2]
        self._check_size(seen)
        lags = torch.arange(seen - 1, -1, -1, device=keys.device)
        y = self._attend(q[:, :, None], keys, values, self.bias(lags)[:, None])
        return y[:, :, 0], {'keys': keys, 'values': values}

    def run(self, q: Tensor, k: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:
        """Go on from any state of a causal clip: q, k (B, n, L, E), v (B, n, L, V) -> (B, n, L, V), the new state."""
        keys, values, length = state['keys'], state['values'], q.shape[2]
        if keys.shape[2] == self.chunk:
            keys, values = keys[:, :, :0], values[:, :, :0]
        seen = keys.shape[2]
        first = length if self.chunk is None else min(length, self.chunk - seen)  # samples that end the chunk at hand
        keys, values = torch.cat([keys, k[:, :, :first]], 2), torch.cat([values, v[:, :, :first]], 2)
        table = self._table(seen + first)[:, seen:]
        clean_keys, clean_values, tainted = _without_nans(keys, values, seen + first)
        y = self._attend(q[:, :, :first], clean_keys, clean_values, table)
        y = y.masked_fill(tainted[:, :, seen:], torch.nan)
        rest = length - first
        if rest:
            q, k, v = (t[:, :, first:] for t in (q, k, v))
            clean_keys, clean_values, tainted = _without_nans(k, v, self.chunk or rest)
            more = self(q, clean_keys, clean_values)
            y = torch.cat([y, more.masked_fill(tainted, torch.nan)], 2)
            last = (rest - 1) % self.chunk + 1
            keys, values = k[:, :, rest - last :], v[:, :, rest - last :]
        return y, {'keys': keys, 'values': values}

    def _groups(self, length: int) -> list[tuple[int, int, int]]:
        """First and last sample, and size of a chunk, of the whole chunks and of the rest."""
        chunk = min(self.chunk or length, length)
        whole = length - length % chunk
        return [(0, whole, chunk)] + ([(whole, length, length - whole)] if whole < length else [])

    def _table(self, size: int) -> Tensor:
        """The bias of a chunk of `size` samples, (n, size, size); -inf for keys that the query may not see."""
        self._check_size(size)
        lags = torch.arange(1 - size, size, device=next(self.bias.parameters()).device)
        table = self.bias(lags)
        if self.causal:
            table = table.masked_fill(lags < 0, -math.inf)
        return toeplitz(table[None], size - 1, size)[0].mT

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, padding: Tensor | None = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if self.kind == 'softmax':
            mask = self._softmax_mask(bias.to(q.dtype), padding)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return F.dropout(self._weights(q, k, bias, padding), dropout) @ v

    def _weights(self, q: Tensor, k: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        scores = q @ k.mT
        if self.kind == 'softmax':
            return (scores / math.sqrt(q.shape[-1]) + self._softmax_mask(bias.to(q.dtype), padding)).softmax(-1)
        hidden = bias == -math.inf  # (n, queries, keys)
        if padding is None or self.causal:
            keys = (~hidden).sum(-1, keepdim=True)
        else:
            keys = (~padding).sum(-1).clamp(min=1)[:, None, None, None]
        # (Infinite scores would have NaN for second derivatives.)
        scores = scores / keys + bias.masked_fill(hidden, 0.0).to(q.dtype)
        if padding is not None:
            hidden = hidden | padding[:, None, None]
        return _LAWS[self.kind](scores).masked_fill(hidden, 0.0)

    @staticmethod
    def _softmax_mask(bias: Tensor, padding: Tensor | None) -> Tensor:
        if padding is None:
            return bias
        padding = padding & ~padding.all(-1, keepdim=True)
        return bias.masked_fill(padding[:, None, None], -math.inf)

    def _check_size(self, size: int) -> None:
        if size > self.bias.max_length:
            raise ValueError(
                f'the bias knows lags below {self.bias.max_length}, got {size} samples that see each other'
            )


def _laplace(scores: Tensor) -> Tensor:
    """The distribution function of a normal variable of mean √½ and variance 1/4π, in the published decimals."""
    return (1 + torch.erf((scores - 0.707107) / (0.282095 * math.sqrt(2)))) / 2


_LAWS = {'laplace': _laplace, 'relu2': lambda scores: F.relu(scores).square()}
KINDS = ('softmax', *_LAWS)


def _chunks(t: Tensor, size: int) -> Tensor:
    """(B, n, chunks·size, E) -> (B·chunks, n, size, E)."""
    return t.unflatten(2, (t.shape[2] // size, size)).transpose(1, 2).flatten(0, 1)


def _unchunks(t: Tensor, batch: int, length: int) -> Tensor:
    """(B·chunks, n, size, V) -> (B, n, chunks·size, V)."""
    return t.unflatten(0, (batch, length // t.shape[2])).transpose(1, 2).flatten(2, 3)


def _without_nans(k: Tensor, v: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values with zeros for what is not finite, and which samples of a chunk come after it (B, n, L, 1).

    A masked key with a NaN would spread it to the samples before.
    """
    bad = ~(k.isfinite().all(-1) & v.isfinite().all(-1))  # (B, n, L)
    length = bad.shape[2]
    parts = F.pad(bad, (0, -length % chunk)).unflatten(2, (-(-length // chunk), chunk))
    tainted = (parts.cumsum(-1) > 0).flatten(2)[..., :length, None]
    return k.masked_fill(bad[..., None], 0.0), v.masked_fill(bad[..., None], 0.0), tainted


def check_chunk(chunk: int | None) -> None:
    """Raise ValueError unless the chunk is None (the whole axis) or at least 1."""
    if chunk is not None and chunk < 1:
        raise ValueError(f'chunk must be at least 1, or None for the whole axis, got {chunk}')


class LocalAttention(nn.Module):
    """A Transformer block with attention inside chunks: y = x + W_o attention(norm(x)), y + MLP(norm(y)).

    Args:
        d_model: C, a multiple of num_heads.
        num_heads: n.
        chunk: c, samples of a chunk; None: the whole clip.
        expand: width of the MLP over d_model.
        bidirectional: whether a sample sees later ones too; such a layer does not stream.
        dropout: on both branches, in training.

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
        bidirectional: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f'num_heads must divide d_model, got num_heads={num_heads} and d_model={d_model}')
        place: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_model, self.num_heads, self.head_width, self.chunk = d_model, num_heads, d_model // num_heads, chunk
        self.bidirectional = bidirectional
        self.norm = nn.LayerNorm(d_model, **place)
        self.qkv = nn.Linear(d_model, 3 * d_model, **place)
        bias = RotaryBias(num_heads, max(1, self.head_width // 2), **place)
        self.attention = ChunkedAttention(bias, chunk=chunk, kind='softmax', causal=not bidirectional)
        self.out = nn.Linear(d_model, d_model, **place)
        self.mlp = nn.Sequential(
            nn.LayerNorm(d_model, **place),
            nn.Linear(d_model, expand * d_model, **place),
            nn.GELU(),
            nn.Linear(expand * d_model, d_model, **place),
        )
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, state: State | None = None, *, padding: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Transform x (B, C, L); with a state, go on from it and return the output and the state after x.

        padding (B, L) is true for samples that no other sees; outputs there mean nothing.
        """
        x = check_signal(x, self.d_model, 1)
        check_padding(padding, x)
        x = x.transpose(1, 2)  # (B, L, C)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, self.head_width)).permute(2, 0, 3, 1, 4)
        if state is None:
            y, after = self.attention(q, k, v, padding), None  # (B, n, L, C/n)
        else:
            self._check_causal()
            y, after = self.attention.run(q, k, v, state)
        y = self._output(x, y.transpose(1, 2).flatten(2)).transpose(1, 2)
        return y if after is None else (y, after)

    def init_state(self, batch: int) -> State:
        """Make the state before the first sample: keys and values of the chunk, (B, n, samples so far, C/n) each."""
        self._check_causal()
        return self.attention.init_state(batch, self.num_heads, self.head_width, self.head_width, self.out.weight)

    def system(self, step: float = 1.0) -> list[Tensor]:
        """Return nothing: there is nothing to discretize. Raises ValueError unless step is 1."""
        check_unit_step(step)
        return []

    def step(self, x: Tensor, state: State, system: list[Tensor] | None = None) -> tuple[Tensor, State]:
        """Take one sample (B, C) -> (B, C) and the new state; `state` is left as it was. Raises as `forward`."""
        self._check_causal()
        check_sample(x, self.d_model)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, self.head_width)).unbind(1)  # (B, n, C/n)
        y, state = self.attention.step(q, k, v, state)
        return self._output(x, y.flatten(1)), state

    def _output(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.drop(self.out(y))
        return x + self.drop(self.mlp(x))

    def _check_causal(self) -> None:
        if self.bidirectional:
            raise ValueError('bidirectional attention needs the whole clip and cannot stream: call it without a state')
