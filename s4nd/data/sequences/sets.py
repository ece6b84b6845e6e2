"""What one part of a set of sequences is.

Shape legend: N = examples, L = samples, D = features of a sample, O = outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ['IGNORED', 'SequenceSet']

IGNORED = -100  # as a target: nothing is asked there


@dataclass(frozen=True)
class SequenceSet:
    """Sequences in memory and what is asked of them.

    Attributes:
        inputs: tokens (N, L) of any whole type; numbers (N, L, D), bytes standing for value / 255; or pairs of token
            sequences (N, 2, L).
        targets: classes (N,); a class per sample (N, L), `IGNORED` where nothing is asked; values (N, O) or (N, L, O),
            NaN where nothing is asked.
        lengths: (N,), or (N, 2) of pairs: the samples of each sequence, of which the rest is padding; None: all.
        tokens: how many different tokens there are; 0: the inputs are numbers.
        classes: how many classes the targets tell apart; 0: they are values.
    """

    inputs: Tensor
    targets: Tensor
    tokens: int = 0
    classes: int = 0
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def per_step(self) -> bool:
        """Whether something is asked at each sample."""
        return self.targets.dim() == (2 if self.classes else 3)

    @property
    def features(self) -> int:
        """D, or 0 where the inputs are tokens."""
        return 0 if self.tokens else self.inputs.shape[-1]

    @property
    def outputs(self) -> int:
        """How many numbers a model gives."""
        return self.classes or self.targets.shape[-1]

    def select(self, indices: Tensor) -> SequenceSet:
        lengths = None if self.lengths is None else self.lengths[indices]
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices], lengths=lengths)

    def hold_out(self, fraction: float, random: torch.Generator) -> tuple[SequenceSet, SequenceSet | None]:
        """Hold out a random `fraction`: (rest, held out), the second None where the fraction is 0."""
        count = round(fraction * len(self))
        if not count:
            return self, None
        order = torch.randperm(len(self), generator=random)
        return self.select(order[count:].sort().values), self.select(order[:count].sort().values)
