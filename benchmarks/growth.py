"""How does the cost of an S4ND layer grow with the size, the axes and the tensor rank? Theory beside measurement.

    python benchmarks/growth.py [threads=2 device=cpu rounds=9 small=false out=out/growth]

Forward in evaluation, N = 64, bidirectional, about 2^20 values a signal. `predicted` counts multiplications a value,
R · Σ L over the axes that are matrix products and R · Σ 3 log2 2L over those that are FFTs; both columns are relative
to the first row of their kind of axis. What the count leaves out is copies and the efficiency of small products.
"""

import math

import torch
from common import medians, options, save, setup, table

from s4nd import S4ND
from s4nd.ops import use_toeplitz

CASES = [
    *[((length,), 1) for length in (64, 1024, 16384)],
    *[((side, side), 1) for side in (8, 16, 32, 64, 128, 256)],
    *[((side, side, side), 1) for side in (8, 16, 32)],
    *[((32, 32), rank) for rank in (2, 4)],
]


def predicted(size: tuple[int, ...], rank: int) -> float:
    """Multiplications a value."""
    axes = [length if use_toeplitz(list(size), axis) else 3 * math.log2(2 * length) for axis, length in enumerate(size)]
    return rank * sum(axes)


def measure(size: tuple[int, ...], rank: int, rounds: int, device: str, values: int) -> dict[str, object]:
    points = math.prod(size)
    batch = max(1, min(16, values // (16 * points)))
    channels = max(1, values // (batch * points))
    layer = S4ND(channels, size, tensor_rank=rank).to(device).eval()
    x = torch.randn(batch, channels, *size, device=device)
    with torch.no_grad():
        seconds = medians({'layer': lambda: layer(x)}, rounds, device)['layer']
    nanoseconds = 1e9 * seconds / x.numel()
    ways = {'matrix' if use_toeplitz(list(size), axis) else 'fft' for axis in range(len(size))}
    row = {'size': '×'.join(map(str, size)), 'rank': rank, 'by': '+'.join(sorted(ways)), 'ns a value': nanoseconds}
    return row | {'multiplications a value': predicted(size, rank)}


if __name__ == '__main__':
    chosen = options({'threads': '2', 'device': 'cpu', 'rounds': '9', 'small': 'false', 'out': 'out/growth'})
    measured = setup(chosen['threads'], chosen['device'])
    small = chosen['small'] == 'true'
    rows = [
        measure(size, rank, int(chosen['rounds']), chosen['device'], 2**12 if small else 2**20)
        for size, rank in (CASES[:4] if small else CASES)
    ]
    for row in rows:
        first = next(other for other in rows if other['by'] == row['by'])
        row['measured'] = row['ns a value'] / first['ns a value']
        row['predicted'] = row['multiplications a value'] / first['multiplications a value']
    print(table(rows))
    save(chosen['out'], 'growth', measured, rows)
