"""How well is a pendulum followed on frames at irregular times? S5 with dt, against a GRU that is given dt.

    python benchmarks/pendulum.py [out=docs/pictures] [seeds=0,1,2] [updates=800] [systems=NAME;NAME]

The task of the S5 paper (arXiv 2208.04933, section 6.3), made by us: a pendulum of 1 m with friction and a random
torque is filmed for 6 s on a grid of 0.1 s, in 24 × 24 pixels under noise that comes and goes. Half of the frames are
missing, others in each clip. From each frame that is there, and those before it, sine and cosine of the angle are told.
Small-scale: 3,000 clips. Prints the mean squared error on 200 other clips, of all frames and of those after the tenth
(before, there may have been nothing but noise), and draws pendulum.png. Both are written after each system, so that a
run can be stopped.
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import options, save, setup, table
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from s4nd import param_groups, pictures
from s4nd.models.sequence import SequenceModel
from s4nd.resolution import time_steps

STEPS, KEPT, SPACING, SIDE, FEATURES = 60, 30, 0.1, 24, 24
TRAIN, TEST, BATCH, EARLY = 3000, 200, 30, 10


class Film(NamedTuple):
    """Frames (B, L, SIDE²), their times in grid steps (B, L), and sine and cosine of the angle (B, L, 2)."""

    frames: Tensor
    times: Tensor
    target: Tensor


def swing(clips: int, random: torch.Generator) -> Tensor:
    """Angles (B, STEPS) of θ'' = -9.81 sin θ - 0.25 θ' + torque, by a hundred small steps per second."""
    angle = (2 * torch.rand(clips, generator=random) - 1) * math.pi
    speed, found, small = torch.zeros(clips), [], SPACING / 10
    for _ in range(STEPS):
        found.append(angle)
        for _ in range(10):
            torque = 2.0 * torch.randn(clips, generator=random)
            speed = speed + small * (-9.81 * angle.sin() - 0.25 * speed) + small**0.5 * 0.2 * torque
            angle = angle + small * speed
    return torch.stack(found, 1)


def film(clips: int, seed: int) -> Film:
    """Draw the bob as a spot, let noise fade in and out, and keep KEPT frames of each clip."""
    random = torch.Generator().manual_seed(seed)
    angle = swing(clips, random)
    line = torch.arange(SIDE) - (SIDE - 1) / 2
    x, y = 8.5 * angle.sin()[..., None, None], 8.5 * angle.cos()[..., None, None]
    frames = torch.exp(-((line - x) ** 2 + (line[:, None] - y) ** 2) / (2 * 1.5**2))
    clear = torch.rand(clips, generator=random)
    for k in range(STEPS):
        noise = torch.rand(clips, SIDE, SIDE, generator=random)
        weight = ((clear - 0.2) / 0.6).clamp(0, 1)[:, None, None]
        frames[:, k] = weight * frames[:, k] + (1 - weight) * noise
        clear = (clear + 0.4 * (torch.rand(clips, generator=random) - 0.5)).clamp(0, 1)
    there = torch.rand(clips, STEPS, generator=random).argsort(1)[:, :KEPT].sort(1).values
    target = torch.stack([angle.sin(), angle.cos()], -1)
    rows = torch.arange(clips)[:, None]
    return Film((frames[rows, there].flatten(2) - 0.25) / 0.25, there.float(), target[rows, there])


class Follower(nn.Module):
    """A frame encoder, the same for all, and a model of sequences over its features: (B, L, SIDE²) -> (B, L, 2)."""

    def __init__(self, sequence: nn.Module, timed: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(SIDE**2, 64), nn.ReLU(), nn.Linear(64, FEATURES))
        self.sequence, self.timed = sequence, timed

    def forward(self, frames: Tensor, dt: Tensor) -> Tensor:
        features = self.encoder(frames)
        return self.sequence(features, dt=dt) if self.timed else self.sequence(features)


