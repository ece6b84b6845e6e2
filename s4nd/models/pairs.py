"""A classifier of pairs of sequences, as in the retrieval task of Long Range Arena (arXiv 2011.04006).

Shape legend: B = batch, L = length, D = features of a sample, E = features of a summary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from s4nd.models.sequence import SequenceModel

__all__ = ['PairClassifier']


class PairClassifier(nn.Module):
    """Map pairs of sequences (B, 2, L), or (B, 2, L, D), to logits (B, d_output).

    One `SequenceModel` summarizes each sequence as E numbers u and v; two linear maps with a GELU between them read
    (u, v, u ∘ v, u - v).

    Args:
        d_input, layer: of the `SequenceModel`.
        d_output: logits.
        d_summary: E; None: its d_model.
        d_model, head, options: of the `SequenceModel`; head 'mean' or 'last'.

    Raises:
        ValueError: as `SequenceModel`, for head 'step', and in the forward for inputs that are no pairs.
    """

    def __init__(
        self,
        d_input: int,
        d_output: int,
        layer: str = 's4',
        *,
        d_summary: int | None = None,
        d_model: int = 128,
        head: str = 'mean',
        **options: Any,
    ) -> None:
        super().__init__()
        if head == 'step':
            raise ValueError("head must be 'mean' or 'last': a pair has one answer, got 'step'")
        width = d_model if d_summary is None else d_summary
        self.encoder = SequenceModel(d_input, width, layer, d_model=d_model, head=head, **options)
        self.decoder = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, d_output))

    def forward(self, x: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Classify pairs x; lengths (B, 2): samples of each sequence, of which the rest is padding."""
        if x.dim() < 3 or x.shape[1] != 2:
            raise ValueError(f'expected pairs of sequences (batch, 2, length, …), got shape {list(x.shape)}')
        summary = self.encoder(x.flatten(0, 1), lengths=None if lengths is None else lengths.flatten())
        first, second = summary.unflatten(0, (-1, 2)).unbind(1)
        return self.decoder(torch.cat([first, second, first * second, first - second], -1))
