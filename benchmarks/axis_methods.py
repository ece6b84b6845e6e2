"""Where do Toeplitz products and FFTs cross? Time of one axis, forward and backward, by length and number of lines.

A line is one signal along the axis: batch times the sizes of the other axes. Ratios of medians of interleaved runs in
one process, one thread, float32, two-sided taps as long as the axis.

    python benchmarks/axis_methods.py [out=out/axis_methods]

Prints the table (below 1: Toeplitz is faster) and writes axis_methods.json. `s4nd.ops` takes its rule from it.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from s4nd.files import write_atomically
from s4nd.ops import separable_conv

LINES = (1, 4, 16, 64, 256)
LENGTHS = (32, 64, 128, 256, 512, 1024)
ROUNDS = 6


def ratio(lines: int, length: int) -> float:
    """Median time of the Toeplitz product over that of the FFT."""
    channels = max(8, min(64, 2**21 // (lines * length)))
    x = torch.randn(lines, channels, length, requires_grad=True)
    taps = torch.randn(1, channels, 2 * length - 1, requires_grad=True)
    times: dict[str, list[float]] = {'toeplitz': [], 'fft': []}
    for _ in range(ROUNDS):
        for method, found in times.items():
            start = time.perf_counter()
            separable_conv(x, [taps], [length - 1], method).sum().backward()
            found.append(time.perf_counter() - start)
    # The first round warms up.
    return statistics.median(times['toeplitz'][1:]) / statistics.median(times['fft'][1:])


def main(out: Path) -> None:
    torch.set_num_threads(1)
    rows = []
    print('lines' + ''.join(f'{f"L = {length}":>10}' for length in LENGTHS))
    for lines in LINES:
        found = [ratio(lines, length) for length in LENGTHS]
        rows += [{'lines': lines, 'length': n, 'toeplitz_over_fft': r} for n, r in zip(LENGTHS, found, strict=True)]
        print(f'{lines:>5}' + ''.join(f'{value:>10.2f}' for value in found))
    write_atomically(out / 'axis_methods.json', lambda path: path.write_text(json.dumps(rows, indent=1)))
    print(f'\nwritten to {out}')


if __name__ == '__main__':
    options = dict(argument.split('=', 1) for argument in sys.argv[1:])
    unknown = set(options) - {'out'}
    if unknown:
        sys.exit(f'unknown option {sorted(unknown)}: expected out=FOLDER')
    main(Path(options.get('out', 'out/axis_methods')))
