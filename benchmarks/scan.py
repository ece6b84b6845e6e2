"""How should a diagonal recurrence be scanned, and what does a layer that scans cost beside one that convolves?

    python benchmarks/scan.py [threads=2 device=cpu rounds=5 small=false out=out/scan]

Scans, forward: batch 4, 32 complex64 states. `tree` is s4nd.ops.diagonal_scan; `doubling` is what compilers see of it,
plain_diagonal_scan (Hillis and Steele, real arithmetic); `torch` is PyTorch's own associative_scan, eager, of pairs
(a, b); `loop` takes sample by sample, in place; `chunks` takes √L samples one by one in each of √L chunks at once, then
chunk by chunk. Layers, forward and backward: batch 4, 64 features, N = 64; S5, and S4 with the kernel s4d.
"""

import math

import torch
from common import medians, options, save, setup, table
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan

from s4nd import S4, S5
from s4nd.ops import diagonal_scan
from s4nd.ops.scan import plain_diagonal_scan


def loop(a: Tensor, b: Tensor) -> Tensor:
    x, a = b.clone(), a.to(b.dtype)
    for k in range(1, x.shape[-2]):
        x[..., k, :].addcmul_(x[..., k - 1, :], a)
    return x


def chunks(a: Tensor, b: Tensor) -> Tensor:
    """For lengths that are powers of 4."""
    x, root = b.clone(), math.isqrt(b.shape[-2])
    powers = a.expand(root, -1).cumprod(0).to(b.dtype)
    rows = x.unflatten(-2, (root, root))
    for k in range(1, root):
        rows[..., k, :].addcmul_(rows[..., k - 1, :], powers[0])
    for c in range(1, root):
        rows[..., c, :, :].addcmul_(rows[..., c - 1, -1:, :], powers)
    return x


def pairs(first: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return then[0] * first[0], then[0] * first[1] + then[1]


def measure(length: int, rounds: int, device: str) -> dict[str, object]:
    a = torch.polar(0.9 + 0.1 * torch.rand(32), 6 * torch.rand(32)).to(device, torch.complex128)
    b = torch.randn(4, length, 32, dtype=torch.complex64, device=device)
    parts = [t.contiguous() for t in (b.real, b.imag)]
    layers = {'S5': S5(64, d_state=64).to(device), 'S4': S4(64, kernel='s4d', d_state=64).to(device)}
    x = torch.randn(4, 64, length, device=device)
    seconds = medians(
        {
            'tree': lambda: diagonal_scan(a.real, a.imag, torch.view_as_real(b)),
            'chunks': lambda: chunks(a, b),
            'doubling': lambda: plain_diagonal_scan(a.real, a.imag, *parts),
            'torch': lambda: associative_scan(pairs, (a.to(b.dtype).expand_as(b), b), 1, combine_mode='generic'),
            'loop': lambda: loop(a, b),
            **{name: lambda layer=layer: layer(x).sum().backward() for name, layer in layers.items()},
        },
        rounds,
        device,
    )
    row: dict[str, object] = {'length': length}
    row |= {f'{name} ms': 1e3 * value for name, value in seconds.items()}
    return row | {'S5 / S4': seconds['S5'] / seconds['S4']}


if __name__ == '__main__':
    chosen = options({'threads': '2', 'device': 'cpu', 'rounds': '5', 'small': 'false', 'out': 'out/scan'})
    measured = setup(chosen['threads'], chosen['device'])
    lengths = (64, 256) if chosen['small'] == 'true' else (1024, 4096, 16384, 65536)
    rows = [measure(length, int(chosen['rounds']), chosen['device']) for length in lengths]
    print(table(rows))
    save(chosen['out'], 'scan', measured, rows)
