"""The guided tour's pictures and figures: three views of one small SSM (docs/tour.md), every claim computed.

    python benchmarks/tour.py [out=docs/pictures]

Writes tour_views.png, tour_step.png, tour_sides.png and tour_axes.png, and prints the largest difference behind each
claim. All in float64, seed 0; a few seconds.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from s4nd import S4, S4ND, pictures
from s4nd.kernels import S4DKernel

LENGTH, FINE = 64, 32  # samples of the tour's signal; Runge-Kutta steps per sample


def example(layer: type[S4 | S4ND] = S4, **options: object) -> S4 | S4ND:
    """One feature, a state of four numbers (two complex ones), a tenth of a unit of time per sample."""
    torch.manual_seed(0)
    return (
        layer(1, kernel='s4d', d_state=4, dt_min=0.1, dt_max=0.1, skip=False, **options).double().requires_grad_(False)
    )


def system(kernel: S4DKernel, side: int = 0) -> tuple[float, Tensor, Tensor, Tensor]:
    """dt, and A, B, C of the first feature: (2,) complex each; side 1 is the backward kernel of a two-sided layer."""
    A = torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag)[0]
    B, C = torch.view_as_complex(kernel.B)[0], torch.view_as_complex(kernel.C)[side, 0]
    return float(kernel.log_dt.exp()[0, 0]), A, B, C


def signal() -> Tensor:
    """A bump and a step: (LENGTH,)."""
    u = torch.zeros(LENGTH, dtype=torch.float64)
    u[4:12], u[28:48] = torch.linspace(0.5, 2, 8, dtype=torch.float64), 1.0
    return u


def solve(kernel: S4DKernel, u: Tensor) -> tuple[Tensor, Tensor]:
    """The ODE x' = A x + B u by the method of Runge and Kutta, the input held over each sample.

    States (FINE·L, 2) and outputs (FINE·L,) after every fine step.
    """
    dt, A, B, C = system(kernel)
    x, states = torch.zeros_like(A), []
    for value in u.repeat_interleave(FINE):
        k1 = A * x + B * value
        k2 = A * (x + dt / FINE / 2 * k1) + B * value
        k3 = A * (x + dt / FINE / 2 * k2) + B * value
        k4 = A * (x + dt / FINE * k3) + B * value
        x = x + dt / FINE / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(x)
    states = torch.stack(states)
    return states, 2 * (states @ C).real


def recur(kernel: S4DKernel, u: Tensor) -> tuple[Tensor, Tensor]:
    """x_k = Ā x_{k-1} + B̄ u_k, Ā = e^{A dt}, B̄ = (Ā - 1)/A · B: states (L, 2) and outputs (L,)."""
    dt, A, B, C = system(kernel)
    A_bar = torch.exp(A * dt)
    B_bar = (A_bar - 1) / A * B
    x, states = torch.zeros_like(A), []
    for value in u:
        x = A_bar * x + B_bar * value
        states.append(x)
    states = torch.stack(states)
    return states, 2 * (states @ C).real


def continuous_kernel(kernel: S4DKernel, times: Tensor, side: int = 0) -> Tensor:
    """k(t) = C e^{A t} B at `times`, in units of a sample: output a sample of input."""
    dt, A, B, C = system(kernel, side)
    return 2 * dt * (C * B * torch.exp(A * dt * times[:, None])).sum(-1).real


def area(kernel: S4DKernel, low: Tensor, high: Tensor) -> Tensor:
    """∫ k(t) dt from each of `low` to each of `high`, by Gauss's rule with 8 points."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(8))
    times = (low[:, None] + high[:, None]) / 2 + (high - low)[:, None] / 2 * nodes
    values = continuous_kernel(kernel, times.flatten()).view_as(times)
    return (values * weights).sum(-1) * (high - low) / 2


def convolve(u: Tensor, taps: Tensor, center: int = 0) -> Tensor:
    """y[t] = Σ_l taps[center + l] u[t - l], zero outside: all (L,) but the taps."""
    padded = F.pad(u, (len(taps) - 1 - center, center))
    return F.conv1d(padded[None, None], taps.flip(0)[None, None])[0, 0]


def bump(size: int, sharpness: float = 40.0) -> Tensor:
    """A smooth scene at the middles of `size` cells that fill [0, 1]."""
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.exp(-sharpness * (place - 0.4) ** 2)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def claims() -> dict[str, float]:
    """The largest difference between what the tour says is equal, or the size of what it says is small."""
    return {**view_claims(), **step_claims(), **side_claims(), **axis_claims()}


def view_claims() -> dict[str, float]:
    layer, u = example(), signal()
    kernel = layer.kernels[0]
    fine_states, fine = solve(kernel, u)
    states, outputs = recur(kernel, u)
    state, stepped = layer.init_state(1), []
    for value in u:
        y, state = layer.step(value.view(1, 1), state)
        stepped.append(y[0, 0])
    taps, lags = kernel(LENGTH)[0, 0], torch.arange(LENGTH, dtype=torch.float64)
    return {
        'the states of the recurrence lie on the curve': difference(states, fine_states[FINE - 1 :: FINE]),
        'its outputs lie on the curve': difference(outputs, fine[FINE - 1 :: FINE]),
        'layer.step is the recurrence': difference(torch.stack(stepped), outputs),
        'the convolution is the recurrence': difference(convolve(u, taps)[:LENGTH], outputs),
        'layer(u) is the convolution': difference(layer(u[None, None])[0, 0], convolve(u, taps)[:LENGTH]),
        'a tap is an area under k(t)': difference(taps, area(kernel, lags, lags + 1)),
    }


