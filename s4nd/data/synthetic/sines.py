"""Sine waves of random frequency and phase, the channels of a window shifted against each other."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ['sine_waves']


def sine_waves(count: int, channels: int, length: int, seed: int | tuple[int, ...]) -> Tensor:
    """`count` windows (count, channels, length) of unit variance, the same for the same seed.

    A window has one frequency, 0.06 to 0.13 cycles per sample; each channel leads the one before
    by π / (2 · channels) of phase, so that each one tells of the others.
    """
    random = np.random.default_rng(seed)
    phase = torch.from_numpy(random.uniform(0, 2 * math.pi, (count, 1, 1)))
    rate = torch.from_numpy(random.uniform(0.06, 0.13, (count, 1, 1))) * 2 * math.pi
    shift = torch.arange(channels)[None, :, None] * math.pi / 2 / channels
    return (2**0.5 * torch.sin(phase + rate * torch.arange(length) + shift)).float()
