"""Procedural scenes: continuous pictures of ten classes, sampled at any resolution as area averages.

A scene is a handful of numbers (pose, frequency, phase, colors); its picture is a function of the plane. Rendering
averages that function over every pixel, on a grid of sample points that is the same for all sizes dividing 128: the
picture at 16 is exactly the area average of the picture at 64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from s4nd.data.images.resize import to_bytes
from s4nd.resolution import Size, parse_size

__all__ = ['CLASSES', 'ShapeSet']

CLASSES = (
    'bars', 'fine bars', 'posts', 'fine posts', 'slopes', 'checks', 'rings', 'spiral', 'disc', 'cross',
)  # fmt: skip

_POINTS = 128  # sample points a side, rounded up to a multiple of the size asked for
_CHUNK = 64  # scenes rendered at once
_FREQUENCY = {  # cycles across the picture, lowest and highest
    'bars': (1.2, 1.8), 'fine bars': (2.6, 3.4), 'posts': (1.2, 1.8), 'fine posts': (2.6, 3.4), 'slopes': (1.5, 3.0),
    'checks': (1.2, 1.9), 'rings': (1.8, 2.8), 'spiral': (1.2, 2.0), 'disc': (0.0, 0.0), 'cross': (0.0, 0.0),
}  # fmt: skip
_TURN = {'slopes': math.pi / 4, 'posts': math.pi / 2, 'fine posts': math.pi / 2}
_JITTER = 0.22  # radians to either side


@dataclass(frozen=True)
class ShapeSet:
    """Scenes drawn from one seed; `at(size)` renders them."""

    labels: Tensor  # (N,)
    pose: Tensor  # (N, 6): center y, x; angle; frequency; phase; scale
    colors: Tensor  # (N, 2, 3): ground and figure
    waves: Tensor  # (N, 3, 5): clutter of slow waves: frequency y, x, phase, amplitude, color channel
    classes: tuple[str, ...] = CLASSES
    skipped: tuple[str, ...] = ()
    channels: int = 3
    native_size: None = None

    @classmethod
    def draw(cls, count: int, seed: int) -> ShapeSet:
        """`count` scenes, the classes in turn; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(*shape, generator=generator)

        labels = torch.arange(count) % len(CLASSES)
        ranges = torch.tensor([_FREQUENCY[name] for name in CLASSES])[labels]
        turn = torch.tensor([_TURN.get(name, 0.0) for name in CLASSES])[labels]
        sign = torch.where((torch.rand(count, generator=generator) < 0.5) & (labels == CLASSES.index('slopes')), -1, 1)
        mix = torch.rand(count, generator=generator)
        pose = torch.stack(
            [
                uniform(0.3, 0.7, count),
                uniform(0.3, 0.7, count),
                turn * sign + uniform(-_JITTER, _JITTER, count),
                ranges[:, 0] + mix * (ranges[:, 1] - ranges[:, 0]),
                uniform(0, 2 * math.pi, count),
                uniform(0.16, 0.30, count),
            ],
            dim=1,
        )
        ground = uniform(0.1, 0.9, count, 3)
        # The figure differs from the ground by a step of one length in a random direction, so all are visible; both
        # stay so far from 0 and 1 that the clutter is never clipped, and averages stay exact.
        step = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1) * 0.45
        figure = torch.where((ground + step - 0.5).abs() <= 0.4, ground + step, ground - step).clamp(0.1, 0.9)
        colors = torch.stack([ground, figure], 1)
        waves = torch.cat(
            [
                uniform(-2.5, 2.5, count, 3, 2),
                uniform(0, 2 * math.pi, count, 3, 1),
                uniform(0.02, 0.10, count, 3, 1),
                torch.arange(3.0).expand(count, 3)[..., None],
            ],
            dim=2,
        )
        return cls(labels, pose, colors, waves)

    def select(self, indices: Tensor) -> ShapeSet:
        parts = {name: getattr(self, name)[indices] for name in ('labels', 'pose', 'colors', 'waves')}
        return replace(self, **parts)

    def at(self, size: int | Size) -> Tensor:
        """Bytes (N, 3, height, width): the mean of each scene over each pixel."""
        size = parse_size(size)
        return to_bytes(torch.cat([self._render(start, size) for start in range(0, len(self.labels), _CHUNK)]))

    def _render(self, start: int, size: Size) -> Tensor:
        window = slice(start, start + _CHUNK)
        counts = [-(-_POINTS // side) for side in size]  # sample points across a pixel
        lines = [(torch.arange(side * n) + 0.5) / (side * n) for side, n in zip(size, counts, strict=True)]
        figure = torch.empty(len(self.labels[window]), *size)
        for label in self.labels[window].unique().tolist():
            chosen = self.labels[window] == label
            value = _figure(CLASSES[label], self.pose[window][chosen], *lines)
            figure[chosen] = torch.nn.functional.avg_pool2d(value, counts)
        ground, color = self.colors[window].unbind(1)
        picture = ground[:, :, None, None] + (color - ground)[:, :, None, None] * figure[:, None]
        return picture + self._clutter(window, size)

    def _clutter(self, window: slice, size: Size) -> Tensor:
        """Slow plane waves, one a color channel; their mean over a pixel has a closed form."""
        across, down = self.waves[window, :, 1], self.waves[window, :, 0]
        rows, columns = ((torch.arange(side) + 0.5) / side for side in size)
        angle = 2 * math.pi * (down[..., None, None] * rows[:, None] + across[..., None, None] * columns)
        mean = torch.sinc(down / size[0]) * torch.sinc(across / size[1]) * self.waves[window, :, 3]
        return mean[..., None, None] * torch.sin(angle + self.waves[window, :, 2, None, None])


def _figure(name: str, pose: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """How much of the figure's color stands at each point: (B, rows, columns) in 0…1, with soft edges."""
    center_y, center_x, angle, frequency, phase, scale = (value[:, None, None] for value in pose.unbind(1))
    down, across = rows[:, None] - center_y, columns[None, :] - center_x
    y, x = down * angle.cos() + across * angle.sin(), across * angle.cos() - down * angle.sin()
    if name in ('bars', 'fine bars', 'posts', 'fine posts', 'slopes'):
        return _stripes(y * frequency, phase)
    if name == 'checks':
        wave = torch.sin(2 * math.pi * frequency * y + phase) * torch.sin(2 * math.pi * frequency * x + phase)
        return torch.sigmoid(5 * wave)
    radius = torch.sqrt(x * x + y * y + 1e-6)
    if name == 'rings':
        return _stripes(radius * frequency, phase)
    if name == 'spiral':
        return _stripes(radius * frequency + torch.atan2(y, x) / (2 * math.pi), phase)
    if name == 'disc':
        return torch.sigmoid((scale - radius) / 0.02)
    arm = torch.minimum(x.abs(), y.abs()) - 0.35 * scale
    return torch.sigmoid(-torch.maximum(arm, torch.maximum(x.abs(), y.abs()) - 1.4 * scale) / 0.02)


def _stripes(cycles: Tensor, phase: Tensor) -> Tensor:
    return torch.sigmoid(4 * torch.sin(2 * math.pi * cycles + phase))
