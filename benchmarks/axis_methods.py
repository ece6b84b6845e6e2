"""Where do matrix products and FFTs cross? Time of an S4ND layer by either, in evaluation and in training.

    python benchmarks/axis_methods.py [threads=2 device=cpu rounds=7 out=out/axis_methods]

Signals of one axis (batch 16, 64 features) and of two equal axes (batch 2, 16 features), float32, two-sided kernels as
long as the axis; ratios of medians of interleaved runs, below 1: matrix products are faster. `s4nd.ops.use_toeplitz`
takes its limits from it.
"""

import torch
from common import medians, options, save, setup, table

from s4nd import S4ND
from s4nd.ops import use_toeplitz

ONE_AXIS = [(length,) for length in (16, 32, 64, 128, 256, 512)]
TWO_AXES = [(side, side) for side in (16, 32, 64, 128, 256, 512)]


def measure(size: tuple[int, ...], rounds: int, device: str) -> dict[str, object]:
    batch, features = (16, 64) if len(size) == 1 else (2, 16)
    layers = {way: S4ND(features, size).to(device) for way in ('toeplitz', 'fft')}
    for way, layer in layers.items():
        layer.method = way
    x = torch.randn(batch, features, *size, device=device, requires_grad=True)
    with torch.no_grad():
        forward = medians({way: lambda m=layer: m(x) for way, layer in _in_mode(layers, False)}, rounds, device)
    training = medians(
        {way: lambda m=layer: m(x).sum().backward() for way, layer in _in_mode(layers, True)}, rounds, device
    )
    row: dict[str, object] = {'size': '×'.join(map(str, size))}
    row |= {'evaluation': forward['toeplitz'] / forward['fft'], 'training': training['toeplitz'] / training['fft']}
    return row | {'chosen': 'toeplitz' if use_toeplitz(list(size), 0) else 'fft'}


def _in_mode(layers: dict[str, S4ND], training: bool) -> list[tuple[str, S4ND]]:
    return [(way, layer.train(training)) for way, layer in layers.items()]


if __name__ == '__main__':
    chosen = options({'threads': '2', 'device': 'cpu', 'rounds': '7', 'out': 'out/axis_methods'})
    measured = setup(chosen['threads'], chosen['device'])
    rows = [measure(size, int(chosen['rounds']), chosen['device']) for size in [*ONE_AXIS, *TWO_AXES]]
    print(table(rows))
    save(chosen['out'], 'axis_methods', measured, rows)
