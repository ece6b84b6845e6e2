"""Long causal convolutions: ours against one zero-padded FFT of the whole batch, in time and memory.

    python benchmarks/longconv.py [batch=4 features=128 longest=1048576 threads=2 device=cpu rounds=5 out=out/longconv]

Signals (batch, features, length), kernels as long as the signal, float32; forward, and forward and backward. Ratios
(above 1: ours is faster, or takes that many times less memory) are of medians of interleaved runs; memory is the peak
that a forward and backward pass adds to signals and kernels, each in a process of its own. The longest lengths are
measured with fewer features, as the table says.
"""

import torch
from common import medians, options, peak_memory, save, setup, table
from matplotlib.figure import Figure
from torch import Tensor

from s4nd import pictures
from s4nd.ops import separable_conv


def plain(x: Tensor, taps: Tensor) -> Tensor:
    """The whole batch in one zero-padded FFT product."""
    length = x.shape[-1]
    product = torch.fft.rfft(x, n=2 * length) * torch.fft.rfft(taps, n=2 * length)
    return torch.fft.irfft(product, n=2 * length)[..., :length]


def ours(x: Tensor, taps: Tensor) -> Tensor:
    return separable_conv(x, [taps[None]], [0], 'fft')


METHODS = {'ours': ours, 'plain': plain}


class Pass:
    """Forward, and forward and backward, of one method."""

    def __init__(self, method: str, batch: int, features: int, length: int, device: str) -> None:
        self.method = METHODS[method]
        self.x = torch.randn(batch, features, length, device=device, requires_grad=True)
        self.taps = torch.randn(features, length, device=device, requires_grad=True)

    def forward(self) -> None:
        with torch.no_grad():
            self.method(self.x, self.taps)

    def train(self) -> None:
        self.x.grad = self.taps.grad = None
        y = self.method(self.x, self.taps)
        y.backward(y.detach())


def training(*arguments: object) -> object:
    """For `peak_memory`."""
    return Pass(*arguments).train


def measure(batch: int, features: int, length: int, rounds: int, device: str) -> dict[str, object]:
    passes = {name: Pass(name, batch, features, length, device) for name in METHODS}
    forward = medians({name: one.forward for name, one in passes.items()}, rounds, device)
    both = medians({name: one.train for name, one in passes.items()}, rounds, device)
    del passes
    row: dict[str, object] = {'length': length, 'features': features, 'forward ms': 1000 * forward['ours']}
    row['forward ratio'] = forward['plain'] / forward['ours']
    row |= {'training ms': 1000 * both['ours'], 'training ratio': both['plain'] / both['ours']}
    if device == 'cpu':
        memory = {name: peak_memory(training, name, batch, features, length, device) for name in METHODS}
        row |= {'peak GB': memory['ours'], 'memory ratio': memory['plain'] / memory['ours']}
    return row


def picture(rows: list[dict]) -> Figure:
    figure = pictures.figure(4)
    axis = figure.subplots()
    lengths = [row['length'] for row in rows]
    for name, marker in (('forward', 'o'), ('training', 's'), ('memory', '^')):
        if f'{name} ratio' in rows[0]:
            axis.plot(lengths, [row[f'{name} ratio'] for row in rows], f'{marker}-', label=name)
    axis.axhline(1, color=pictures.ink(), linewidth=0.8)
    axis.set(xscale='log', xlabel='length', ylabel='plain FFT / ours (above 1: ours is better)')
    pictures.legend(figure, [axis])
    return figure


if __name__ == '__main__':
    defaults = {'batch': '4', 'features': '128', 'longest': '1048576', 'threads': '2', 'device': 'cpu', 'rounds': '5'}
    chosen = options(defaults | {'out': 'out/longconv'})
    measured = setup(chosen['threads'], chosen['device']) + f', batch {chosen["batch"]}'
    found, length = [], 1024
    while length <= int(chosen['longest']):
        # The plain way needs some 60 bytes per sample: at most 2^25 samples keep it within 2 GB.
        features = min(int(chosen['features']), 2**25 // (int(chosen['batch']) * length))
        rounds = max(2, int(chosen['rounds']) if length <= 65536 else 2)
        found.append(measure(int(chosen['batch']), features, length, rounds, chosen['device']))
        print(table(found).splitlines()[-1] if len(found) > 1 else table(found), flush=True)
        length *= 4
    print(f'\n{table(found)}')
    save(chosen['out'], 'longconv', measured, found, lambda: picture(found))
