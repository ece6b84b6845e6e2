"""Tests of memory: copying, selective copying, induction heads, delay and adding.

Shape legend: N = examples, L = samples, M = tokens to remember, V = different tokens to remember.
Token 0 is a blank. Targets are `IGNORED` (whole numbers) or NaN (values) where nothing is asked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s4nd.data.sequences.sets import IGNORED, SequenceSet
from s4nd.seeds import generator

__all__ = ['adding', 'copying', 'delay', 'induction', 'selective_copying']


def copying(count: int, length: int, seed: int, *, memory: int = 10, symbols: int = 8) -> SequenceSet:
    """Draw M symbols, blanks, and M markers, at which the symbols are asked in their order (Arjovsky, 1511.06464).

    Tokens are 0 (blank), 1 … V, and V + 1 (marker). Raises ValueError unless 2 M <= L.
    """
    data = _symbols(count, length, memory, symbols, seed)
    inputs = torch.zeros(count, length, dtype=torch.long)
    inputs[:, :memory] = data
    return _recalled(inputs, data, symbols)


def selective_copying(count: int, length: int, seed: int, *, memory: int = 16, symbols: int = 14) -> SequenceSet:
    """Draw `copying` with the symbols spread at random over the L - M samples before the markers (Mamba, 2312.00752).

    Raises ValueError unless 2 M <= L.
    """
    data = _symbols(count, length, memory, symbols, seed)
    chance = torch.rand(count, length - memory, generator=generator(seed, 1))
    places = chance.argsort(1)[:, :memory].sort(1).values
    inputs = torch.zeros(count, length, dtype=torch.long).scatter(1, places, data)
    return _recalled(inputs, data, symbols)


def induction(count: int, length: int, seed: int, *, symbols: int = 15) -> SequenceSet:
    """Draw noise with a marker and a symbol after it; at the marker in the end that symbol is asked (2312.00752).

    Tokens are 1 … V, and V + 1 (marker). Raises ValueError unless L >= 4.
    """
    if length < 4:
        raise ValueError(f'length must be at least 4, got {length}')
    random = generator(seed)
    inputs = torch.randint(1, symbols + 1, (count, length), generator=random)
    place = torch.randint(0, length - 2, (count, 1), generator=random)
    inputs.scatter_(1, place, symbols + 1)
    inputs[:, -1] = symbols + 1
    targets = torch.full_like(inputs, IGNORED)
    targets[:, -1] = inputs.gather(1, place + 1)[:, 0]
    return SequenceSet(inputs, targets, symbols + 2, symbols + 2)


def delay(count: int, length: int, seed: int, *, lag: int = 1000, cycles: int | None = None) -> SequenceSet:
    """Draw noise of unit variance below `cycles` cycles per sequence (None: L / 128); it is asked `lag` samples later.

    Inputs and targets are (N, L, 1); targets of the first `lag` samples are NaN. Raises ValueError unless lag < L.
    """
    if not 1 <= lag < length:
        raise ValueError(f'lag must be at least 1 and less than the length {length}, got {lag}')
    cycles = max(1, length // 128) if cycles is None else cycles
    waves = torch.randn(count, cycles, 2, generator=generator(seed))
    spectrum = torch.zeros(count, length // 2 + 1, dtype=torch.complex64)
    spectrum[:, 1 : cycles + 1] = torch.view_as_complex(waves) * length / math.sqrt(4 * cycles)
    signal = torch.fft.irfft(spectrum, length)[..., None]
    targets = torch.full_like(signal, torch.nan)
    targets[:, lag:] = signal[:, :-lag]
    return SequenceSet(signal, targets)


def adding(count: int, length: int, seed: int) -> SequenceSet:
    """Draw uniform numbers and two marks, one in each half; the sum of the marked numbers is asked (LSTM, 1997).

    Inputs are (N, L, 2), targets (N, 1), of variance 1/6. Raises ValueError unless L >= 2.
    """
    if length < 2:
        raise ValueError(f'length must be at least 2, got {length}')
    random = generator(seed)
    numbers = torch.rand(count, length, generator=random)
    first = torch.randint(0, length // 2, (count, 1), generator=random)
    second = torch.randint(length // 2, length, (count, 1), generator=random)
    marks = torch.zeros_like(numbers).scatter(1, torch.cat([first, second], 1), 1.0)
    return SequenceSet(torch.stack([numbers, marks], -1), (numbers * marks).sum(1, keepdim=True))


def _symbols(count: int, length: int, memory: int, symbols: int, seed: int) -> Tensor:
    if not 1 <= memory <= length // 2:
        raise ValueError(f'memory must be at least 1 and at most half of the length {length}, got {memory}')
    return torch.randint(1, symbols + 1, (count, memory), generator=generator(seed))


def _recalled(inputs: Tensor, data: Tensor, symbols: int) -> SequenceSet:
    """The set whose last samples are markers, at which `data` (N, M) is asked."""
    targets = torch.full_like(inputs, IGNORED)
    inputs[:, -data.shape[1] :] = symbols + 1
    targets[:, -data.shape[1] :] = data
    return SequenceSet(inputs, targets, symbols + 2, symbols + 2)
