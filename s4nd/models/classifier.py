"""A classifier of sequences: a linear map in, layers over the axis, a pool, a linear map out (state-spaces/s4).

Shape legend: B = batch, L = length, D = d_input, H = d_model.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.layers.norms import make_norm

__all__ = ['SequenceClassifier']

POOLS = ('mean', 'last')


class SequenceClassifier(nn.Module):
    """Map sequences (B, L, D) of numbers to logits (B, num_classes).

    Args:
        d_input: D.
        d_model: H.
        num_classes: number of logits.
        layers: each maps (B, H, L) to the same, such as `Residual`; with lengths, they are called with `lengths`.
        norm: before the pool, see `make_norm`; None: there is none.
        pool: 'mean' over the samples of a sequence, or 'last', its last one.

    Raises:
        ValueError: for an unknown norm or pool, and in the forward for an input that is not (B, L, D).
    """

    def __init__(
        self,
        d_input: int,
        d_model: int,
        num_classes: int,
        layers: Iterable[nn.Module],
        *,
        norm: str | None = 'layer',
        pool: str = 'mean',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f'unknown pool {pool!r}: expected one of {", ".join(POOLS)}')
        place: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.d_input, self.pool = d_input, pool
        self.encoder = nn.Linear(d_input, d_model, **place)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Identity() if norm is None else make_norm(norm, d_model, **place)
        self.decoder = nn.Linear(d_model, num_classes, **place)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify x (B, L, D); lengths (B,), each at least 1: samples of each sequence, the rest is ignored."""
        return self.decoder(self.pooled(self.features(x, lengths), lengths))

    def features(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute what is pooled, (B, L, H)."""
        if x.dim() != 3 or x.shape[2] != self.d_input:
            raise ValueError(f'expected (batch, length, {self.d_input}), got shape {list(x.shape)}')
        y = self.encoder(x).transpose(1, 2)
        for layer in self.layers:
            y = layer(y) if lengths is None else layer(y, lengths=lengths)
        return self.norm(y.transpose(1, 2))

    def pooled(self, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Pool features (B, L, H) -> (B, H)."""
        if lengths is None:
            return y.mean(1) if self.pool == 'mean' else y[:, -1]
        if self.pool == 'last':
            return y.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, y.shape[2]))[:, 0]
        inside = torch.arange(y.shape[1], device=y.device) < lengths[:, None]
        return y.masked_fill(~inside[..., None], 0.0).sum(1) / lengths[:, None]
