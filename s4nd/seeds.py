"""Seeds derived from one seed: the place where every random draw of training, data and evaluation begins."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ['derived_seed', 'generator', 'generator_at', 'seeded']


def derived_seed(seed: int, number: int) -> int:
    """The seed of part `number` (an epoch, a row, a clip) of what has `seed`; parts below 1,000,003 differ."""
    return seed * 1_000_003 + number


def generator(seed: int, number: int = 0, device: torch.device | str = 'cpu') -> torch.Generator:
    """A new generator on `device`, seeded by `derived_seed`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, number))


def generator_at(*place: int) -> torch.Generator:
    """A new generator on the CPU for one place, such as (seed, epoch, batch)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))


@contextmanager
def seeded(*place: int) -> Iterator[None]:
    """Within it, Python's, NumPy's and torch's generators (CPU) follow from `place` alone; then they are as before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (what augmentations of others draw from)
    first, second, third = np.random.SeedSequence(place).generate_state(3).tolist()
    with torch.random.fork_rng(devices=[]):
        random.seed(first)
        np.random.seed(second)  # noqa: NPY002
        torch.manual_seed(third)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
