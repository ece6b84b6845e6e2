"""How do time and memory of Mega grow with the length, over the whole axis and in chunks?

    python benchmarks/mega_chunks.py [longest=32768 whole=8192 chunk=256 width=64 rounds=3 threads=2
                                      out=out/mega_chunks]

Forward and backward of one causal layer, batch 1, float32, at 1024, 2048, … `longest` samples, over the whole axis up
to `whole` (whose memory grows with the square: 1 GB at 8192). Seconds are medians of interleaved runs, memory what a
step adds in a process of its own. The exponent p of a column, cost ~ lengthᵖ, is fitted to its three longest lengths.
"""

import math
from collections.abc import Sequence

import torch
from common import medians, options, peak_memory, save, setup, table

from s4nd import Mega

KINDS = ('whole', 'chunked')


class Step:
    """Forward and backward of one layer."""

    def __init__(self, width: int, length: int, chunk: int | None) -> None:
        self.layer = Mega(width, chunk=chunk)
        self.x = torch.randn(1, width, length, requires_grad=True)

    def __call__(self) -> None:
        self.layer.zero_grad()
        self.layer(self.x).square().mean().backward()


def measure(length: int, width: int, chunks: dict[str, int | None], rounds: int) -> dict[str, object]:
    """Seconds and gigabytes of each kind in `chunks`; a dash for the others."""
    seconds = medians({kind: Step(width, length, chunk) for kind, chunk in chunks.items()}, rounds)
    memory = {kind: peak_memory(Step, width, length, chunk) for kind, chunk in chunks.items()}
    row: dict[str, object] = {'length': length}
    row |= {f'{kind} s': seconds.get(kind, '-') for kind in KINDS}
    return row | {f'{kind} GB': memory.get(kind, '-') for kind in KINDS}


def exponent(lengths: Sequence[int], costs: Sequence[float]) -> float:
    """Slope of log cost over log length by least squares."""
    x, y = ([math.log(v) for v in values] for values in (lengths, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


if __name__ == '__main__':
    defaults = {'longest': '32768', 'whole': '8192', 'chunk': '256', 'width': '64', 'rounds': '3', 'threads': '2'}
    chosen = options({**defaults, 'out': 'out/mega_chunks'})
    measured = setup(chosen['threads'], 'cpu') + f', chunk {chosen["chunk"]}, width {chosen["width"]}'
    rows, length = [], 1024
    while length <= int(chosen['longest']):
        chunks: dict[str, int | None] = {'whole': None} if length <= int(chosen['whole']) else {}
        chunks['chunked'] = int(chosen['chunk'])
        rows.append(measure(length, int(chosen['width']), chunks, int(chosen['rounds'])))
        print(table(rows), flush=True)
        length *= 2
    fitted: dict[str, object] = {'length': 'exponent'}
    for column in list(rows[0])[1:]:
        known = [(row['length'], row[column]) for row in rows if row[column] != '-'][-3:]
        fitted[column] = exponent(*zip(*known, strict=True)) if len(known) > 1 else '-'
    rows.append(fitted)
    print(table(rows))
    save(chosen['out'], 'mega_chunks', measured, rows)