def step_claims() -> dict[str, float]:
    layer, u = example(), signal()
    kernel = layer.kernels[0]
    fine, taps, coarse = kernel(2 * LENGTH, 0.5)[0, 0], kernel(LENGTH)[0, 0], kernel(LENGTH // 2, 2.0)[0, 0]
    outputs = convolve(u.repeat_interleave(2), fine)[: 2 * LENGTH]
    return {
        'two taps at step 1/2 are one at step 1': difference(fine[::2] + fine[1::2], taps),
        'two taps at step 1 are one at step 2': difference(taps[::2] + taps[1::2], coarse),
        'the same input on a grid twice as fine': difference(outputs[1::2], layer(u[None, None])[0, 0]),
    }


def side_claims() -> dict[str, float]:
    layer = example(S4ND, grid=(LENGTH,))
    kernel, u = layer.kernels[0], signal()
    taps, center = layer.axis_taps(0, LENGTH, 1.0)
    lags = torch.arange(LENGTH, dtype=torch.float64)
    areas = area(kernel, (lags - 0.5).clamp(min=0), lags + 0.5)  # of the forward kernel
    mirrored = mirror(example(S4ND, grid=(LENGTH,)))
    x = u[None, None]
    return {
        'lag l is the area from l - 1/2 to l + 1/2': difference(taps[0, 0, center + 1 :], areas[1:]),
        'layer(u) is the two-sided convolution': difference(layer(x)[0, 0], convolve(u, taps[0, 0], center)),
        'equal sides commute with a mirror': difference(mirrored(x.flip(-1)), mirrored(x).flip(-1)),
    } | {f'{name}, three times as fine': value for name, value in drift().items()}


def mirror(layer: S4ND) -> S4ND:
    """The layer with its forward kernel on both sides."""
    layer.kernels[0].C[1] = layer.kernels[0].C[0]
    return layer


def drift() -> dict[str, float]:
    """Relative change of the output at the places that a grid three times as fine shares."""
    changes = {}
    for name, cell in (('centered taps', 'input'), ('taps that begin at 0 and -1', 'published')):
        layer = example(S4ND, grid=(LENGTH,), cell=cell)
        y, finer = (layer(bump(size)[None, None])[0, 0] for size in (LENGTH, 3 * LENGTH))
        changes[name] = float((finer[1::3] - y).norm() / y.norm())
    return changes


def axis_claims() -> dict[str, float]:
    layer = example(S4ND, grid=(32, 24))
    u = torch.outer(signal()[:32], signal()[:24].flip(0)) + torch.eye(32, 24, dtype=torch.float64)
    (rows, top), (columns, left) = (layer.axis_taps(axis, size, 1.0) for axis, size in enumerate((32, 24)))
    full = torch.outer(rows[0, 0], columns[0, 0])
    padded = F.pad(u, (len(columns[0, 0]) - 1 - left, left, len(rows[0, 0]) - 1 - top, top))
    y = F.conv2d(padded[None, None], full.flip(0, 1)[None, None])
    return {'two axes are one kernel, the outer product': difference(layer(u[None, None]), y)}


def draw_views() -> Figure:
    """The input, and the same output as a curve, as a walk and as a sum."""
    kernel, u = example().kernels[0], signal()
    time = (torch.arange(FINE * LENGTH) + 1) / FINE
    states, curve = solve(kernel, u)
    _, outputs = recur(kernel, u)
    ends = torch.arange(LENGTH) + 1
    figure = pictures.figure(8.5)
    axes = figure.subplots(4, 1, sharex=True)
    axes[0].stairs(u.numpy(), np.arange(LENGTH + 1), color=pictures.ink())
    axes[0].set_title('Input u: one number per sample, held until the next')
    axes[1].plot(time, states.real, color='C0', linewidth=1.2, label=['real part of state 1', 'real part of state 2'])
    axes[1].lines[1].set_linestyle('--')
    axes[1].plot(time, curve, color=pictures.faint(), linewidth=5, label='output of the ODE')
    axes[1].set_title('Continuous: x′ = A x + B u, solved as an ODE; the output is 2 Re(C x)')
    axes[2].plot(time, curve, color=pictures.faint(), linewidth=5)
    axes[2].plot(ends, outputs, '.', color='C1', markersize=5, label='one output per sample')
    axes[2].set_title('Recurrent: one step per sample')
    axes[3].plot(time, curve, color=pictures.faint(), linewidth=5)
    taps, answers = kernel(LENGTH)[0, 0], []
    for start, stop, color, name in ((4, 12, 'C0', 'the ramp'), (28, 48, 'C2', 'the block')):
        part = torch.zeros_like(u)
        part[start:stop] = u[start:stop]
        answers.append(convolve(part, taps)[:LENGTH])
        axes[3].plot(ends, answers[-1], '.', color=color, markersize=4, label=f'response to {name}')
    axes[3].plot(ends, sum(answers), '.', color='C1', markersize=5)
    axes[3].set_title('Convolutional: the separate responses to the ramp and the block, and their sum')
    axes[3].set_xlabel('time (samples)')
    for axis in axes:
        axis.set_ylabel('value')
    pictures.legend(figure, axes, columns=3)
    return figure


def draw_step() -> Figure:
    """The taps at three steps, as areas under one curve."""
    kernel = example().kernels[0]
    shown = 32
    time = torch.linspace(0, shown, 400, dtype=torch.float64)
    figure = pictures.figure(3)
    axes = figure.subplots(1, 3, sharey=True)
    for axis, step in zip(axes, (0.5, 1.0, 2.0), strict=True):
        count = round(shown / step)
        heights = (kernel(count, step)[0, 0] / step).numpy()
        axis.bar(
            np.arange(count) * step,
            heights,
            step,
            align='edge',
            color='C1',
            alpha=0.6,
            linewidth=0.6,
            edgecolor=pictures.ink(),
            label='taps',
        )
        axis.plot(
            time, continuous_kernel(kernel, time), color=pictures.ink(), linewidth=1.2, label='continuous kernel k(t)'
        )
        axis.set_title(f'step {step:g}: {count} taps')
        axis.set_xlabel('lag (training samples)')
    axes[0].set_ylabel('tap / step')
    pictures.legend(figure, axes)
    return figure


def draw_sides() -> Figure:
    """Centered taps, each over its cell, at step 1 and at step 1/3."""
    kernel = example(S4ND, grid=(LENGTH,)).kernels[0]
    shown = 12
    figure = pictures.figure(3)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, finer in zip(axes, (1, 3), strict=True):
        reach = shown * finer + finer // 2
        sides = kernel(reach + 1, 1 / finer, cells=True)[:, 0] * finer
        lags = np.arange(-reach, reach + 1) / finer
        heights = torch.cat([sides[1, 1:].flip(0), sides[0, :1] + sides[1, :1], sides[0, 1:]]).numpy()
        axis.bar(lags, heights, 1 / finer, color='C1', alpha=0.6, linewidth=0.6, edgecolor=pictures.ink(), label='taps')
        for side, sign in ((0, 1), (1, -1)):
            time = torch.linspace(0, shown + 0.5, 300, dtype=torch.float64)
            axis.plot(
                sign * time,
                continuous_kernel(kernel, time, side),
                color=pictures.ink(),
                linewidth=1.2,
                label='continuous kernel',
            )
        axis.set_title('training grid' if finer == 1 else 'three times as fine')
        axis.set_xlabel('lag (training samples)')
    axes[0].set_ylabel('tap / step')
    pictures.legend(figure, axes)
    return figure


def draw_axes() -> Figure:
    """Two axis kernels and their outer product."""
    layer = example(S4ND, grid=(64, 64))
    (rows, center), (columns, _) = (layer.axis_taps(axis, 64, 1.0) for axis in (0, 1))
    shown = slice(center - 20, center + 21)
    rows, columns = rows[0, 0, shown], columns[0, 0, shown]
    lags = torch.arange(-20, 21)
    figure = pictures.figure(5.4)
    axes = figure.subplots(2, 2, width_ratios=(1, 3), height_ratios=(3, 1), sharex='col', sharey='row')
    product = torch.outer(rows, columns).numpy()
    limit = np.abs(product).max()
    axes[0, 0].plot(rows, lags, color='C1')
    axes[0, 0].set(ylabel='lag down (pixels)', title='down')
    extent = (-20.5, 20.5, 20.5, -20.5)
    image = axes[0, 1].imshow(product, cmap=pictures.diverging(), vmin=-limit, vmax=limit, extent=extent, aspect='auto')
    axes[0, 1].set_title('the 2-D kernel: their outer product')
    figure.colorbar(image, ax=axes[0, 1], label='tap')
    axes[1, 1].plot(lags, columns, color='C1')
    axes[1, 1].set(xlabel='lag across (pixels)', title='across', ylabel='tap')
    axes[1, 0].axis('off')
    axes[0, 0].tick_params(labelbottom=True)
    axes[0, 0].set_xlabel('tap')
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    'tour_views': draw_views,
    'tour_step': draw_step,
    'tour_sides': draw_sides,
    'tour_axes': draw_axes,
}


def main(out: Path) -> None:
    for name, value in claims().items():
        print(f'{value:.0e}  {name}')
    for name, draw in PICTURES.items():
        pictures.write(out / f'{name}.png', draw, dark=True)
    print(f'pictures written to {out}')


if __name__ == '__main__':
    options = dict(argument.split('=', 1) for argument in sys.argv[1:])
    if set(options) - {'out'}:
        sys.exit(f'unknown option {sorted(set(options) - {"out"})}: expected out=FOLDER')
    main(Path(options.get('out', 'docs/pictures')))
