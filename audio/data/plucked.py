"""Melodies of plucked strings, made here: sound to learn from without any recording."""

import math

import numpy as np
import torch
from torch import Tensor

from .datasets import Clips

# A pentatonic scale (Hz).
PITCHES = (220.0, 261.63, 293.66, 329.63, 392.0)


def pluck(
    frequency: float, samples: int, sample_rate: int, *, position: float = 0.3, damping: float = 0.996
) -> np.ndarray:
    """A plucked string (Karplus and Strong 1983), (samples,) float64 with peak about 1.

    A loop of about one period, filled with the triangle of a string pulled at `position` (0 to 1) and fed back through
    a two-point average times `damping`. The pitch is rounded to a loop of whole samples.
    """
    period = max(2, round(sample_rate / frequency - 0.5))
    if not 0 < position < 1:
        raise ValueError(f'position must lie between 0 and 1, got {position}')
    x = (np.arange(period) + 0.5) / period
    block = np.minimum(x / position, (1 - x) / (1 - position))
    block = 2 * (block - block.mean())
    before, out = 0.0, []
    for _ in range(math.ceil(samples / period)):
        out.append(block)
        last = block[-1]
        block = damping / 2 * (block + np.concatenate([[before], block[:-1]]))
        before = last
    return np.concatenate(out)[:samples]


def plucked_melody(samples: int, sample_rate: int, seed: int | tuple[int, ...], *, beat: float = 0.25) -> np.ndarray:
    """Notes of `PITCHES` at random, one every `beat` seconds, each cut off by the next: (samples,) in [-1, 1].

    All are plucked alike, over faint noise: a model trained without it goes astray on its own first mistake.
    """
    rng = np.random.default_rng(seed)
    step = max(1, round(beat * sample_rate))
    pitches = rng.choice(PITCHES, -(-samples // step))
    notes = np.concatenate([0.7 * pluck(pitch, step, sample_rate) for pitch in pitches])[:samples]
    return (notes + 0.01 * rng.standard_normal(samples)).clip(-1, 1)


class PluckedClips(Clips):
    """`count` plucked melodies of `clip_samples`, without classes; the same seed gives the same clips."""

    def __init__(self, count: int, clip_samples: int, sample_rate: int, seed: int | tuple[int, ...] = 0) -> None:
        prefix = seed if isinstance(seed, tuple) else (seed,)
        clips = [plucked_melody(clip_samples, sample_rate, (*prefix, i)) for i in range(count)]
        self.clips = torch.from_numpy(np.stack(clips)).float()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        return self.clips[index]
