"""Filling in multivariate time series by conditional diffusion over (channel, time): CSDI-S4.

CSDI with S4 for its attention in time is the sibling of SSSD-S4 in paper and code (arXiv 2208.09399; CSDI: arXiv
2107.03502). Each value of a series has features of its own, which S4 mixes along time and attention over channels.

Shape legend: B = batch, K = channels, L = samples, H = d_model, E = width of the condition, S = features of a place.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd.models.s4_block import S4Block
from s4nd.models.sssd import Imputer, freeze_kernels
from s4nd.ops.dispatch import wide_dtype

__all__ = ['CSDIS4', 'CSDIBlock']


class CSDIBlock(nn.Module):
    """Compute + step embedding, S4 over time, attention over channels, + map of the place, σ · tanh gate.

    Args:
        d_model: H.
        side: S.
        condition: E.
        heads: of the attention.
        options: keywords of `S4Block`.
    """

    def __init__(self, d_model: int, side: int, condition: int, heads: int, **options: Any) -> None:
        super().__init__()
        self.condition = nn.Linear(condition, d_model)
        self.s4 = S4Block(d_model, glu=False, prenorm=False, bidirectional=True, **options)
        self.attention = nn.TransformerEncoderLayer(d_model, heads, 64, activation='gelu', batch_first=True)
        self.mid = nn.Linear(d_model, 2 * d_model)
        self.side = nn.Linear(side, 2 * d_model)
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, side: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Map x (B, K, L, H), features of the places (B, K, L, S) and condition (B, E) to the next x and the skip."""
        batch, channels, length, _ = x.shape
        y = x + self.condition(condition)[:, None, None]
        if length > 1:
            y = self.s4(y.flatten(0, 1)).unflatten(0, (batch, channels))
        if channels > 1:
            y = self.attention(y.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, length)).transpose(1, 2)
        gate, signal = (self.mid(y) + self.side(side)).chunk(2, -1)
        residual, skip = self.out(torch.sigmoid(gate) * torch.tanh(signal)).chunk(2, -1)
        return (x + residual) * 0.5**0.5, skip


class CSDIS4(Imputer):
    """CSDI-S4: a series is a grid of (channel, time), and each block sees its lines in both directions.

    Of S4 only C, D and the output map are trained, as released. The published size is the default.

    Args:
        channels: K of the series.
        d_model: H.
        n_layers: blocks.
        heads: of the attention over channels.
        mixer_args: keywords of `s4nd.S4`.
        time_features, channel_features: of a place; sines and cosines of the sample's number, and an embedding.
        freeze: whether dt, A, B and P of the S4 layers stay as they start.
        condition, diffusion: see `Imputer`.

    Raises:
        ValueError: for sizes below 1, and an odd number of time_features.
    """

    def __init__(
        self,
        channels: int,
        d_model: int = 64,
        n_layers: int = 4,
        *,
        heads: int = 8,
        mixer_args: Mapping[str, Any] | None = None,
        time_features: int = 128,
        channel_features: int = 16,
        freeze: bool = True,
        condition: int = 128,
        diffusion: Mapping[str, Any] | None = None,
    ) -> None:
        if time_features < 2 or time_features % 2:
            raise ValueError(f'time_features must be even and at least 2, got {time_features}')
        side = time_features + channel_features + 1
        blocks = (CSDIBlock(d_model, side, condition, heads, mixer_args=mixer_args) for _ in range(n_layers))
        super().__init__(channels, d_model, blocks, condition=condition, diffusion=diffusion)
        self.time_features = time_features
        self.embedding = nn.Embedding(channels, channel_features)
        self.enter = nn.Linear(2, d_model)
        last = nn.Linear(d_model, 1)
        nn.init.zeros_(last.weight)
        self.leave = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), last)
        if freeze:
            freeze_kernels(self)

    def forward(self, x: Tensor, t: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Map noised series x (B, K, L), index of the step (B,), observed values and mask to a prediction (B, K, L).

        `values` is read at observed places only, and x at the others.
        """
        self.check(x, t, values)
        dtype = self.enter.weight.dtype
        condition = self.step_embedding(_rising_features(t, self.step_embedding[0].in_features).to(dtype))
        grid = torch.stack([torch.where(mask, values, 0), torch.where(mask, 0, x)], -1).to(dtype)  # (B, K, L, 2)
        side = self._side(mask).to(dtype)
        y = F.relu(self.enter(grid))
        total = 0.0
        for block in self.blocks:
            y, skip = block(y, side, condition)
            total = total + skip
        return self.leave(total * len(self.blocks) ** -0.5)[..., 0]

    def _side(self, mask: Tensor) -> Tensor:
        """Features of all places (B, K, L, S), float64: their time, channel and mask."""
        batch, channels, length = mask.shape
        even = torch.arange(0, self.time_features, 2, device=mask.device, dtype=wide_dtype(mask.device))
        rate = 1e4 ** (-even / self.time_features)
        phase = torch.arange(length, device=mask.device)[:, None] * rate
        time = torch.stack([phase.sin(), phase.cos()], -1).flatten(1)  # (L, time_features)
        parts = [time.expand(batch, channels, -1, -1), self.embedding.weight[:, None].expand(batch, -1, length, -1)]
        return torch.cat([*parts, mask[..., None].to(time)], -1)


def _rising_features(t: Tensor, features: int) -> Tensor:
    """Sines, then cosines, of t · 10^(4 i / (n - 1)), i = 0 … n - 1: (B, 2n) float64; as released, without a minus."""
    half = features // 2
    phases = t[:, None] * 10 ** (torch.arange(half, dtype=wide_dtype(t.device), device=t.device) * (4 / (half - 1)))
    return torch.cat([phases.sin(), phases.cos()], -1)
