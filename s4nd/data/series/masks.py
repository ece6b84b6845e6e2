"""Masks of what is observed in a series: True where a value is known to the model.

Shape legend: B = batch, C = channels, L = samples. Masks are bool (B, C, L), on the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

__all__ = ['MaskDraw', 'blackout', 'future', 'missing_segments', 'parse_mask', 'random_missing']

# (shape of the series, CPU generator) -> a mask of that shape.
MaskDraw = Callable[[Sequence[int], torch.Generator | None], Tensor]


def random_missing(shape: Sequence[int], random: torch.Generator | None = None, *, share: float = 0.5) -> Tensor:
    """Draw a mask (B, C, L) in which each channel misses `share` of its samples, each at random.

    Exactly the nearest whole number is missing, at least one sample and at most all but one.

    Raises:
        ValueError: unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise ValueError(f'share must lie between 0 and 1, got {share}')
    length = _length(shape)
    missing = min(max(1, round(share * length)), length - 1)
    return torch.rand(tuple(shape), generator=random).argsort(-1).argsort(-1) >= missing


def blackout(shape: Sequence[int], random: torch.Generator | None = None, *, length: int) -> Tensor:
    """Draw a mask (B, C, L) in which all channels of a row miss the same stretch of `length` samples.

    Raises:
        ValueError: unless 1 <= length < L.
    """
    total = _length(shape, length)
    start = torch.randint(0, total - length + 1, (shape[0], 1, 1), generator=random)
    place = torch.arange(total)
    return ((place < start) | (place >= start + length)).expand(tuple(shape)).clone()


def missing_segments(shape: Sequence[int], random: torch.Generator | None = None, *, length: int) -> Tensor:
    """Draw a mask (B, C, L) in which each channel by itself misses one of the consecutive segments of `length` samples.

    The last segment may be shorter. This is "missing not at random" (mnr) of SSSD (arXiv 2208.09399).

    Raises:
        ValueError: unless 1 <= length < L.
    """
    total = _length(shape, length)
    segment = torch.randint(0, -(-total // length), (*shape[:2], 1), generator=random)
    return torch.arange(total) // length != segment


def future(shape: Sequence[int], random: torch.Generator | None = None, *, length: int) -> Tensor:
    """Return the mask (B, C, L) of a forecast: the last `length` samples are missing, in all channels.

    Raises:
        ValueError: unless 1 <= length < L.
    """
    observed = torch.arange(_length(shape, length)) < shape[-1] - length
    return observed.expand(tuple(shape)).clone()


def parse_mask(text: str) -> MaskDraw:
    """Read how masks are drawn: 'random:0.5' (share), 'gap:16', 'mnr:16' or 'forecast:16' (samples).

    Raises:
        ValueError: for any other text.
    """
    match = re.fullmatch(r'(random):(0?\.\d+)|(gap|mnr|forecast):([1-9]\d*)', str(text))
    if match is None or (match[1] and not float(match[2]) > 0):
        raise ValueError(
            f"expected 'random:<share below 1>', 'gap:<samples>', 'mnr:<samples>' or 'forecast:<samples>', got '{text}'"
        )
    if match[1]:
        return partial(random_missing, share=float(match[2]))
    draw = {'gap': blackout, 'mnr': missing_segments, 'forecast': future}[match[3]]
    return partial(draw, length=int(match[4]))


def _length(shape: Sequence[int], missing: int = 1) -> int:
    """L, in which `missing` samples can be missing with one left."""
    if len(shape) != 3 or not 1 <= missing < shape[-1]:
        raise ValueError(
            f'expected a shape (batch, channels, length) and at least 1 and fewer than length samples missing, '
            f'got {tuple(shape)} and {missing}'
        )
    return shape[-1]
