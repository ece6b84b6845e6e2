"""ListOps (1804.06028) as in Long Range Arena (2011.04006): nested lists of digits under MIN, MAX, MED and SM.

Each is a sequence of tokens such as [MAX 4 3 [MIN 2 3 ] 1 0 ], and its value is one of ten classes.
"""

from __future__ import annotations

import random
import statistics

import torch

from s4nd.data.labeled import DataError
from s4nd.data.sequences.sets import SequenceSet

__all__ = ['OPERATORS', 'TOKENS', 'listops', 'tokens_of']

OPERATORS = ('[MIN', '[MAX', '[MED', '[SM')
# 0 pads.
TOKENS: dict[str, int] = {
    text: number for number, text in enumerate((*map(str, range(10)), *OPERATORS, ']'), start=1)
}  # fmt: skip
_TRIES = 1000  # per example


class _TooLongError(Exception):
    """A list has grown beyond what is asked for."""


def listops(
    count: int, length: int, seed: int, *, shortest: int | None = None, depth: int = 10, arguments: int = 10
) -> SequenceSet:
    """Draw `count` lists of `shortest` (None: a quarter of `length`) to `length` tokens, padded with 0 to `length`.

    An argument is a list with probability 1/4 and a digit otherwise, up to `depth` nested lists of 2 to `arguments`
    arguments; the number of tokens decides which lists are kept, and so their depth.

    Raises:
        ValueError: unless 4 <= shortest <= length, or where no such list is found.
    """
    shortest = max(4, length // 4) if shortest is None else shortest
    if not 4 <= shortest <= length:
        raise ValueError(f'expected 4 <= shortest <= length, got shortest {shortest} and length {length}')
    draws = random.Random(seed)
    inputs = torch.zeros(count, length, dtype=torch.uint8)
    labels, lengths = (torch.zeros(count, dtype=torch.long) for _ in range(2))
    for row in range(count):
        tokens, value = _draw(draws, shortest, length, depth, arguments)
        inputs[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.uint8)
        labels[row], lengths[row] = value, len(tokens)
    return SequenceSet(inputs, labels, len(TOKENS) + 1, 10, lengths)


def tokens_of(text: str) -> list[int]:
    """Read a list as its tokens; the round brackets of the published files carry nothing and are left out.

    Raises DataError for any other word.
    """
    words = [word for word in text.split() if word not in '()']
    unknown = next((word for word in words if word not in TOKENS), None)
    if unknown is not None:
        raise DataError(f"ListOps: expected words of {' '.join(TOKENS)}, got '{unknown[:40]}'")
    return [TOKENS[word] for word in words]


def _draw(draws: random.Random, shortest: int, longest: int, depth: int, most: int) -> tuple[list[int], int]:
    for _ in range(_TRIES):
        tokens: list[int] = []
        try:
            value = _grow(draws, tokens, longest, depth, most)
        except _TooLongError:
            continue
        if len(tokens) >= shortest:
            return tokens, value
    raise ValueError(f'no list of {shortest} to {longest} tokens within {depth} levels of {most} arguments was found')


def _grow(draws: random.Random, tokens: list[int], longest: int, depth: int, most: int) -> int:
    """Append a list of at most `depth` levels to `tokens` and return its value."""
    operator = draws.randrange(len(OPERATORS))
    tokens.append(TOKENS[OPERATORS[operator]])
    values = []
    for _ in range(draws.randint(2, most)):
        if depth > 1 and draws.random() < 0.25:
            values.append(_grow(draws, tokens, longest, depth - 1, most))
        else:
            values.append(draws.randrange(10))
            tokens.append(TOKENS[str(values[-1])])
        if len(tokens) >= longest:
            raise _TooLongError
    tokens.append(TOKENS[']'])
    return _value(operator, values)


def _value(operator: int, values: list[int]) -> int:
    """MIN, MAX, the median rounded down, or the sum modulo 10."""
    if operator == 0:
        return min(values)
    if operator == 1:
        return max(values)
    if operator == 2:
        return int(statistics.median(values))
    return sum(values) % 10
