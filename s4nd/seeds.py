"""Seeds derived from one seed: the place where every random draw of training, data and evaluation begins."""

from __future__ import annotations

import torch

__all__ = ['derived_seed', 'generator']


def derived_seed(seed: int, number: int) -> int:
    """The seed of part `number` (an epoch, a row, a clip) of what has `seed`; parts below 1,000,003 differ."""
    return seed * 1_000_003 + number


def generator(seed: int, number: int = 0, device: torch.device | str = 'cpu') -> torch.Generator:
    """A new generator on `device`, seeded by `derived_seed`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, number))