class Recurrent(nn.Module):
    """A GRU, and with dt its features beside dt: (B, L, FEATURES) -> (B, L, 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(FEATURES + 1, width, batch_first=True), nn.Linear(width, 2)

    def forward(self, x: Tensor, dt: Tensor | None = None) -> Tensor:
        dt = torch.ones_like(x[..., 0]) if dt is None else dt
        return self.head(self.gru(torch.cat([x, dt[..., None]], -1))[0])


def state_space() -> nn.Module:
    """Two blocks; timescales up to those of a swing in some twenty frames."""
    args = {'d_state': 16, 'dt_min': 0.01, 'dt_max': 0.5}
    return SequenceModel(FEATURES, 2, 's5', d_model=32, n_layers=2, layer_args=args)


SYSTEMS: Mapping[str, tuple[Callable[[], nn.Module], bool]] = {
    'S5, dt': (state_space, True),
    'GRU, dt as a feature': (partial(Recurrent, 48), True),
    'S5, no times': (state_space, False),
    'GRU, no times': (partial(Recurrent, 48), False),
}


def train(model: Follower, data: Film, updates: int, seed: int) -> None:
    """AdamW, lr 2e-3 (dt, A, B: 1e-3), cosine, no weight decay."""
    optimizer = torch.optim.AdamW(param_groups(model, 2e-3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    random, dt = torch.Generator().manual_seed(seed), time_steps(data.times)
    for _ in range(updates):
        rows = torch.randint(len(dt), (BATCH,), generator=random)
        loss = F.mse_loss(model(data.frames[rows], dt[rows]), data.target[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def draw(test: Film, followed: Mapping[str, Tensor]) -> Figure:
    """The clip of median error as those with times follow it; below, the error of each frame over all clips."""
    figure = pictures.figure(6.2)
    clip, frames = figure.subplots(2, 1)
    errors = {name: 1e3 * (y - test.target).square().mean(2) for name, y in followed.items()}  # (B, L)
    chosen = int(next(iter(errors.values())).mean(1).median(0).indices)
    seconds = test.times[chosen] * SPACING
    clip.plot(
        seconds, test.target[chosen, :, 0], 'o-', color=pictures.faint(), linewidth=5, markersize=9, label='truth'
    )
    for number, (name, y) in enumerate(followed.items()):
        color, timed = f'C{number % 2}', SYSTEMS[name][1]
        if timed:
            clip.plot(seconds, y[chosen, :, 0], '.-', color=color, linewidth=1.3)
        frames.semilogy(range(1, KEPT + 1), errors[name].mean(0), '-' if timed else '--', color=color, label=name)
    clip.set(xlabel='time (s); a point per frame that is there', ylabel='sin θ', title='The clip of median error')
    frames.set(xlabel='frame', ylabel='squared error (10⁻³)', title=f'Mean error over {len(test.times)} clips')
    frames.set_yticks(ticks := [20, 50, 100, 200], map(str, ticks))
    frames.minorticks_off()
    pictures.legend(figure, [clip, frames], columns=5)
    return figure


def main() -> None:
    """Train every system with every seed; a row is printed as soon as it is there."""
    given = options(
        {'out': 'docs/pictures', 'seeds': '0,1,2', 'updates': '800', 'threads': '1', 'systems': ';'.join(SYSTEMS)}
    )
    measured = setup(given['threads'], 'cpu')
    Path(given['out']).mkdir(parents=True, exist_ok=True)
    data, test = film(TRAIN, 0), film(TEST, 1)
    rows: list[dict[str, Any]] = []
    followed: dict[str, Tensor] = {}
    for seed in map(int, given['seeds'].split(',')):
        for name in given['systems'].split(';'):
            torch.manual_seed(seed)
            make, timed = SYSTEMS[name]
            model = Follower(make(), timed)
            start = time.process_time()
            train(model, data, int(given['updates']), seed)
            spent = time.process_time() - start
            with torch.no_grad():
                y = model.eval()(test.frames, time_steps(test.times))
            followed.setdefault(name, y)
            errors = 1e3 * (y - test.target).square().mean((0, 2))  # of each frame
            row = {'MSE ×10⁻³': float(errors.mean()), f'after frame {EARLY}': float(errors[EARLY:].mean())}
            count = sum(p.numel() for p in model.parameters())
            rows.append({'system': name, 'seed': seed, **row, 'parameters': count, 'CPU s': spent})
            save(given['out'], 'pendulum', measured, rows, lambda: draw(test, followed))
            print(table(rows), flush=True)


if __name__ == '__main__':
    main()
