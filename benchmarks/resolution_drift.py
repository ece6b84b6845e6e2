"""How far does one S4ND layer drift when the same scene is sampled more densely?

64 random channels (S4D-Lin, N = 64, dt log-uniform in [0.1, 1]) over smooth random signals, each a sum of 6 cosines of
up to `cycles` across the axis. The layer runs at two sizes; the finer output is averaged to the coarser grid, and the
relative difference ‖coarse - fine‖ / ‖coarse‖ is taken over
the middle half of the axis, in float64, as the mean of 8 draws.
Signals are sampled at cell centres ('point') or averaged over cells ('area', as images are).

    python benchmarks/resolution_drift.py [out=out/drift]

Prints the table and writes resolution_drift.json and resolution_drift.png.
"""

import json
import math
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

from s4nd import S4ND

mpl.use('Agg')
import matplotlib.pyplot as plt

DRAWS = 8
BANDLIMITS = (None, 1.0, 0.5, 0.2)
# low, high, cycles: 8 samples can hold at most 4 cycles; beyond that the signal itself is aliased.
SETTINGS = ((32, 64, 5), (8, 32, 4), (8, 32, 5))


def signal(seed: int, size: int, cycles: float, sampling: str) -> Tensor:
    """(1, 64, size), float64."""
    generator = torch.Generator().manual_seed(seed)
    frequency = cycles * torch.rand(64, 6, 1, generator=generator, dtype=torch.float64)
    amplitude = torch.randn(64, 6, 1, generator=generator, dtype=torch.float64)
    phase = torch.rand(64, 6, 1, generator=generator, dtype=torch.float64)
    if sampling == 'area':
        amplitude = amplitude * torch.sinc(frequency / size)
    time = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return (amplitude * torch.cos(2 * math.pi * (frequency * time + phase))).sum(1)[None]


def drift(low: int, high: int, cycles: float, bandlimit: float | None, centred: bool, sampling: str) -> list[float]:
    """Relative difference of the outputs at two sizes, one number a draw."""
    found = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        layer = S4ND(64, (low,), bandlimit=bandlimit, centred=centred, skip=False, dtype=torch.float64)
        with torch.no_grad():
            coarse = layer(signal(seed, low, cycles, sampling))
            fine = layer(signal(seed, high, cycles, sampling)).unflatten(2, (low, high // low)).mean(-1)
        inside = slice(low // 4, low - low // 4)
        found.append(((coarse - fine)[..., inside].norm() / coarse[..., inside].norm()).item())
    return found


def main(out: Path) -> None:
    rows = []
    heads = ('sizes', 'cycles', 'sampling', 'bandlimit', 'centred', '(range)', 'published offset')
    print('{:>8} {:>6} {:>8} {:>9} {:>8} {:>15} {:>17}'.format(*heads))
    for low, high, cycles in SETTINGS:
        for sampling in ('point', 'area'):
            for bandlimit in BANDLIMITS:
                centred = drift(low, high, cycles, bandlimit, True, sampling)
                offset = drift(low, high, cycles, bandlimit, False, sampling)
                row = {
                    'low': low,
                    'high': high,
                    'cycles': cycles,
                    'sampling': sampling,
                    'bandlimit': bandlimit,
                    'centred': sum(centred) / DRAWS,
                    'centred_min': min(centred),
                    'centred_max': max(centred),
                    'offset': sum(offset) / DRAWS,
                }
                rows.append(row)
                print(
                    f'{low:>3}->{high:<3} {cycles:>6} {sampling:>8} {bandlimit or "off":>9} {row["centred"]:>8.2%} '
                    f'{min(centred):>7.2%}-{max(centred):<7.2%} {row["offset"]:>16.2%}'
                )
    out.mkdir(parents=True, exist_ok=True)
    (out / 'resolution_drift.json').write_text(json.dumps({'draws': DRAWS, 'rows': rows}, indent=1))
    picture(rows, out / 'resolution_drift.png')
    print(f'\nwritten to {out}')


def picture(rows: list[dict], path: Path) -> None:
    """Bars, centred beside published offset, one panel for each setting."""
    figure, axes = plt.subplots(1, len(SETTINGS), figsize=(4 * len(SETTINGS), 3.2), layout='constrained')
    for axis, (low, high, cycles) in zip(axes, SETTINGS, strict=True):
        chosen = [r for r in rows if (r['low'], r['high'], r['cycles'], r['sampling']) == (low, high, cycles, 'point')]
        for shift, key, label in ((-0.2, 'centred', 'centred taps'), (0.2, 'offset', 'published offset')):
            bars = axis.bar([i + shift for i in range(len(chosen))], [100 * r[key] for r in chosen], 0.4, label=label)
            axis.bar_label(bars, fmt='%.1f', fontsize=8)
        axis.set_xticks(range(len(chosen)), [f'α = {r["bandlimit"]}' if r['bandlimit'] else 'no limit' for r in chosen])
        axis.set_title(f'{low} → {high} samples, up to {cycles} cycles', fontsize=10)
    axes[0].set_ylabel('output difference, %')
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == '__main__':
    options = dict(argument.split('=', 1) for argument in sys.argv[1:])
    unknown = set(options) - {'out'}
    if unknown:
        sys.exit(f'unknown option {sorted(unknown)}: expected out=FOLDER')
    main(Path(options.get('out', 'out/drift')))
