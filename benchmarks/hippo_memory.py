"""What does a HiPPO memory hold? One picture: a signal, and what each measure reconstructs from its N numbers.

    python benchmarks/hippo_memory.py [out=docs/pictures] [d_state=64]

The signal is smooth noise of 2,000 samples (seed 0). LegS remembers all of it, at a resolution that falls with time;
LegT and FouT a window of 800 samples; LagT a past that fades over 20 samples. Writes hippo_memory.png and prints the
relative error over the last 800 samples.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

from s4nd import hippo
from s4nd.files import write_atomically

mpl.use('Agg')
import matplotlib.pyplot as plt

SAMPLES, WINDOW, FADE = 2000, 800, 20
WINDOWS = {'legs': None, 'legt': float(WINDOW), 'fout': float(WINDOW), 'lagt': float(FADE)}
TITLES = {
    'legs': 'LegS: everything so far',
    'legt': f'LegT: the last {WINDOW} samples',
    'fout': f'FouT: the last {WINDOW} samples',
    'lagt': f'LagT: fading over {FADE} samples',
}


def signal() -> Tensor:
    """Noise below 16 cycles in all, of unit variance: (SAMPLES,)."""
    noise = torch.fft.rfft(torch.randn(SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    noise[16:] = 0
    u = torch.fft.irfft(noise, SAMPLES)
    return u / u.std()


def reconstruct(u: Tensor, measure: str, d_state: int) -> Tensor:
    """The memory's idea of the past, at the middle of each sample that it speaks of, oldest first."""
    window = WINDOWS[measure]
    memory = hippo.Memory(measure, d_state, window)
    state = memory.init_state(1)
    for sample in u:
        state = memory.step(sample[None], state)
    ages = torch.arange(SAMPLES if measure == 'legs' else WINDOW) + 0.5
    return memory.reconstruct(state, ages / (window or SAMPLES))[0].flip(0)


def draw(d_state: int, path: Path) -> None:
    """A panel for each measure: the signal in gray, the reconstruction over it."""
    u = signal()
    figure, axes = plt.subplots(4, 1, figsize=(9, 7), sharex=True, sharey=True, layout='constrained')
    for axis, (measure, title) in zip(axes, TITLES.items(), strict=True):
        found = reconstruct(u, measure, d_state)
        error = (found[-WINDOW:] - u[-WINDOW:]).norm() / u[-WINDOW:].norm()
        axis.plot(u, color='0.7', linewidth=3)
        axis.plot(range(SAMPLES - len(found), SAMPLES), found, color='tab:red', linewidth=1)
        axis.set_ylim(-4, 4)
        axis.set_title(f'{title} (error over the last {WINDOW}: {100 * error:.2g} %)', fontsize=10, loc='left')
        print(f'{measure}: relative error over the last {WINDOW} samples {error:.2g}')
    axes[-1].set_xlabel(f'sample; the present is at the right, each memory is {d_state} numbers')
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100))
    print(f'written to {path}')


if __name__ == '__main__':
    options = dict(argument.split('=', 1) for argument in sys.argv[1:])
    unknown = set(options) - {'out', 'd_state'}
    if unknown:
        sys.exit(f'unknown option {sorted(unknown)}: expected out=FOLDER or d_state=N')
    draw(int(options.get('d_state', 64)), Path(options.get('out', 'docs/pictures')) / 'hippo_memory.png')
