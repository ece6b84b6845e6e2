"""A language model of layers over one axis: tokens in, logits of the next token out.

Shape legend: B = batch, L = tokens, C = d_model.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.layers.streaming import State, scoped, within

__all__ = ['LanguageModel']


class LanguageModel(nn.Module):
    """Embed tokens, run causal layers over them and map to logits: whole numbers (B, L) -> (B, L, tokens).

    Args:
        tokens: number of different tokens.
        d_model: C.
        layers: each maps (B, C, L) to the same, with its own residual and norm, such as `GSS`, `GSSHybrid` or `Mega`.

    It streams by the contract of layers/streaming.py, one token (B,) at a time, where all layers do.

    Raises:
        ValueError: in the forward, for tokens that are not whole numbers (B, L).
    """

    def __init__(
        self,
        tokens: int,
        d_model: int,
        layers: Iterable[nn.Module],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, d_model, device=device, dtype=dtype)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(d_model, tokens, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor | tuple[Tensor, State]:
        """Predict from tokens (B, L); with a state, go on from it and return the logits and the state after x."""
        if x.dim() != 2 or x.is_floating_point():
            raise ValueError(f'expected whole numbers (batch, length), got {x.dtype} of shape {list(x.shape)}')
        y = self.embedding(x).transpose(1, 2)
        if state is None:
            for layer in self.layers:
                y = layer(y)
            return self.head(y.transpose(1, 2))
        new: State = {}
        for i, layer in enumerate(self.layers):
            y, own = layer(y, scoped(state, f'layers.{i}'))
            new |= within(f'layers.{i}', own)
        return self.head(y.transpose(1, 2)), new

    def init_state(self, batch: int) -> State:
        """Make the state before the first token: a flat dict of tensors, batch first."""
        state: State = {}
        for i, layer in enumerate(self.layers):
            state |= within(f'layers.{i}', layer.init_state(batch))
        return state

    def system(self, step: float = 1.0) -> list[Any]:
        """Discretize all layers: compute it once before a loop of `step` calls."""
        return [layer.system(step) for layer in self.layers]

    def step(self, x: Tensor, state: State, system: list[Any] | None = None) -> tuple[Tensor, State]:
        """Take one token (B,) -> logits (B, tokens) and the new state; `state` is left as it was."""
        y, new = self.embedding(x), State()
        for i, layer in enumerate(self.layers):
            y, own = layer.step(y, scoped(state, f'layers.{i}'), None if system is None else system[i])
            new |= within(f'layers.{i}', own)
        return self.head(y), new
