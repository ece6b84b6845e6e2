"""What does a HiPPO memory hold? One picture: a signal, and what each measure reconstructs from its N numbers.

    python benchmarks/hippo_memory.py [out=docs/pictures] [d_state=64]

The signal is smooth noise of 2,000 samples (seed 0). LegS remembers all of it, at a resolution that falls with time;
LegT and FouT a window of 800 samples; LagT a past that fades over 20 samples. Writes hippo_memory.png and prints the
relative error over the last 800 samples.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from s4nd import hippo, pictures

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
    """The past as the memory reconstructs it, at the middle of each sample, oldest first."""
    window = WINDOWS[measure]
    memory = hippo.Memory(measure, d_state, window)
    state = memory.init_state(1)
    for sample in u:
        state = memory.step(sample[None], state)
    ages = torch.arange(SAMPLES if measure == 'legs' else WINDOW) + 0.5
    return memory.reconstruct(state, ages / (window or SAMPLES))[0].flip(0)


def draw(u: Tensor, memories: dict[str, Tensor], d_state: int) -> Figure:
    """A panel for each measure: the signal in gray, the reconstruction over it."""
    figure = pictures.figure(6.4)
    axes = figure.subplots(4, 1, sharex=True, sharey=True)
    for axis, (measure, found) in zip(axes, memories.items(), strict=True):
        axis.plot(u, color=pictures.faint(), linewidth=5, label='signal')
        axis.plot(range(SAMPLES - len(found), SAMPLES), found, color='C1', linewidth=1.2, label='reconstructed')
        axis.set_ylim(-3, 3)
        axis.margins(x=0.01)
        axis.set_ylabel('value')
        axis.set_title(f'{TITLES[measure]} (error over the last {WINDOW}: {100 * error(u, found):.2g} %)')
    pictures.legend(figure, axes)
    axes[-1].set_xlabel(f'sample; the present is at the right, each memory is {d_state} numbers')
    return figure


def error(u: Tensor, found: Tensor) -> float:
    """Relative error over the last WINDOW samples."""
    return float((found[-WINDOW:] - u[-WINDOW:]).norm() / u[-WINDOW:].norm())


def main(d_state: int, path: Path) -> None:
    u = signal()
    memories = {measure: reconstruct(u, measure, d_state) for measure in TITLES}
    for measure, found in memories.items():
        print(f'{measure}: relative error over the last {WINDOW} samples {error(u, found):.2g}')
    print(*pictures.write(path, lambda: draw(u, memories, d_state), dark=True))


if __name__ == '__main__':
    options = dict(argument.split('=', 1) for argument in sys.argv[1:])
    unknown = set(options) - {'out', 'd_state'}
    if unknown:
        sys.exit(f'unknown option {sorted(unknown)}: expected out=FOLDER or d_state=N')
    main(int(options.get('d_state', 64)), Path(options.get('out', 'docs/pictures')) / 'hippo_memory.png')
