"""How far does one S4ND layer drift when the same scene is sampled more densely?

64 random channels (S4D-Lin, N = 64, dt log-uniform in [0.1, 1]) over smooth random signals, each a sum of 6 cosines of
up to `cycles` across the axis. The layer runs at two sizes; the finer output is averaged to the coarser grid, and the
relative difference ‖coarse - fine‖ / ‖coarse‖ is taken over
the middle half of the axis, in float64, as the mean of 8 draws.
Signals are sampled at cell centers ('point') or averaged over cells ('area', as images are).

Averaging two fine outputs damps the finest waves by itself (3 % at 5 cycles of 64), which counts against
'training cells'.

    python benchmarks/resolution_drift.py [out=out/drift]

Prints the table and writes resolution_drift.json and resolution_drift.png.
"""

import json
import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from s4nd import S4ND, pictures
from s4nd.files import write_atomically

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


# Column: keywords of the layer.
LAYERS = {
    'input cells': {'cell': 'input'},
    'training cells': {'cell': 'training'},
    'published offset': {'cell': 'published'},
}


def drift(low: int, high: int, cycles: float, bandlimit: float | None, sampling: str, layer: dict) -> list[float]:
    """Relative difference of the outputs at two sizes, one number per draw."""
    found = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        ssm = S4ND(64, (low,), bandlimit=bandlimit, skip=False, dtype=torch.float64, **layer)
        with torch.no_grad():
            coarse = ssm(signal(seed, low, cycles, sampling))
            fine = ssm(signal(seed, high, cycles, sampling)).unflatten(2, (low, high // low)).mean(-1)
        inside = slice(low // 4, low - low // 4)
        found.append(((coarse - fine)[..., inside].norm() / coarse[..., inside].norm()).item())
    return found


def main(out: Path) -> None:
    rows = []
    print(f'{"sizes":>7} {"cycles":>6} {"sampling":>8} {"bandlimit":>9}' + ''.join(f'{name:>24}' for name in LAYERS))
    for low, high, cycles in SETTINGS:
        for sampling in ('point', 'area'):
            for bandlimit in BANDLIMITS:
                found = {name: drift(low, high, cycles, bandlimit, sampling, layer) for name, layer in LAYERS.items()}
                setting = {'low': low, 'high': high, 'cycles': cycles, 'sampling': sampling, 'bandlimit': bandlimit}
                rows.append(setting | {name: sum(values) / DRAWS for name, values in found.items()} | {'draws': found})
                print(
                    f'{low:>3}->{high:<2} {cycles:>6} {sampling:>8} {bandlimit or "off":>9}'
                    + ''.join(f'{sum(v) / DRAWS:>9.2%} ({min(v):.2%}-{max(v):.2%})'.rjust(24) for v in found.values())
                )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(
        out / 'resolution_drift.json', lambda path: path.write_text(json.dumps(rows, indent=1), encoding='utf-8')
    )
    pictures.write(out / 'resolution_drift.png', lambda: picture(rows), dark=True)
    print(f'\nwritten to {out}')


def picture(rows: list[dict]) -> Figure:
    """Bars for each kind of layer, one panel for each setting, point samples."""
    figure = pictures.figure(6.5)
    axes = figure.subplots(len(SETTINGS), 1)
    for axis, (low, high, cycles) in zip(axes, SETTINGS, strict=True):
        chosen = [r for r in rows if (r['low'], r['high'], r['cycles'], r['sampling']) == (low, high, cycles, 'point')]
        for shift, name in zip((-0.28, 0.0, 0.28), LAYERS, strict=True):
            bars = axis.bar([i + shift for i in range(len(chosen))], [100 * r[name] for r in chosen], 0.27, label=name)
            axis.bar_label(bars, fmt='%.1f', fontsize=9)
        axis.set_xticks(range(len(chosen)), [f'α = {r["bandlimit"]}' if r['bandlimit'] else 'no limit' for r in chosen])
        axis.margins(y=0.12)
        axis.set_ylabel('difference (%)')
        axis.set_title(f'{low} → {high} samples, up to {cycles} cycles')
    pictures.legend(figure, axes)
    return figure


if __name__ == '__main__':
    options = dict(argument.split('=', 1) for argument in sys.argv[1:])
    unknown = set(options) - {'out'}
    if unknown:
        sys.exit(f'unknown option {sorted(unknown)}: expected out=FOLDER')
    main(Path(options.get('out', 'out/drift')))
