"""Moving Fashion-MNIST: an item moves over drifting clouds, and the class of a clip is the motion alone.

A clip is a function of continuous time and space. A frame is an instant, the middle of its time, and a pixel the mean
over its area, so another frame rate or size shows the same scene.

The pose (y, x, angle, log of the size) lives on a torus: what leaves at one side comes in at the other, and an item
that has grown to the largest size goes on from the smallest. It starts anywhere with equal probability and every motion
keeps it so: at any instant the pose is as likely as any other, whatever the class, and one frame tells nothing of the
motion. (A frame is an instant for the same reason: a blur would tell.)

Shapes: N clips, T frames, (H, W) pixels, P sample points a side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s4nd.data.clips.grid import ClipGrid
from s4nd.data.clips.options import VideoData
from s4nd.data.images.resize import to_bytes
from s4nd.resolution import Size
from s4nd.seeds import generator

__all__ = ['MOTIONS', 'MovingBatches', 'MovingSet']

MOTIONS = (
    'still', 'left', 'right', 'up', 'down', 'clockwise', 'anticlockwise', 'zoom in', 'zoom out', 'spin left',
    'spin right', 'bounce',
)  # fmt: skip

# Direction on the torus (down, right, clockwise turn, size) of the motions that go straight on.
_STRAIGHT = {
    'left': (0, -1, 0, 0), 'right': (0, 1, 0, 0), 'up': (-1, 0, 0, 0), 'down': (1, 0, 0, 0),
    'zoom in': (0, 0, 0, 1), 'zoom out': (0, 0, 0, -1), 'spin left': (0, 0, -1, 0), 'spin right': (0, 0, 1, 0),
}  # fmt: skip
_FLOW = torch.tensor([_STRAIGHT.get(name, (0, 0, 0, 0)) for name in MOTIONS], dtype=torch.float32)
_CIRCLE = torch.tensor([{'clockwise': 1.0, 'anticlockwise': -1.0}.get(name, 0.0) for name in MOTIONS])
_BOUNCE = torch.tensor([float(name == 'bounce') for name in MOTIONS])

# Lowest and highest; lengths are in sides of the picture, times in seconds, angles in turns.
_SPEED = torch.tensor([(0.25, 0.6), (0.25, 0.6), (0.2, 0.45), (0.25, 0.5)])  # size: of the range below, as a logarithm
_SIZES = (0.28, 0.62)
_RADIUS, _TURNS = (0.12, 0.25), (0.3, 0.6)  # of a circle; turns a second
_STROKE, _PERIOD = (0.2, 0.4), (1.5, 2.2)  # of a bounce: the way between its ends, there and back
_CONTRAST, _GROUND = (0.5, 0.7), 0.15
_WAVES, _CYCLES, _DRIFT = 8, 4.0, 1.0  # clouds: plane waves, up to so many cycles a side and a second

_POINTS = 64  # sample points a side, rounded up to a multiple of the size asked for
_CHUNK = 2**21  # sample points rendered at once
_DRAWS = 10 + 5 * _WAVES  # numbers that make a clip, each uniform in 0…1


@dataclass(frozen=True)
class MovingSet:
    """Clips number `indices` of a seed, the classes in turn; `at(grid)` renders them.

    items: bytes (M, 1, h, h) of which each clip shows one. A clip follows from seed, epoch and number alone.
    """

    items: Tensor
    indices: Tensor  # (N,)
    seed: int
    epoch: int = 0
    classes: tuple[str, ...] = MOTIONS
    skipped: tuple[str, ...] = ()
    channels: int = 1

    @classmethod
    def draw(cls, items: Tensor, count: int, seed: int) -> MovingSet:
        """The first `count` clips of a seed. Raises ValueError where `items` are not bytes (M, 1, h, h)."""
        if items.ndim != 4 or items.shape[1] != 1 or items.dtype != torch.uint8 or not len(items):
            raise ValueError(f'expected items as bytes (M, 1, h, h), got {items.dtype} of shape {tuple(items.shape)}')
        return cls(items, torch.arange(count), seed)

    @property
    def labels(self) -> Tensor:
        return self.indices % len(MOTIONS)

    def select(self, indices: Tensor) -> MovingSet:
        return replace(self, indices=self.indices[indices])

    def at(self, grid: ClipGrid) -> Tensor:
        """Bytes (N, 1, T, H, W)."""
        times, (height, width) = torch.tensor(grid.times()), grid.size
        chunk = max(1, _CHUNK // (len(times) * _points(height) * _points(width)))
        parts = torch.arange(len(self.indices)).split(chunk)
        return torch.cat([to_bytes(self.select(part)._render(times, grid.size)) for part in parts])

    def train_batches(self, data: VideoData, grid: ClipGrid, epoch: int) -> MovingBatches:
        """Whole batches (one smaller one if there is no other) of new clips for every epoch, in random order."""
        order = torch.randperm(len(self.indices), generator=generator(self.seed, epoch))
        count = min(data.batch_size, len(order))
        return MovingBatches(replace(self, epoch=epoch + 1), grid, order[: len(order) // count * count].split(count))

    def eval_batches(self, data: VideoData, grid: ClipGrid, batch_size: int) -> MovingBatches:
        """Every clip once, the same at every call."""
        return MovingBatches(self, grid, torch.arange(len(self.indices)).split(batch_size))

    def pose(self, times: Tensor) -> Tensor:
        """(N, T, 4): y, x, clockwise angle and log size at `times` (seconds), each as a share 0…1 of its circle."""
        return _pose(self.labels, self._draws(), times)

    def _draws(self) -> Tensor:
        """(N, draws) in 0…1."""
        rows = [np.random.default_rng((self.seed, self.epoch, index)).random(_DRAWS) for index in self.indices.tolist()]
        return torch.from_numpy(np.stack(rows)).float()

    def _render(self, times: Tensor, size: Size) -> Tensor:
        draws = self._draws()
        items = self.items[(draws[:, 0] * len(self.items)).long()].float() / 255
        figure = _figure(items, _pose(self.labels, draws, times), size)
        contrast = _between(draws[:, 1], _CONTRAST)[:, None, None, None]
        return (_GROUND + _clouds(draws[:, 10:], times, size) + contrast * figure)[:, None]


class MovingBatches:
    """(clips (B, 1, T, H, W) bytes, labels (B,)), rendered as they are asked for."""

    def __init__(self, clips: MovingSet, grid: ClipGrid, parts: Sequence[Tensor]) -> None:
        self.clips, self.grid, self.parts = clips, grid, parts

    def __len__(self) -> int:
        return len(self.parts)

    def shard(self, index: int, count: int) -> MovingBatches:
        """The share of process `index` of `count`."""
        return MovingBatches(self.clips, self.grid, self.parts[index::count])

    def skip(self, count: int) -> MovingBatches:
        """The same batches without the first `count`."""
        return MovingBatches(self.clips, self.grid, self.parts[count:])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.parts:
            clips = self.clips.select(part)
            yield clips.at(self.grid), clips.labels


def _between(share: Tensor, ends: tuple[float, float]) -> Tensor:
    return ends[0] + share * (ends[1] - ends[0])


def _points(side: int) -> int:
    return side * -(-_POINTS // side)


def _pose(labels: Tensor, draws: Tensor, times: Tensor) -> Tensor:
    start, speed = draws[:, None, 2:6], draws[:, 6, None]
    phase, reach, heading = draws[:, 7:10, None].unbind(1)
    flow = _FLOW[labels] * (_SPEED[:, 0] + speed * (_SPEED[:, 1] - _SPEED[:, 0]))
    pose = start + flow[:, None] * times[:, None]
    turn = 2 * math.pi * (phase + _CIRCLE[labels][:, None] * _between(speed, _TURNS) * times)
    circle = _CIRCLE[labels].abs()[:, None] * _between(reach, _RADIUS)
    # A triangle wave between 0 and 1: as long at each place, so that a uniform center stays uniform.
    swing = (2 * ((phase + times / _between(speed, _PERIOD)) % 1) - 1).abs()
    stroke = _BOUNCE[labels][:, None] * _between(reach, _STROKE) * swing
    heading = 2 * math.pi * heading
    pose[..., 0] += circle * turn.sin() + stroke * heading.sin()
    pose[..., 1] += circle * turn.cos() + stroke * heading.cos()
    return pose % 1


def _figure(items: Tensor, pose: Tensor, size: Size) -> Tensor:
    """Items (N, 1, h, h) at their poses (N, T, 4), averaged over the pixels: (N, T, H, W)."""
    count, frames = pose.shape[:2]
    y, x, angle, growth = pose[..., None].unbind(2)  # (N, T, 1)
    rows, columns = ((torch.arange(_points(side)) + 0.5) / _points(side) for side in size)
    # Offsets from the item the short way round the torus, in halves of its side.
    low, high = (math.log(bound / 2) for bound in _SIZES)
    half = torch.exp(_between(growth, (low, high)))
    down, right = ((line - center + 0.5) % 1 - 0.5 for line, center in ((rows, y), (columns, x)))
    down, right = down / half, right / half
    cosine, sine = torch.cos(2 * math.pi * angle), torch.sin(2 * math.pi * angle)
    across = (right * cosine)[..., None, :] + (down * sine)[..., None]  # (N, T, P, P)
    along = (down * cosine)[..., None] - (right * sine)[..., None, :]
    grid = torch.stack([across, along], -1).view(count, -1, len(columns), 2)
    seen = F.grid_sample(items, grid, align_corners=False).view(count, frames, len(rows), len(columns))
    return F.avg_pool2d(seen, (len(rows) // size[0], len(columns) // size[1]))


def _clouds(draws: Tensor, times: Tensor, size: Size) -> Tensor:
    """Plane waves drifting at their own speeds, between -_GROUND and _GROUND: (N, T, H, W)."""
    down, right, drift, phase, height = draws.unflatten(1, (5, _WAVES)).unbind(1)  # (N, waves)
    down, right, drift = (2 * down - 1) * _CYCLES, (2 * right - 1) * _CYCLES, (2 * drift - 1) * _DRIFT
    rows, columns = ((torch.arange(side) + 0.5) / side for side in size)
    # The mean of a wave over a pixel is the wave at its middle, smaller by two sincs.
    height = height / height.sum(1, keepdim=True) * _GROUND * torch.sinc(down / size[0]) * torch.sinc(right / size[1])
    wave_t = height[..., None] * _wave(drift, times) * _wave(phase, torch.ones(1))
    return torch.einsum('nkt,nky,nkx->ntyx', wave_t, _wave(down, rows), _wave(right, columns)).imag


def _wave(cycles: Tensor, line: Tensor) -> Tensor:
    """(N, waves) cycles a unit, along a line -> (N, waves, length), complex."""
    return torch.exp(2j * math.pi * cycles[..., None] * line)
